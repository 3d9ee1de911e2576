/// How sixteen neighbouring values of one type are read and written, as two halves.
///
/// Which values are in which half is the type's affair: BF16 keeps those with even numbers apart from those with odd
/// numbers, since then widening is a shift and a mask. Widening is exact and narrowing rounds to the nearest value, ties
/// to even, so that a sum depends on the order of its terms only.
protocol RowElement {
    /// Whether the halves are even and odd values instead of lower and upper ones.
    static var isPaired: Bool { get }
    /// Sixteen values from number `index` on.
    static func load(_ row: UnsafeRawPointer, _ index: Int) -> Sixteen
    static func store(_ values: Sixteen, _ row: UnsafeMutableRawPointer, _ index: Int)
    static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float
    static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int)
}

/// Sixteen values in two halves, each as wide as compilers handle well.
struct Sixteen {
    var first: SIMD8<Float>
    var second: SIMD8<Float>

    /// The same values, as lower and upper ones become even and odd ones, or back.
    @inline(__always) func arranged(paired isPaired: Bool, as wantsPaired: Bool) -> Sixteen {
        if isPaired == wantsPaired { return self }
        if wantsPaired {
            let all = SIMD16(lowHalf: first, highHalf: second)
            return Sixteen(first: all.evenHalf, second: all.oddHalf)
        }
        var all = SIMD16<Float>()
        all.evenHalf = first
        all.oddHalf = second
        return Sixteen(first: all.lowHalf, second: all.highHalf)
    }
}

enum Float32Row: RowElement {
    static var isPaired: Bool { false }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> Sixteen {
        Sixteen(
            first: row.loadUnaligned(fromByteOffset: index * 4, as: SIMD8<Float>.self),
            second: row.loadUnaligned(fromByteOffset: index * 4 + 32, as: SIMD8<Float>.self))
    }
    @inline(__always) static func store(_ values: Sixteen, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: values.first, toByteOffset: index * 4, as: SIMD8<Float>.self)
        row.storeBytes(of: values.second, toByteOffset: index * 4 + 32, as: SIMD8<Float>.self)
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        row.loadUnaligned(fromByteOffset: index * 4, as: Float.self)
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: value, toByteOffset: index * 4, as: Float.self)
    }
}

enum BFloat16Row: RowElement {
    static var isPaired: Bool { true }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> Sixteen {
        let words = row.loadUnaligned(fromByteOffset: index * 2, as: SIMD8<UInt32>.self)
        return Sixteen(
            first: unsafeBitCast(words &<< 16, to: SIMD8<Float>.self),
            second: unsafeBitCast(words & 0xFFFF_0000, to: SIMD8<Float>.self))
    }
    @inline(__always) static func store(_ values: Sixteen, _ row: UnsafeMutableRawPointer, _ index: Int) {
        let words = rounded(values.first) &>> 16 | rounded(values.second) & 0xFFFF_0000
        row.storeBytes(of: words, toByteOffset: index * 2, as: SIMD8<UInt32>.self)
    }
    /// The upper 16 bits are the value's.
    @inline(__always) private static func rounded(_ values: SIMD8<Float>) -> SIMD8<UInt32> {
        let bits = unsafeBitCast(values, to: SIMD8<UInt32>.self)
        let near = bits &+ 0x7FFF &+ (bits &>> 16 & 1)
        // A NaN stays one, whatever its lower bits are. All ones where it is one, by a borrow: lane masks are slow.
        let isNaN = 0 &- ((0x7F80_0000 &- (bits & 0x7FFF_FFFF)) &>> 31)
        return near & ~isNaN | (bits | 0x40_0000) & isNaN
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        BFloat16.value(row.loadUnaligned(fromByteOffset: index * 2, as: UInt16.self))
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: BFloat16.bits(value), toByteOffset: index * 2, as: UInt16.self)
    }
}

enum Float16Row: RowElement {
    static var isPaired: Bool { false }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> Sixteen {
        Sixteen(
            first: SIMD8(row.loadUnaligned(fromByteOffset: index * 2, as: SIMD8<Float16>.self)),
            second: SIMD8(row.loadUnaligned(fromByteOffset: index * 2 + 16, as: SIMD8<Float16>.self)))
    }
    @inline(__always) static func store(_ values: Sixteen, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: SIMD8<Float16>(values.first), toByteOffset: index * 2, as: SIMD8<Float16>.self)
        row.storeBytes(
            of: SIMD8<Float16>(values.second), toByteOffset: index * 2 + 16, as: SIMD8<Float16>.self)
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        Float(row.loadUnaligned(fromByteOffset: index * 2, as: Float16.self))
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: Float16(value), toByteOffset: index * 2, as: Float16.self)
    }
}
