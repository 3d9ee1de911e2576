/// What a value of a token or of an expert's result is.
public enum ElementType: UInt8, Hashable, Sendable, CaseIterable {
    /// IEEE 754 binary32.
    case float32
    /// The upper half of a binary32.
    case bfloat16
    /// IEEE 754 binary16.
    case float16
    /// FP8 E4M3 without infinities ("e4m3fn", Micikevicius et al. 2022): up to 448, NaN is 0x7F.
    case float8

    /// Bytes of one value.
    public var byteCount: Int {
        switch self {
        case .float32: 4
        case .bfloat16, .float16: 2
        case .float8: 1
        }
    }
}

/// BF16 as the upper half of a binary32.
public enum BFloat16 {
    /// Rounds to the nearest value, ties to even; a NaN stays one.
    @inlinable public static func bits(_ value: Float) -> UInt16 {
        let bits = value.bitPattern
        if value.isNaN { return UInt16(truncatingIfNeeded: bits >> 16) | 0x40 }
        return UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
    }

    /// The value of 16 bits.
    @inlinable public static func value(_ bits: UInt16) -> Float { Float(bitPattern: UInt32(bits) << 16) }
}

/// FP8 E4M3: one sign, four exponent bits with bias 7, three mantissa bits; no infinities.
public enum Float8 {
    /// The largest finite value.
    public static let largest: Float = 448

    /// Rounds to the nearest value, ties to even, and saturates at 448; a NaN becomes 0x7F.
    public static func bits(_ value: Float) -> UInt8 {
        if value.isNaN { return 0x7F }
        let sign: UInt8 = value.sign == .minus ? 0x80 : 0
        let magnitude = min(value.magnitude, largest)
        // Below 2^-6 values are multiples of 2^-9.
        let exponent = max(magnitude > 0 ? Int(magnitude.exponent) : -6, -6)
        let scaled = magnitude * Float(sign: .plus, exponent: 3 - exponent, significand: 1)
        var mantissa = Int(scaled.rounded(.toNearestOrEven))
        var biased = exponent + 7
        if mantissa == 16 {
            mantissa = 8
            biased += 1
        }
        if mantissa < 8 { return sign | UInt8(mantissa) }
        return min(sign | UInt8(biased << 3 | (mantissa - 8)), sign | 0x7E)
    }

    /// The value of 8 bits.
    public static func value(_ bits: UInt8) -> Float {
        let exponent = Int(bits >> 3 & 15)
        let mantissa = Float(bits & 7)
        if bits & 0x7F == 0x7F { return .nan }
        let magnitude =
            exponent == 0
            ? mantissa * 0x1p-9
            : (8 + mantissa) * Float(sign: .plus, exponent: exponent - 10, significand: 1)
        return bits & 0x80 != 0 ? -magnitude : magnitude
    }

    /// The value of each of the 256 bit patterns.
    public static let values: [Float] = (0...255).map { value(UInt8($0)) }
}
