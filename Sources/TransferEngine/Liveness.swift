/// How soon a silent peer or NIC is asked whether it lives, and when it counts as lost.
///
/// Nothing is sent while nothing waits: a heartbeat asks only where a transfer has not moved for an interval, or where a
/// counter waits for a named sender.
public struct Liveness: Hashable, Sendable {
    /// How long nothing may happen before the peer is asked; it is asked again after as long.
    public var interval: Duration
    /// After so many intervals without a sign of life the NIC, or the peer, counts as lost; at least 2.
    public var intervals: Int

    /// Three intervals of one second.
    public init(interval: Duration = .seconds(1), intervals: Int = 3) {
        precondition(interval > .zero && intervals >= 2, "liveness needs time to ask and to answer")
        self.interval = interval
        self.intervals = intervals
    }

    var intervalNanoseconds: UInt64 { interval.nanoseconds }
    /// From asking to giving up: the first interval has passed before anybody asks.
    var patience: UInt64 { intervalNanoseconds * UInt64(intervals - 1) }
    /// How often links are looked at.
    var lookNanoseconds: UInt64 { max(1, intervalNanoseconds / 8) }
    /// How long a link that failed is left alone at first, and at most.
    var firstPause: UInt64 { max(1, intervalNanoseconds / 10) }
    var longestPause: UInt64 { intervalNanoseconds * 5 }
    /// Settled connections that a link remembers, for completions that come late.
    static let rememberedSettlements = 8
}

/// What `cancel` can say.
public enum CancelReceipt: Hashable, Sendable {
    /// No byte of the transfer can land any more, on any NIC, and its source may be reused.
    case quiescent
    /// That could not be proven in time, for this reason. The target's memory is safe to reuse after its owner has revoked or
    /// deregistered it, the source's after `deregister`.
    case unproven(String)
}
