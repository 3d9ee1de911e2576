/// What one simulated NIC is like. All times are virtual nanoseconds.
///
/// The transmit side sends packets one after another at `megabitsPerSecond`: those to one target in the order in which
/// they were posted, and of different targets in turn. The receive side of the target takes in at most its own
/// `megabitsPerSecond`, in order of arrival. In between lies a wire without limits, which delays each packet by
/// `latencyNanoseconds` and a random part.
public struct SimulatedNIC: Hashable, Sendable {
    /// For people; need not be unique.
    public var name: String
    /// Speed of each direction, at least 1.
    public var megabitsPerSecond: UInt32
    /// Delay of every packet that this NIC sends, and of every acknowledgement that it gets.
    public var latencyNanoseconds: UInt64
    /// Upper bound of a uniformly random delay on top of the latency, drawn anew for every packet.
    public var jitterNanoseconds: UInt64
    /// Largest write in one request; a longer one is refused.
    public var maximumWriteBytes: UInt64
    /// Requests and messages that may be posted and not yet polled; beyond that `post` says `again`.
    public var queueDepth: Int
    /// Whether packets and acknowledgements may overtake each other, as on EFA. When false, both are in order
    /// for each target, as on a reliable connection.
    public var reorder: Bool
    /// Whether one request may carry more than one count.
    public var countsMany: Bool
    /// Largest such request in bytes.
    public var countsManyBytes: UInt64
    /// Whether writes above 4 KiB land in several parts, in random order when `reorder` is set.
    public var cutsWrites: Bool
    /// Time of the transmit side that every request and message takes besides its bytes.
    public var requestOverheadNanoseconds: UInt64
    /// How long the NIC tries before it reports a peer that does not answer.
    public var retryTimeoutNanoseconds: UInt64

    /// Describes a NIC. The defaults are a fast link on which order means nothing.
    public init(
        name: String, megabitsPerSecond: UInt32 = 100_000, latencyNanoseconds: UInt64 = 2_000,
        jitterNanoseconds: UInt64 = 5_000, maximumWriteBytes: UInt64 = 1 << 30, queueDepth: Int = 256,
        reorder: Bool = true, countsMany: Bool = false, countsManyBytes: UInt64 = .max,
        cutsWrites: Bool = true, requestOverheadNanoseconds: UInt64 = 50,
        retryTimeoutNanoseconds: UInt64 = 10_000_000
    ) {
        precondition(megabitsPerSecond > 0, "a NIC has a speed")
        precondition(queueDepth > 0, "a NIC takes at least one request")
        self.name = name
        self.megabitsPerSecond = megabitsPerSecond
        self.latencyNanoseconds = latencyNanoseconds
        self.jitterNanoseconds = jitterNanoseconds
        self.maximumWriteBytes = maximumWriteBytes
        self.queueDepth = queueDepth
        self.reorder = reorder
        self.countsMany = countsMany
        self.countsManyBytes = countsManyBytes
        self.cutsWrites = cutsWrites
        self.requestOverheadNanoseconds = requestOverheadNanoseconds
        self.retryTimeoutNanoseconds = retryTimeoutNanoseconds
    }

    /// Nanoseconds that `bytes` occupy one direction of the link, rounded up.
    func serialisationNanoseconds(_ bytes: Int) -> UInt64 {
        let speed = UInt64(megabitsPerSecond)
        return (UInt64(bytes) * 8_000 + speed - 1) / speed
    }
}

/// What `PostResult.detail` and `Completion.detail` mean when a simulated NIC refuses a request.
public enum SimulatedDetail {
    /// Nothing more to say than the status does.
    public static let none: Int32 = 0
    /// The write is above `maximumWriteBytes`, or the message above `Limits.packetBytes`.
    public static let tooLong: Int32 = 1
    /// The count does not fit into a wire immediate and the NIC is not one of those that count many, or the
    /// immediate has more than 30 bits.
    public static let badImmediate: Int32 = 2
    /// The source is not inside the registration that the local key names, or that registration has ended.
    public static let badLocalKey: Int32 = 3
    /// The target is registered in the page, but the remote key is not one of this NIC's.
    public static let badRemoteKey: Int32 = 4
    /// The domain has been closed.
    public static let closed: Int32 = 5
}
