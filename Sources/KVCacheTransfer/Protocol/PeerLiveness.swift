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
    private var looked: UInt64

    init(intervalNanoseconds: UInt64, intervals: Int, now: UInt64) {
        self.intervalNanoseconds = intervalNanoseconds
        self.intervals = UInt64(intervals)
        heard = now
        told = now
        looked = now
    }

    /// Something came from the peer.
    mutating func hear(now: UInt64) {
        heard = max(heard, now)
        looked = max(looked, now)
    }

    /// Looks at the time. Of the time in which nobody looked no more than an interval is the peer's silence: a process that was
    /// stopped does not take all others for dead.
    mutating func tick(now: UInt64) -> Verdict {
        if now > looked &+ intervalNanoseconds { heard &+= now - looked - intervalNanoseconds }
        looked = max(looked, now)
        if now >= heard &+ intervalNanoseconds &* intervals { return .lost }
        guard now >= told &+ intervalNanoseconds else { return .alive }
        told = now
        return .beat
    }
}
