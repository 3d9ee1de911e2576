import Testing
import TransferCore

/// The form in which a sender tells the receiver what it digested.
@Suite struct DigestListTests {
    // Made by a separate program that follows docs/wire-format.md.
    private static let stripes =
        "544544010000100000000000001027000000000000001000000000000006000000000000003c00000000000000"
        + "010000000000000002000000000000000300000000000000b3ab9810"
    private static let pages =
        "5445440101e80300000000000000040000000000000700000000000000020000000900000004000000ffffffff"
        + "ffffffff0100000000000000feffffffffffffff0100000000000000dcec5ab0"

    private static func bytes(_ text: String) -> [UInt8] {
        stride(from: 0, to: text.count, by: 2).map { place in
            let start = text.index(text.startIndex, offsetBy: place)
            return UInt8(text[start..<text.index(start, offsetBy: 2)], radix: 16) ?? 0
        }
    }

    private static func digests(_ lows: [UInt64], high: UInt64) -> [Digest] {
        lows.enumerated().map { Digest(low: $1, high: $0 == 0 ? high : 0) }
    }

    @Test func goldenBytes() throws {
        let stripes = try DigestList(
            .stripes(offset: 4096, byteCount: 10000, stripeBytes: 4096), Self.digests([1, 2, 3], high: 60))
        #expect(hexadecimal(stripes.encoded()) == Self.stripes)
        #expect(try DigestList(decoding: Self.bytes(Self.stripes)) == stripes)
        #expect(stripes.ranges[2] == (12288, 1808))
        #expect(stripes.ranges.name(of: 2) == "stripe 2 (bytes 12288..<14096 of the target)")
        let pages = try DigestList(
            .pages(pageBytes: 1000, stride: 1024, offset: 7, indices: [9, 4]),
            Self.digests([.max - 1, 1], high: 1))
        #expect(hexadecimal(pages.encoded()) == Self.pages)
        #expect(try DigestList(decoding: Self.bytes(Self.pages)) == pages)
        #expect(pages.ranges.name(of: 1) == "page 4 (bytes 4103..<5103 of the target)")
    }

    @Test(arguments: [stripes, pages]) func damagedBytesAreRefused(_ text: String) {
        let whole = Self.bytes(text)
        for length in 0..<whole.count {
            #expect(throws: TransferError.self) { try DigestList(decoding: whole.prefix(length)) }
        }
        #expect(throws: TransferError.self) { try DigestList(decoding: whole + [0]) }
        for position in whole.indices {
            var damaged = whole
            damaged[position] ^= 4
            #expect(throws: TransferError.self) { try DigestList(decoding: damaged) }
        }
    }

    /// Behind a right checksum, everything is still checked.
    @Test(arguments: [
        (stripes, 3, 2), (stripes, 4, 2), (stripes, 12, 0x80), (stripes, 20, 0x7F), (stripes, 21, 1),
        (stripes, 22, 0), (stripes, 14, 0x37), (pages, 4, 0), (pages, 20, 0x7F), (pages, 29, 3),
        (pages, 32, 0xFF),
    ])
    func soundBytesWithNonsenseAreRefused(_ text: String, position: Int, value: UInt8) {
        var bytes = Self.bytes(text)
        bytes[position] = value
        bytes.withChecksum()
        #expect(throws: TransferError.self, "byte \(position)") { try DigestList(decoding: bytes) }
    }

    @Test(arguments: 1...40) func listsSurviveTheTrip(_ seed: Int) throws {
        var generator = SeededGenerator(seed: UInt64(seed))
        let indices = generator.list(0...50, of: 0...(.max))
        let offset = UInt64(generator.pick(0...1 << 40))
        let ranges: DigestRanges =
            Bool.random(using: &generator)
            ? .pages(
                pageBytes: UInt64(generator.pick(0...99999)), stride: 1 << 20, offset: offset,
                indices: indices)
            : .stripes(
                offset: offset, byteCount: UInt64(generator.pick(0...1 << 20)),
                stripeBytes: 4096 * UInt64(generator.pick(1...9)))
        let digests = (0..<ranges.count).map { _ in
            Digest(low: generator.next(), high: generator.next())
        }
        let list = try DigestList(ranges, digests)
        #expect(try DigestList(decoding: list.encoded()) == list)
        #expect(list.mismatches(digests).isEmpty)
        guard let part = digests.indices.randomElement(using: &generator) else { return }
        var wrong = digests
        wrong[part].low ^= 1 << 63
        #expect(list.mismatches(wrong) == [part])
        // A difference that only the whole shows is one too.
        wrong = digests
        wrong[part].high ^= 1
        #expect(list.mismatches(wrong) == Array(digests.indices))
        #expect(list.mismatches(digests.dropLast()) == Array(digests.indices))
        #expect(throws: TransferError.self) { try DigestList(ranges, digests.dropLast()) }
    }

    @Test func rangesThatCannotBeAreRefused() {
        let impossible: [DigestRanges] = [
            .stripes(offset: 0, byteCount: 1, stripeBytes: 0),
            .stripes(offset: 0, byteCount: 1, stripeBytes: 1000),
            .stripes(offset: .max, byteCount: 1, stripeBytes: 4096),
            .stripes(offset: 1 << 62, byteCount: 1 << 62, stripeBytes: 4096),
            .pages(pageBytes: 1, stride: .max, offset: 0, indices: [2]),
            .pages(pageBytes: 1 << 63, stride: 0, offset: 0, indices: [2]),
            .pages(pageBytes: 1, stride: 1, offset: .max, indices: []),
        ]
        for ranges in impossible {
            #expect(throws: TransferError.self) { try ranges.check() }
            _ = ranges.count
        }
    }
}
