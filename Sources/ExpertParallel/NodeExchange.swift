public import TransferEngine

/// Token dispatch and combine over nodes of several ranks each: a token crosses the network once to each node.
///
/// ```swift
/// // 16 ranks on two nodes: ranks 0 to 7 are the first, 8 to 15 the second
/// shape.reduction = .sender
/// let exchange = try NodeExchange(engine, shape, nodes: 2)
/// try exchange.connect(addresses)         // and then the calls of `ExpertExchange`
/// ```
///
/// It is two exchanges. In the first a token goes to the rank of the same number on each node that has one of its experts; in
/// the second that rank dispatches it to the ranks of its node, over shared memory where they share a host. On the way back the
/// sums of a node are added inside it, and one FP32 row returns for each token and node. Ranks of a node are neighbours: rank `r`
/// is on node `r / (ranks / nodes)`, and where experts are does not depend on nodes.
///
/// **Order of sums**, all in FP32 and rounded once at the end: a rank adds the weighted results of its experts in the order of
/// the token's list; a node adds its ranks' rows in the order in which the list meets them; the token's rank adds the nodes'
/// rows in the order in which the list meets those. The same to the bit from run to run, whatever arrives when.
///
/// **Memory.** Between nodes a step has one pass: there is room for all that can come, `nodes * maximumTokens` rows. Inside a
/// node it has as many passes as make it fit into what `ExpertConfiguration.memoryBudget` leaves. So ranks of a node need not
/// agree on how often they exchange, and no node waits for another one in the middle of a pass.
///
/// **Ranks that fail.** A rank that is lost takes its experts with it, and, for the ranks of its number on other nodes, the way
/// to its node. Whoever misses something is told so: `StepResult` counts the entries and names the ranks of their experts, and
/// `droppedEntries(_:of:)` tells the entries of each token. Sums are those of all others, exactly. A rank that lives and does
/// not come is given up within `ExpertConfiguration.deadline`: after a quarter of it by those who wait for its tokens on other
/// nodes, a half by those of its node, and three quarters by those who wait for its sums.
///
/// Not thread-safe: one thread at a time. A call for one micro-batch also forwards what has come in for others. Warm steps
/// neither allocate nor lock.
public final class NodeExchange: TokenExchange {
    /// The shape.
    public let configuration: ExpertConfiguration
    /// How many nodes there are.
    public let nodes: Int

    let between: ExpertExchange
    let inside: ExpertExchange
    let steps: [NodeStep]
    /// The node of each expert.
    let owners: Table<UInt16>
    /// The experts of this node.
    let nodeExperts: Range<Int>
    private let fingerprint: UInt64

    /// Allocates the memory of one rank.
    /// - Parameters:
    ///   - engine: This rank's engine; its liveness decides how soon a dead rank is noticed.
    ///   - configuration: The shape; results are added at the sender, and there are no replicas.
    ///   - nodes: How many nodes there are, all with equally many ranks.
    ///   - clock: The engine's clock, where that is not the machine's.
    /// - Throws: `invalidArgument` or `limitReached` for a shape that cannot be, or what registering throws.
    public init(
        _ engine: TransferEngine, _ configuration: ExpertConfiguration, nodes: Int,
        clock: (any TransferClock)? = nil
    ) throws(TransferError) {
        let shapes = try configuration.levels(nodes: nodes)
        let size = configuration.ranks / nodes
        self.configuration = configuration
        self.nodes = nodes
        between = try ExpertExchange(engine, shapes.between, clock: clock)
        inside = try ExpertExchange(engine, shapes.inside, clock: clock)
        steps = (0..<configuration.microBatches).map { _ in NodeStep(configuration, nodes: nodes) }
        let placement = configuration.placement
        owners = Table(count: configuration.experts) { UInt16(placement.owner(of: $0) / size) }
        nodeExperts = configuration.experts(ofNode: shapes.between.rank, of: nodes)
        fingerprint = configuration.fingerprint &+ UInt64(nodes)
    }

    /// Ranks of a node.
    var size: Int { configuration.ranks / nodes }
    var node: Int { configuration.rank / size }

    /// Bytes of one micro-batch in all, on both levels.
    public var byteCount: Int { between.plan.byteCount + inside.plan.byteCount }

    /// What has been done between nodes so far; `passes` is one a step.
    public var statisticsBetweenNodes: Statistics { between.statistics }

    /// What has been done inside the node so far.
    public var statisticsInsideNode: Statistics { inside.statistics }

    /// What the other ranks need, for `connect`.
    public var address: [UInt8] {
        NodeAddress(
            fingerprint: fingerprint, rank: configuration.rank, between: between.address,
            inside: inside.address
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
        var rail: [[UInt8]] = []
        var mates: [[UInt8]] = []
        for rank in 0..<configuration.ranks {
            let isMate = rank / size == node
            guard isMate || rank % size == configuration.rank % size else { continue }
            let bytes = rank == configuration.rank ? address : addresses[rank]
            let address = try NodeAddress(decoding: bytes)
            guard address.rank == rank, address.fingerprint == fingerprint else {
                throw TransferError(
                    .invalidArgument,
                    "the address of rank \(rank) is of rank \(address.rank) or of another shape: all ranks use one configuration"
                )
            }
            if isMate { mates.append(address.inside) }
            if rank % size == configuration.rank % size { rail.append(address.between) }
        }
        try between.connect(rail)
        try inside.connect(mates)
    }

    /// Ends the exchange: nobody can write into its memory any more when this returns. Pending steps are given up.
    /// - Throws: what deregistering throws.
    public func close() throws(TransferError) {
        try inside.close()
        try between.close()
    }

    /// Ranks that are left out, because they were lost or too late, or because the one that leads to their node was.
    public var missingRanks: [Int] {
        let lostNodes = between.missingRanks
        let lostMates = inside.missingRanks
        return (0..<configuration.ranks).filter { rank in
            rank / size == node ? lostMates.contains(rank % size) : lostNodes.contains(rank / size)
        }
    }

    /// Why a rank, or the one that leads to its node, is left out; nil when it is not.
    public func failure(of rank: Int) -> TransferError? {
        let other = rank / size
        if other == node {
            return inside.failure(of: rank % size).map {
                TransferError($0.code, "in node \(node): \($0.message)")
            }
        }
        return between.failure(of: other).map {
            let leader = other * size + configuration.rank % size
            return TransferError(
                $0.code,
                "rank \(leader), the way to node \(other) and called by its number here: \($0.message)")
        }
    }
}
