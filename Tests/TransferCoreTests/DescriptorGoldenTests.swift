import Testing
import TransferCore

/// The binary form, byte for byte. The strings were made by a separate program that follows the format's
/// description, so that encoder and decoder cannot agree on a mistake.
@Suite struct DescriptorGoldenTests {
    static func region(nics: Int) -> RemoteRegion {
        RemoteRegion(
            engine: EngineID(rawValue: 0x0C0D_0E0F_1011_1213), device: 0x0203, index: 0x0405_0607,
            generation: 0x0809_0A0B, access: .remoteWrite, length: 0x1_2345_6789, base: 0x7F00_1122_3000,
            secret: 0x5EC2_E75E_C2E7_5EC2,
            nics: (0..<nics).map { index in
                RemoteRegion.NIC(
                    fabric: "efa", address: [UInt8](repeating: UInt8(index + 1), count: index),
                    megabitsPerSecond: UInt32(100_000 * (index + 1)),
                    key: 0xA0A1_A2A3_A4A5_A6A0 + UInt64(index),
                    base: index % 2 == 0 ? 0x7F00_1122_3000 : 0)
            })
    }

    private static let fields =
        "0302070605040b0a0908131211100f0e0d0c896745230100000000302211007f0000c25ee7c25ee7c25e"
    private static let firstNIC = "0365666100a0860100a0a6a5a4a3a2a1a000302211007f0000"
    private static let otherNICs =
        "03656661010240" + "0d0300a1a6a5a4a3a2a1a0000000000000000003656661020303e0930400a2a6a5a4a3a2a1a00030"
        + "2211007f00000365666103040404801a0600a3a6a5a4a3a2a1a00000000000000000036566610405"
        + "05050520a10700a4a6a5a4a3a2a1a000302211007f000003656661050606060606c0270900a5a6a5"
        + "a4a3a2a1a00000000000000000036566610607070707070760ae0a00a6a6a5a4a3a2a1a000302211"
        + "007f000003656661070808080808080800350c00a7a6a5a4a3a2a1a00000000000000000"

    static let regions: [(nics: Int, text: String)] = [
        (0, "544552010100" + fields + "7d578af0"),
        (1, "544552010101" + fields + firstNIC + "9d1a9aac"),
        (8, "544552010108" + fields + firstNIC + otherNICs + "dbd622d0"),
    ]

    private static let name = "0c70726566696c6c2d3320c3bc"
    static let engines: [(nics: Int, text: String)] = [
        (0, "544541010100" + fields + name + "a38f9e63"),
        (1, "544541010101" + fields + firstNIC + name + "19335214"),
        (8, "544541010108" + fields + firstNIC + otherNICs + name + "12cac76d"),
    ]

    private static let signature = "59df4529346df27ff98c5dfe0275aa46bd69612ba87c69a02ba89e5e27ca7bbf"
    private static let signed = fields + firstNIC + "0807060504030201" + "20" + signature

    /// Version 2: with a moment of expiry, and a signature made with the key 00 01 02 ... 1f.
    @Test func signedAndExpiring() throws {
        var region = Self.region(nics: 1)
        region.expires = 0x0102_0304_0506_0708
        region.signature = Self.bytes(Self.signature)
        let text = "544552020101" + Self.signed + "5454ac5f"
        #expect(hexadecimal(region.encoded()) == text)
        #expect(try RemoteRegion(decoding: Self.bytes(text)) == region)
        let address = EngineAddress(name: "prefill-3 ü", landing: region)
        let whole = "544541020101" + Self.signed + Self.name + "dd2fc84b"
        #expect(hexadecimal(address.encoded()) == whole)
        #expect(try EngineAddress(decoding: Self.bytes(whole)) == address)
        var unsigned = Self.region(nics: 0)
        unsigned.expires = 5
        let short = "544552020100" + Self.fields + "0500000000000000" + "00" + "186be00a"
        #expect(hexadecimal(unsigned.encoded()) == short)
        #expect(try RemoteRegion(decoding: Self.bytes(short)) == unsigned)
    }

    private static func bytes(_ text: String) -> [UInt8] {
        let digits = text.utf8.map { $0 > 57 ? $0 - 87 : $0 - 48 }
        return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }

    @Test(arguments: regions) func region(nics: Int, text: String) throws {
        #expect(hexadecimal(Self.region(nics: nics).encoded()) == text)
        #expect(try RemoteRegion(decoding: Self.bytes(text)) == Self.region(nics: nics))
    }

    @Test(arguments: engines) func engineAddress(nics: Int, text: String) throws {
        let address = EngineAddress(name: "prefill-3 ü", landing: Self.region(nics: nics))
        #expect(hexadecimal(address.encoded()) == text)
        #expect(try EngineAddress(decoding: Self.bytes(text)) == address)
        #expect(address.engine.description == "0c0d0e0f10111213")
    }
}
