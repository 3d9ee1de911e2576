/// Decides which rail carries what: a pure function of the request, the rails and a sequence number.
///
/// Everything is one rule. `units` equal units are laid on the rails' scale, shifted by a fraction that the sequence number
/// gives; each rail takes the units whose boundary falls into its share (systematic sampling). Many units are thus divided in
/// proportion, and few units - a single small write - rotate over the rails in proportion, because the fractions of
/// successive numbers are spread evenly (van der Corput's sequence; for 2, 4 or 8 equal rails it is an exact rotation).
public struct StripePlanner: Sendable {
    /// Writes below this many bytes go to one rail.
    public var stripeBytes: Int
    /// Cuts between rails fall on multiples of this.
    public static let granule = 4096

    public init(stripeBytes: Int) {
        precondition(stripeBytes >= Self.granule, "stripes are at least \(Self.granule) bytes")
        self.stripeBytes = stripeBytes
    }

    /// The first of `units` that rail number `rail` carries; it carries all up to the next rail's first.
    @inlinable public static func start(
        ofRail rail: Int, units: Int, rails: Span<Rail>, sequence: UInt32
    ) -> Int {
        if rail <= 0 { return 0 }
        if rail >= rails.count { return units }
        let shift = UInt64(reversed(sequence) >> 12)  // 20 bits: a fraction of Rail.scale
        let scaled = UInt64(units).multipliedFullWidth(by: UInt64(rails[rail - 1].end))
        let (low, carry) = scaled.low.addingReportingOverflow(shift)
        return Int((scaled.high &+ (carry ? 1 : 0)) << 44 | low >> 20)
    }

    @inlinable static func reversed(_ value: UInt32) -> UInt32 {
        var v = value
        v = (v >> 1) & 0x5555_5555 | (v & 0x5555_5555) << 1
        v = (v >> 2) & 0x3333_3333 | (v & 0x3333_3333) << 2
        v = (v >> 4) & 0x0F0F_0F0F | (v & 0x0F0F_0F0F) << 4
        return v.byteSwapped
    }

    /// Cuts a write of `length` bytes. Returns the number of pieces put into `pieces`, at least 1, in the order of their
    /// offsets; they cover every byte once, and their eighths add up to one count.
    ///
    /// With more than eight pieces the first ones carry no eighths: those are *silent* and must have completed
    /// before the others are posted.
    /// - Complexity: O(number of rails).
    @inlinable public func cut(
        length: Int, rails: Span<Rail>, sequence: UInt32,
        into pieces: borrowing Table<Piece>
    ) -> Int {
        if rails.count == 1 {
            pieces[0] = Piece(rail: 0, offset: 0, length: length, eighths: Eighths.whole)
            return 1
        }
        var unit = length
        if length >= 2 * stripeBytes {
            unit = length / stripeBytes >= rails.count ? Self.granule : stripeBytes
        }
        let units = unit == 0 ? 1 : (length + unit - 1) / unit
        var count = 0
        var start = 0
        for rail in 0..<rails.count {
            let end = Self.start(ofRail: rail + 1, units: units, rails: rails, sequence: sequence)
            if end > start {
                let offset = start * unit
                pieces[count] = Piece(rail: rail, offset: offset, length: min(end * unit, length) - offset)
                count += 1
                start = end
            }
        }
        let silent = max(0, count - 8)
        for piece in silent..<count {
            pieces[piece].eighths = Eighths.share(of: piece - silent, in: count - silent)
        }
        return count
    }

    /// Bytes up to which pages that are neighbours on both sides travel as one request; 0 is never.
    /// - Parameters:
    ///   - pageBytes: Bytes of a page.
    ///   - areAdjacent: Whether neighbouring pages lie side by side in memory, on both sides.
    ///   - counts: Whether the pages are counted.
    ///   - countsManyBytes: The largest request that may carry several counts.
    ///   - maximumWriteBytes: The largest request of all.
    @inlinable public static func mergeLimit(
        pageBytes: Int, areAdjacent: Bool, counts: Bool, countsManyBytes: UInt64, maximumWriteBytes: UInt64
    ) -> Int {
        guard pageBytes > 0, areAdjacent else { return 0 }
        let limit = min(maximumWriteBytes, 1 << 40)
        return Int(counts ? min(countsManyBytes, limit) : limit)
    }
}

/// A part of a write for one rail.
public struct Piece: Hashable, Sendable {
    /// Index of the rail.
    public var rail: Int
    /// First byte within the write.
    public var offset: Int
    /// Bytes; 0 only for an empty write.
    public var length: Int
    /// Its part of the count; 0 for a silent piece.
    public var eighths: UInt32

    @inlinable public init(rail: Int, offset: Int, length: Int, eighths: UInt32 = 0) {
        self.rail = rail
        self.offset = offset
        self.length = length
        self.eighths = eighths
    }

    /// The next request of this piece in a stage, beginning at `offset` or later; nil when there is none. The last chunk
    /// carries the count, when all others are there.
    /// - Parameters:
    ///   - offset: Where to go on within the piece.
    ///   - limit: The longest request.
    ///   - counts: Whether the write is counted; otherwise there is one stage and nothing carries a count.
    ///   - isSilent: Whether this is the stage before the counted requests.
    @inlinable public func chunk(
        from offset: Int, limit: UInt64, counts: Bool, isSilent: Bool
    ) -> (offset: Int, length: Int, eighths: UInt32)? {
        let limit = Int(clamping: limit)
        guard counts else {
            return offset < length ? (offset, min(limit, length - offset), 0) : nil
        }
        if length <= limit, eighths > 0 {
            if isSilent { return nil }
            return offset == 0 ? (0, length, eighths) : nil
        }
        let last = eighths > 0 ? (length - 1) / limit * limit : length
        if isSilent { return offset < last ? (offset, min(limit, last - offset), 0) : nil }
        return eighths > 0 && offset <= last ? (last, length - last, eighths) : nil
    }
}
