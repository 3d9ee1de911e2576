import CPlatform
import SharedMemoryProvider
import Testing
import TransferEngine

/// Contract, promise 9: what a digest depends on and what not, and that damage is found and named.
@Suite struct DigestTests {
    static func data(_ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: $0 &* $0 &* 7 &+ $0 &* 13 &+ $0 >> 8) }
    }

    static func random(_ count: Int, _ generator: inout SeededGenerator) -> [UInt8] {
        (0..<count).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
    }

    static func digest(_ bytes: some Collection<UInt8>, at offset: Int) -> Digest {
        Array(bytes).withUnsafeBytes { Digest(of: $0, at: UInt64(offset)) }
    }

    /// The construction again, word by word, as docs/wire-format.md describes it.
    private struct Reference {
        private static let gamma: UInt64 = 0x9E37_79B9_7F4A_7C15
        private let keys: [UInt32]

        init() {
            var generator = SeededGenerator(seed: 0x5445_2D44_4947_4553)
            keys = (0..<65 * 8).flatMap { _ in
                let word = generator.next()
                return [UInt32(truncatingIfNeeded: word), UInt32(word >> 32)]
            }
        }

        /// SplitMix64's function of one number: the generator adds gamma before it mixes.
        private func mix(_ value: UInt64) -> UInt64 {
            var generator = SeededGenerator(seed: value &- Self.gamma)
            return generator.next()
        }

        func digest(_ bytes: [UInt8], at offset: Int) -> Digest {
            stride(from: 0, to: bytes.count, by: 4096).reduce(.empty) { sum, start in
                sum
                    + granule(
                        Array(bytes[start..<min(start + 4096, bytes.count)]), UInt64(offset) + UInt64(start))
            }
        }

        private func granule(_ bytes: [UInt8], _ offset: UInt64) -> Digest {
            let padded = bytes + [UInt8](repeating: 0, count: (64 - bytes.count % 64) % 64)
            let words = stride(from: 0, to: padded.count, by: 4).map { place in
                (0..<4).reduce(UInt32(0)) { $0 | UInt32(padded[place + $1]) << UInt32(8 * $1) }
            }
            var sums: [UInt64] = [0, 0]
            for (pass, shift) in [0, 16].enumerated() {
                for place in stride(from: 0, to: words.count, by: 2) {
                    sums[pass] &+=
                        UInt64(words[place] &+ keys[place + shift])
                        &* UInt64(words[place + 1] &+ keys[place + 1 + shift])
                }
            }
            let place = mix(offset &+ Self.gamma)
            var (a, b) = (sums[0] ^ place, sums[1] ^ mix(place &+ UInt64(bytes.count)))
            a ^= mix(b &+ Self.gamma)
            b ^= mix(a &+ 2 &* Self.gamma)
            a ^= mix(b &+ 3 &* Self.gamma)
            b ^= mix(a &+ 4 &* Self.gamma)
            return Digest(low: a, high: b)
        }

        /// What makes a change of one word visible for certain.
        var keysOfTheTwoSumsDiffer: Bool { (0..<1024).allSatisfy { keys[$0] != keys[$0 + 16] } }
    }

    // Made by a separate program.
    static let golden: [(count: Int, offset: Int, digest: String)] = [
        (0, 0, "00000000000000000000000000000000"), (1, 0, "7a272d6e8d976650ca2efce99dd4160f"),
        (1, 1, "46384ffe257cfa71b12aa4616e0bbf50"), (63, 4096, "f159c9acdfe1f3ac15315e5c509960b4"),
        (64, 4096, "67f675f373f23fdc4a12061596ed4135"), (65, 4096, "506c48ee0602a7e01ce507708b45a936"),
        (4095, 0, "5ed4c3d8a194f892a47e2b9e11f014f8"), (4096, 0, "537f5764d0a969dfa43bd4bc96f6953d"),
        (4096, 100, "4ff2925ed031b1ae1f2f5968bf632db1"), (4097, 0, "f1b713fd93cedf24d2834b1e639e5f1e"),
        (10000, 12345, "e035a89bc28ed3eda99d5eb8bf591e5e"),
        (65536, 1_099_511_631_872, "e35b41f98fe9f55cacc7406bd0ef3d31"),
    ]

    @Test(arguments: golden) func goldenDigests(count: Int, offset: Int, expected: String) {
        #expect(Self.digest(Self.data(count), at: offset).description == expected)
        #expect(Reference().digest(Self.data(count), at: offset).description == expected)
    }

    /// Every variant for every kind of processor is the reference, at every alignment and around every border.
    @Test func variantsAgreeWithTheReference() throws {
        let reference = Reference()
        #expect(reference.keysOfTheTwoSumsDiffer)
        var generator = SeededGenerator(seed: 3)
        let buffer = Self.random(3 * 4096 + 64, &generator)
        for length in [1, 3, 4, 8, 31, 63, 64, 65, 127, 128, 4032, 4095, 4096, 4097, 8191, 12288] {
            for start in [0, 1, 8, 33, 63] {
                let expected = reference.digest(
                    Array(buffer[start..<start + length]), at: length * 77 + start)
                for variant in 0..<3 as Range<Int32> {
                    var halves: [UInt64] = [0, 0]
                    let exists = buffer.withUnsafeBytes {
                        te_digest_variant(
                            variant, $0.baseAddress.map { $0 + start }, length, UInt64(length * 77 + start),
                            &halves)
                    }
                    guard exists != 0 else { continue }
                    #expect(Digest(low: halves[0], high: halves[1]) == expected)
                }
            }
        }
    }

    /// Cut at granules in any way, in any order: the same.
    @Test(arguments: 1...50) func cutsAndOrderDoNotMatter(_ seed: Int) {
        var generator = SeededGenerator(seed: UInt64(seed))
        let bytes = Self.random(Int.random(in: 1...100_000, using: &generator), &generator)
        let offset = Int.random(in: 0...1 << 41, using: &generator)
        let whole = Self.digest(bytes, at: offset)
        var cuts = Set([0, bytes.count])
        for _ in 0..<Int.random(in: 0...9, using: &generator) {
            cuts.insert(Int.random(in: 0...bytes.count / 4096, using: &generator) * 4096)
        }
        let borders = cuts.sorted()
        var parts = Array(zip(borders, borders.dropFirst()))
        parts.shuffle(using: &generator)
        let sum = parts.reduce(Digest.empty) { $0 + Self.digest(bytes[$1.0..<$1.1], at: offset + $1.0) }
        #expect(sum == whole)
        #expect(whole - sum == .empty)
    }

    /// Any bit, any byte of the tail, the place and the length count.
    @Test(arguments: 1...30) func everyChangeShows(_ seed: Int) {
        var generator = SeededGenerator(seed: UInt64(seed))
        // Also bytes without any variety, where a weak sum loses terms.
        let count = Int.random(in: 1...20_000, using: &generator)
        let bytes =
            seed % 3 == 0 ? [UInt8](repeating: UInt8(seed), count: count) : Self.random(count, &generator)
        let whole = Self.digest(bytes, at: 4096)
        for _ in 0..<50 {
            var damaged = bytes
            damaged[Int.random(in: 0..<count, using: &generator)] ^=
                1 << UInt8.random(in: 0..<8, using: &generator)
            #expect(Self.digest(damaged, at: 4096) != whole)
        }
        var tail = bytes
        tail[count - 1] &+= 1
        #expect(Self.digest(tail, at: 4096) != whole)
        #expect(Self.digest(bytes + [0], at: 4096) != whole)
        #expect(Self.digest(bytes.dropLast(), at: 4096) != whole)
        #expect(Self.digest(bytes, at: 4095) != whole)
        #expect(Self.digest(bytes, at: 8192) != whole)
    }

    /// All single bits of one granule, and all pairs of granules swapped.
    @Test func everyBitAndEverySwapShows() {
        var generator = SeededGenerator(seed: 8)
        var granule = Self.random(4096, &generator)
        let whole = Self.digest(granule, at: 0)
        var seen: Set<Digest> = [whole]
        for bit in 0..<4096 * 8 {
            granule[bit / 8] ^= 1 << UInt8(bit % 8)
            seen.insert(Self.digest(granule, at: 0))
            granule[bit / 8] ^= 1 << UInt8(bit % 8)
        }
        #expect(seen.count == 1 + 4096 * 8)
        let pages = (0..<16).map { _ in Self.random(4096, &generator) }
        func sum(_ pages: [[UInt8]]) -> Digest { Self.digest(pages.flatMap { $0 }, at: 0) }
        let right = sum(pages)
        for first in 0..<16 {
            for second in 0..<first {
                var swapped = pages
                swapped.swapAt(first, second)
                #expect(sum(swapped) != right)
            }
        }
    }

    // MARK: Engines

    private struct Pair {
        let a: TransferEngine
        let b: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion
        let remote: RemoteMemory

        init(nics: Int) throws {
            let nics = [Configuration.NIC](
                repeating: .sharedMemory(SharedMemoryOptions(callerMemory: .automatic)), count: nics)
            a = try TransferEngine(
                Configuration(name: "a", nics: nics, progress: .manual, stripeBytes: 4096))
            b = try TransferEngine(Configuration(name: "b", nics: nics, progress: .manual))
            source = try a.allocate(byteCount: 1 << 20)
            target = try b.allocate(byteCount: 1 << 20)
            remote = try a.attach(b.descriptor(of: target))
            var generator = SeededGenerator(seed: 5)
            for index in source.bytes.indices {
                source.bytes[index] = UInt8(truncatingIfNeeded: generator.next())
            }
        }

        func close() {
            a.close()
            b.close()
        }
    }

    /// A write and a page list over one and over three NICs: the receiver finds what the sender computed, and names damage.
    @Test(arguments: [1, 3]) func whatArrivesIsVerified(nics: Int) throws {
        let pair = try Pair(nics: nics)
        defer { pair.close() }
        try pair.a.wait(
            for: pair.a.write(
                from: pair.source, sourceOffset: 100, byteCount: 700_001, to: pair.remote, targetOffset: 5000)
        )
        let whole = try pair.a.digest(of: pair.source, offset: 100, byteCount: 700_001, targetOffset: 5000)
        try pair.b.verify(whole, of: pair.target, offset: 5000, byteCount: 700_001)
        let list = try pair.a.digestList(
            of: pair.source, offset: 100, byteCount: 700_001, targetOffset: 5000, stripeBytes: 8192)
        #expect(list.total == whole)
        let received = try DigestList(decoding: list.encoded())
        try pair.b.verify(received, of: pair.target)
        pair.target.bytes[5000 + 8192 * 3 + 17] ^= 4
        pair.target.bytes[5000 + 700_000] ^= 1
        #expect(try pair.b.mismatches(received, of: pair.target) == [3, 85])
        expectMismatch("stripe 3 (bytes 29576..<37768 of the target), stripe 85 (bytes 701320..<705001") {
            () throws(TransferError) in try pair.b.verify(received, of: pair.target)
        }
        expectMismatch("bytes 5000..<705001") { () throws(TransferError) in
            try pair.b.verify(whole, of: pair.target, offset: 5000, byteCount: 700_001)
        }
    }

    @Test(arguments: [1, 3]) func pagesAreVerified(nics: Int) throws {
        let pair = try Pair(nics: nics)
        defer { pair.close() }
        var generator = SeededGenerator(seed: 6)
        // Neighbours on both sides travel as one request, which must not show.
        let sources =
            Array((0..<100).map { UInt32($0) }.shuffled(using: &generator).prefix(50)) + [200, 201, 202]
        let targets = (0..<50).map { UInt32($0 * 3) }.shuffled(using: &generator) + [300, 301, 302]
        try sources.withUnsafeBufferPointer { sources in
            try targets.withUnsafeBufferPointer { targets in
                let from = Pages(sources, stride: 1000, offset: 3)
                let to = Pages(targets, stride: 1000, offset: 9)
                try pair.a.wait(
                    for: pair.a.write(
                        pageBytes: 1000, from: pair.source, pages: from, to: pair.remote, pages: to))
                let whole = try pair.a.digest(of: pair.source, pageBytes: 1000, pages: from, targetPages: to)
                try pair.b.verify(whole, of: pair.target, pageBytes: 1000, pages: to)
                // The receiver may list the pages in another order.
                let sorted = targets.sorted()
                try sorted.withUnsafeBufferPointer {
                    try pair.b.verify(
                        whole, of: pair.target, pageBytes: 1000, pages: Pages($0, stride: 1000, offset: 9))
                }
                let list = try pair.a.digestList(
                    of: pair.source, pageBytes: 1000, pages: from, targetPages: to)
                #expect(list.total == whole)
                try pair.b.verify(DigestList(decoding: list.encoded()), of: pair.target)
                let page = Int(targets[7])
                pair.target.bytes[9 + page * 1000 + 999] ^= 0x80
                #expect(try pair.b.mismatches(list, of: pair.target) == [7])
                expectMismatch("page \(page) (bytes \(9 + page * 1000)..<") { () throws(TransferError) in
                    try pair.b.verify(list, of: pair.target)
                }
                expectMismatch("53 pages") { () throws(TransferError) in
                    try pair.b.verify(whole, of: pair.target, pageBytes: 1000, pages: to)
                }
            }
        }
    }

    /// What a peer's list names need not be there.
    @Test func listsThatNameOtherMemoryAreErrors() throws {
        let pair = try Pair(nics: 1)
        defer { pair.close() }
        func code(_ body: () throws(TransferError) -> Void) -> TransferError.Code? {
            do throws(TransferError) { try body() } catch { return error.code }
            return nil
        }
        let empty = try DigestList(.stripes(offset: 1 << 40, byteCount: 0, stripeBytes: 4096), [])
        #expect(code { () throws(TransferError) in try pair.b.verify(empty, of: pair.target) } == nil)
        let beyond = try DigestList(.stripes(offset: 1 << 20, byteCount: 1, stripeBytes: 4096), [.empty])
        #expect(
            code { () throws(TransferError) in try pair.b.verify(beyond, of: pair.target) } == .outOfRange)
        let page = try DigestList(
            .pages(pageBytes: 2, stride: 1, offset: (1 << 20) - 1, indices: [0]), [.empty])
        #expect(code { () throws(TransferError) in try pair.b.verify(page, of: pair.target) } == .outOfRange)
        try pair.b.deregister(pair.target)
        #expect(
            code { () throws(TransferError) in try pair.b.verify(empty, of: pair.target) } == .staleRegion)
        #expect(
            code { () throws(TransferError) in
                _ = try pair.a.digest(of: pair.source, offset: -1, byteCount: 1)
            } == .outOfRange)
        #expect(
            code { () throws(TransferError) in
                _ = try pair.a.digest(of: pair.source, byteCount: 1, targetOffset: -1)
            } == .invalidArgument)
        #expect(
            code { () throws(TransferError) in
                _ = try pair.a.digestList(of: pair.source, byteCount: 9, stripeBytes: 100)
            } == .invalidArgument)
    }

    private func expectMismatch(_ words: String, _ body: () throws(TransferError) -> Void) {
        do throws(TransferError) {
            try body()
            Issue.record("no mismatch: \(words)")
        } catch {
            #expect(error.code == .digestMismatch)
            #expect(error.message.contains(words), "\(error)")
        }
    }
}
