public import TransferEngine

/// How much memory a rank uses for each micro-batch, and how it is divided. A pure function of the configuration.
///
/// What grows with the number of ranks are the private rows; the rest depends on what balanced routing brings, not on the worst
/// case. More than that is exchanged in several passes over the same memory.
public struct MemoryPlan: Hashable, Sendable {
    /// Rows that each other rank may send before it has been told where to.
    public private(set) var privateRows: Int
    /// Rows of the room for what is longer than that; ranks are told their part of it.
    public private(set) var roomRows: Int
    /// Rows of the output of one pass, padding included.
    public private(set) var outputRows: Int
    private let configuration: ExpertConfiguration
    private let format: RowFormat

    /// Plans the memory of one micro-batch.
    /// - Throws: `limitReached` when `memoryBudget` is below the least that works; the message says how much that is.
    public init(_ configuration: ExpertConfiguration) throws(TransferError) {
        try configuration.validate()
        self.configuration = configuration
        format = RowFormat(configuration)
        privateRows = 1
        roomRows = 1
        outputRows = Self.leastOutput(configuration)
        if configuration.level.isBetween {
            // A token comes once to a node, so all that can come has its place, and a step is one pass.
            privateRows = configuration.maximumTokens
            outputRows = configuration.ranks * configuration.maximumTokens
            return
        }
        let least = self
        let wish = Self.wish(configuration)
        set(wish, share: 1)
        guard let budget = configuration.memoryBudget, byteCount > budget else { return }
        guard least.byteCount <= budget else {
            throw TransferError(
                .limitReached,
                "a memory budget of \(budget) bytes; this shape needs at least \(least.byteCount)")
        }
        var (low, high) = (0.0, 1.0)
        for _ in 0..<40 {
            set(wish, share: (low + high) / 2)
            if byteCount <= budget { low = (low + high) / 2 } else { high = (low + high) / 2 }
        }
        set(wish, share: low)
        if byteCount > budget {
            (privateRows, roomRows, outputRows) = (least.privateRows, least.roomRows, least.outputRows)
        }
    }

    private typealias Rows = (privately: Int, room: Int, output: Int)

    /// Rows of one token in the output, with room for padding whatever its experts are.
    private static func leastOutput(_ shape: ExpertConfiguration) -> Int {
        let most = max(1, shape.placement.most)
        return shape.topK + most * (shape.padding - 1)
    }

    /// Balanced routing and half as much again; private rows for what is expected and a quarter, at least 32.
    private static func wish(_ shape: ExpertConfiguration) -> Rows {
        let groups = shape.ranks / shape.replicas
        // What the ranks of a node get from `nodes` nodes is there for experts on so many.
        let nodes = shape.level.nodes
        let tokens = (shape.maximumTokens + nodes - 1) / nodes
        let pair = (tokens * min(shape.topK, shape.ranks * nodes) + shape.ranks - 1) / shape.ranks
        let privately = min(shape.maximumTokens, shape.privateRows ?? max(32, pair + pair / 4))
        let copies = (tokens * groups * shape.topK + shape.ranks - 1) / shape.ranks
        let worst = shape.maximumTokens * groups * min(shape.topK, max(1, shape.placement.most) * shape.topK)
        let output = min(worst, copies + copies / 2) + leastOutput(shape)
        let room = max(1, pair * groups / 4, pair * groups * 3 / 2 - shape.ranks * privately)
        return (privately, room, output)
    }

    private mutating func set(_ wish: Rows, share: Double) {
        privateRows = max(1, Int(Double(wish.privately) * share))
        roomRows = max(1, Int(Double(wish.room) * share))
        outputRows = max(Self.leastOutput(configuration), Int(Double(wish.output) * share))
    }

    // MARK: Memory that peers write to

    /// Bytes of the words in which targets tell where rows go.
    var grantBytes: Int { RowFormat.up(configuration.ranks * Grant.byteCount, 64) }
    /// Bytes of one rank's private slot.
    var slotBytes: Int { format.headerBytes + format.block(privateRows).byteCount }
    /// Bytes of the room.
    var roomBytes: Int { format.block(roomRows).byteCount }
    /// Bytes of the memory for results.
    var resultBytes: Int { configuration.resultCapacity * configuration.resultBytes }

    var slotsOffset: Int { grantBytes }
    var roomOffset: Int { slotsOffset + configuration.ranks * slotBytes }
    var resultsOffset: Int { RowFormat.up(roomOffset + roomBytes, 64) }
    /// Bytes that peers write to.
    var receiveBytes: Int { RowFormat.up(resultsOffset + resultBytes, 4096) }

    // MARK: Memory that is sent from

    /// Bytes from which tokens are sent: the headers, what is known of each row, and the rows.
    var dispatchBytes: Int {
        let rows = configuration.maximumTokens * min(configuration.topK, configuration.ranks)
        return configuration.ranks * (format.headerBytes + 2 * 192) + format.block(rows).byteCount
    }
    /// Most rows that one pass can bring from other ranks.
    private var passRows: Int { min(outputRows, configuration.ranks * privateRows + roomRows) }
    /// Parts of the combine memory that take turns on the way to ranks of the same host, and rows of each.
    static let turns = 4
    static let turnRows = 16
    /// Bytes of those.
    var turnBytes: Int {
        configuration.reduction == .sender ? Self.turns * Self.turnRows * configuration.resultBytes : 0
    }
    /// Bytes from which results are sent.
    var combineBytes: Int {
        if configuration.level.isBetween { return 0 }
        let rows = configuration.reduction == .sender ? passRows : outputRows
        return turnBytes + rows * configuration.replicas * configuration.resultBytes
    }
    /// Bytes of the experts' results.
    var outputBytes: Int { outputRows * configuration.outputBytes }
    /// Bytes of the tokens in the order of the experts.
    var groupedRowBytes: Int { RowFormat.up(outputRows * format.rowBytes, 64) }
    /// Bytes of those and of their scales.
    var groupedBytes: Int { groupedRowBytes + outputRows * format.scaleBytes }

    var combineOffset: Int { RowFormat.up(dispatchBytes, 64) }
    var grantsOffset: Int { RowFormat.up(combineOffset + combineBytes, 64) }
    var outputsOffset: Int { grantsOffset + grantBytes }
    /// Bytes that are sent from, the experts' results among them.
    var sendBytes: Int { RowFormat.up(outputsOffset + outputBytes, 4096) }

    /// Bytes of one micro-batch in all.
    public var byteCount: Int { receiveBytes + sendBytes + groupedBytes }

    /// Bytes of the two buffers that the paper's implementation would allocate for the same shape: capacity of the worst
    /// case times the larger slot, twice (arXiv 2510.27656 and its code; slots of tokens with scales and of results).
    public static func paperBytes(_ shape: ExpertConfiguration) -> Int {
        let groups = shape.ranks / shape.replicas
        let tokens = shape.maximumTokens
        let local = shape.placement.most
        let slot = max(
            RowFormat.up(shape.hidden * shape.dispatchElement.byteCount, 16)
                + RowFormat.up(shape.scaleCount * 4, 16) + 16,
            RowFormat.up(shape.hidden * shape.combineElement.byteCount, 16))
        let mean = Double((tokens * shape.topK + shape.experts - 1) / shape.experts)
        let privately = Int(mean * 1.2) * local
        let worst = min(
            tokens * groups * shape.topK + local * (shape.padding - 1), tokens * groups * local)
        return 2 * slot * (privately * groups + max(worst, local * shape.padding))
    }
}
