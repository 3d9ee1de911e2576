/// BF16 to FP8 (E4M3) with one 32-bit scale for each block of 128 rows and 128 columns.
///
/// For a block whose largest magnitude is `a`, at least 1e-4, the scale is `a / 448` and an element becomes `x * (1 /
/// a * 448)`, computed in
/// 32 bits and rounded to nearest, ties to even: what `(x.float() * (448 / a)).to(torch.float8_e4m3fn)` gives, where
/// PyTorch divides a number by a tensor in just these two steps, and the convention of
/// DeepSeek-V3's weights. A block with an infinity or a NaN becomes NaN, scale and all, as there.
package enum BlockQuantisation {
    /// The largest finite E4M3 number.
    static let largest: Float = 448
    /// Blocks whose largest magnitude is below this are scaled as if it were this.
    static let smallest: Float = 1e-4

    /// Quantises some rows.
    /// - Parameters:
    ///   - source: The first element, BF16.
    ///   - sourceStride: Elements from one row to the next.
    ///   - target: The first byte; rows follow each other without gaps.
    ///   - scales: The first scale; rows of blocks follow each other without gaps.
    /// - Complexity: O(rows * columns), a little over one cycle for each element.
    package static func quantise(
        _ source: UnsafePointer<UInt16>, sourceStride: Int, rows: Int, columns: Int,
        to target: UnsafeMutablePointer<UInt8>, scales: UnsafeMutablePointer<Float>
    ) {
        let size = Target.blockSize
        let blockColumns = (columns + size - 1) / size
        for blockRow in 0..<(rows + size - 1) / size {
            let firstRow = blockRow * size
            let rowCount = min(size, rows - firstRow)
            for blockColumn in 0..<blockColumns {
                let firstColumn = blockColumn * size
                let width = min(size, columns - firstColumn)
                let from = unsafe source + firstRow * sourceStride + firstColumn
                let to = unsafe target + firstRow * columns + firstColumn
                let magnitude = unsafe magnitude(from, sourceStride, rowCount, width)
                unsafe scales[blockRow * blockColumns + blockColumn] = magnitude / largest
                unsafe convert(from, sourceStride, rowCount, width, 1 / magnitude * largest, to, columns)
            }
        }
    }

    /// The largest magnitude of a block: of numbers without a sign, the order of the bits is that of the values, and
    /// NaN is above all.
    private static func magnitude(
        _ source: UnsafePointer<UInt16>, _ stride: Int, _ rows: Int, _ columns: Int
    ) -> Float {
        var vector = SIMD8<Int16>()
        var rest: UInt16 = 0
        let whole = columns & ~7
        for row in 0..<rows {
            let line = unsafe UnsafeRawPointer(source + row * stride)
            var column = 0
            while column < whole {
                let bits =
                    unsafe line.loadUnaligned(fromByteOffset: 2 * column, as: SIMD8<Int16>.self) & 0x7FFF
                vector.replace(with: bits, where: bits .> vector)
                column += 8
            }
            while column < columns {
                rest = max(
                    rest, unsafe line.loadUnaligned(fromByteOffset: 2 * column, as: UInt16.self) & 0x7FFF)
                column += 1
            }
        }
        let bits = max(UInt16(bitPattern: vector.max()), rest)
        let value = Float(bitPattern: UInt32(bits) << 16)
        return value < smallest ? smallest : value
    }

    private static func convert(
        _ source: UnsafePointer<UInt16>, _ stride: Int, _ rows: Int, _ columns: Int, _ factor: Float,
        _ target: UnsafeMutablePointer<UInt8>, _ targetStride: Int
    ) {
        guard factor.isFinite, factor > 0 else {
            for row in 0..<rows {
                unsafe (target + row * targetStride).update(repeating: 0x7F, count: columns)
            }
            return
        }
        let whole = columns & ~15
        for row in 0..<rows {
            let line = unsafe UnsafeRawPointer(source + row * stride)
            let out = unsafe UnsafeMutableRawPointer(target + row * targetStride)
            var column = 0
            while column < whole {
                let first = unsafe line.loadUnaligned(fromByteOffset: 2 * column, as: SIMD4<UInt32>.self)
                let second = unsafe line.loadUnaligned(
                    fromByteOffset: 2 * column + 16, as: SIMD4<UInt32>.self)
                let codes = SIMD16(lowHalf: codes(first, factor), highHalf: codes(second, factor))
                unsafe out.storeBytes(
                    of: SIMD16<UInt8>(truncatingIfNeeded: codes), toByteOffset: column, as: SIMD16<UInt8>.self
                )
                column += 16
            }
            while column < columns {
                let bits = unsafe line.loadUnaligned(fromByteOffset: 2 * column, as: UInt16.self)
                unsafe out.storeBytes(
                    of: code(Float(bitPattern: UInt32(bits) << 16) * factor), toByteOffset: column,
                    as: UInt8.self)
                column += 1
            }
        }
    }

    /// Eight elements, two in each lane of `bits`, become eight codes.
    @inline(__always) private static func codes(_ bits: SIMD4<UInt32>, _ factor: Float) -> SIMD8<UInt16> {
        let low = magnitudes((bits &<< 16) & 0x7FFF_FFFF, factor)
        let high = magnitudes(bits & 0x7FFF_0000, factor)
        let both = unsafe unsafeBitCast(low &+ high &<< 16, to: SIMD8<UInt16>.self)
        let signs = unsafe (unsafeBitCast(bits, to: SIMD8<UInt16>.self) &>> 8) & 0x80
        return both | signs
    }

    /// The codes of four numbers without sign, at most 448 and a rounding error.
    ///
    /// Adding a power of two that is 2^20 times the number's own lets the addition round to three bits of mantissa,
    /// to even; below the
    /// smallest normal number, 2^-6, the step stays 2^-9. What the sum has more than that power of two is 8 to 16
    /// then (or 0 to 8), and
    /// joined with the exponent above that of 2^-6 it is the code.
    @inline(__always) private static func magnitudes(_ bits: SIMD4<UInt32>, _ factor: Float) -> SIMD4<UInt32>
    {
        let value = unsafe unsafeBitCast(bits, to: SIMD4<Float>.self) * factor
        let above = unsafe unsafeBitCast(value, to: SIMD4<Int32>.self) &- 0x3C80_0000
        // The shift makes a mask of the sign: what is below 2^-6 counts as 2^-6.
        let exponent = above & ~(above &>> 31) & 0x7F80_0000
        let power = exponent &+ (0x3C80_0000 + (20 << 23))
        let sum = unsafe value + unsafeBitCast(power, to: SIMD4<Float>.self)
        let steps = unsafe unsafeBitCast(sum, to: SIMD4<Int32>.self) &- power
        return unsafe unsafeBitCast(steps &+ (exponent &>> 20), to: SIMD4<UInt32>.self)
    }

    /// One number's code; the same arithmetic.
    @inline(__always) static func code(_ value: Float) -> UInt8 {
        let bits = value.bitPattern & 0x7FFF_FFFF
        let exponent = max(bits & 0x7F80_0000, 0x3C80_0000)
        let power = exponent + (20 << 23)
        let sum = Float(bitPattern: bits) + Float(bitPattern: power)
        let code = sum.bitPattern - power + (exponent - 0x3C80_0000) >> 20
        return UInt8(truncatingIfNeeded: code) | UInt8(truncatingIfNeeded: value.bitPattern >> 24 & 0x80)
    }
}
