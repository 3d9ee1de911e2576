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

    /// What `poll` changes.
    private struct State {
        var peerCount = 0
        var incoming: [IncomingRing] = []
        var knownChanges = 0
        var hasEndedRings = false
        /// Entries below `peerCount` that nobody uses.
        var freePeers: [Int] = []
        /// Contexts of what was in the rings of peers that were let go.
        var orphans: [UInt64] = []
        var seenDoorbell: UInt64 = .max
        /// Since when something waits in the rings of peers that have read nothing; 0 before somebody asked.
        var waitingSince: UInt64 = 0
        var pollDue = UInt64.max
    }

    /// How long peers that read nothing are looked at without pause, and how often afterwards, in nanoseconds.
    private static let patience: UInt64 = 1_000_000

    /// What the data path needs of a peer.
    struct PeerState: ~Copyable {
        let page: TargetPage
        var process: Int32 = 0
        /// Where this domain says which region of the peer it is inside.
        var seat: UInt32 = 0
        /// Whether the peer orders what this domain does there.
        var isFenced = false
        var pace = CopyPace()
        var wakeFile: Int32 = -1
        /// Nil while the entry is free.
        var connection: SharedMemoryPeer?
        var imports = 0
        /// One ring, once it has been opened.
        var outgoing = Table<OutgoingRing>()
        /// Whether it once did not answer when it was asked to. It stays so: each message costs a system call then.
        var isSuspect = false
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
        for index in 0..<state.value.peerCount { forget(index) }
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
        peers[peer].imports += 1
        do throws(TransferError) {
            return try key(for: remote, nic, peer, connection)
        } catch {
            release(peer)
            throw error
        }
    }

    private func key(
        for remote: RemoteRegion, _ nic: Int, _ peer: Int, _ connection: SharedMemoryPeer
    ) throws(TransferError) -> ImportedKey {
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
        if key.mappedBytes > 0 {
            peers[key.peer].connection?.detach(mappedAt: key.mapping)
        }
        release(key.peer)
    }

    /// Ends one import of a peer; with the last one its connection, its page and its ring go.
    private func release(_ peer: Int) {
        peers[peer].imports -= 1
        guard peers[peer].imports == 0 else { return }
        if let engine = peers[peer].connection?.engine { peerIndex[engine] = nil }
        if peers[peer].outgoing.count > 0 { state.value.orphans += peers[peer].outgoing[0].waiting }
        forget(peer)
        state.value.freePeers.append(peer)
    }

    private func forget(_ peer: Int) {
        if peers[peer].outgoing.count > 0 { peers[peer].outgoing[0].mapping.unmap() }
        if let connection = peers[peer].connection {
            connection.giveBack(seat: peers[peer].seat)
            host.release(connection)
        }
        peers[peer] = PeerState(page: host.page)
    }

    private func peer(_ engine: EngineID) throws(TransferError) -> (Int, SharedMemoryPeer) {
        if let known = peerIndex[engine], let connection = peers[known].connection {
            return (known, connection)
        }
        let number = state.value.freePeers.last ?? state.value.peerCount
        guard number < Self.peerCapacity else {
            throw TransferError(.limitReached, "more than \(Self.peerCapacity) peers on one host")
        }
        let connection = try host.peer(engine)
        let seat: UInt32
        do throws(TransferError) {
            seat = try connection.takeSeat()
        } catch {
            host.release(connection)
            throw error
        }
        peers[number] = PeerState(
            page: connection.page, process: connection.process, seat: seat,
            isFenced: connection.page.fencesWriters && RemoteBarrier.isUsable, wakeFile: connection.wakeFile,
            connection: connection)
        peerIndex[engine] = number
        if state.value.freePeers.popLast() == nil { state.value.peerCount += 1 }
        return (number, connection)
    }

    func openRing(_ peer: Int) throws(TransferError) {
        guard peers[peer].outgoing.count == 0, let connection = peers[peer].connection else { return }
        let mapping = try connection.openRing()
        peers[peer].outgoing = Table(count: 1) { _ in OutgoingRing(mapping) }
    }

    // MARK: Progress

    /// Ends what is in the ring of a peer whose process has ended: nobody else would. One that is only slow goes on.
    public func sever(_ target: UnsafePointer<ImportedKey>) {
        let peer = unsafe target.pointee.peer
        peers[peer].isSuspect = true
        _ = isGone(peer)
    }

    /// Whether a peer's process has ended, as far as there was reason to look. Writes need not ask: they go into the ring, which
    /// ends them once a message, a heartbeat for example, has found that out.
    func isGone(_ peer: Int) -> Bool {
        guard peers[peer].isSuspect, peers[peer].outgoing.count > 0 else { return false }
        if !peers[peer].outgoing[0].isOver {
            peers[peer].outgoing[0].isOver = peers[peer].connection?.hasEnded ?? false
        }
        return peers[peer].outgoing[0].isOver
    }

    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        let peer = unsafe target.pointee.peer
        guard !isGone(peer), (try? openRing(peer)) != nil, peers[peer].outgoing.count > 0 else {
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
        if !state.value.orphans.isEmpty { unsafe giveUpOrphans(completions, &count) }
        for peer in 0..<state.value.peerCount {
            guard peers[peer].outgoing.count > 0 else { continue }
            unsafe peers[peer].outgoing[0].collect(into: completions, &count)
        }
        if count > 0 { state.value.waitingSince = 0 }
        if isReceiver { unsafe drain(completions, &count) }
        return count
    }

    /// Messages of the last poll have been read: a ring whose writer has gone and that holds none of them can go.
    private func letEndedRingsGo() {
        state.value.incoming.removeAll { ring in
            guard ring.hasEnded, ring.isEmpty else { return false }
            ring.mapping.unmap()
            return true
        }
        state.value.hasEndedRings = state.value.incoming.contains { $0.hasEnded }
    }

    private func giveUpOrphans(_ completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int) {
        while count < completions.count, let context = state.value.orphans.popLast() {
            unsafe completions[count] = Completion(context: context, count: 1, status: .peerLost)
            count += 1
        }
    }

    /// Empties the rings of peers: carries out writes, returns messages.
    private func drain(_ completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int) {
        let doorbell = host.page.signals.doorbell.load(ordering: .acquiring)  // pairs with ring(_:)
        guard doorbell != state.value.seenDoorbell else { return }
        // pairs with the adds in SharedMemoryHost
        let changes = host.ringChanges.load(ordering: .acquiring)
        if changes != state.value.knownChanges {
            state.value.knownChanges = changes
            let (new, ended) = host.takeRingChanges()
            if !ended.isEmpty { state.value.hasEndedRings = true }
            for mapping in new { state.value.incoming.append(IncomingRing(mapping)) }
            for index in state.value.incoming.indices
            where ended.contains(UInt(bitPattern: unsafe state.value.incoming[index].mapping.base)) {
                state.value.incoming[index].hasEnded = true
            }
        }
        if state.value.hasEndedRings { letEndedRingsGo() }
        var isEmpty = !state.value.hasEndedRings
        for index in state.value.incoming.indices {
            unsafe state.value.incoming[index].drain(into: completions, &count, page: host.page)
            isEmpty = isEmpty && state.value.incoming[index].isEmpty
        }
        // With everything drained the doorbell decides again; otherwise the next poll goes on.
        state.value.seenDoorbell = isEmpty ? doorbell : .max
    }

    public func prepareToSleep() -> Bool {
        guard mayWait() else { return false }
        return !isReceiver
            || host.page.signals.doorbell.load(ordering: .sequentiallyConsistent) == state.value.seenDoorbell
    }

    /// Whether nothing waits in the rings of peers, or nothing that they are about to read: whoever empties a ring does not say
    /// so, but a peer that stands still must not cost a processor here.
    private func mayWait() -> Bool {
        state.value.pollDue = .max
        let waits = (0..<state.value.peerCount).contains {
            peers[$0].outgoing.count > 0 && !peers[$0].outgoing[0].isEmpty
        }
        guard waits else { return true }
        let now = te_monotonic_nanoseconds()
        if state.value.waitingSince == 0 { state.value.waitingSince = now }
        guard now - state.value.waitingSince >= Self.patience else { return false }
        state.value.pollDue = now + Self.patience
        return true
    }

    /// A while later, when something waits in the rings of peers that read nothing.
    public var pollDue: UInt64 { state.value.pollDue }

    public var wakeDescriptor: Int32 { -1 }
}
