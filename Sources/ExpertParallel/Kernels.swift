internal import CPlatform
internal import Glibc

/// The loops over tokens. They take addresses, strides and lists, so that kernels on another processor can take their place.
enum Kernels {
    /// `target[i] = weights[0] * rows[0][i] + weights[1] * rows[1][i] + ...`, in FP32 and in this order.
    ///
    /// Multiplications and additions are rounded one by one: the same on every machine.
    /// - Complexity: O(rows * count).
    static func weightedSum(
        _ rows: UnsafePointer<UnsafeRawPointer>, _ weights: UnsafePointer<Float>, rowCount: Int,
        _ rowType: ElementType, into target: UnsafeMutableRawPointer, _ targetType: ElementType, count: Int
    ) {
        switch (rowType, targetType) {
        case (.bfloat16, .bfloat16):
            sum(rows, weights, rowCount, BFloat16Row.self, target, BFloat16Row.self, count)
        case (.bfloat16, .float32):
            sum(rows, weights, rowCount, BFloat16Row.self, target, Float32Row.self, count)
        case (.float32, .bfloat16):
            sum(rows, weights, rowCount, Float32Row.self, target, BFloat16Row.self, count)
        case (.float32, .float32):
            sum(rows, weights, rowCount, Float32Row.self, target, Float32Row.self, count)
        case (.float16, .float16):
            sum(rows, weights, rowCount, Float16Row.self, target, Float16Row.self, count)
        case (.float16, .float32):
            sum(rows, weights, rowCount, Float16Row.self, target, Float32Row.self, count)
        case (.float32, .float16):
            sum(rows, weights, rowCount, Float32Row.self, target, Float16Row.self, count)
        default: preconditionFailure("results are FP32, FP16 or BF16; ExpertConfiguration says so")
        }
    }

    @inline(__always)
    private static func sum<Row: RowElement, Target: RowElement>(
        _ rows: UnsafePointer<UnsafeRawPointer>, _ weights: UnsafePointer<Float>, _ rowCount: Int,
        _: Row.Type, _ target: UnsafeMutableRawPointer, _: Target.Type, _ count: Int
    ) {
        var index = 0
        while index + 16 <= count {
            var total = Sixteen(first: SIMD8(repeating: 0), second: SIMD8(repeating: 0))
            for row in 0..<rowCount {
                let values = Row.load(rows[row], index)
                let weight = SIMD8(repeating: weights[row])
                total.first += values.first * weight
                total.second += values.second * weight
            }
            Target.store(total.arranged(paired: Row.isPaired, as: Target.isPaired), target, index)
            index += 16
        }
        while index < count {
            var total: Float = 0
            for row in 0..<rowCount { total += Row.loadOne(rows[row], index) * weights[row] }
            Target.storeOne(total, target, index)
            index += 1
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
