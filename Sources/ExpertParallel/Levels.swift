internal import TransferEngine

// The two exchanges of a `NodeExchange`.
extension ExpertConfiguration {
    /// What an exchange is for.
    ///
    /// Deadlines follow from who waits for whom. For tokens from other nodes one waits a quarter of the whole: meanwhile the
    /// own node waits. Inside a node it is a half: meanwhile other nodes wait for results, which may take three quarters.
    enum Level: Hashable, Sendable {
        /// For itself: all ranks in one exchange.
        case alone
        /// Between the ranks of one number on all nodes: an expert is a node, and `cargoBytes` travel behind a token's scales,
        /// its weights and experts. Results are the FP32 sums of a node, sent from where they are, each with the entries that
        /// did not contribute behind it.
        case between(cargoBytes: Int)
        /// Between the ranks of a node, for what has come from `nodes` nodes. Sums are FP32.
        case inside(nodes: Int)

        /// Bytes behind a result: a bit for each entry of the token's list that did not contribute.
        static let droppedBytes = 8

        var isBetween: Bool { if case .between = self { true } else { false } }
        var cargoBytes: Int { if case .between(let bytes) = self { bytes } else { 0 } }
        var nodes: Int { if case .inside(let nodes) = self { nodes } else { 1 } }
    }

    /// The experts of the ranks of a node, which are those of neighbouring ranks.
    func experts(ofNode node: Int, of nodes: Int) -> Range<Int> {
        let size = ranks / nodes
        let last = placement.experts(of: node * size + size - 1)
        return placement.experts(of: node * size).lowerBound..<last.upperBound
    }

    /// The shapes of both exchanges of this rank.
    /// - Throws: `invalidArgument` or `limitReached` for what cannot be exchanged so; the message says what to change.
    func levels(nodes: Int) throws(TransferError) -> (between: Self, inside: Self) {
        try validate()
        try require(nodes >= 1 && ranks % nodes == 0, "\(nodes) nodes of one size do not have \(ranks) ranks")
        try require(
            reduction == .sender,
            "over nodes results are added inside of each: reduction = .sender, or an ExpertExchange")
        try require(replicas == 1, "over nodes there are no replicas, not \(replicas)")
        let size = ranks / nodes
        let node = rank / size
        let few = experts(ofNode: nodes - 1, of: nodes)
        try require(!few.isEmpty, "\(experts) experts leave node \(nodes - 1) of \(nodes) without any")
        try require(
            maximumTokens * nodes <= 1_048_576,
            "\(maximumTokens) tokens of each of \(nodes) nodes are more than 1048576: make several steps")

        var between = self
        (between.rank, between.ranks) = (node, nodes)
        (between.experts, between.topK) = (nodes, min(topK, nodes))
        (between.padding, between.privateRows, between.memoryBudget) = (1, maximumTokens, nil)
        between.level = .between(cargoBytes: topK * 8)
        between.deadline = deadline / 4

        var inside = self
        (inside.rank, inside.ranks) = (rank % size, size)
        inside.experts = experts(ofNode: node, of: nodes).count
        inside.maximumTokens = maximumTokens * nodes
        inside.level = .inside(nodes: nodes)
        inside.deadline = deadline / 2
        if let memoryBudget {
            let used = try MemoryPlan(between).byteCount
            inside.memoryBudget = memoryBudget - used
            do throws(TransferError) { _ = try MemoryPlan(inside) } catch {
                throw TransferError(
                    error.code,
                    "\(memoryBudget) bytes, of which tokens between nodes, which come in one pass, take \(used); "
                        + "and inside a node, \(error.message). Give more, or make maximumTokens less and take more steps"
                )
            }
        }
        return (between, inside)
    }
}
