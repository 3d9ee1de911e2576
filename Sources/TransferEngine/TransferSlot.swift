internal import Synchronization
internal import TransferCore

/// The engine's record of one operation in flight. Slots are allocated once; a transfer borrows one.
///
/// The submitter fills the slot while nobody else knows of it, then hands its index to the progress thread, which owns
/// everything but `status` until the slot is given back.
struct TransferSlot: ~Copyable {
    enum Kind: UInt8 { case write, paged, scatter, send, count, barrier }

    /// Generation << 32 | `waited` | `pending`. Anybody may read it; it tells whether a `Transfer` has ended.
    let status: Atomic<UInt64>
    static let pending: UInt64 = 1
    static let waited: UInt64 = 2

    var kind = Kind.write
    /// Whether silent parts are to be delivered before the counted ones (see `StripePlanner.cut`).
    var isSilentStage = false
    /// Whether requests remain to be posted.
    var isPosting = false
    /// Whether the caller has been told already (a stall); the slot stays until nothing is in flight.
    var isAbandoned = false
    var failure = WorkStatus.success
    var failureDetail: Int32 = 0
    var failureDomain: UInt8 = 0

    /// 30 bits.
    var immediate: UInt32 = 0
    /// 8 or, without an immediate, 0.
    var eighths: UInt32 = 0
    var sequence: UInt32 = 0
    /// Requests taken by providers and not complete.
    var inFlight = 0
    /// Requests complete, for the stall report.
    var completed = 0

    var source = UnsafeRawPointer(bitPattern: 1)
    var localIndex: UInt32 = 0
    var attachment: UInt32 = 0
    /// Bytes of the write or of one page.
    var length = 0
    var targetOffset = 0

    // Paged writes: both lists lie in `scratch` or, while `submit` runs, with the caller.
    var sourcePages: UnsafePointer<UInt32>?
    var targetPages: UnsafePointer<UInt32>?
    var pageCount = 0
    var sourceStride = 0
    var targetStride = 0
    /// The next page of each rail, and where it goes on in a page that is cut.
    var railCursors = InlineArray<15, Int>(repeating: 0)
    var railChunks = InlineArray<15, Int>(repeating: 0)

    // Scatters, barriers: the targets lie in `scratch`.
    var targets: UnsafeMutablePointer<ScatterTarget>?
    var targetCount = 0
    /// Next target, its next piece, and the offset of the next chunk in the piece.
    var targetCursor = 0
    var pieceCursor = 0
    var chunkCursor = 0

    /// What a counter wait consumes.
    var expectedEighths: Int64 = 0
    /// Moment of failure; `.max` is never.
    var deadline = UInt64.max
    var submitted: UInt64 = 0
    var lastProgress: UInt64 = 0

    var callback: TransferCallback?

    /// Memory for lists, kept by the slot for its next user.
    var scratch: UnsafeMutableRawPointer?
    var scratchBytes = 0

    init() { status = Atomic(1 << 32) }

    /// Memory of at least `byteCount` bytes, aligned to 16.
    mutating func reserveScratch(_ byteCount: Int) -> UnsafeMutableRawPointer {
        if let scratch, scratchBytes >= byteCount { return scratch }
        scratch?.deallocate()
        scratchBytes = max(4096, (byteCount + 4095) & ~4095)
        let fresh = UnsafeMutableRawPointer.allocate(byteCount: scratchBytes, alignment: 16)
        scratch = fresh
        return fresh
    }

    deinit { scratch?.deallocate() }
}

/// One target of a scatter or a barrier.
struct ScatterTarget {
    var attachment: UInt32
    var source: UnsafeRawPointer
    var length: Int
    var targetOffset: Int
}
