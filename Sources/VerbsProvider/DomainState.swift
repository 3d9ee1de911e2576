internal import CPlatform
internal import CVerbs
internal import Synchronization
internal import TransferCore

/// Everything that the data path of a domain touches: plain memory at fixed places, used by one thread at a time.
///
/// It is a struct behind one pointer, and its parts are tables, so that the loops need neither reference counting nor
/// exclusivity checks, and nothing grows.
@safe struct DomainState: ~Copyable {
    var handles: VerbsHandles
    let options: VerbsOptions
    let page: TargetPage
    let engine: UInt64
    let address: NICAddress
    let memory: BufferMemory
    let longestWrite: UInt64
    /// Bytes that fit into a request, as the first queue pair was granted them.
    var inlineBytes: UInt32

    let peers = Table<Peer>(repeating: Peer(), count: Tuning.peers)
    var peerCount = 0
    let connections = Table(count: Tuning.connections) { _ in Connection() }
    var freeConnections = FreeList(Tuning.connections)
    /// Connections that peers may ask about after their end.
    var closed = ClosedConnections()
    let numbers = QueuePairIndex()
    var nextAttempt: UInt32 = 1

    /// Connections in a handshake or draining; those with requests to hand out; those that owe a credit.
    let watched = Table<Int32>(repeating: 0, count: Tuning.connections)
    var watchedCount = 0
    let listed = Table<Int32>(repeating: 0, count: Tuning.connections)
    var listedCount = 0
    let owing = Table<Int32>(repeating: 0, count: Tuning.connections)
    var owingCount = 0

    // Requests, filled once and patched.
    let chain: Table<ibv_send_wr>
    let chainParts: Table<ibv_sge>
    let single = unsafe Table<ibv_send_wr>(repeating: ibv_send_wr(), count: 1)
    let singlePart = Table<ibv_sge>(repeating: ibv_sge(), count: 1)
    let rejected = unsafe Table<UnsafeMutablePointer<ibv_send_wr>?>(repeating: nil, count: 1)
    let entries = Table<ibv_wc>(repeating: ibv_wc(), count: Tuning.completionBatch)
    let receives = unsafe Table<ibv_recv_wr>(repeating: ibv_recv_wr(), count: Tuning.receiveBatch)
    let receive = unsafe Table<ibv_recv_wr>(repeating: ibv_recv_wr(), count: 1)
    let receivePart = Table<ibv_sge>(repeating: ibv_sge(), count: 1)
    let rejectedReceive = unsafe Table<UnsafeMutablePointer<ibv_recv_wr>?>(repeating: nil, count: 1)

    /// In a batch for several peers: after each request, the next one to the same peer; and the connections in it.
    let links = Table<Int32>(repeating: 0, count: Limits.requestsPerPost)
    let gathered = Table<Int32>(repeating: 0, count: Limits.requestsPerPost)
    var gatheredCount = 0

    // Buffers.
    var freeDatagrams = FreeList(Tuning.datagramSends)
    /// For each datagram on its way: the peer, or -1 and a handle of its own.
    let datagramPeers = Table<Int>(repeating: -1, count: Tuning.datagramSends)
    let datagramHandles = unsafe Table<UnsafeMutablePointer<ibv_ah>?>(
        repeating: nil, count: Tuning.datagramSends)
    var freeMessages = FreeList(Tuning.messageSends)
    /// Message buffers that the engine reads until the next poll, and their connections (-1 when it is gone).
    let held: Table<Int32>
    let heldConnections: Table<Int32>
    let heldGenerations: Table<UInt16>
    var heldCount = 0

    // In flight on the domain.
    var requestsInFlight = 0
    /// Receives that the NIC does not have.
    var missingImmediates: Int
    let unpostedMessages: Table<Int32>
    var unpostedCount = 0
    /// Shares of the receives that no peer has been given.
    var unsharedImmediates: Int
    var unsharedMessages: Int

    var polls: UInt32 = 0
    var isArmed = false
    var wasEmpty = false
    var isGone = false
    var statistics = VerbsStatistics()
    /// Added to the clock by tests.
    var clockSkew: UInt64 = 0

    // The caller's buffer during a poll.
    var output: UnsafeMutablePointer<Completion>?
    var outputCount = 0
    var outputCapacity = 0

    init(
        handles: consuming VerbsHandles, options: VerbsOptions, page: TargetPage, engine: EngineID,
        address: NICAddress, memory: BufferMemory
    ) {
        self.handles = handles
        self.options = options
        self.page = page
        self.engine = engine.rawValue
        self.address = address
        self.memory = memory
        let longest = handles.port.longestMessage
        longestWrite = longest > 0 ? min(Tuning.longestWrite, longest) : Tuning.longestWrite
        inlineBytes = UInt32(clamping: max(0, options.inlineBytes))
        let length = min(max(1, options.chainLength), 64)
        unsafe chain = unsafe Table(repeating: ibv_send_wr(), count: length)
        chainParts = Table(repeating: ibv_sge(), count: length)
        let sizes = handles.sizes
        held = Table(repeating: 0, count: sizes.messageReceives)
        heldConnections = Table(repeating: -1, count: sizes.messageReceives)
        heldGenerations = Table(repeating: 0, count: sizes.messageReceives)
        unpostedMessages = Table(repeating: 0, count: sizes.messageReceives)
        missingImmediates = sizes.immediateReceives
        // A batch that is being collected is not with the NIC.
        unsharedImmediates = sizes.immediateReceives - Tuning.receiveBatch
        unsharedMessages = sizes.messageReceives
        for buffer in 0..<sizes.messageReceives {
            unpostedMessages[buffer] = Int32(buffer)
        }
        unpostedCount = sizes.messageReceives
        linkRequests()
        for buffer in 0..<Tuning.datagramReceives { postDatagramReceive(buffer) }
        refillImmediates(all: true)
        refillMessages()
        armLimit()
    }

    /// The parts of the prepared requests refer to each other once and for all.
    private func linkRequests() {
        for index in unsafe 0..<chain.count {
            unsafe chain[index].sg_list = chainParts.address(of: index)
            if unsafe index + 1 < chain.count { unsafe chain[index].next = chain.address(of: index + 1) }
        }
        unsafe single[0].sg_list = singlePart.address(of: 0)
        for index in unsafe 0..<receives.count {
            unsafe receives[index].wr_id = WorkID(.immediateReceive, buffer: 0).rawValue
            unsafe receives[index].num_sge = 0
            if unsafe index + 1 < receives.count {
                unsafe receives[index].next = receives.address(of: index + 1)
            }
        }
        unsafe receive[0].sg_list = receivePart.address(of: 0)
        unsafe receive[0].num_sge = 1
    }

    /// Nanoseconds of the clock that handshakes and draining go by.
    var now: UInt64 { te_monotonic_nanoseconds() &+ clockSkew }

    // MARK: Output

    @inline(__always) var hasRoom: Bool { outputCount < outputCapacity }

    /// Adds ended requests; those that ended like the ones before are counted there.
    @inline(__always) mutating func emit(
        _ context: UInt64, _ count: UInt32, _ status: WorkStatus, _ detail: Int32
    ) {
        guard let output = unsafe output else { return }
        if outputCount > 0 {
            let last = unsafe output + (outputCount - 1)
            if unsafe last.pointee.context == context && last.pointee.count > 0
                && last.pointee.status == status && last.pointee.detail == detail
            {
                unsafe last.pointee.count += count
                return
            }
        }
        unsafe (output + outputCount).initialize(
            to: Completion(context: context, count: count, status: status, detail: detail))
        outputCount += 1
    }

    // MARK: Lists of connections

    /// Makes sure that `report` hands out what has ended.
    @inline(__always) mutating func list(_ connection: Int) {
        if connections[connection].isListed { return }
        connections[connection].isListed = true
        listed[listedCount] = Int32(connection)
        listedCount += 1
    }

    /// Makes sure that `serviceTimers` looks at a connection.
    mutating func watch(_ connection: Int) {
        if connections[connection].isWatched { return }
        connections[connection].isWatched = true
        watched[watchedCount] = Int32(connection)
        watchedCount += 1
    }

    /// Makes sure that a credit is sent once the receives have been replaced.
    @inline(__always) mutating func owe(_ connection: Int) {
        if connections[connection].owesCredit { return }
        connections[connection].owesCredit = true
        owing[owingCount] = Int32(connection)
        owingCount += 1
    }

    // MARK: Peers

    /// The place of a peer, made when there is none; nil when the table is full of peers in use.
    mutating func findPeer(_ engine: UInt64, _ address: NICAddress) -> Int? {
        for index in 0..<peerCount
        where peers[index].isUsed && peers[index].engine == engine && peers[index].address == address {
            return index
        }
        var place = (0..<peerCount).first { !peers[$0].isUsed }
        if place == nil, peerCount < Tuning.peers {
            place = peerCount
            peerCount += 1
        }
        if place == nil { place = (0..<peerCount).first { isForgettable($0) } }
        guard let place else { return nil }
        if let handle = unsafe peers[place].handle { _ = unsafe handles.api.pointee.destroy_ah(handle) }
        var peer = Peer()
        peer.engine = engine
        peer.address = address
        peer.isUsed = true
        peers[place] = peer
        return place
    }

    private func isForgettable(_ index: Int) -> Bool {
        peers[index].imports == 0 && peers[index].connection < 0 && peers[index].datagrams == 0
    }
}

/// What a domain has been through, for people and tests.
public struct VerbsStatistics: Hashable, Sendable {
    /// Connections that became usable.
    public var connected = 0
    /// Connections that broke.
    public var broken = 0
    /// Handshakes that passed their deadline or were refused.
    public var handshakesFailed = 0
    /// Handshake datagrams sent.
    public var datagramsSent = 0
    /// Handshake datagrams received that were not understood or were late.
    public var datagramsIgnored = 0
    /// Completions that belong to no request; more than 0 is a defect of a driver.
    public var strayCompletions = 0
    /// Times that the receives for immediates or messages ran low.
    public var lowReceives = 0
    /// Asynchronous events about the port.
    public var portEvents = 0
    /// Asynchronous events that ended a queue pair or the device.
    public var fatalEvents = 0
    /// Whether the port is up, as far as events told.
    public var isPortUp = true
}
