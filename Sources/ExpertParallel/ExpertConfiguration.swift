public import TransferEngine

/// The shape of an exchange of tokens between experts. All ranks use the same values, but for `rank` and `spins`.
///
/// ```swift
/// // DeepSeek-V3, prefill, 64 ranks
/// var shape = ExpertConfiguration(rank: rank, ranks: 64, experts: 256, topK: 8, hidden: 7168, maximumTokens: 4096)
/// shape.dispatchElement = .float8
/// shape.scaleBlock = 128
/// ```
public struct ExpertConfiguration: Hashable, Sendable {
    /// Where the weighted results of a token's experts are added.
    public enum Reduction: UInt8, Hashable, Sendable {
        /// Every result travels in `combineElement`; the token's rank adds them in FP32 in the order of its top-k list. The sum
        /// does not depend on how experts are spread over ranks: it is the same for any number of ranks.
        case receiver
        /// The experts' rank adds the results that it has for one token, in FP32 and in the order of the top-k list; one FP32
        /// row travels for each token and rank, and the token's rank adds those in the order in which its top-k list
        /// meets the ranks. Fewer bytes when a token has more than two experts on a rank.
        case sender
    }

    /// This rank, from 0.
    public var rank: Int
    /// How many ranks there are, 1 to 4096.
    public var ranks: Int
    /// Experts in all. The first `experts % ranks` ranks have one more than the others.
    public var experts: Int
    /// Entries of a token's list of experts, 1 to 64; an entry may be -1, and an expert may appear twice.
    public var topK: Int
    /// Values of a token.
    public var hidden: Int
    /// Most tokens that a rank sends in one step.
    public var maximumTokens: Int
    /// What tokens are made of.
    public var dispatchElement = ElementType.bfloat16
    /// Values that share one FP32 scale, which travels with the token; nil is no scales.
    public var scaleBlock: Int?
    /// What experts' results and the sum are made of; not `float8`.
    public var combineElement = ElementType.bfloat16
    /// Where results are added.
    public var reduction = Reduction.receiver
    /// Neighbouring ranks that hold the same tokens: each token is sent by one of them, and all get the sum.
    public var replicas = 1
    /// In the output the rows of each expert begin at, and are filled up to, a multiple of this.
    public var padding = 1
    /// Steps that may be in flight at a time.
    public var microBatches = 2
    /// Rows that each rank may send to each other one before it has been told where to put them; nil lets
    /// `MemoryPlan` choose.
    public var privateRows: Int?
    /// Bytes that a micro-batch may use on this rank; nil is room for balanced routing and half as much again. What does not
    /// fit is exchanged in several passes.
    public var memoryBudget: Int?
    /// Turns of a waiting call, some 0.3 microseconds each, before it offers the processor to others in every further turn, and
    /// later sleeps, up to a millisecond at a time. Few where there are more ranks than processors. Ranks may differ.
    public var spins = 1000
    /// How long a rank that lives may keep others waiting. A rank that has died is noticed by the engine's `Liveness`.
    public var deadline = Duration.seconds(30)
    /// Whether it is one of the two exchanges of a `NodeExchange`, and which.
    var level = Level.alone

    /// Describes an exchange; the other values have defaults.
    public init(
        rank: Int, ranks: Int, experts: Int, topK: Int, hidden: Int, maximumTokens: Int
    ) {
        self.rank = rank
        self.ranks = ranks
        self.experts = experts
        self.topK = topK
        self.hidden = hidden
        self.maximumTokens = maximumTokens
    }

    /// Which experts are where.
    public var placement: ExpertPlacement { ExpertPlacement(experts: experts, ranks: ranks) }

    /// Checks all values.
    /// - Throws: `invalidArgument` that names the value.
    public func validate() throws(TransferError) {
        try require(1...4096 ~= ranks, "1 to 4096 ranks, not \(ranks)")
        try require(0..<ranks ~= rank, "rank \(rank) is not one of \(ranks)")
        try require(1...1_048_576 ~= experts, "1 to 1048576 experts, not \(experts)")
        try require(placement.most < 65535, "at most 65534 experts on a rank, not \(placement.most)")
        try require(1...64 ~= topK, "top-k is 1 to 64, not \(topK)")
        try require(1...1_048_576 ~= hidden, "1 to 1048576 values in a token, not \(hidden)")
        try require(1...1_048_576 ~= maximumTokens, "1 to 1048576 tokens, not \(maximumTokens)")
        try require(combineElement != .float8, "results are FP32, FP16 or BF16")
        try require(scaleBlock ?? 1 >= 1, "a scale is for at least one value")
        try require(
            replicas >= 1 && ranks % replicas == 0, "\(replicas) replicas do not divide \(ranks) ranks")
        try require(1...65536 ~= padding, "padding is 1 to 65536, not \(padding)")
        try require(1...16 ~= microBatches, "1 to 16 micro-batches, not \(microBatches)")
        try require(privateRows ?? 1 >= 1, "at least one private row")
        try require(deadline > .zero, "a deadline lies in the future")
    }

    func require(_ condition: Bool, _ message: @autoclosure () -> String) throws(TransferError) {
        if !condition { throw TransferError(.invalidArgument, "expert parallelism: " + message()) }
    }
}

/// Which experts a rank has: neighbouring ones, in the order of the ranks.
public struct ExpertPlacement: Hashable, Sendable {
    /// Experts in all.
    public let experts: Int
    /// Ranks in all.
    public let ranks: Int

    /// Spreads `experts` over `ranks`; the first `experts % ranks` ranks get one more.
    public init(experts: Int, ranks: Int) {
        self.experts = experts
        self.ranks = ranks
    }

    /// Most experts of a rank.
    public var most: Int { (experts + ranks - 1) / ranks }

    /// The experts of a rank; may be empty.
    public func experts(of rank: Int) -> Range<Int> { start(rank)..<start(rank + 1) }

    private func start(_ rank: Int) -> Int { experts / ranks * rank + min(rank, experts % ranks) }

    /// The rank that has an expert. O(1).
    @inline(__always) public func owner(of expert: Int) -> Int {
        let few = experts / ranks
        let longer = experts % ranks
        let border = longer * (few + 1)
        return expert < border ? expert / (few + 1) : longer + (expert - border) / few
    }
}
