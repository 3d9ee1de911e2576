internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
public import TransferCore

/// A NIC made of memory: the writer copies once and bumps the counter in the target's page; nothing runs at the target.
///
/// Three ways, chosen when a region is attached: memory that the engine allocated is mapped and copied into; memory of the
/// application is written with process_vm_writev; and where the system forbids that, the bytes go through a ring that the
/// target's engine empties.
public final class SharedMemoryDomain: FabricDomain {
    public let attributes: DomainAttributes
    public let address: [UInt8]

    let host: SharedMemoryHost
    private let options: SharedMemoryOptions
    /// Whether this domain empties the rings that peers opened into the engine. One domain of an engine does.
    private let isReceiver: Bool
    /// Peers by number. A table, so that nobody pays for their reference counts.
    let peers: Table<PeerState>
    private var peerIndex: [EngineID: Int] = [:]
    private let state = Cell(State())
    /// Source and target ranges of one process_vm_writev call.
    let ranges = Table(repeating: te_range(), count: 2 * Limits.requestsPerPost)

    static let peerCapacity = 4096
    /// A list of pages with at least so many bytes is copied past the cache: about what a core's second-level cache holds.
    static let streamingBytes = 1 << 20

    /// What `poll` changes.
    private struct State {
        var peerCount = 0
        var incoming: [IncomingRing] = []
        var knownRings = 0
        var seenDoorbell: UInt64 = .max
    }

    /// What the data path needs of a peer.
    struct PeerState: ~Copyable {
        let page: TargetPage
        var process: Int32 = 0
        var wakeFile: Int32 = -1
        /// Nil while the entry is free.
        var connection: SharedMemoryPeer?
        /// One ring, once it has been opened.
        var outgoing = Table<OutgoingRing>()
    }

    /// Opens a domain on `host`; the first one of an engine receives.
    public init(host: SharedMemoryHost, name: String, options: SharedMemoryOptions, isReceiver: Bool) {
        self.host = host
        self.options = options
        self.isReceiver = isReceiver
        attributes = DomainAttributes(
            provider: "shm", fabric: "shm", name: name, megabitsPerSecond: options.megabitsPerSecond,
            maximumWriteBytes: 1 << 40, countsMany: true)
        var writer = ByteWriter()
        writer.write(hostIdentity())
        writer.write(host.engine.rawValue)
        address = writer.bytes
        peers = Table(count: Self.peerCapacity) { _ in PeerState(page: host.page) }
    }

    public func close() {
        for index in 0..<state.value.peerCount {
            if peers[index].outgoing.count > 0 { peers[index].outgoing[0].mapping.unmap() }
            peers[index] = PeerState(page: host.page)
        }
        for ring in state.value.incoming { ring.mapping.unmap() }
        state.value = State()
    }

    // MARK: Registration

    public func register(_ region: LocalRegion) throws(TransferError) -> DomainKey {
        host.publish(region)
        return DomainKey(local: 0, remote: region.secret, base: UInt64(UInt(bitPattern: unsafe region.base)))
    }

    public func deregister(_ region: LocalRegion, key: DomainKey) { host.withdraw(region) }

    public func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey {
        guard remote.nics[nic].address.prefix(8).elementsEqual(address.prefix(8)) else {
            throw TransferError(.unreachable, "engine \(remote.engine) is on another host")
        }
        let (peer, connection) = try self.peer(remote.engine)
        var key = ImportedKey(remote: remote, nic: nic, peer: peer, maximumWriteBytes: 1 << 40)
        key.key = RegionSlot.state(generation: remote.generation, access: remote.access)
        let (mapping, base) = try connection.attach(remote)
        key.base = base
        if let mapping {
            key.mapping = UInt(bitPattern: unsafe mapping.base)
            key.mappedBytes = mapping.byteCount
            key.completesAtOnce = true
            return key
        }
        switch options.callerMemory {
        case .automatic where connection.process == getpid():
            key.mapping = UInt(base)
            key.completesAtOnce = true
        case .automatic where connection.mayWriteProcess, .processWrite where connection.mayWriteProcess:
            key.maximumWriteBytes = 1 << 30
            key.completesAtOnce = true
        case .processWrite:
            throw TransferError(
                .accessDenied,
                "the system forbids process_vm_writev into process \(connection.process); set kernel.yama.ptrace_scope to 0 "
                    + "or allow the bounce ring")
        case .automatic, .bounce:
            try openRing(peer)
            key.maximumWriteBytes = UInt64(ByteRing.recordBytes)
        }
        return key
    }

    public func releaseImport(_ key: ImportedKey) {
        guard key.mappedBytes > 0 else { return }
        peers[key.peer].connection?.detach(index: key.index, generation: key.generation)
    }

    private func peer(_ engine: EngineID) throws(TransferError) -> (Int, SharedMemoryPeer) {
        if let known = peerIndex[engine], let connection = peers[known].connection {
            return (known, connection)
        }
        let number = state.value.peerCount
        guard number < Self.peerCapacity else {
            throw TransferError(.limitReached, "more than \(Self.peerCapacity) peers on one host")
        }
        let connection = try host.peer(engine)
        peers[number] = PeerState(
            page: connection.page, process: connection.process, wakeFile: connection.wakeFile,
            connection: connection)
        peerIndex[engine] = number
        state.value.peerCount += 1
        return (number, connection)
    }

    func openRing(_ peer: Int) throws(TransferError) {
        guard peers[peer].outgoing.count == 0, let connection = peers[peer].connection else { return }
        let mapping = try connection.openRing()
        peers[peer].outgoing = Table(count: 1) { _ in OutgoingRing(mapping) }
    }

    // MARK: Progress

    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        let peer = unsafe target.pointee.peer
        guard (try? openRing(peer)) != nil, peers[peer].outgoing.count > 0 else {
            return PostResult(accepted: 0, isComplete: false, status: .peerLost)
        }
        let record = FrameRecord(messageOf: payload.count, from: host.engine.rawValue)
        guard unsafe peers[peer].outgoing[0].append(record, payload, context: context) else {
            return PostResult(accepted: 0, isComplete: false, status: .targetBusy)
        }
        ring(peer)
        return PostResult(accepted: 1, isComplete: false, status: .success)
    }

    /// Tells a peer that its rings hold something new.
    func ring(_ peer: Int) {
        peers[peer].page.signals.doorbell.wrappingAdd(1, ordering: .sequentiallyConsistent)
        wake(peer)
    }

    /// Wakes a peer that sleeps. Whoever calls has changed a counter or the doorbell with a sequentially consistent
    /// operation before; the sleeper announces itself before it looks at them for the last time.
    @inline(__always) func wake(_ peer: Int) {
        if peers[peer].page.signals.sleeping.load(ordering: .sequentiallyConsistent) != 0 {
            _ = te_event_signal(peers[peer].wakeFile)
        }
    }

    public func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        var count = 0
        for peer in 0..<state.value.peerCount {
            guard peers[peer].outgoing.count > 0 else { continue }
            unsafe peers[peer].outgoing[0].collect(into: completions, &count)
        }
        if isReceiver { unsafe drain(completions, &count) }
        return count
    }

    /// Empties the rings of peers: carries out writes, returns messages.
    private func drain(_ completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int) {
        let doorbell = host.page.signals.doorbell.load(ordering: .acquiring)  // pairs with ring(_:)
        guard doorbell != state.value.seenDoorbell else { return }
        // pairs with the add in SharedMemoryHost.answerRing
        if host.ringCount.load(ordering: .acquiring) != state.value.knownRings {
            for mapping in host.takeNewRings() {
                state.value.incoming.append(IncomingRing(mapping))
                state.value.knownRings += 1
            }
        }
        var isEmpty = true
        for index in state.value.incoming.indices {
            unsafe state.value.incoming[index].drain(into: completions, &count, page: host.page)
            isEmpty = isEmpty && state.value.incoming[index].isEmpty
        }
        // With everything drained the doorbell decides again; otherwise the next poll goes on.
        state.value.seenDoorbell = isEmpty ? doorbell : .max
    }

    public func prepareToSleep() -> Bool {
        for peer in 0..<state.value.peerCount {
            if peers[peer].outgoing.count > 0, !peers[peer].outgoing[0].isEmpty { return false }
        }
        return !isReceiver
            || host.page.signals.doorbell.load(ordering: .sequentiallyConsistent) == state.value.seenDoorbell
    }

    public var wakeDescriptor: Int32 { -1 }
}
