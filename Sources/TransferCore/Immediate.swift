/// The number that rides with a write and that the receiver counts. 30 bits are the caller's.
///
/// ```swift
/// let layer: Immediate = 17
/// Immediate(exactly: 1 << 30)  // nil: the two upper bits of the wire belong to the engine
/// ```
public struct Immediate: Hashable, Sendable, ExpressibleByIntegerLiteral, CustomStringConvertible {
    /// The number of bits that callers may use.
    public static let bitWidth = 30
    /// The largest immediate.
    public static let max = Immediate(uncheckedBounds: (1 << 30) - 1)

    /// The number, below 2^30.
    public let value: UInt32

    @inlinable init(uncheckedBounds value: UInt32) { self.value = value }

    /// Makes an immediate, or nil when `value` does not fit in 30 bits.
    @inlinable public init?(exactly value: some BinaryInteger) {
        guard let value = UInt32(exactly: value), value < 1 << 30 else { return nil }
        self.value = value
    }

    /// Makes an immediate from its lower 30 bits.
    @inlinable public init(truncatingIfNeeded value: some BinaryInteger) {
        self.value = UInt32(truncatingIfNeeded: value) & ((1 << 30) - 1)
    }

    /// Traps when the literal does not fit in 30 bits.
    public init(integerLiteral value: UInt32) {
        precondition(value < 1 << 30, "an immediate has 30 bits")
        self.value = value
    }

    public var description: String { "\(value)" }
}

/// Receivers count in eighths, so that one logical write may arrive in up to eight parts over several NICs.
public enum Eighths {
    /// Eighths in one count.
    public static let whole: UInt32 = 8

    /// How one count is shared by `parts` fragments (1 to 8): powers of two that add up to eight.
    ///
    /// Two bits on the wire can name 8, 4, 2 and 1 eighths, and those suffice for any number of parts up to 8.
    @inlinable public static func share(of part: Int, in parts: Int) -> UInt32 {
        precondition(parts >= 1 && parts <= 8 && part >= 0 && part < parts)
        switch parts {
        case 1: return 8
        case 2: return 4
        case 3: return part == 0 ? 4 : 2
        case 4: return 2
        case 5: return part < 3 ? 2 : 1
        case 6: return part < 2 ? 2 : 1
        case 7: return part < 1 ? 2 : 1
        default: return 1
        }
    }
}

/// The 32-bit immediate as NICs carry it: two bits say which fraction of a count this is, 30 are the caller's.
public struct WireImmediate: Hashable, Sendable {
    /// As handed to the NIC.
    public let rawValue: UInt32

    /// Any 32 bits are a valid wire immediate.
    @inlinable public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// `eighths` is 8, 4, 2 or 1.
    @inlinable public init(_ immediate: UInt32, eighths: UInt32) {
        precondition(eighths == 8 || eighths == 4 || eighths == 2 || eighths == 1)
        rawValue = immediate & ((1 << 30) - 1) | UInt32(3 - eighths.trailingZeroBitCount) << 30
    }

    /// The caller's 30 bits.
    @inlinable public var immediate: UInt32 { rawValue & ((1 << 30) - 1) }
    /// 8, 4, 2 or 1.
    @inlinable public var eighths: UInt32 { 8 >> (rawValue >> 30) }
}
