import CPlatform
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

    static let types = [ElementType.float32, .bfloat16, .float16]

    /// Many at a time is the same as one at a time, for every type, length, number of terms and kind of processor.
    @Test(arguments: 0...2 as ClosedRange<Int32>, types)
    func sumsAreInOrderAndRoundedOneByOne(variant: Int32, rowType: ElementType) {
        var random = SeededGenerator(seed: 5)
        for targetType in Self.types {
            for count in [0, 1, 15, 16, 31, 32, 33, 64, 100] {
                for terms in [0, 1, 2, 8] { check(rowType, targetType, count, terms, 0, 0, variant, &random) }
                for before in 0...2 { check(rowType, targetType, count, 3, 2, before, variant, &random) }
            }
        }
    }

    /// The exchange's sums are these, by the best variant that there is.
    @Test func kernelsSum() {
        let row: [Float] = [1, 2, 3]
        var target: [Float] = [0, 0, 0]
        withTerms([row, row], [0.5, 2], [row], before: 1) { terms in
            target.withUnsafeMutableBytes { target in
                guard let address = target.baseAddress else { return }
                Kernels.weightedSum(terms, .float32, into: address, .float32, count: 3)
            }
        }
        #expect(target == [3.5, 7, 10.5])
    }

    /// Rows and sums of FP32 values, as the kernel wants them.
    private func withTerms(
        _ rows: [[Float]], _ weights: [Float], _ parts: [[Float]], before: Int, _ body: (te_terms) -> Void
    ) {
        let memory = (rows + parts).map { values in
            let row = UnsafeMutablePointer<Float>.allocate(capacity: values.count)
            row.initialize(from: values, count: values.count)
            return UnsafeRawPointer(row)
        }
        defer { for row in memory { row.deallocate() } }
        let all: [UnsafeRawPointer?] = memory + [nil]
        all.withUnsafeBufferPointer { all in
            (weights + [0]).withUnsafeBufferPointer { weights in
                body(
                    te_terms(
                        rows: all.baseAddress, weights: weights.baseAddress, count: rows.count,
                        parts: all.baseAddress.map { $0 + rows.count }, part_count: parts.count,
                        before: before))
            }
        }
    }

    private func check(
        _ rowType: ElementType, _ targetType: ElementType, _ count: Int, _ terms: Int, _ parts: Int,
        _ before: Int, _ variant: Int32, _ random: inout SeededGenerator
    ) {
        let memory = (0..<terms + parts).map { number in
            // Not aligned, and of no more than their length: a sanitizer sees what is read behind it.
            let type = number < terms ? rowType : .float32
            let row = UnsafeMutableRawPointer.allocate(
                byteCount: max(1, count * type.byteCount), alignment: 1)
            for index in 0..<count { type.store(Float.random(in: -3...3, using: &random), row, index) }
            return row
        }
        defer { for row in memory { row.deallocate() } }
        var weights: [Float] = [0]
        for _ in 0..<terms { weights.insert(Float.random(in: -1...1, using: &random), at: 0) }
        let byteCount = count * targetType.byteCount
        let target = UnsafeMutableRawPointer.allocate(byteCount: byteCount + 1, alignment: 4)
        defer { target.deallocate() }
        target.storeBytes(of: 0xA5, toByteOffset: byteCount, as: UInt8.self)
        let addresses: [UnsafeRawPointer?] = memory.map { UnsafeRawPointer($0) } + [nil]
        let isThere = addresses.withUnsafeBufferPointer { addresses in
            weights.withUnsafeBufferPointer { weights in
                var all = te_terms(
                    rows: addresses.baseAddress, weights: weights.baseAddress, count: terms,
                    parts: addresses.baseAddress.map { $0 + terms }, part_count: parts, before: before)
                return te_weighted_sum_variant(
                    variant, &all, Int32(rowType.rawValue), target, Int32(targetType.rawValue), count)
            }
        }
        guard isThere != 0 else { return }
        #expect(target.load(fromByteOffset: byteCount, as: UInt8.self) == 0xA5, "written behind the end")
        for index in 0..<count {
            var own: Float = 0
            for term in 0..<terms { own += rowType.value(memory[term], index) * weights[term] }
            var expected: Float = 0
            for part in 0...parts {
                if part == before { expected += own }
                if part < parts { expected += ElementType.float32.value(memory[terms + part], index) }
            }
            let place = UnsafeMutableRawPointer.allocate(byteCount: 4, alignment: 4)
            targetType.store(expected, place, 0)
            #expect(targetType.value(target, index) == targetType.value(place, 0))
            place.deallocate()
        }
    }

    /// A NaN stays one in BF16, whatever its lower bits are.
    @Test(arguments: 0...2 as ClosedRange<Int32>)
    func notANumberStaysOne(variant: Int32) {
        let row = [Float](repeating: Float(bitPattern: 0x7F80_0001), count: 32)
        var target = [UInt16](repeating: 0, count: 32)
        var isThere: Int32 = 0
        withTerms([row], [1], [], before: 0) { terms in
            var terms = terms
            isThere = te_weighted_sum_variant(
                variant, &terms, Int32(ElementType.float32.rawValue), &target,
                Int32(ElementType.bfloat16.rawValue), 32)
        }
        guard isThere != 0 else { return }
        #expect(target.allSatisfy { BFloat16.value($0).isNaN })
    }
}
