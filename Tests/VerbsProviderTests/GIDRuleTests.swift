import Testing
@testable import VerbsProvider

@Suite struct GIDRuleTests {
    private static func gid(_ index: Int, _ text: String, _ kind: VerbsGID.Kind = .roceV2) -> VerbsGID {
        var bytes = [UInt8](repeating: 0, count: 16)
        if text.contains(".") {
            bytes[10] = 0xFF
            bytes[11] = 0xFF
            for (place, part) in text.split(separator: ".").enumerated() {
                bytes[12 + place] = UInt8(part) ?? 0
            }
        } else {
            for (place, part) in text.split(separator: ":").enumerated() {
                let word = UInt16(part, radix: 16) ?? 0
                bytes[2 * place] = UInt8(word >> 8)
                bytes[2 * place + 1] = UInt8(word & 0xFF)
            }
        }
        return VerbsGID(index: index, bytes: bytes, kind: kind)
    }

    /// A table as mlx5 has it: for each address an entry for RoCE v1 and one for RoCE v2.
    private let table = [
        gid(0, "fe80:0:0:0:1:2:3:4", .roceV1), gid(1, "fe80:0:0:0:1:2:3:4"),
        gid(2, "10.1.0.5", .roceV1), gid(3, "10.1.0.5"),
        gid(4, "2001:db8:0:0:0:0:0:5"), gid(5, "192.168.7.5"),
    ]

    @Test func prefersIPv4ThenGlobalThenLinkLocal() {
        #expect(GIDRule.choose(table, isEthernet: true).gid?.index == 3)
        let without4 = table.filter { $0.scope != .mapped }
        #expect(GIDRule.choose(without4, isEthernet: true).gid?.index == 4)
        #expect(GIDRule.choose(Array(without4.prefix(2)), isEthernet: true).gid?.index == 1)
    }

    @Test func neverTakesRoCEVersion1() {
        let choice = GIDRule.choose(table.filter { $0.kind == .roceV1 }, isEthernet: true)
        #expect(choice.gid == nil)
        #expect(choice.reason.contains("give the NIC's network interface an IP address"))
        #expect(choice.verdicts.allSatisfy { $0.contains("RoCE v1") })
    }

    @Test func indexAndSubnetOverride() {
        #expect(GIDRule.choose(table, isEthernet: true, gidIndex: 0).gid?.index == 0)
        #expect(GIDRule.choose(table, isEthernet: true, gidIndex: 9).gid == nil)
        #expect(GIDRule.choose(table, isEthernet: true, subnet: "192.168.0.0/16").gid?.index == 5)
        #expect(GIDRule.choose(table, isEthernet: true, subnet: "2001:db8::/32").gid?.index == 4)
        #expect(GIDRule.choose(table, isEthernet: true, subnet: "172.16.0.0/12").gid == nil)
        for nonsense in ["", "10.1", "10.1.0.0/33", "x::/8", "1:2:3", "::1::2", "10.1.0.256"] {
            let choice = GIDRule.choose(table, isEthernet: true, subnet: nonsense)
            #expect(choice.gid == nil && choice.reason.contains("not a subnet"), "\(nonsense)")
        }
    }

    @Test func everyEntryHasAVerdict() {
        let choice = GIDRule.choose(table, isEthernet: true)
        #expect(choice.verdicts.count == table.count)
        #expect(choice.verdicts[3].hasPrefix("chosen"))
        #expect(!choice.verdicts.contains(""))
    }

    @Test func infiniBandTakesTheFirst() {
        let table = [Self.gid(0, "fe80:0:0:0:5:6:7:8", .infiniBand)]
        #expect(GIDRule.choose(table, isEthernet: false).gid?.index == 0)
    }

    @Test func subnetsOfAnyLength() throws {
        let address = Self.gid(0, "10.1.130.7").bytes
        for (text, isInside) in [
            ("10.1.128.0/17", true), ("10.1.0.0/17", false), ("0.0.0.0/0", true), ("10.1.130.7", true),
            ("10.1.130.6/31", true), ("10.1.130.6", false),
        ] {
            #expect(try #require(Subnet(text)).contains(address) == isInside, "\(text)")
        }
    }
}
