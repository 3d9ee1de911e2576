/// How sixteen neighbouring values of one type are read and written.
///
/// Widening is exact and narrowing rounds to the nearest value, ties to even, so that a sum depends on the order of its
/// terms only.
protocol RowElement {
    static var byteCount: Int { get }
    /// Sixteen values from number `index` on.
    static func load(_ row: UnsafeRawPointer, _ index: Int) -> SIMD16<Float>
    static func store(_ values: SIMD16<Float>, _ row: UnsafeMutableRawPointer, _ index: Int)
    static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float
    static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int)
}

enum Float32Row: RowElement {
    static var byteCount: Int { 4 }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> SIMD16<Float> {
        row.loadUnaligned(fromByteOffset: index * 4, as: SIMD16<Float>.self)
    }
    @inline(__always)
    static func store(_ values: SIMD16<Float>, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: values, toByteOffset: index * 4, as: SIMD16<Float>.self)
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        row.loadUnaligned(fromByteOffset: index * 4, as: Float.self)
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: value, toByteOffset: index * 4, as: Float.self)
    }
}

enum BFloat16Row: RowElement {
    static var byteCount: Int { 2 }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> SIMD16<Float> {
        let bits = row.loadUnaligned(fromByteOffset: index * 2, as: SIMD16<UInt16>.self)
        return unsafeBitCast(SIMD16<UInt32>(truncatingIfNeeded: bits) &<< 16, to: SIMD16<Float>.self)
    }
    @inline(__always)
    static func store(_ values: SIMD16<Float>, _ row: UnsafeMutableRawPointer, _ index: Int) {
        let bits = unsafeBitCast(values, to: SIMD16<UInt32>.self)
        var rounded = (bits &+ 0x7FFF &+ (bits &>> 16 & 1)) &>> 16
        rounded.replace(with: bits &>> 16 | 0x40, where: (bits & 0x7FFF_FFFF) .> 0x7F80_0000)
        row.storeBytes(
            of: SIMD16<UInt16>(truncatingIfNeeded: rounded), toByteOffset: index * 2, as: SIMD16<UInt16>.self)
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        BFloat16.value(row.loadUnaligned(fromByteOffset: index * 2, as: UInt16.self))
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: BFloat16.bits(value), toByteOffset: index * 2, as: UInt16.self)
    }
}

enum Float16Row: RowElement {
    static var byteCount: Int { 2 }
    @inline(__always) static func load(_ row: UnsafeRawPointer, _ index: Int) -> SIMD16<Float> {
        SIMD16<Float>(row.loadUnaligned(fromByteOffset: index * 2, as: SIMD16<Float16>.self))
    }
    @inline(__always)
    static func store(_ values: SIMD16<Float>, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: SIMD16<Float16>(values), toByteOffset: index * 2, as: SIMD16<Float16>.self)
    }
    @inline(__always) static func loadOne(_ row: UnsafeRawPointer, _ index: Int) -> Float {
        Float(row.loadUnaligned(fromByteOffset: index * 2, as: Float16.self))
    }
    @inline(__always) static func storeOne(_ value: Float, _ row: UnsafeMutableRawPointer, _ index: Int) {
        row.storeBytes(of: Float16(value), toByteOffset: index * 2, as: Float16.self)
    }
}
