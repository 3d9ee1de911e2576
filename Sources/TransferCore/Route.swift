/// NICs of two devices that can talk, because they speak the same fabric.
public struct Route: Hashable, Sendable {
    /// What both speak.
    public var fabric: String
    /// Positions among the local NICs.
    public var local: [Int]
    /// Positions among the remote NICs.
    public var remote: [Int]

    /// All routes between two devices, in the order in which they are tried: that of the local NICs.
    public static func candidates(local: [DomainAttributes], remote: [RemoteRegion.NIC]) -> [Route] {
        var tried = Set<String>()
        return local.compactMap { first in
            guard tried.insert(first.fabric).inserted else { return nil }
            let theirs = remote.indices.filter { remote[$0].fabric == first.fabric }
            guard !theirs.isEmpty else { return nil }
            return Route(
                fabric: first.fabric, local: local.indices.filter { local[$0].fabric == first.fabric },
                remote: theirs)
        }
    }

    /// The pairs of NICs that carry the traffic, each with its share; positions are those of `candidates`' arguments.
    public func rails(local: [DomainAttributes], remote: [RemoteRegion.NIC]) -> [Rail] {
        let joined = Rail.join(
            local: self.local.map { local[$0].megabitsPerSecond },
            remote: self.remote.map { remote[$0].megabitsPerSecond })
        return joined.map { Rail(local: self.local[$0.local], remote: self.remote[$0.remote], end: $0.end) }
    }
}
