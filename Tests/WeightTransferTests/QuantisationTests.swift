import CPlatform
import Testing
import TransferEngine
@testable import WeightTransfer

/// The fast kernel against the definition, and against PyTorch.
@Suite struct QuantisationTests {
    /// The value of a code, from the format's definition.
    static func value(_ code: UInt8) -> Double {
        let exponent = Int(code >> 3 & 15)
        let mantissa = Double(code & 7)
        if code & 0x7F == 0x7F { return .nan }
        var value = exponent == 0 ? mantissa / 8 : 1 + mantissa / 8
        for _ in 0..<abs(max(exponent, 1) - 7) { value *= exponent >= 7 ? 2 : 0.5 }
        return code >= 128 ? -value : value
    }

    /// The nearest code, by looking at all; of two equally near ones the even one.
    static func nearest(_ number: Float) -> UInt8 {
        let sign: UInt8 = number.sign == .minus ? 0x80 : 0
        let magnitude = Double(number.magnitude)
        var best: UInt8 = 0
        for code in UInt8(0)..<0x7F {
            let (new, old) = (abs(value(code) - magnitude), abs(value(best) - magnitude))
            if new < old || new == old && code % 2 == 0 { best = code }
        }
        return best | sign
    }

    static func fnv(_ bytes: some Sequence<UInt8>) -> UInt64 {
        bytes.reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x0100_0000_01B3 }
    }

    private func quantise(_ input: [UInt16], _ rows: Int, _ columns: Int) -> ([UInt8], [Float]) {
        var codes = [UInt8](repeating: 0xEE, count: rows * columns)
        var scales = [Float](repeating: -1, count: (rows + 127) / 128 * ((columns + 127) / 128))
        BlockQuantisation.quantise(
            input, sourceStride: columns, rows: rows, columns: columns, to: &codes, scales: &scales)
        return (codes, scales)
    }

    @Test func everyShortNumberIsRoundedAsTheDefinitionSays() {
        for bits in UInt16.min...UInt16.max {
            let number = Float(bitPattern: UInt32(bits) << 16)
            guard number.magnitude <= 448 else { continue }
            #expect(te_e4m3(number) == Self.nearest(number), "\(number)")
        }
    }

    @Test func tiesAndNeighboursAreRoundedAsTheDefinitionSays() {
        for code in UInt8(0)..<0x7E {
            let middle = Float((Self.value(code) + Self.value(code + 1)) / 2)
            for number in [middle, middle.nextUp, middle.nextDown, -middle] {
                #expect(te_e4m3(number) == Self.nearest(number), "\(number)")
            }
        }
    }

    /// Digests of what PyTorch 2.15 gave for `x.float().to(torch.float8_e4m3fn)`, of all BF16 numbers up to 448; and
    /// for the expression
    /// in the documentation of `BlockQuantisation`, of numbers from SplitMix64. `golden/make.py` made them.
    @Test func codesAreThoseOfPyTorch() {
        let all = (UInt16.min...UInt16.max).map { Float(bitPattern: UInt32($0) << 16) }
        let codes = all.filter { $0.magnitude <= 448 }.map(te_e4m3)
        #expect(codes.count == 34754)
        #expect(Self.fnv(codes) == 0x02B5_889F_A6AD_3C93)
    }

    static let golden: [(Int, Int, UInt64, UInt64, UInt64)] = [
        (128, 128, 1, 0x3ffe_eb90_128d_30ae, 0x3007_f38e_95dc_22f7),
        (200, 300, 2, 0xb140_8a38_96c4_b005, 0x6822_29d7_404e_a276),
        (1, 1, 3, 0xaf63_e54c_8601_fbd7, 0x71d1_8fbb_f17e_ba47),
        (129, 17, 4, 0x1f76_cd04_ec1b_c0c2, 0x160a_3c97_427e_08b0),
        (256, 640, 5, 0xb8cf_8ad8_ee2c_6c14, 0x68e7_2bf5_52da_d265),
        (3, 1000, 6, 0x7974_4cc0_6779_3c75, 0xd8ef_1d5a_18ba_bf72),
    ]

    @Test(arguments: golden)
    func blocksAreThoseOfPyTorch(rows: Int, columns: Int, seed: UInt64, codes: UInt64, scales: UInt64) {
        var random = Seeded(state: seed)
        let input = (0..<rows * columns).map { _ in
            let word = random.next()
            return UInt16(
                truncatingIfNeeded: (word >> 63) << 15 | (100 + (word >> 8) % 41) << 7 | word & 0x7F)
        }
        let (found, factors) = quantise(input, rows, columns)
        #expect(Self.fnv(found) == codes)
        let bytes = factors.flatMap { factor in
            (0..<4).map { UInt8(truncatingIfNeeded: factor.bitPattern >> (8 * $0)) }
        }
        #expect(Self.fnv(bytes) == scales)
    }

    /// The vector code and the code for one number agree at every width, and nothing is written beside the block.
    @Test(arguments: [1, 7, 15, 16, 17, 31, 127, 128, 129, 255, 300])
    func widthsAgree(columns: Int) {
        var random = Seeded(state: UInt64(columns))
        let input = (0..<5 * columns).map { _ in UInt16(truncatingIfNeeded: 0x3C00 + random.next() % 0x800) }
        let values = input.map { Float(bitPattern: UInt32($0) << 16) }
        let (found, _) = quantise(input, 5, columns)
        for index in input.indices {
            let block = values.indices.filter { $0 % columns / 128 == index % columns / 128 }
            let magnitude = block.map { values[$0].magnitude }.max() ?? 0
            #expect(found[index] == te_e4m3(values[index] * (1 / magnitude * 448)))
        }
    }

    /// All variants that this processor has give the same codes and scales, at every width and length of a block's row, and
    /// write nothing beside it.
    @Test(arguments: [1, 15, 33, 64, 127, 128])
    func processorsAgree(columns: Int) {
        var random = Seeded(state: UInt64(columns))
        let stride = columns + 3
        for special: UInt16 in [0, 0x7F80, 0x7FC1] {
            var input = (0..<7 * stride).map { _ in UInt16(truncatingIfNeeded: random.next() & 0xBFFF) }
            if special > 0 { input[2 * stride + columns - 1] = special }
            let results = (0..<3 as Range<Int32>).compactMap { number -> ([UInt8], UInt32)? in
                var codes = [UInt8](repeating: 0xEE, count: 7 * stride)
                var scale: Float = -1
                let isThere = te_quantise_block_variant(
                    number, input, stride, 7, columns, &codes, stride, &scale)
                return isThere == 0 ? nil : (codes, scale.bitPattern)
            }
            for (codes, scale) in results {
                #expect(codes == results[0].0 && scale == results[0].1)
                #expect(codes.indices.allSatisfy { $0 % stride < columns || codes[$0] == 0xEE })
            }
            if special > 0 { #expect(results[0].0[..<columns].allSatisfy { $0 == 0x7F }) }
        }
    }

    /// Where rows go: how many there are, how wide they are, bytes from one to the next, and by how much the first misses a line.
    static let places: [(rows: Int, columns: Int, stride: Int, skew: Int)] = [
        (128, 256, 256, 0), (128, 4096, 4096, 0), (7, 384, 384, 0), (128, 384, 640, 0), (5, 4224, 4352, 0),
        (1, 128, 128, 1), (9, 256, 300, 3), (128, 128, 128, 17),
        // Without whole blocks, and with more granules than are kept at a time: in two passes.
        (6, 100, 100, 0), (6, 200, 256, 5), (128, 16512, 16512, 0),
    ]

    /// What is quantised to where it is to stay is what blocks give, with the digest of just those ranges, by all variants
    /// that this processor has; and nothing is written beside it.
    @Test(arguments: places)
    func rowsArriveDigested(rows: Int, columns: Int, stride: Int, skew: Int) {
        var random = Seeded(state: UInt64(rows * columns))
        var input = (0..<rows * columns).map { _ in UInt16(truncatingIfNeeded: random.next() & 0xBFFF) }
        // The second block is no number.
        if columns > 200 { input[130] = 0x7FC1 }
        let blocks = (columns + 127) / 128
        var wanted = [UInt8](repeating: 0, count: rows * columns)
        var wantedScales = [Float](repeating: 0, count: blocks)
        BlockQuantisation.quantise(
            input, sourceStride: columns, rows: rows, columns: columns, to: &wanted, scales: &wantedScales)
        let offset = 12345
        let digest = wanted.withUnsafeBytes { bytes in
            guard stride > columns else { return Digest(of: bytes, at: UInt64(offset)) }
            return (0..<rows).reduce(Digest.empty) { sum, row in
                let line = UnsafeRawBufferPointer(rebasing: bytes[row * columns..<(row + 1) * columns])
                return sum + Digest(of: line, at: UInt64(offset + row * stride))
            }
        }
        let length = rows * stride + 128
        let memory = UnsafeMutablePointer<UInt8>.allocate(capacity: length + 64)
        defer { memory.deallocate() }
        let line = memory + (64 - Int(bitPattern: memory) % 64) % 64
        var variants = 0
        for number: Int32 in 0..<3 {
            line.update(repeating: 0xEE, count: length)
            var scales = [Float](repeating: -1, count: blocks)
            var sum: [UInt64] = [1, 2]
            let isThere = te_quantise_rows_variant(
                number, input, columns, rows, columns, line + skew, stride, &scales, UInt64(offset), &sum)
            guard isThere != 0 else { continue }
            variants += 1
            #expect(scales.map(\.bitPattern) == wantedScales.map(\.bitPattern))
            #expect(Digest(low: sum[0] &- 1, high: sum[1] &- 2) == digest)
            var wrong = 0
            for place in 0..<length {
                let (row, column) = ((place - skew) / stride, (place - skew) % stride)
                let isInside = place >= skew && row < rows && column < columns
                if line[place] != (isInside ? wanted[row * columns + column] : 0xEE) { wrong += 1 }
            }
            #expect(wrong == 0, "variant \(number)")
        }
        #expect(variants > 0)
    }

    @Test func zerosAndSpecialNumbers() {
        #expect(quantise([0, 0x8000, 0], 1, 3) == ([0, 0x80, 0], [1e-4 / 448]))
        let (codes, scales) = quantise([0x3F80, 0x7F80], 1, 2)
        #expect(codes == [0x7F, 0x7F] && scales[0] == .infinity)
        #expect(quantise([0x3F80, 0x7FC0], 1, 2).1[0].isNaN)
    }
}
