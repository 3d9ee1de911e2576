internal import TransferCore

/// A registered region as the data path sees it; plain data.
struct RegionEntry {
    /// 0 while the entry is free.
    var generation: UInt32 = 0
    /// The address of the first byte; anything but 0, for requests without data.
    var base: UInt = 1
    var length = 0
    /// Bit `i` is set when the region is registered on NIC `i`.
    var nics: UInt8 = 0
    /// The place of `nics` in `Hot.nicSets`, when it is not all of them.
    var nicSet = 0
    /// `DomainKey.local` for each NIC.
    var localKeys = InlineArray<8, UInt64>(repeating: 0)
}

/// An attached remote region as the data path sees it.
struct Attachment: ~Copyable {
    /// 0 while the entry is free.
    var generation: UInt32 = 0
    /// The generation of before, once the descriptor has expired; 0 until then.
    var expiredGeneration: UInt32 = 0
    /// The place of the peer's numbers in `Links.totals`.
    var peer: UInt32 = 0
    var isWritable = false
    var trafficClass = TrafficClass.normal
    var length = 0
    /// `Rail.local` is the index of a domain.
    var rails = Table<Rail>()
    /// One for each rail. They stay where they are while requests to them are in flight.
    var keys = Table<ImportedKey>()
    /// For each rail, the place of its link in `DomainGroup.links`.
    var links = Table<Int32>()
    /// The longest write that every rail takes in one request.
    var maximumWriteBytes: UInt64 = 0
    /// Whether posting is all there is to it: the provider copies while it posts.
    var completesAtOnce = false
    /// The NICs of this engine on which the rails begin.
    var nics: UInt8 = 0
    /// The same target over fewer NICs, for sources that are registered on some only: an attachment for each of
    /// `Hot.nicSets`, `.max` when none of those NICs reaches the target. An entry is written before any region of that set
    /// is handed out, and not afterwards, so that submitters may read it.
    var narrower = InlineArray<4, UInt32>(repeating: .max)
    /// Whether this is such a narrower one, whose imports belong to another.
    var isNarrower = false
    /// The same target over the links that are up, made when some are down; the bits are rails of this attachment.
    var detours: [(rails: UInt16, index: UInt32)] = []
    /// For a detour, the attachment that it was made for; `.max` is itself.
    var root = UInt32.max
}

/// What requests from one region over one rail have in common, and the only place where offsets become addresses.
@safe struct Way {
    // SAFETY: `base` is the address of a registered region, not 0, and `submit` has checked offsets and lengths against
    // the region; `target` points to a key of an attachment, which does not move.
    let base: UInt
    let context: UInt64
    let localKey: UInt64
    let target: UnsafePointer<ImportedKey>
    let immediate: UInt32

    @inline(__always)
    func request(
        _ tag: RequestTag, from sourceOffset: Int, _ length: Int, at targetOffset: Int, eighths: UInt32
    ) -> WorkRequest {
        var request = unsafe WorkRequest(
            context: context,
            source: UnsafeRawPointer(bitPattern: base &+ UInt(bitPattern: sourceOffset)).unsafelyUnwrapped,
            length: length, localKey: localKey, target: target,
            targetOffset: UInt64(bitPattern: Int64(targetOffset)), immediate: immediate, eighths: eighths)
        request.tag = tag
        return request
    }
}

/// The pages of one paged write: page `sources[i]` goes to page `targets[i]`.
///
/// Submitting a write that is posted at once must not copy its lists, so they are the caller's memory first and a copy
/// later.
@safe struct PageLists: ~Copyable {
    // SAFETY: both pointers are good for `count` numbers: of the caller, between `borrow` and the end of `submit`, or of
    // `copy`. Whoever leaves pages for later calls `keep` before `submit` returns (see `DomainGroup.pump`).
    private var sourceNumbers: UnsafePointer<UInt32>?
    private var targetNumbers: UnsafePointer<UInt32>?
    private(set) var count = 0
    private var copy = Table<UInt32>()
    private var isBorrowed = false

    /// Uses the caller's lists, which are equally long, until `keep` or `forget`.
    @unsafe mutating func borrow(
        _ sources: UnsafeBufferPointer<UInt32>, _ targets: UnsafeBufferPointer<UInt32>
    ) {
        unsafe sourceNumbers = sources.baseAddress
        unsafe targetNumbers = targets.baseAddress
        count = min(sources.count, targets.count)
        isBorrowed = true
    }

    /// Lets go of the lists.
    mutating func forget() {
        count = 0
        isBorrowed = false
    }

    /// Copies lists that are the caller's.
    mutating func keep() {
        guard isBorrowed, count > 0 else { return }
        if copy.count < 2 * count { copy = Table(repeating: 0, count: (2 * count + 1023) & ~1023) }
        for index in 0..<count {
            copy[index] = sources[index]
            copy[count + index] = targets[index]
        }
        unsafe sourceNumbers = UnsafePointer(copy.address(of: 0))
        unsafe targetNumbers = UnsafePointer(copy.address(of: count))
        isBorrowed = false
    }

    /// Pages of the source.
    var sources: Span<UInt32> {
        @_lifetime(borrow self) get {
            unsafe _overrideLifetime(
                UnsafeBufferPointer(start: sourceNumbers, count: count).span, borrowing: self)
        }
    }

    /// Pages of the target.
    var targets: Span<UInt32> {
        @_lifetime(borrow self) get {
            unsafe _overrideLifetime(
                UnsafeBufferPointer(start: targetNumbers, count: count).span, borrowing: self)
        }
    }
}
