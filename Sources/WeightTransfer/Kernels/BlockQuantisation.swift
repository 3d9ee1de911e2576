internal import CPlatform
internal import TransferCore

/// BF16 to FP8 (E4M3) with one 32-bit scale for each block of 128 rows and 128 columns.
///
/// For a block whose largest magnitude is `a`, at least 1e-4, the scale is `a / 448` and an element becomes
/// `x * (1 / a * 448)`, computed in 32 bits and rounded to nearest, ties to even: what
/// `(x.float() * (448 / a)).to(torch.float8_e4m3fn)` gives, where PyTorch divides a number by a tensor in just these
/// two steps, and the convention of DeepSeek-V3's weights. A block with an infinity or a NaN becomes NaN, scale and
/// all, as there.
package enum BlockQuantisation {
    /// Quantises some rows.
    /// - Parameters:
    ///   - source: The first element, BF16.
    ///   - sourceStride: Elements from one row to the next.
    ///   - target: The first byte; rows follow each other without gaps.
    ///   - scales: The first scale; rows of blocks follow each other without gaps.
    /// - Complexity: O(rows * columns), with the widest vectors that the processor has.
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
                unsafe te_quantise_block(
                    from, sourceStride, rowCount, width, to, columns,
                    scales + blockRow * blockColumns + blockColumn)
            }
        }
    }

    /// Quantises some rows to where they are to stay: past the cache, and digested on the way.
    /// - Parameters:
    ///   - columns: A multiple of 128, so that whole granules of the digest come from the rows of a block.
    ///   - targetStride: Bytes from one row of the target to the next; `columns` where they follow each other.
    ///   - offset: Where the first row goes, for the digest.
    /// - Returns: The digest of what was written: of one range where rows follow each other, else of one for each. Others see
    ///   the bytes when a write has followed.
    static func quantise(
        _ source: UnsafePointer<UInt16>, sourceStride: Int, rows: Int, columns: Int,
        to target: UnsafeMutablePointer<UInt8>, targetStride: Int, scales: UnsafeMutablePointer<Float>,
        digestedAt offset: Int
    ) -> Digest {
        let size = Target.blockSize
        var halves: (UInt64, UInt64) = (0, 0)
        for firstRow in stride(from: 0, to: rows, by: size) {
            let begin = UInt64(offset + firstRow * targetStride)
            unsafe withUnsafeMutableBytes(of: &halves) { halves in
                unsafe te_quantise_rows(
                    source + firstRow * sourceStride, sourceStride, min(size, rows - firstRow), columns,
                    target + firstRow * targetStride, targetStride,
                    scales + firstRow / size * (columns / size),
                    begin, halves.baseAddress?.assumingMemoryBound(to: UInt64.self))
            }
        }
        return Digest(low: halves.0, high: halves.1)
    }
}
