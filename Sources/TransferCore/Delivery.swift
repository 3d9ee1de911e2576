/// What is known of a request that failed.
///
/// A count must be added exactly once (contract, promise 3), so a failed request may be sent again over another NIC only when
/// it is known whether the receiver has counted it. The sender often cannot know: the NIC may have died between delivery
/// and acknowledgement. Then the receiver is asked (`FabricDomain.settle`).
public enum Delivery: Hashable, Sendable {
    /// Nobody can say: the transfer fails.
    case unknown
    /// It was not counted, and nothing of it can land any more.
    case never
    /// The receiver knows: it is request `ordinal` of what this NIC sent over `connection`.
    case unsettled(connection: UInt64, ordinal: UInt64)
}

/// Which requests of one connection the receiver has counted: the receiver's half of exactly-once.
///
/// All below `base`, and those whose bit is set in `bits`, bit 0 of the first word being `base`. Transports that keep order
/// need only `base`.
public struct DeliveryLedger: Hashable, Sendable {
    /// Requests that have all been counted.
    public var base: UInt64
    /// The fate of the next ones.
    public var bits: [UInt64]

    /// Words that a ledger may have, which fit into one control message: a NIC has fewer requests in flight.
    public static let words = 1024

    public init(base: UInt64, bits: [UInt64] = []) {
        self.base = base
        self.bits = bits
    }

    /// Makes a ledger from the requests at and above `base` that have been counted, in any order. Those too far above are
    /// left out by nobody: a NIC with more in flight than `words` * 64 traps here.
    public init(base: UInt64, counted: some Sequence<UInt64>) {
        self.init(base: base)
        for ordinal in counted where ordinal >= base {
            let (word, bit) = (Int((ordinal - base) >> 6), (ordinal - base) & 63)
            precondition(word < Self.words, "a NIC with more requests in flight than a ledger holds")
            while bits.count <= word { bits.append(0) }
            bits[word] |= 1 << bit
        }
    }

    /// Whether a request was counted.
    public func contains(_ ordinal: UInt64) -> Bool {
        if ordinal < base { return true }
        let word = (ordinal - base) >> 6
        return word < UInt64(bits.count) && bits[Int(word)] & 1 << ((ordinal - base) & 63) != 0
    }
}

/// Which part of a transfer a request carries, so that it can be made again for another NIC. Opaque to providers.
public struct RequestTag: Hashable, Sendable, BitwiseCopyable {
    /// All of it in one word.
    public var rawValue: UInt64

    /// Any word is a tag of something.
    @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Pages: the first one, and how many.
    @inlinable public init(rail: Int, unit: Int, part: Int) {
        rawValue =
            UInt64(truncatingIfNeeded: rail) << 60 | UInt64(truncatingIfNeeded: unit) << 32
            | UInt64(UInt32(truncatingIfNeeded: part))
    }

    /// A chunk of one page or target that is longer than a request may be, or all of a target (chunk 0).
    @inlinable public init(rail: Int, unit: Int, chunk: Int) {
        self.init(rail: rail, unit: unit, part: 1 << 31 | chunk)
    }

    /// Which rail of the attachment carries it; below `Limits.railsPerRoute`.
    @inlinable public var rail: Int { Int(rawValue >> 60) }
    /// The first page of a paged write, or the number of the target.
    @inlinable public var unit: Int { Int(rawValue >> 32 & 0xFFF_FFFF) }
    /// Whether it is a chunk and not pages.
    @inlinable public var isChunk: Bool { rawValue & 1 << 31 != 0 }
    /// How many pages.
    @inlinable public var part: Int { Int(rawValue & 0x7FFF_FFFF) }
    /// Which chunk.
    @inlinable public var chunk: Int { part }

    /// The tag of the pages that are left after `count` of them; nil when none is.
    public func dropping(_ count: Int) -> RequestTag? {
        count < part ? RequestTag(rail: rail, unit: unit + count, part: part - count) : nil
    }
}
