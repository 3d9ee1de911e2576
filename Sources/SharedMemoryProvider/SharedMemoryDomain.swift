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
    let peers: UnsafeMutablePointer<PeerState>
    private(set) var peerCount = 0
    private var peerIndex: [EngineID: Int] = [:]
    private var incoming: [IncomingRing] = []
    private var knownRings = 0
    private var seenDoorbell: UInt64 = .max
    /// Ranges of one process_vm_writev call.
    let ranges: UnsafeMutablePointer<te_range>

    static let peerCapacity = 4096
    /// A list of pages with at least so many bytes is copied past the cache: about what a core's second-level cache holds.
    static let streamingBytes = 1 << 20

    /// What the data path needs of a peer; plain data.
    struct PeerState {
        var page: TargetPage
        var process: Int32
        var wakeFile: Int32
        var connection: Unmanaged<SharedMemoryPeer>
        var outgoing: UnsafeMutablePointer<OutgoingRing>?
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
        peers = .allocate(capacity: Self.peerCapacity)
        ranges = .allocate(capacity: 2 * Limits.requestsPerPost)
    }

    public func close() {
        for index in 0..<peerCount {
            if let outgoing = peers[index].outgoing {
                outgoing.pointee.mapping.unmap()
                outgoing.deinitialize(count: 1)
                outgoing.deallocate()
            }
            peers[index].connection.release()
        }
        for ring in incoming { ring.mapping.unmap() }
        peers.deallocate()
        ranges.deallocate()
    }

    // MARK: Registration

    public func register(_ region: LocalRegion) throws(TransferError) -> DomainKey {
        host.publish(region)
        return DomainKey(local: 0, remote: region.secret, base: UInt64(UInt(bitPattern: region.base)))
    }

    public func deregister(_ region: LocalRegion, key: DomainKey) { host.withdraw(region) }

    public func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey {
        guard remote.nics[nic].address.prefix(8).elementsEqual(address.prefix(8)) else {
            throw TransferError(.unreachable, "engine \(remote.engine) is on another host")
        }
        let peer = try self.peer(remote.engine)
        let connection = peers[peer].connection.takeUnretainedValue()
        var key = ImportedKey(remote: remote, nic: nic, peer: peer, maximumWriteBytes: 1 << 40)
        key.key = RegionSlot.state(generation: remote.generation, access: remote.access)
        let (mapping, base) = try connection.attach(remote)
        key.base = base
        if let mapping {
            key.mapping = UInt(bitPattern: mapping.base)
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
        peers[key.peer].connection.takeUnretainedValue().detach(index: key.index, generation: key.generation)
    }

    private func peer(_ engine: EngineID) throws(TransferError) -> Int {
        if let known = peerIndex[engine] { return known }
        guard peerCount < Self.peerCapacity else {
            throw TransferError(.limitReached, "more than \(Self.peerCapacity) peers on one host")
        }
        let connection = try host.peer(engine)
        (peers + peerCount).initialize(
            to: PeerState(
                page: connection.page, process: connection.process, wakeFile: connection.wakeFile,
                connection: Unmanaged.passRetained(connection), outgoing: nil))
        peerIndex[engine] = peerCount
        peerCount += 1
        return peerCount - 1
    }

    func openRing(_ peer: Int) throws(TransferError) {
        guard peers[peer].outgoing == nil else { return }
        let mapping = try peers[peer].connection.takeUnretainedValue().openRing()
        let outgoing = UnsafeMutablePointer<OutgoingRing>.allocate(capacity: 1)
        outgoing.initialize(to: OutgoingRing(mapping))
        peers[peer].outgoing = outgoing
    }

    // MARK: Progress

    public func send(
        _ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64
    ) -> PostResult {
        let peer = target.pointee.peer
        guard (try? openRing(peer)) != nil, let outgoing = peers[peer].outgoing else {
            return PostResult(accepted: 0, isComplete: false, status: .peerLost)
        }
        let record = FrameRecord(messageOf: payload.count, from: host.engine.rawValue)
        guard outgoing.pointee.append(record, payload, context: context) else {
            return PostResult(accepted: 0, isComplete: false, status: .again)
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
        for peer in 0..<peerCount {
            guard let outgoing = peers[peer].outgoing else { continue }
            outgoing.pointee.collect(into: completions, &count)
        }
        if isReceiver { drain(completions, &count) }
        return count
    }

    /// Empties the rings of peers: carries out writes, returns messages.
    private func drain(_ completions: UnsafeMutableBufferPointer<Completion>, _ count: inout Int) {
        let doorbell = host.page.signals.doorbell.load(ordering: .acquiring)  // pairs with ring(_:)
        guard doorbell != seenDoorbell else { return }
        if host.ringCount.load(ordering: .acquiring) != knownRings {
            for mapping in host.takeNewRings() {
                incoming.append(IncomingRing(mapping))
                knownRings += 1
            }
        }
        var isEmpty = true
        for index in incoming.indices {
            incoming[index].drain(into: completions, &count, page: host.page)
            isEmpty = isEmpty && incoming[index].isEmpty
        }
        // With everything drained the doorbell decides again; otherwise the next poll goes on.
        seenDoorbell = isEmpty ? doorbell : .max
    }

    public func prepareToSleep() -> Bool {
        for peer in 0..<peerCount {
            if let outgoing = peers[peer].outgoing, !outgoing.pointee.isEmpty { return false }
        }
        return !isReceiver
            || host.page.signals.doorbell.load(ordering: .sequentiallyConsistent) == seenDoorbell
    }

    public var wakeDescriptor: Int32 { -1 }
}
