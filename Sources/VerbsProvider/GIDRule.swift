/// An entry of a port's GID table: an address of the NIC and how packets to it are framed.
public struct VerbsGID: Hashable, Sendable {
    /// How packets are framed.
    public enum Kind: String, Hashable, Sendable { case infiniBand, roceV1, roceV2 }

    /// The place in the port's table.
    public var index: Int
    /// 16 bytes, in network order.
    public var bytes: [UInt8]
    /// How packets with this address travel.
    public var kind: Kind

    public init(index: Int, bytes: [UInt8], kind: Kind) {
        self.index = index
        self.bytes = bytes
        self.kind = kind
    }

    /// What the 16 bytes are, the most useful first.
    enum Scope: Int { case mapped, global, linkLocal, none }

    var scope: Scope {
        guard bytes.count == 16, bytes.contains(where: { $0 != 0 }) else { return .none }
        if bytes.prefix(10).allSatisfy({ $0 == 0 }), bytes[10] == 0xFF, bytes[11] == 0xFF { return .mapped }
        return bytes[0] == 0xFE && bytes[1] & 0xC0 == 0x80 ? .linkLocal : .global
    }

    /// The address as people write it.
    public var text: String {
        guard bytes.count == 16 else { return "?" }
        if scope == .mapped { return bytes.suffix(4).map { String($0) }.joined(separator: ".") }
        return (0..<8).map { String(UInt16(bytes[2 * $0]) << 8 | UInt16(bytes[2 * $0 + 1]), radix: 16) }
            .joined(separator: ":")
    }
}

/// Which GID of a port is used, and why.
///
/// On Ethernet: RoCE v2 only, since RoCE v1 does not leave its segment; then an IPv4 address before a global IPv6 address
/// before a link-local one; then the lowest index. On InfiniBand: index 0, packets are addressed by LID.
public enum GIDRule {
    /// The entry to use, and a sentence about it and about each one that was not taken.
    public struct Choice: Hashable, Sendable {
        /// The entry, or nil when none fits.
        public var gid: VerbsGID?
        /// Why `gid` was chosen, or why there is none.
        public var reason: String
        /// For each entry, by position in the table.
        public var verdicts: [String]
    }

    /// Applies the rule. `gidIndex` and `subnet` are those of `VerbsOptions`.
    public static func choose(
        _ table: [VerbsGID], isEthernet: Bool, gidIndex: Int? = nil, subnet: String? = nil
    ) -> Choice {
        if let gidIndex { return named(gidIndex, table) }
        guard isEthernet else {
            let first = table.first { $0.index == 0 }
            return Choice(
                gid: first, reason: "InfiniBand: packets are addressed by LID",
                verdicts: table.map { $0.index == 0 ? "chosen" : "not needed" })
        }
        let net = subnet.map(Subnet.init)
        if let subnet, net == .some(nil) {
            return Choice(gid: nil, reason: "'\(subnet)' is not a subnet", verdicts: table.map { _ in "" })
        }
        let ranks = table.map { rank($0, in: net ?? nil) }
        let best = ranks.indices.filter { ranks[$0].rank < VerbsGID.Scope.none.rawValue }.min {
            (ranks[$0].rank, table[$0].index) < (ranks[$1].rank, table[$1].index)
        }
        let verdicts = table.indices.map { entry in
            guard entry != best else { return "chosen: \(ranks[entry].why)" }
            return ranks[entry].rank < VerbsGID.Scope.none.rawValue
                ? "\(ranks[entry].why): a better one was found" : "not usable: \(ranks[entry].why)"
        }
        guard let best else {
            let limit = subnet.map { " in \($0)" } ?? ""
            return Choice(
                gid: nil,
                reason: "no RoCE v2 address\(limit): give the NIC's network interface an IP address",
                verdicts: verdicts)
        }
        return Choice(gid: table[best], reason: ranks[best].why, verdicts: verdicts)
    }

    private static func named(_ index: Int, _ table: [VerbsGID]) -> Choice {
        let verdicts = table.map { $0.index == index ? "chosen: asked for" : "another one was asked for" }
        guard let gid = table.first(where: { $0.index == index }) else {
            return Choice(gid: nil, reason: "the port has no GID \(index)", verdicts: verdicts)
        }
        return Choice(gid: gid, reason: "asked for by index", verdicts: verdicts)
    }

    private static func rank(_ gid: VerbsGID, in net: Subnet?) -> (rank: Int, why: String) {
        let never = VerbsGID.Scope.none.rawValue
        guard gid.kind == .roceV2 else { return (never, "RoCE v1 does not leave its segment") }
        if let net, !net.contains(gid.bytes) { return (never, "outside the subnet that was asked for") }
        switch gid.scope {
        case .mapped: return (0, "RoCE v2, IPv4")
        case .global: return (1, "RoCE v2, global IPv6")
        case .linkLocal: return (2, "RoCE v2, link-local IPv6")
        case .none: return (never, "an empty entry")
        }
    }
}

/// A range of addresses in the form of GIDs.
struct Subnet: Hashable {
    private var prefix: [UInt8]
    private var bits: Int

    /// Reads `10.1.0.0/16`, `fd00::/8` or a single address; nil when it is none of these.
    init?(_ text: String) {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        guard let address = parts.first else { return nil }
        let isOld = address.contains(".")
        guard let bytes = isOld ? Self.version4(address) : Self.version6(address) else { return nil }
        let longest = isOld ? 32 : 128
        guard let length = parts.count > 1 ? Int(parts[1]) : longest, (0...longest).contains(length) else {
            return nil
        }
        prefix = bytes
        bits = isOld ? 96 + length : length
    }

    func contains(_ bytes: [UInt8]) -> Bool {
        guard bytes.count == 16 else { return false }
        return (0..<16).allSatisfy { index in
            let used = min(8, max(0, bits - 8 * index))
            let mask = UInt8(truncatingIfNeeded: 0xFF00 >> used)
            return (bytes[index] ^ prefix[index]) & mask == 0
        }
    }

    private static func version4(_ text: Substring) -> [UInt8]? {
        let numbers = text.split(separator: ".", omittingEmptySubsequences: false).map { UInt8($0) }
        guard numbers.count == 4, !numbers.contains(nil) else { return nil }
        return [UInt8](repeating: 0, count: 10) + [0xFF, 0xFF] + numbers.compactMap { $0 }
    }

    private static func version6(_ text: Substring) -> [UInt8]? {
        func words(_ text: Substring) -> [UInt16]? {
            if text.isEmpty { return [] }
            let words = text.split(separator: ":", omittingEmptySubsequences: false).map {
                UInt16($0, radix: 16)
            }
            return words.contains(nil) ? nil : words.compactMap { $0 }
        }
        var head = text
        var tail = Substring()
        var isShort = false
        for index in text.indices where text[index...].hasPrefix("::") {
            head = text[..<index]
            tail = text[text.index(index, offsetBy: 2)...]
            isShort = true
            break
        }
        guard let first = words(head), let last = words(tail) else { return nil }
        let missing = 8 - first.count - last.count
        guard isShort ? missing >= 1 : missing == 0 else { return nil }
        let all = first + [UInt16](repeating: 0, count: isShort ? missing : 0) + last
        return all.flatMap { [UInt8(truncatingIfNeeded: $0 >> 8), UInt8(truncatingIfNeeded: $0)] }
    }
}
