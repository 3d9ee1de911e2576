internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferCore

/// A connection to another engine on this host: its target page, its wake-up event and its regions' mappings.
final class SharedMemoryPeer: Sendable {
    let engine: EngineID
    let process: Int32
    let page: TargetPage
    let wakeFile: Int32
    /// Whether process_vm_writev into the peer is allowed.
    let mayWriteProcess: Bool
    private let pageMapping: SharedMapping

    /// A mapped memory file, used by all domains of the engine that attached to a region in it. A region that was revoked and
    /// granted anew is another region in the same file: mapping gigabytes takes about as long as filling them.
    struct Mapped {
        var mapping: SharedMapping
        var file: FileIdentity
        var users: Int
    }
    private struct State {
        var socket: Int32
        var mappings: [Mapped] = []
        /// Seats in the peer's page that no domain uses.
        var freeSeats: [UInt32] = []
    }
    private let state: Mutex<State>

    init(connectingTo engine: EngineID, from own: EngineID) throws(TransferError) {
        let socket = unsafe te_unix_connect(SharedMemoryHost.socketName(engine))
        guard socket >= 0 else {
            throw TransferError(
                .unreachable, "engine \(engine) is not on this host or has ended: \(errorText(-socket))")
        }
        var hello = ControlPacket(ControlPacket.Kind.hello)
        hello.engine = own.rawValue
        let answer = hello.send(to: socket) == 0 ? ControlPacket.receive(from: socket) : nil
        guard let (reply, files) = answer, files.count == 2 else {
            for file in (answer?.1 ?? []) + [socket] { Glibc.close(file) }
            throw TransferError(
                .unreachable, "engine \(engine) closed the connection; is it the same version?")
        }
        let mapping: SharedMapping
        do {
            mapping = try SharedMapping.map(
                file: files[0], byteCount: TargetPage.byteCount, isPopulated: false)
        } catch {
            for file in files + [socket] { Glibc.close(file) }
            throw error
        }
        self.engine = engine
        process = te_unix_peer_process(socket)
        pageMapping = mapping
        page = unsafe TargetPage(mapped: mapping.base)
        wakeFile = files[1]
        mayWriteProcess = Self.probe(process, reply.address)
        state = Mutex(State(socket: socket))
        guard page.isValid, page.engine == engine else {
            close()
            throw TransferError(.unreachable, "engine \(engine) has ended and another one answered for it")
        }
    }

    private static func probe(_ process: Int32, _ address: UInt64) -> Bool {
        var word: UInt64 = 0
        return unsafe withUnsafeMutablePointer(to: &word) {
            var source = te_range(base: UInt64(UInt(bitPattern: $0)), length: 8)
            var target = te_range(base: address, length: 8)
            return unsafe te_write_process(process, &source, &target, 1) == 8
        }
    }

    func close() {
        state.withLock {
            for mapped in $0.mappings { mapped.mapping.unmap() }
            $0.mappings = []
            if $0.socket >= 0 { Glibc.close($0.socket) }
            $0.socket = -1
        }
        Glibc.close(wakeFile)
        pageMapping.unmap()
    }

    /// Whether the peer's process has ended, or wants to hear no more. False while somebody is asking it something.
    var hasEnded: Bool {
        state.withLockIfAvailable { state in
            var socket = pollfd(fd: state.socket, events: 0, revents: 0)
            return unsafe poll(&socket, 1, 0) == 1 && socket.revents & Int16(POLLHUP) != 0
        } ?? false
    }

    // MARK: Requests

    private func ask(_ request: ControlPacket, _ state: inout State) throws(TransferError) -> (
        ControlPacket, [Int32]
    ) {
        guard request.send(to: state.socket) == 0,
            let (reply, files) = ControlPacket.receive(from: state.socket)
        else { throw TransferError(.peerLost, "engine \(engine) has ended") }
        guard reply.status == 0 else {
            for file in files { Glibc.close(file) }
            switch WorkStatus(rawValue: UInt8(truncatingIfNeeded: reply.status)) {
            case .staleRegion:
                throw TransferError(.staleRegion, "engine \(engine) has deregistered region \(request.index)")
            case .targetBusy:
                throw TransferError(
                    .limitReached, "engine \(engine) has \(Limits.writers) writers on this host already")
            case .accessDenied:
                throw TransferError(
                    .accessDenied, "engine \(engine) refuses writes into region \(request.index)")
            default:
                throw TransferError(.providerFailed, "engine \(engine) could not serve shared memory")
            }
        }
        return (reply, files)
    }

    /// Maps a region of the peer if it can be mapped.
    /// - Returns: the address of its first byte in this process, or nil; and its address in the peer.
    func attach(_ remote: RemoteRegion) throws(TransferError) -> (mapping: SharedMapping?, base: UInt64) {
        try state.withLock { state throws(TransferError) in
            var request = ControlPacket(ControlPacket.Kind.region)
            request.index = remote.index
            request.generation = remote.generation
            request.secret = remote.secret
            let (reply, files) = try ask(request, &state)
            defer { for file in files.dropFirst() { Glibc.close(file) } }
            guard reply.length >= remote.length, reply.length <= UInt64(Int.max) else {
                if let file = files.first { Glibc.close(file) }
                throw TransferError(
                    .outOfRange, "the descriptor claims more bytes than region \(remote.index) has")
            }
            guard let file = files.first else { return (nil, reply.address) }
            defer { Glibc.close(file) }
            let identity = FileIdentity(of: file)
            if let known = state.mappings.firstIndex(where: {
                $0.file == identity && $0.mapping.byteCount >= Int(reply.length)
            }) {
                state.mappings[known].users += 1
                return (state.mappings[known].mapping, reply.address)
            }
            let mapping = try SharedMapping.map(
                file: file, byteCount: Int(reply.length), isPopulated: reply.isPopulated != 0
            ).withoutFile
            state.mappings.append(Mapped(mapping: mapping, file: identity, users: 1))
            return (mapping, reply.address)
        }
    }

    /// Ends one `attach` of a region that is mapped at `address`.
    func detach(mappedAt address: UInt) {
        state.withLock { state in
            guard
                let known = state.mappings.firstIndex(where: {
                    UInt(bitPattern: unsafe $0.mapping.base) == address
                })
            else { return }
            state.mappings[known].users -= 1
            if state.mappings[known].users == 0 { state.mappings.remove(at: known).mapping.unmap() }
        }
    }

    /// A seat in the peer's page for one domain of ours; `giveBack` ends its use.
    func takeSeat() throws(TransferError) -> UInt32 {
        try state.withLock { state throws(TransferError) in
            if let free = state.freeSeats.popLast() { return free }
            let (reply, files) = try ask(ControlPacket(ControlPacket.Kind.seat), &state)
            for file in files { Glibc.close(file) }
            guard reply.index < Limits.writers else {
                throw TransferError(.providerFailed, "engine \(engine) named a seat that there is not")
            }
            return reply.index
        }
    }

    func giveBack(seat: UInt32) { state.withLock { $0.freeSeats.append(seat) } }

    /// Opens a ring into the peer's engine for one domain of ours.
    func openRing() throws(TransferError) -> SharedMapping {
        try state.withLock { state throws(TransferError) in
            let (_, files) = try ask(ControlPacket(ControlPacket.Kind.ring), &state)
            defer { for file in files.dropFirst() { Glibc.close(file) } }
            guard let file = files.first else {
                throw TransferError(.providerFailed, "engine \(engine) sent no ring")
            }
            do throws(TransferError) {
                return try SharedMapping.map(file: file, byteCount: ByteRing.byteCount, isPopulated: false)
            } catch {
                Glibc.close(file)
                throw error
            }
        }
    }
}
