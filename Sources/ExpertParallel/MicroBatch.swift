internal import Synchronization
internal import TransferEngine

/// One step in flight: its memory and how far it is with each rank.
final class MicroBatch {
    /// The calls of a step come in this order.
    enum Phase { case idle, receiving, computing, sending, combining }

    let index: Int
    var phase = Phase.idle
    var step: UInt32 = 0
    var batch: TokenBatch?
    var routing: Routing
    let links: Table<Link>
    /// Where each rank's results begin, in rows.
    let resultBase: Table<Int>
    var room: Arena
    var results: Arena
    /// When the wait at hand began; 0 is not yet.
    var waitStart: UInt64 = 0
    let receipts = Receipts()

    // The pass at hand.
    /// Whether rows are placed by counts known beforehand, as they arrive; otherwise when all have.
    var isEager = false
    var isPlanned = false
    /// Whether the pass at hand was said to be the last.
    var isLast = false
    /// Copies for each (rank, local expert) of the pass, and where the next one goes.
    let counts: Table<UInt32>
    let cursors: Table<UInt32>
    let expertCounts: Table<UInt32>
    let expertOffsets: Table<UInt32>
    var rowCount = 0
    /// For each copy, in the order of (rank, row, entry), its row in the output.
    let grouped: Table<UInt32>
    /// How far `combineSend` is: ranks behind this one, and rows of it.
    var sendTurn = 0
    var sendRow = 0
    var sendCopy = 0
    /// Whether the results for this rank's own rows are not moved: they are where the experts put them when all are added up.
    var ownIsInPlace = false

    // Memory, as offsets and addresses.
    let receiveBase: UnsafeMutableRawPointer
    let sendBase: UnsafeMutableRawPointer
    let groupedTokens: UnsafeMutableRawPointer
    private let ownsGrouped: Bool
    let groupedScales: UnsafeMutablePointer<Float>
    /// Bytes of the dispatch memory that are in use.
    var dispatchUsed = 0
    var combineUsed = 0
    /// The writes from the parts of the combine memory that take turns, and whose turn it is.
    let turns = Table<Transfer?>(repeating: nil, count: MemoryPlan.turns)
    var turn = 0
    // For one sum: results, their weights, and other ranks' sums.
    let rows: Table<UnsafeRawPointer?>
    let weights: Table<Float>
    let parts: Table<UnsafeRawPointer?>

    init(
        _ index: Int, _ shape: ExpertConfiguration, _ plan: MemoryPlan,
        _ receiveBase: UnsafeMutableRawPointer, _ sendBase: UnsafeMutableRawPointer,
        grouped memory: UnsafeMutableRawPointer?
    ) {
        self.index = index
        let experts = shape.placement.experts(of: shape.rank).count
        routing = Routing(shape)
        links = Table(repeating: Link(), count: shape.ranks)
        resultBase = Table(repeating: 0, count: shape.ranks)
        room = Arena(byteCount: plan.roomBytes)
        results = Arena(byteCount: plan.resultBytes)
        counts = Table(repeating: 0, count: shape.ranks * experts)
        cursors = Table(repeating: 0, count: shape.ranks * experts)
        expertCounts = Table(repeating: 0, count: experts)
        expertOffsets = Table(repeating: 0, count: experts)
        grouped = Table(repeating: 0, count: plan.outputRows)
        self.receiveBase = receiveBase
        self.sendBase = sendBase
        let format = RowFormat(shape)
        groupedTokens =
            memory ?? .allocate(byteCount: plan.outputRows * format.rowBytes, alignment: 64)
        ownsGrouped = memory == nil
        groupedScales = .allocate(capacity: max(1, plan.outputRows * format.scaleBytes / 4))
        rows = Table(repeating: UnsafeRawPointer(receiveBase), count: shape.topK)
        weights = Table(repeating: 1, count: shape.topK)
        parts = Table(repeating: UnsafeRawPointer(receiveBase), count: shape.topK)
    }

    deinit {
        if ownsGrouped { groupedTokens.deallocate() }
        groupedScales.deallocate()
    }
}

/// How far one step is with one rank.
struct Link {
    // To it.
    /// Where its blocks begin in the dispatch memory.
    var sendOffset = 0
    /// Rows for it, and how many have been posted.
    var rows = 0
    var sentRows = 0
    /// Rows of the chunk that is being posted; 0 is none.
    var chunkRows = 0
    var chunkOffset = 0
    var isPacked = false
    var isFirstSent = false
    var rowsWrite: Transfer?
    var dispatchWrite: Transfer?
    var chunkWrite: Transfer?

    // From it.
    var hasHeader = false
    /// Where its memory for our results begins, in rows.
    var theirBase = 0
    /// Rows that it sends in this step, those that are here or granted, and those that have been placed.
    var rowsFrom = 0
    var grantedRows = 0
    var placedRows = 0
    /// Rows before the chunk that is granted, and where that lies in the room.
    var chunkFirst = 0
    var roomOffset = 0
    var isChunkDue = false
    var isGrantPosted = true
    var grantWrite: Transfer?
    /// Rows of the pass at hand, and where its copies begin in `grouped`.
    var passFirst = 0
    var passRows = 0
    var copyStart = 0
    var copyEnd = 0

    // Results.
    /// Results that were written back to it.
    var returned = 0
    var isResultSent = false
    var resultWrite: Transfer?
    var resultPages: Transfer?
    /// Whether its results for us are here.
    var hasResults = false
}

/// Cancellations whose proof is due: until it is there, memory is not written again.
final class Receipts: Sendable {
    private let due = Atomic<Int>(0)
    private let unproven = Atomic<Int>(0)

    func begin() { due.wrappingAdd(1, ordering: .relaxed) }

    func end(_ receipt: CancelReceipt) {
        if receipt != .quiescent { unproven.wrappingAdd(1, ordering: .relaxed) }
        // pairs with the load in areDue
        due.wrappingSubtract(1, ordering: .releasing)
    }

    /// Whether one is due; pairs with the subtraction in `end`.
    var areDue: Bool { due.load(ordering: .acquiring) != 0 }
    var isUnproven: Bool { unproven.load(ordering: .relaxed) != 0 }
    /// The memory is registered anew.
    func forgive() { unproven.store(0, ordering: .relaxed) }
}
