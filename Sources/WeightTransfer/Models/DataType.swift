/// What an element is.
public enum DataType: String, Hashable, Sendable, CaseIterable {
    case bf16 = "BF16"
    case f16 = "F16"
    case f32 = "F32"
    /// One sign bit, four of exponent (bias 7), three of mantissa; no infinities (OCP 8-bit floating point, E4M3).
    case f8e4m3 = "F8_E4M3"
    case u8 = "U8"
    case i32 = "I32"
    case i64 = "I64"

    /// Bytes of an element.
    public var byteCount: Int {
        switch self {
        case .bf16, .f16: 2
        case .f32, .i32: 4
        case .f8e4m3, .u8: 1
        case .i64: 8
        }
    }
}
