internal import CPlatform
internal import Glibc

/// The loops over tokens. They take addresses, strides and lists, so that kernels on another processor can take their place.
enum Kernels {
    /// Adds up rows with their weights, and what other ranks have added up of theirs, in FP32 and in the order of `terms`.
    ///
    /// Multiplications and additions are rounded one by one: the same on every machine.
    /// - Complexity: O(rows * count).
    @inline(__always)
    static func weightedSum(
        _ terms: te_terms, _ rowType: ElementType, into target: UnsafeMutableRawPointer,
        _ targetType: ElementType, count: Int
    ) {
        withUnsafePointer(to: terms) { terms in
            te_weighted_sum(terms, Int32(rowType.rawValue), target, Int32(targetType.rawValue), count)
        }
    }

    /// Copies rows `indices[i]` of `source` behind each other.
    /// - Complexity: O(count * rowBytes).
    static func gather(
        _ source: UnsafeRawPointer, stride: Int, _ indices: UnsafePointer<UInt32>, count: Int, rowBytes: Int,
        to target: UnsafeMutableRawPointer
    ) {
        for row in 0..<count {
            if row + 1 < count {
                te_prefetch_page(source + Int(indices[row + 1]) * stride, rowBytes, 0)
            }
            memcpy(target + row * rowBytes, source + Int(indices[row]) * stride, rowBytes)
        }
    }

    /// Copies one row; past the cache when `streams`, and then `finishStreaming` makes it visible to others.
    @inline(__always)
    static func copyRow(
        _ source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, _ byteCount: Int, streams: Bool
    ) {
        if streams {
            te_copy_streaming(target, source, byteCount)
        } else {
            memcpy(target, source, byteCount)
        }
    }

    /// Ends a run of streaming copies.
    @inline(__always) static func finishStreaming() { te_copy_fence() }
}
