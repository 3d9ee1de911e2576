/// A pair of a local and a remote NIC, and how much of the traffic between two devices it carries.
///
/// Devices may have different numbers of NICs of different speeds. Rails are chosen once for each pair of devices so that
/// each NIC on each side carries its share, with at most `local + remote - 1` pairs.
public struct Rail: Hashable, Sendable {
    /// Position among the local NICs that take part.
    public var local: Int
    /// Position among the remote NICs that take part.
    public var remote: Int
    /// Where this rail's share ends on a scale of `Rail.scale`; it begins where the one before ends.
    public var end: UInt32

    /// The whole traffic.
    public static let scale: UInt32 = 1 << 20

    /// Joins two groups of NICs with the given speeds; a speed of 0 counts as 1.
    ///
    /// Both sides are laid end to end on the same scale; every stretch that lies in one local and one remote NIC is a rail
    /// (the north-west corner rule of transport problems).
    /// - Complexity: O(local + remote).
    public static func join(local: [UInt32], remote: [UInt32]) -> [Rail] {
        let localEnds = ends(local)
        let remoteEnds = ends(remote)
        var rails: [Rail] = []
        var l = 0
        var r = 0
        while l < localEnds.count, r < remoteEnds.count {
            let end = min(localEnds[l], remoteEnds[r])
            if end > rails.last?.end ?? 0 { rails.append(Rail(local: l, remote: r, end: end)) }
            if localEnds[l] == end { l += 1 }
            if remoteEnds[r] == end { r += 1 }
        }
        return rails
    }

    /// Where the shares of these speeds end on the scale.
    package static func ends(_ speeds: [UInt32]) -> [UInt32] {
        let total = speeds.reduce(UInt64(0)) { $0 + UInt64(max(1, $1)) }
        var sum: UInt64 = 0
        return speeds.map { speed in
            sum += UInt64(max(1, speed))
            return UInt32(sum * UInt64(scale) / total)
        }
    }
}
