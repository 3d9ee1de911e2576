/// Whether the other side of a session lives. Time is given to it; it has no clock.
struct PeerLiveness: Hashable, Sendable {
    enum Verdict: Hashable, Sendable {
        case alive
        /// Tell the peer that we live.
        case beat
        /// Nothing has been heard for too long.
        case lost
    }

    /// How often to tell the peer.
    let intervalNanoseconds: UInt64
    /// Silence of so many intervals is the end.
    let intervals: UInt64
    private var heard: UInt64
    private var told: UInt64

    init(intervalNanoseconds: UInt64, intervals: Int, now: UInt64) {
        self.intervalNanoseconds = intervalNanoseconds
        self.intervals = UInt64(intervals)
        heard = now
        told = now
    }

    /// Something came from the peer.
    mutating func hear(now: UInt64) { heard = max(heard, now) }

    /// Looks at the time.
    mutating func tick(now: UInt64) -> Verdict {
        if now >= heard &+ intervalNanoseconds &* intervals { return .lost }
        guard now >= told &+ intervalNanoseconds else { return .alive }
        told = now
        return .beat
    }
}
