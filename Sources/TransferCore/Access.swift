/// What peers may do to a region.
public struct Access: OptionSet, Hashable, Sendable, Codable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Peers may write into the region.
    public static let remoteWrite = Access(rawValue: 1)
    /// Only a source of this engine's own writes.
    public static let localOnly: Access = []
}

/// The identity of one engine: random, new for each engine that is opened, so that a restarted process is not taken
/// for the old one.
public struct EngineID: Hashable, Sendable, Codable, CustomStringConvertible {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    public var description: String {
        let digits = String(rawValue, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }
}
