/// How to open one NIC through libibverbs.
///
/// The defaults are for a lossless or nearly lossless RoCE v2 or InfiniBand network. All times that end something are
/// finite: no peer that stops answering can hold a transfer for ever.
public struct VerbsOptions: Hashable, Sendable {
    /// The device, for example `mlx5_0`; nil takes the first one with an active port.
    public var device: String?
    /// The port of the device, from 1; nil takes the first active one.
    public var port: UInt8?
    /// The GID's index in the port's table; nil applies the rule (`GIDRule`).
    public var gidIndex: Int?
    /// Only GIDs in this subnet, for example `10.1.0.0/16` or `fd00::/8`; nil allows all.
    public var subnet: String?
    /// The largest path MTU in bytes, 256 to 4096; nil takes what the port has. The smaller one of both sides is used.
    public var mtu: Int?
    /// InfiniBand service level, 0 to 15; on RoCE the priority.
    public var serviceLevel: UInt8 = 0
    /// IPv6 traffic class, IPv4 DSCP and ECN bits, of RoCE packets.
    public var trafficClass: UInt8 = 0
    /// Hops after which a packet is dropped.
    public var hopLimit: UInt8 = 64
    /// Overrides the link speed that the port reports, in Mbit/s.
    public var megabitsPerSecond: UInt32?

    /// How long a packet may be unacknowledged before it is sent again: 4.096 us * 2^timeout, at most 31. 14 is 67 ms.
    public var timeout: UInt8 = 14
    /// How often a packet is sent again before the peer counts as lost, 0 to 7. Some devices read 7 as "for ever".
    public var retryCount: UInt8 = 6
    /// How often a request is repeated whose receive queue was empty, 0 to 6; 7 would be "for ever". Credits keep
    /// receive queues from running empty; this is for what is left when there are more peers than credits.
    public var receiverNotReadyRetryCount: UInt8 = 6
    /// The code (0 to 31) of the time after which such a request is repeated. 20 is 10.24 ms.
    public var receiverNotReadyTimer: UInt8 = 20
    /// How long a peer may take to connect before requests to it fail.
    public var connectTimeout: Duration = .seconds(5)
    /// How long a broken queue pair may take to report its requests before it is destroyed with them.
    public var drainTimeout: Duration = .seconds(1)

    /// How requests are handed to the NIC.
    public var posting = Posting.automatic

    /// How requests are handed to the NIC.
    public enum Posting: String, Hashable, Sendable {
        /// By calls where the device takes them, by lists elsewhere.
        case automatic
        /// `ibv_wr_*`: a call for each request, which builds it in the NIC's queue.
        case calls
        /// `ibv_post_send`: a list in memory, which the device's library translates.
        case lists
    }

    /// Requests in flight to one peer, 16 to 16384; a power of two is taken.
    public var requestsPerPeer: Int = 512
    /// Requests in flight on the domain, to all peers.
    public var requests: Int = 4096
    /// Requests handed to the NIC in one call, 1 to 64; the last of a call reports for all.
    public var chainLength: Int = 16
    /// Writes up to this many bytes are copied into the request, if the device can.
    public var inlineBytes: Int = 64
    /// Immediates that may arrive before they are polled, from all peers; each peer may send a share of them unpolled.
    public var immediateReceives: Int = 8192
    /// Messages that may arrive before they are polled, from all peers; each is a buffer of `Limits.packetBytes`.
    public var messageReceives: Int = 256
    /// Whether the NIC may place the bytes of a write in any order. The arrival of data is told by completions only,
    /// so nothing here depends on the order, and above some 200 Gbit/s PCIe needs the freedom.
    public var relaxedOrdering = true

    /// The defaults; `device` may be given as in `VerbsPort.device`.
    public init(device: String? = nil) { self.device = device }
}

/// Sizes that are not worth an option.
enum Tuning {
    /// Peers of one domain.
    static let peers = 4096
    /// Queue pairs in use and being drained, in pairs.
    static let connections = 8192
    /// Receive buffers and send buffers for the handshake.
    static let datagramReceives = 256
    static let datagramSends = 64
    /// Buffers for messages on their way out, for all peers.
    static let messageSends = 32
    /// Requests in flight on one message queue pair.
    static let messageDepth: UInt32 = 64
    /// The largest shares of one peer.
    static let immediateWindow: UInt32 = 1024
    static let messageWindow: UInt32 = 16
    /// The smallest share of immediates.
    static let leastImmediateWindow: UInt32 = 4
    /// Places in the completion queue for credits, beside those for requests.
    static let creditReserve = 256
    /// Receives handed to the NIC in one call.
    static let receiveBatch = 64
    /// Completions taken from the NIC in one call.
    static let completionBatch = 32
    /// Polls between two looks at the device's asynchronous events, a power of two.
    static let eventPolls: UInt32 = 1024
    /// The first pause before a handshake is repeated, and the longest, in nanoseconds.
    static let firstPause: UInt64 = 2_000_000
    static let longestPause: UInt64 = 200_000_000
    /// Hellos without which no handshake fails.
    static let leastHellos = 4
    /// How long requests to a peer fail at once after a handshake with it failed, in nanoseconds.
    static let failureHold: UInt64 = 1_000_000_000
    /// How long a closing domain tries to say goodbye, in nanoseconds.
    static let farewell: UInt64 = 2_000_000
    /// Longest write.
    static let longestWrite: UInt64 = 1 << 30
}
