import Testing

@testable import TransferCore

@Suite struct DescriptorTests {
    static func randomRegion(_ random: inout SeededGenerator) -> RemoteRegion {
        let fabrics = ["", "shm", "tcp", "efa", "verbs;rxm", String(repeating: "ü", count: 31)]
        let length = random.next() >> UInt64(random.pick(1...63))
        var region = RemoteRegion(
            engine: EngineID(rawValue: random.next()), device: UInt16(random.pick(0...65535)),
            index: UInt32(random.pick(0...4095)), generation: UInt32(truncatingIfNeeded: random.next()),
            access: Access(rawValue: UInt8(random.pick(0...255))), length: length,
            base: random.next() >> 1, secret: random.next(),
            nics: (0..<random.pick(0...8)).map { _ in
                RemoteRegion.NIC(
                    fabric: fabrics[random.pick(0...5)],
                    address: (0..<random.pick(0...64)).map { _ in UInt8(random.pick(0...255)) },
                    megabitsPerSecond: UInt32(truncatingIfNeeded: random.next()), key: random.next(),
                    base: random.next())
            })
        if random.pick(0...1) == 0 { region.expires = random.next() >> 1 }
        if random.pick(0...1) == 0 {
            region.signature = (0..<RemoteRegion.signatureBytes).map { _ in UInt8(random.pick(0...255)) }
        }
        return region
    }

    static func isMalformed(_ bytes: [UInt8]) -> Bool { code(of: bytes) == .malformedDescriptor }

    static func code(of bytes: [UInt8]) -> TransferError.Code? {
        do {
            _ = try RemoteRegion(decoding: bytes)
            return nil
        } catch { return error.code }
    }

    /// `bytes` with a checksum that fits again.
    static func sealed(_ bytes: [UInt8]) -> [UInt8] {
        let body = [UInt8](bytes.dropLast(4))
        let sum = CRC32C.checksum(body)
        return body + (0..<4).map { UInt8(truncatingIfNeeded: sum >> (8 * $0)) }
    }

    /// Flips a bit, inserts, deletes or replaces a byte, somewhere.
    static func mutate(_ bytes: inout [UInt8], _ random: inout SeededGenerator) {
        let place = random.pick(0...bytes.count - 1)
        let byte = UInt8(random.pick(0...255))
        switch random.pick(0...3) {
        case 0: bytes[place] ^= 1 << UInt8(random.pick(0...7))
        case 1: bytes.insert(byte, at: place)
        case 2: bytes.remove(at: place)
        default: bytes[place] = byte
        }
    }

    @Test func anyValueSurvivesTheBinaryForm() throws {
        var random = SeededGenerator(seed: 1)
        for _ in 0..<500 {
            let region = Self.randomRegion(&random)
            #expect(try RemoteRegion(decoding: region.encoded()) == region)
            let address = EngineAddress(name: "decode-\(random.pick(0...99))", landing: region)
            #expect(try EngineAddress(decoding: address.encoded()) == address)
        }
    }

    @Test func anyValueSurvivesCodable() throws {
        var random = SeededGenerator(seed: 2)
        for _ in 0..<100 {
            let address = EngineAddress(name: "prefill", landing: Self.randomRegion(&random))
            let tree = try TreeCoder.encode(address)
            #expect(try TreeCoder.decode(EngineAddress.self, from: tree) == address)
        }
    }

    @Test func everyTruncationIsAnError() {
        let bytes = DescriptorGoldenTests.region(nics: 8).encoded()
        for count in 0..<bytes.count { #expect(Self.isMalformed([UInt8](bytes.prefix(count)))) }
        #expect(Self.isMalformed(bytes + [0]))
        for count in 8..<bytes.count {
            let sealed = Self.sealed([UInt8](bytes.prefix(count)))
            #expect(Self.isMalformed(sealed), "the right checksum does not make \(count) bytes enough")
        }
    }

    @Test func everyMutationIsAnError() {
        var random = SeededGenerator(seed: 3)
        let originals = [0, 1, 8].map { DescriptorGoldenTests.region(nics: $0).encoded() }
        var tried = 0
        while tried < 10_000 {
            let original = originals[tried % 3]
            var bytes = original
            for _ in 0..<random.pick(1...4) { Self.mutate(&bytes, &random) }
            guard bytes != original else { continue }
            tried += 1
            #expect(Self.isMalformed(bytes))
        }
    }

    /// Behind a checksum that fits, from a peer with bad intentions: whatever decodes is a value like any
    /// other.
    @Test func mutationsWithARightChecksumNeverTrap() throws {
        var random = SeededGenerator(seed: 4)
        var decoded = 0
        for round in 0..<10_000 {
            var bytes = Self.randomRegion(&random).encoded()
            for _ in 0..<random.pick(1...4) where bytes.count > 8 { Self.mutate(&bytes, &random) }
            bytes = Self.sealed(bytes)
            let version: UInt8 = round % 4 == 1 ? 1 : 2
            if round % 2 == 1 { bytes = Self.sealed([0x54, 0x45, 0x52, version] + bytes.dropFirst(4)) }
            guard Self.code(of: bytes) == nil else { continue }
            decoded += 1
            let region = try RemoteRegion(decoding: bytes)
            #expect(region.nics.count <= Limits.nicsPerDevice)
            #expect(region.length <= UInt64(Int.max))
            #expect(!region.base.addingReportingOverflow(region.length).overflow)
            #expect(region.encoded() == bytes, "there is one way to write a descriptor")
        }
        #expect(decoded > 1000, "the test reaches the fields")
    }

    @Test func otherVersionsAreNamed() {
        var bytes = DescriptorGoldenTests.region(nics: 1).encoded()
        for version in [0, 3, 255] as [UInt8] {
            bytes[3] = version
            #expect(Self.isMalformed(bytes), "an altered version does not fit the checksum")
            #expect(Self.code(of: Self.sealed(bytes)) == .unsupportedVersion)
        }
    }

    @Test func kindsAreNotMixedUp() {
        let region = DescriptorGoldenTests.region(nics: 1)
        #expect(Self.isMalformed(EngineAddress(name: "a", landing: region).encoded()))
        #expect(throws: TransferError.self) { _ = try EngineAddress(decoding: region.encoded()) }
        #expect(Self.isMalformed([]))
        #expect(Self.isMalformed([UInt8](repeating: 0, count: 100)))
    }

    @Test func impossibleFieldsAreErrors() {
        var region = DescriptorGoldenTests.region(nics: 0)
        region.length = UInt64(Int.max) + 1
        #expect(Self.isMalformed(region.encoded()))
        region.length = 2
        region.base = .max
        #expect(Self.isMalformed(region.encoded()))
        var bytes = DescriptorGoldenTests.region(nics: 8).encoded()
        bytes[5] = 9
        #expect(Self.isMalformed(Self.sealed(bytes)), "nine NICs")
        bytes = DescriptorGoldenTests.region(nics: 1).encoded()
        bytes[49] = 0xFF
        #expect(Self.isMalformed(Self.sealed(bytes)), "a fabric that is not UTF-8")
    }

    @Test func namesAndAddressesHaveLimits() {
        let bytes = DescriptorGoldenTests.region(nics: 1).encoded()
        func grown(_ place: Range<Int>, to count: UInt8) -> [UInt8] {
            var grown = bytes
            grown.replaceSubrange(place, with: [count] + [UInt8](repeating: 97, count: Int(count)))
            return Self.sealed(grown)
        }
        let (fabric, address) = (48..<52, 52..<53)  // a length byte and what it counts
        #expect(Self.code(of: grown(fabric, to: 63)) == nil)
        #expect(Self.isMalformed(grown(fabric, to: 64)))
        #expect(Self.code(of: grown(address, to: 64)) == nil)
        #expect(Self.isMalformed(grown(address, to: 65)))
    }

    @Test func checksumOfTheStandardsExample() {
        #expect(CRC32C.checksum("123456789".utf8) == 0xE306_9283)
        #expect(CRC32C.checksum([]) == 0)
        #expect(CRC32C.checksum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
        #expect(CRC32C.checksum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    }

    /// A name that is too long is cut between two characters, so that it can be read.
    @Test func longNamesAreCutBetweenCharacters() throws {
        var address = EngineAddress(name: "", landing: DescriptorGoldenTests.region(nics: 1))
        for (name, kept) in [
            ("x" + String(repeating: "ü", count: 40), 63), (String(repeating: "ü", count: 40), 62),
            (String(repeating: "\u{1F600}", count: 20), 60), (String(repeating: "a", count: 63), 63), ("", 0),
        ] {
            address.name = name
            address.landing.nics[0].fabric = name
            let read = try EngineAddress(decoding: address.encoded())
            #expect(read.name.utf8.count == kept)
            #expect(name.hasPrefix(read.name))
            #expect(read.landing.nics[0].fabric == read.name)
        }
    }
}
