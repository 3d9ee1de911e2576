internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
public import TransferCore

/// The shared-memory side of one engine: hands its memory to peers on the same host, and keeps what peers handed over.
///
/// A service thread answers the control socket, so that attaching to a region needs nobody's poll. Data never goes
/// this way. All of an engine's shared-memory domains share one host.
public final class SharedMemoryHost: Sendable {
    let page: TargetPage
    let engine: EngineID
    let wakeFile: Int32
    private let pageFile: Int32
    private let listener: Int32
    private let stopFile: Int32
    /// Peers write here once to find out whether they may use process_vm_writev.
    private let probe: UInt

    private struct State {
        var regions: [UInt32: LocalRegion] = [:]
        var newRings: [SharedMapping] = []
        /// Rings whose writers have gone, by their addresses.
        var endedRings: Set<UInt> = []
        /// Peers, and how many domains use each.
        var peers: [EngineID: (peer: SharedMemoryPeer, users: Int)] = [:]
        var thread: PlatformThread?
    }
    private let state = Mutex(State())
    /// Counts rings that were opened or have ended; the draining domain compares it with what it knows.
    let ringChanges = Atomic<Int>(0)

    /// Starts serving. `pageFile` is the memory file behind `page`, `wakeFile` the event that wakes the engine's worker;
    /// both stay the caller's.
    public init(page: TargetPage, pageFile: Int32, wakeFile: Int32) throws(TransferError) {
        self.page = page
        self.pageFile = pageFile
        self.wakeFile = wakeFile
        engine = page.engine
        let listening = unsafe te_unix_listen(Self.socketName(page.engine))
        guard listening >= 0 else {
            throw TransferError(.unavailable, "no control socket for shared memory: \(errorText(-listening))")
        }
        let stop = te_event_new()
        guard stop >= 0 else {
            Glibc.close(listening)
            throw TransferError(.limitReached, "no event: \(errorText(-stop)); raise the limit of open files")
        }
        listener = listening
        stopFile = stop
        probe = UInt(bitPattern: UnsafeMutableRawPointer.allocate(byteCount: 8, alignment: 8))
        guard let thread = PlatformThread(name: "te-shm", body: { [self] in serve() }) else {
            Glibc.close(listening)
            Glibc.close(stop)
            throw TransferError(.limitReached, "no thread for shared memory; raise the limit of processes")
        }
        state.withLock { $0.thread = thread }
    }

    /// Stops serving and lets go of all peers. Domains are closed first.
    public func close() {
        let (thread, peers) = state.withLock { state in
            defer {
                state.thread = nil
                state.peers = [:]
            }
            return (state.thread, state.peers.values.map(\.peer))
        }
        guard let thread else { return }
        _ = te_event_signal(stopFile)
        thread.join()
        for peer in peers { peer.close() }
        for ring in takeRingChanges().new { ring.unmap() }
        Glibc.close(listener)
        Glibc.close(stopFile)
        unsafe UnsafeMutableRawPointer(bitPattern: probe)?.deallocate()
    }

    static func socketName(_ engine: EngineID) -> String { "transfer-engine-\(engine)" }

    // MARK: What peers may have

    func publish(_ region: LocalRegion) { state.withLock { $0.regions[region.index] = region } }
    func withdraw(_ region: LocalRegion) {
        state.withLock { _ = $0.regions.removeValue(forKey: region.index) }
    }
    /// Rings that were opened since the last call, and the addresses of those whose writers have gone.
    func takeRingChanges() -> (new: [SharedMapping], ended: Set<UInt>) {
        state.withLock { state in
            defer {
                state.newRings = []
                state.endedRings = []
            }
            return (state.newRings, state.endedRings)
        }
    }

    /// The connection to another engine on this host, made when there is none yet; `release` ends its use.
    func peer(_ engine: EngineID) throws(TransferError) -> SharedMemoryPeer {
        if let known = state.withLock({ Self.use(&$0, engine) }) { return known }
        let fresh = try SharedMemoryPeer(connectingTo: engine, from: self.engine)
        let kept = state.withLock { state in
            if let other = Self.use(&state, engine) { return other }
            state.peers[engine] = (fresh, 1)
            return fresh
        }
        if kept !== fresh { fresh.close() }
        return kept
    }

    private static func use(_ state: inout State, _ engine: EngineID) -> SharedMemoryPeer? {
        state.peers[engine]?.users += 1
        return state.peers[engine]?.peer
    }

    /// Ends a domain's use of a connection; the last one closes it.
    func release(_ peer: SharedMemoryPeer) {
        let isLast = state.withLock { state in
            guard state.peers[peer.engine]?.peer === peer else { return false }
            state.peers[peer.engine]?.users -= 1
            guard state.peers[peer.engine]?.users == 0 else { return false }
            state.peers[peer.engine] = nil
            return true
        }
        if isLast { peer.close() }
    }

    // MARK: Service thread

    private func serve() {
        var connections: [Int32] = []
        var writers = Writers()
        defer { for connection in connections { Glibc.close(connection) } }
        while true {
            var polls = ([stopFile, listener] + connections).map {
                pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
            }
            guard unsafe Glibc.poll(&polls, nfds_t(polls.count), -1) >= 0 || errno == EINTR else { return }
            if polls[0].revents != 0 { return }
            for entry in polls.dropFirst(2) where entry.revents != 0 && !answer(entry.fd, &writers) {
                connections.removeAll { $0 == entry.fd }
                end(entry.fd, &writers)
                Glibc.close(entry.fd)
            }
            if polls[1].revents != 0 {
                let connection = te_unix_accept(listener)
                if connection >= 0 { connections.append(connection) }
            }
        }
    }

    /// What the service thread has given to each connection's engine to write into.
    private struct Writers {
        var rings: [Int32: [UInt]] = [:]
        var seats: [Int32: [UInt32]] = [:]
        var freeSeats: [UInt32] = []
        var seatCount: UInt32 = 0

        mutating func takeSeat() -> UInt32? {
            if let free = freeSeats.popLast() { return free }
            guard seatCount < Limits.writers else { return nil }
            defer { seatCount += 1 }
            return seatCount
        }
    }

    /// A connection ends when its engine lets go of it or when its process has died, with all threads that could be inside a
    /// region: their seats are cleared. The draining domain lets go of their rings once they are empty.
    private func end(_ connection: Int32, _ writers: inout Writers) {
        for seat in writers.seats.removeValue(forKey: connection) ?? [] {
            page.leave(seat: seat)
            writers.freeSeats.append(seat)
        }
        guard let rings = writers.rings.removeValue(forKey: connection) else { return }
        state.withLock { $0.endedRings.formUnion(rings) }
        ringChanges.add(1, ordering: .releasing)  // pairs with the load in SharedMemoryDomain.drain
        page.signals.doorbell.wrappingAdd(1, ordering: .sequentiallyConsistent)
        if page.signals.sleeping.load(ordering: .sequentiallyConsistent) != 0 {
            _ = te_event_signal(wakeFile)
        }
    }

    /// Answers one request; false when the connection has ended.
    private func answer(_ connection: Int32, _ writers: inout Writers) -> Bool {
        guard let (request, files) = ControlPacket.receive(from: connection) else { return false }
        for file in files { Glibc.close(file) }
        var reply = ControlPacket(request.kind)
        reply.engine = engine.rawValue
        switch request.kind {
        case ControlPacket.Kind.hello:
            reply.address = UInt64(probe)
            return reply.send(to: connection, files: [pageFile, wakeFile]) == 0
        case ControlPacket.Kind.region:
            return answerRegion(request, &reply, connection)
        case ControlPacket.Kind.ring:
            return answerRing(&reply, connection, &writers)
        case ControlPacket.Kind.seat:
            guard let seat = writers.takeSeat() else {
                reply.status = UInt32(WorkStatus.targetBusy.rawValue)
                return reply.send(to: connection) == 0
            }
            page.openSeats(writers.seatCount)
            writers.seats[connection, default: []].append(seat)
            reply.index = seat
            return reply.send(to: connection) == 0
        default:
            return false
        }
    }

    private func answerRegion(_ request: ControlPacket, _ reply: inout ControlPacket, _ connection: Int32)
        -> Bool
    {
        let region = state.withLock { $0.regions[request.index] }
        guard let region, region.generation == request.generation else {
            reply.status = UInt32(WorkStatus.staleRegion.rawValue)
            return reply.send(to: connection) == 0
        }
        guard region.secret == request.secret, region.access.contains(.remoteWrite) else {
            reply.status = UInt32(WorkStatus.accessDenied.rawValue)
            return reply.send(to: connection) == 0
        }
        reply.length = UInt64(region.length)
        reply.address = UInt64(UInt(bitPattern: unsafe region.base))
        reply.isPopulated = region.isPopulated ? 1 : 0
        return reply.send(to: connection, files: region.memoryFile >= 0 ? [region.memoryFile] : []) == 0
    }

    private func answerRing(
        _ reply: inout ControlPacket, _ connection: Int32, _ writers: inout Writers
    ) -> Bool {
        guard let ring = try? SharedMapping.create(name: "te-ring", byteCount: ByteRing.byteCount) else {
            reply.status = UInt32(WorkStatus.providerFailed.rawValue)
            return reply.send(to: connection) == 0
        }
        state.withLock { $0.newRings.append(ring) }
        writers.rings[connection, default: []].append(UInt(bitPattern: unsafe ring.base))
        ringChanges.add(1, ordering: .releasing)  // pairs with the load in SharedMemoryDomain.drain
        return reply.send(to: connection, files: [ring.file]) == 0
    }
}
