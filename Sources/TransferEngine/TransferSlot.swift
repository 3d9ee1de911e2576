internal import TransferCore

/// The engine's record of one operation in flight. Slots are allocated once; a transfer borrows one.
///
/// The submitter fills the slot while nobody else knows of it, then hands its index to the progress thread, which owns
/// the slot until it is given back. What others may look at meanwhile is in `DomainGroup.statuses`.
struct TransferSlot: ~Copyable {
    enum Kind: UInt8 { case write, paged, scatter, send, count, barrier }

    var kind = Kind.write
    /// Whether silent parts are to be delivered before the counted ones (see `StripePlanner.cut`).
    var isSilentStage = false
    /// Whether requests remain to be posted.
    var isPosting = false
    /// Whether the progress thread has taken the slot over from whoever submitted it.
    var isStarted = false
    /// Whether the caller has been told already (a stall); the slot stays until nothing is in flight.
    var isAbandoned = false
    /// The handle of an abandoned transfer.
    var abandoned = Transfer.complete
    /// Whether something of it may still land although it has ended.
    var isDoubtful = false
    /// Whether it is in `Hot.ready`.
    var isReady = false
    var failure = WorkStatus.success
    var failureDetail: Int32 = 0
    var failureDomain: UInt8 = 0
    /// `ImportedKey.peer` of the request that was refused; -1 when the failure came later.
    var failurePeer = -1

    /// Nil where there are no bytes: messages, immediates and barriers do not yield, and nobody yields to them.
    var trafficClass: TrafficClass?

    /// 30 bits.
    var immediate: UInt32 = 0
    /// 8 or, without an immediate, 0.
    var eighths: UInt32 = 0
    var sequence: UInt32 = 0
    /// Requests taken by providers and not complete.
    var inFlight = 0
    /// Their bytes, where the transfer may have to yield.
    var bytesInFlight = 0
    /// Requests complete, for the stall report.
    var completed = 0

    /// The source: a region of ours and an offset in it.
    var localIndex: UInt32 = 0
    var sourceOffset = 0
    var attachment: UInt32 = 0
    /// Bytes of the write or of one page.
    var length = 0
    var targetOffset = 0

    // Paged writes.
    var pages = PageLists()
    var sourceStride = 0
    var targetStride = 0
    /// The next page of each rail, and where it goes on in a page that is cut.
    var railCursors = InlineArray<15, Int>(repeating: 0)
    var railChunks = InlineArray<15, Int>(repeating: 0)

    /// Targets of scatters and barriers; the table is kept for the slot's next user, and may be longer than `targetCount`.
    var targets = Table<ScatterTarget>()
    var targetCount = 0
    /// Targets that have their turn in this pass, the first of the table; and how many of those before `targetCursor` were
    /// busy and wait for the next pass, before all others.
    var passCount = 0
    var asideCount = 0
    /// Next target, its next piece, and the offset of the next chunk in the piece.
    var targetCursor = 0
    var pieceCursor = 0
    var chunkCursor = 0

    /// Parts that have to be posted again because their NIC failed, and parts whose fate only the receiver knows.
    var redo: [RequestTag] = []
    var unsettled: [UnsettledPart] = []
    /// Why the transfer failed, in words, when the status alone does not say it.
    var reason: TransferError?
    /// Those who wait until nothing of a cancelled transfer can land any more.
    var receipts: [@Sendable (CancelReceipt) -> Void] = []
    /// When to break the transfer's connections, and when to give up proving.
    var severDue = UInt64.max
    var receiptDue = UInt64.max

    /// Peers without which a counter cannot be reached.
    var senders: [EngineID] = []
    /// What a counter wait consumes.
    var expectedEighths: Int64 = 0
    /// Moment of failure; `.max` is never.
    var deadline = UInt64.max
    var submitted: UInt64 = 0
    var lastProgress: UInt64 = 0

    var callback: TransferCallback?

    /// The bytes of a message; allocated by the first one, and kept.
    var message = Table<UInt8>()

    /// Whether it has a table of targets.
    var isWide: Bool { kind == .scatter || kind == .barrier }

    /// That of the first target.
    @inline(__always) var firstAttachment: UInt32 { isWide ? targets[0].attachment : attachment }

    /// The attachment that a tag's rail is one of.
    func attachment(of tag: RequestTag) -> UInt32 {
        isWide ? targets[place(of: tag)].attachment : attachment
    }

    /// Where a tag's target is: busy ones change places. O(targets).
    func place(of tag: RequestTag) -> Int {
        isWide ? (0..<targetCount).first { Int(targets[$0].number) == tag.unit } ?? 0 : 0
    }
}

/// A request that failed and may have been counted.
struct UnsettledPart {
    var tag: RequestTag
    /// Its place in `Links.all`.
    var link: Int
    var connection: UInt64
    var ordinal: UInt64
}

/// What `DomainGroup.statuses` holds: generation << 32 | `waited` | `pending`.
enum SlotStatus {
    static let pending: UInt64 = 1
    static let waited: UInt64 = 2
}

/// One target of a scatter or a barrier.
struct ScatterTarget {
    var attachment: UInt32 = 0
    /// Its place in the caller's order, which decides how it is cut.
    var number: UInt16 = 0
    /// Where it goes on after it was busy.
    var piece: UInt16 = 0
    var chunk = 0
    /// Offset in the slot's local region.
    var sourceOffset = 0
    var length = 0
    var targetOffset = 0

    /// Begins again with all of it.
    mutating func rewind() {
        piece = 0
        chunk = 0
    }
}
