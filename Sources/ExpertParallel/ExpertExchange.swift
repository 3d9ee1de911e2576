internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
public import TransferEngine

/// Token dispatch and combine for expert parallelism, over the engine's writes and counters.
///
/// ```swift
/// let exchange = try ExpertExchange(engine, shape)
/// try exchange.connect(addresses)                         // `exchange.address` of every rank, by any channel
/// try exchange.dispatchSend(0, tokens)
/// repeat {
///     let received = try exchange.dispatchReceive(0)      // tokens in the order of this rank's experts
///     runExperts(received)                                // writes received.outputs
///     try exchange.combineSend(0)
///     isLast = received.isLast
/// } while !isLast
/// let result = try exchange.combineReceive(0, into: sums)
/// ```
///
/// Each call names a micro-batch; several are in flight at a time, and between the calls of one the caller may compute. Every
/// step of a micro-batch consists of a dispatch and a combine. A step has one pass as a rule, and more when a rank gets more
/// tokens than its memory holds. The four calls wait; those named `try...` return at once.
///
/// The sum is bit for bit the same from run to run, whatever arrives when. No call waits for ever: a rank that dies is noticed by
/// the engine's liveness and left out from then on (`missingRanks`), and a rank that keeps others waiting longer than
/// `ExpertConfiguration.deadline` is treated alike. After that, or to change the number of ranks, all ranks make a new exchange
/// on their engines and close the old one.
///
/// Not thread-safe: one thread at a time. With manual progress the waiting calls make progress.
/// Warm steps neither allocate nor lock.
public final class ExpertExchange: TokenExchange {
    /// The shape.
    public let configuration: ExpertConfiguration
    /// How much memory each micro-batch uses.
    public let plan: MemoryPlan
    /// What has been done so far.
    public internal(set) var statistics = Statistics()

    let engine: TransferEngine
    let clock: any TransferClock
    let format: RowFormat
    let placement: ExpertPlacement
    let localExperts: Range<Int>
    let deadlineNanoseconds: UInt64
    /// Where tokens lie in the order of experts, if others read them from there.
    let grouped: MemoryRegion?
    let peers: Table<PeerState>
    let batches: [MicroBatch]
    /// 0, 1, 2, ...: the pages of rows that lie behind each other.
    let iota: Table<UInt32>
    let receive: MemoryRegion
    var send: MemoryRegion
    let isManual: Bool
    private let lease: ImmediateLease
    private var isConnected = false
    private var isClosed = false

    /// A wait this long is looked at: do those whom we wait for live?
    static let probeNanoseconds: UInt64 = 10_000_000

    /// Allocates the memory of one rank.
    /// - Parameters:
    ///   - engine: This rank's engine; its liveness decides how soon a dead rank is noticed.
    ///   - configuration: The shape.
    ///   - clock: The engine's clock, where that is not the machine's.
    /// - Throws: `invalidArgument` or `limitReached` for a shape that cannot be, or what registering throws.
    public init(
        _ engine: TransferEngine, _ configuration: ExpertConfiguration,
        clock: (any TransferClock)? = nil
    ) throws(TransferError) {
        let plan = try MemoryPlan(configuration)
        let batches = configuration.microBatches
        self.configuration = configuration
        self.plan = plan
        self.engine = engine
        self.clock = clock ?? SystemClock()
        format = RowFormat(configuration)
        placement = configuration.placement
        localExperts = placement.experts(of: configuration.rank)
        let (seconds, attoseconds) = configuration.deadline.components
        deadlineNanoseconds =
            UInt64(clamping: seconds) &* 1_000_000_000 &+ UInt64(attoseconds / 1_000_000_000)
        peers = Table(count: configuration.ranks) { _ in PeerState() }
        iota = Table(count: max(plan.outputRows, configuration.resultRows)) { UInt32($0) }
        isManual = engine.progressMode.isManual
        let receive = try engine.allocate(byteCount: batches * plan.receiveBytes, isPopulated: false)
        var grouped: MemoryRegion?
        do throws(TransferError) {
            if configuration.level.isBetween {
                grouped = try engine.allocate(
                    byteCount: batches * plan.groupedRowBytes, access: .localOnly, isPopulated: false)
            }
            send = try engine.allocate(
                byteCount: batches * plan.sendBytes, access: .localOnly, isPopulated: false)
            lease = try engine.lease(batches * Kind.allCases.count * configuration.ranks)
        } catch {
            if let grouped { try engine.deregister(grouped) }
            try engine.deregister(receive)
            throw error
        }
        self.receive = receive
        self.grouped = grouped
        let sendBase = send.baseAddress
        self.batches = (0..<batches).map {
            MicroBatch(
                $0, configuration, plan, receive.baseAddress + $0 * plan.receiveBytes,
                sendBase + $0 * plan.sendBytes,
                grouped: grouped.map { [number = $0] in $0.baseAddress + number * plan.groupedRowBytes })
        }
    }

    /// What the other ranks need, for `connect`.
    public var address: [UInt8] {
        ExpertAddress(
            fingerprint: configuration.fingerprint, rank: configuration.rank,
            firstImmediate: lease.first.value, engine: engine.address,
            region: engine.descriptor(of: receive)
        ).encoded()
    }

    /// Meets the other ranks.
    /// - Parameter addresses: `address` of each rank, in their order; this rank's own is not looked at.
    /// - Throws: `invalidArgument` when a rank has another shape, `malformedDescriptor`, or what attaching throws.
    public func connect(_ addresses: [[UInt8]]) throws(TransferError) {
        guard addresses.count == configuration.ranks else {
            throw TransferError(
                .invalidArgument, "\(addresses.count) addresses for \(configuration.ranks) ranks")
        }
        // The engine takes the first of its fabrics that reaches a peer.
        let ours = engine.descriptor(of: receive).nics.map(\.fabric)
        for rank in 0..<configuration.ranks where rank != configuration.rank {
            let address = try ExpertAddress(decoding: addresses[rank])
            guard address.rank == rank, address.fingerprint == configuration.fingerprint else {
                throw TransferError(
                    .invalidArgument,
                    "the address of rank \(rank) is of rank \(address.rank) or of another shape: all ranks use one configuration"
                )
            }
            peers[rank].peer = try engine.connect(to: address.engine)
            peers[rank].remote = try engine.attach(address.region, as: .urgent)
            peers[rank].firstImmediate = address.firstImmediate
            let common = ours.first { fabric in address.region.nics.contains { $0.fabric == fabric } }
            peers[rank].isDirect = common == "shm"
            peers[rank].isLive = true
        }
        peers[configuration.rank].isLive = true
        isConnected = true
    }

    /// Ends the exchange: nobody can write into its memory any more when this returns. Pending steps are given up.
    /// - Throws: what deregistering throws.
    public func close() throws(TransferError) {
        guard !isClosed else { return }
        isClosed = true
        let isQuiet = batches.allSatisfy { $0.phase == .idle } && missingRanks.isEmpty
        for rank in 0..<configuration.ranks {
            if let probe = peers[rank].probe { try? engine.cancel(probe, timeout: .zero) { _ in } }
            if let remote = peers[rank].remote { try? engine.detach(remote) }
        }
        try engine.deregister(receive)
        try engine.deregister(send)
        if let grouped { try engine.deregister(grouped) }
        try engine.end(lease, isQuiet: isQuiet)
    }

    deinit { try? close() }

    /// Ranks that are left out, because they were lost or too late.
    public var missingRanks: [Int] {
        isConnected ? (0..<configuration.ranks).filter { !peers[$0].isLive } : []
    }

    /// Why a rank is left out; nil when it is not.
    public func failure(of rank: Int) -> TransferError? { peers[rank].failure }

    // MARK: Internals

    /// What an immediate stands for.
    enum Kind: Int, CaseIterable { case dispatch, chunk, grant, result, probe }

    /// One immediate for each micro-batch, kind and sender: so one who has died does not keep others from being counted.
    func immediate(_ first: UInt32, _ batch: MicroBatch, _ kind: Kind, from rank: Int) -> Immediate {
        let number = (batch.index * Kind.allCases.count + kind.rawValue) * configuration.ranks + rank
        return Immediate(truncatingIfNeeded: first + UInt32(number))
    }

    /// Takes one arrival from a rank, if it is there.
    @inline(__always) func takes(_ kind: Kind, from rank: Int, _ batch: MicroBatch) -> Bool {
        engine.consume(immediate(lease.first.value, batch, kind, from: rank), count: 1)
    }

    func own(_ kind: Kind, from rank: Int, _ batch: MicroBatch) -> Immediate {
        immediate(lease.first.value, batch, kind, from: rank)
    }

    func expectOpen() throws(TransferError) {
        guard isConnected, !isClosed else {
            throw TransferError(.closed, "the exchange has not been connected, or has been closed")
        }
    }

    func batch(_ index: Int, _ phases: MicroBatch.Phase...) throws(TransferError) -> MicroBatch {
        try expectOpen()
        guard batches.indices.contains(index) else {
            throw TransferError(.invalidArgument, "micro-batch \(index) of \(batches.count)")
        }
        guard phases.contains(batches[index].phase) else {
            throw TransferError(
                .invalidArgument,
                "micro-batch \(index) is \(batches[index].phase): the calls of a step come in order")
        }
        return batches[index]
    }

    /// How long a wait offers the processor before it sleeps.
    static let yieldNanoseconds: UInt64 = 100_000
    /// How long it sleeps at a time at most, in microseconds.
    static let longestSleep: UInt64 = 1000

    /// Calls `body` until it has something, and makes progress meanwhile. What it waits for has deadlines of its own.
    ///
    /// It spins, then offers the processor to others, and then sleeps, an eighth of what it has waited at a time: several ranks
    /// on one processor that only offer it to each other keep the one from working that all of them wait for.
    func wait<T>(_ body: () throws(TransferError) -> T?) throws(TransferError) -> T {
        var turns = 0
        var start: UInt64 = 0
        while true {
            if let result = try body() { return result }
            if isManual { engine.progress() }
            turns += 1
            guard turns > configuration.spins else {
                te_cpu_relax()
                continue
            }
            let now = clock.nowNanoseconds
            if start == 0 { start = max(1, now) }
            let waited = now &- min(now, start)
            // With manual progress nobody else moves the engine meanwhile.
            guard !isManual, waited > Self.yieldNanoseconds else {
                sched_yield()
                continue
            }
            usleep(UInt32(min(waited / 8000, Self.longestSleep)))
        }
    }
}

/// What an exchange has done: for tests, benchmarks and metrics.
public struct Statistics: Hashable, Sendable {
    /// Writes that carried the first rows of a step; one a peer and step.
    public var dispatchWrites = 0
    /// Writes that carried further rows.
    public var chunkWrites = 0
    /// Writes of 16 bytes that say where further rows go.
    public var grantWrites = 0
    /// Writes that brought results back.
    public var resultWrites = 0
    /// Page lists that were written straight from where tokens or results lie, over shared memory only.
    public var directWrites = 0
    /// Passes; one a step as a rule.
    public var passes = 0
    /// Bytes of rows and results that were written to others.
    public var bytes = 0
}

/// A rank, as another one sees it.
struct PeerState {
    var peer: Peer?
    var remote: RemoteMemory?
    var firstImmediate: UInt32 = 0
    var isLive = false
    /// Whether writes are copies by this thread, so that page lists cost no more than one write.
    var isDirect = false
    var failure: TransferError?
    /// A wait for nothing, which ends when the rank is lost.
    var probe: Transfer?
}
