/// How to open one NIC through libfabric.
public struct LibfabricOptions: Hashable, Sendable {
    /// Whether small writes travel in frames, many to a send, instead of one operation each.
    public enum Framing: Hashable, Sendable {
        /// On for providers that are software on both sides (`tcp`, `tcp;ofi_rxm`, `net`), where an operation
        /// costs a system call; off where hardware writes.
        case automatic
        /// Every write is an operation of its own. Peers must agree on this no more than on the threshold. Over ofi_rxm on tcp a
        /// receiver whose connection ends in the middle of a write with an immediate can crash then, in libfabric (1.17 to 2.6).
        case never
    }

    /// libfabric's name of the provider: `tcp`, `tcp;ofi_rxm`, `efa`, `verbs;ofi_rxm`, `shm`. Peers must use
    /// the same.
    public var provider: String
    /// Which NIC: an interface (`eth0`), a device (`rdmap0s6-rdm`) or a numeric address (`127.0.0.2`); nil
    /// takes libfabric's first choice.
    public var nic: String?
    /// Overrides the link speed that the NIC reports, in Mbit/s.
    public var megabitsPerSecond: UInt32?
    /// Whether small writes are framed.
    public var framing: Framing
    /// Writes up to this many bytes are framed, when framing is on.
    public var frameThreshold: Int
    /// Whether a thread may want to sleep until something arrives. Without it a completion costs no wake-up. The engine
    /// clears it for busy and manual progress.
    public var mayWait = true

    public init(
        provider: String = "tcp", nic: String? = nil, megabitsPerSecond: UInt32? = nil,
        framing: Framing = .automatic, frameThreshold: Int = Tuning.frameThreshold
    ) {
        self.provider = provider
        self.nic = nic
        self.megabitsPerSecond = megabitsPerSecond
        self.framing = framing
        self.frameThreshold = frameThreshold
    }

    /// Whether a NIC, not the CPU, places the data: its acknowledgement is the completion.
    var isHardware: Bool { provider.hasPrefix("efa") || provider.hasPrefix("verbs") }
    var isEFA: Bool { provider.hasPrefix("efa") }
    /// Whether small writes travel in frames.
    var frames: Bool { framing == .automatic && isTCP }
    var isTCP: Bool { provider.hasPrefix("tcp") || provider == "net" || provider.hasPrefix("net;") }
    /// Whether what goes back to a peer that sends large writes takes a connection of its own.
    var hasReverse: Bool { frames }
}

/// Sizes that were chosen by measurement; the design document has the numbers.
public enum Tuning {
    /// Default of `LibfabricOptions.frameThreshold`. Frames are copied on both sides: pages of 8 KiB go at 1.3 times raw
    /// libfabric's rate in them; pages of 16 KiB, between cores that share no cache, at 0.6, and by themselves at 0.94.
    public static let frameThreshold = 12288
    /// Bytes of a frame when small writes are framed.
    static let frameBytes = 65536
    /// Bytes of a frame that carries messages only: one of the largest size.
    static let messageFrameBytes = 20480
    /// Bytes of a frame that carries only acknowledgements.
    static let ackBytes = 1024
    /// Frames that may be on their way to one peer without an acknowledgement.
    static let window: UInt32 = 16
    /// Frames on their way to one peer at which a frame that is not full waits for more.
    static let aggregation: UInt32 = 2
    /// Bytes of large writes to one peer after which the next acknowledgement is asked for: half of those on their way, but no
    /// fewer and no more than these.
    static let askBytes = 1 << 20...1 << 22
    /// Polls after the last large write to a peer, after which the sender asks in a message of its own.
    static let askPolls: UInt32 = 2
    /// Large writes that may be on their way to one peer without an acknowledgement.
    static let countedWrites = CountedWrite.sequences
    /// Polls in a row that find nothing, after which a receiver acknowledges writes without being asked.
    static let calmPolls: UInt32 = 1024
    /// One poll of so many, less one, looks at the reverse endpoint although nothing is on its way there.
    static let reversePolls: UInt32 = 63
    /// Polls without a large write from a peer, after which its first connection serves both directions again: small messages
    /// there and back are a third faster on one.
    static let streamPolls: UInt32 = 4096
    /// Frames of one domain, for all its peers.
    static let sendFrames = 64
    /// Buffers for acknowledgements on their way.
    static let ackFrames = 64
    /// Posted receive buffers; with few bytes a frame where the NIC pins them.
    static let receiveFrames = 64
    /// Writes in flight on one domain that are operations of their own.
    static let writes = 2048
    /// The longest write that libfabric's tcp is given; longer ones are cut. Over loopback 32 MiB go at 4.0 GB/s when cut and at
    /// 2.8 as one write, 1 MiB at 4.1 and 3.4; why was not looked into.
    static let tcpWriteBytes: UInt64 = 1 << 19
    /// Records in one frame.
    static let recordsPerFrame = 1024
    /// Peers of one domain.
    static let peers = 4096
    /// Requests that EFA is given between two polls: more of them lowers its rate for small packets.
    static let efaPostsPerPoll = 32
    /// How long a peer may owe an acknowledgement before it is asked whether it lives, in nanoseconds.
    static let pingAfter: UInt64 = 200_000_000
    /// How long a peer may take to answer a greeting before it is greeted again, in nanoseconds.
    static let greetAgainAfter: UInt64 = 100_000_000
    /// How long a receiver waits for the proof that nothing of a connection can land any more, before it closes its endpoint,
    /// in nanoseconds.
    static let settlePatience: UInt64 = 700_000_000
    /// How long an endpoint that could not be opened again is left alone, in nanoseconds.
    static let reopenAfter: UInt64 = 100_000_000
    /// How often new connections are looked for while there is traffic, in nanoseconds.
    static let keepAliveInterval: UInt64 = 2_000_000_000
    /// How long a transport may refuse work for a peer before the peer counts as lost, in nanoseconds.
    static let patience: UInt64 = 5_000_000_000
}
