import Testing
import TransferEngine

@testable import ExpertParallel

/// Number formats and loops, each against the definition.
@Suite struct KernelTests {
    /// Every pattern is the value that its definition says, and comes back to itself.
    @Test func float8IsE4M3() {
        for bits in 0...255 as ClosedRange<UInt8> {
            let value = Float8.value(bits)
            let (sign, exponent, mantissa) = (bits >> 7, Int(bits >> 3 & 15), Double(bits & 7))
            if bits & 0x7F == 0x7F {
                #expect(value.isNaN)
                continue
            }
            var power = 1.0
            for _ in 0..<abs(max(exponent, 1) - 7) { power *= max(exponent, 1) > 7 ? 2 : 0.5 }
            let expected = (sign == 1 ? -1 : 1) * power * (exponent == 0 ? mantissa / 8 : 1 + mantissa / 8)
            #expect(Double(value) == expected, "\(bits)")
            #expect(Float8.bits(value) == bits, "\(bits)")
        }
    }

    /// Any number becomes the nearest pattern, and of two equally near ones the even one.
    @Test func float8RoundsToNearestEven() {
        var random = SeededGenerator(seed: 3)
        let patterns = (0...0x7E as ClosedRange<UInt8>).map { ($0, Double(Float8.value($0))) }
        var samples: [Float] = []
        for _ in 0..<2000 {
            samples.append(Float.random(in: 0...500, using: &random))
            samples.append(Float.random(in: 0...0.04, using: &random))
        }
        for index in 1..<patterns.count {
            samples.append(Float((patterns[index - 1].1 + patterns[index].1) / 2))
        }
        for sample in samples {
            let near = patterns.min {
                let (left, right) = (abs($0.1 - Double(sample)), abs($1.1 - Double(sample)))
                return left != right ? left < right : $0.0 & 1 < $1.0 & 1
            }
            #expect(Float8.bits(sample) == near?.0, "\(sample)")
            #expect(Float8.bits(-sample) == near.map { $0.0 | 0x80 }, "\(-sample)")
        }
    }

    @Test func bfloat16RoundsToNearestEven() {
        var random = SeededGenerator(seed: 4)
        for _ in 0..<5000 {
            let bits = UInt32(truncatingIfNeeded: random.next())
            let value = Float(bitPattern: bits)
            guard value.isFinite else {
                #expect(BFloat16.value(BFloat16.bits(value)).isNaN == value.isNaN)
                continue
            }
            let (low, high) = (UInt16(bits >> 16), UInt16(bits >> 16) &+ 1)
            let rest = bits & 0xFFFF
            let expected = rest > 0x8000 || rest == 0x8000 && low & 1 == 1 ? high : low
            #expect(BFloat16.bits(value) == expected, "\(bits)")
        }
    }

    /// Sixteen at a time is the same as one at a time, for every type, length and number of terms.
    @Test func sumsAreInOrderAndRoundedOneByOne() {
        var random = SeededGenerator(seed: 5)
        let pairs: [(ElementType, ElementType)] = [
            (.bfloat16, .bfloat16), (.bfloat16, .float32), (.float32, .bfloat16), (.float32, .float32),
            (.float16, .float16), (.float16, .float32), (.float32, .float16),
        ]
        for (rowType, targetType) in pairs {
            for count in [1, 15, 16, 17, 64, 100] {
                for terms in [0, 1, 2, 8] {
                    check(rowType, targetType, count, terms, &random)
                }
            }
        }
    }

    private func check(
        _ rowType: ElementType, _ targetType: ElementType, _ count: Int, _ terms: Int,
        _ random: inout SeededGenerator
    ) {
        let memory = (0..<terms).map { _ in
            let row = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 2)
            for index in 0..<count { rowType.store(Float.random(in: -3...3, using: &random), row, index) }
            return row
        }
        defer { for row in memory { row.deallocate() } }
        var weights: [Float] = []
        for _ in 0..<terms { weights.append(Float.random(in: -1...1, using: &random)) }
        let target = UnsafeMutableRawPointer.allocate(byteCount: count * 4, alignment: 2)
        defer { target.deallocate() }
        let pointers: [UnsafeRawPointer] = memory.map { UnsafeRawPointer($0) } + [UnsafeRawPointer(target)]
        let factors: [Float] = weights + [0]
        pointers.withUnsafeBufferPointer { rows in
            factors.withUnsafeBufferPointer { weights in
                guard let rows = rows.baseAddress, let weights = weights.baseAddress else { return }
                Kernels.weightedSum(
                    rows, weights, rowCount: terms, rowType, into: target, targetType, count: count)
            }
        }
        for index in 0..<count {
            var expected: Float = 0
            for term in 0..<terms { expected += rowType.value(memory[term], index) * weights[term] }
            let place = UnsafeMutableRawPointer.allocate(byteCount: 4, alignment: 4)
            targetType.store(expected, place, 0)
            #expect(targetType.value(target, index) == targetType.value(place, 0))
            place.deallocate()
        }
    }
}
