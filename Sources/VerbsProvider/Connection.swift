internal import CVerbs
internal import TransferCore

/// Another domain that this one talks to.
@safe struct Peer {
    var engine: UInt64 = 0
    var address = NICAddress()
    /// Regions of it that the engine has attached.
    var imports = 0
    /// The connection in use, or -1.
    var connection = -1
    /// The highest attempt of it that was heard of; lower ones are late copies.
    var heard: UInt32 = 0
    /// Until when requests fail at once because a handshake failed, and why (an error number).
    var failedUntil: UInt64 = 0
    var failure: Int32 = 0
    /// How to address its datagrams.
    var handle: UnsafeMutablePointer<ibv_ah>?
    /// Datagrams on their way to it.
    var datagrams = 0
    var isUsed = false
}

/// The sending half of a queue pair: what was posted and has not been reported, in order.
///
/// Requests of a reliable connection end in order, so a completion speaks for all before it, and an error means that
/// all before it succeeded.
@safe struct SendQueue: ~Copyable {
    var qp: UnsafeMutablePointer<ibv_qp>?
    /// The same queue pair where requests are given by calls.
    var calls: UnsafeMutablePointer<ibv_qp_ex>?
    var number: UInt32 = 0
    /// The number of our first packet.
    var psn: UInt32 = 0
    /// Contexts by sequence number, as many as a power of two; of writes also their tags, and whether they count.
    var contexts = Table<UInt64>()
    var tags = Table<RequestTag>()
    var counts = Table<Bool>()
    var mask: UInt32 = 0
    /// Sequence numbers: the next one, the first that has not ended, the first that was not handed out.
    var posted: UInt32 = 0
    var ended: UInt32 = 0
    var reported: UInt32 = 0
    /// The first that failed.
    var failedFrom: UInt32 = 0
    var hasFailed = false
    var status = WorkStatus.success
    /// The newest ones that the NIC was not given, because the queue pair broke first.
    var withheld: UInt32 = 0
    /// What the ones after it end with.
    var laterStatus = WorkStatus.peerLost
    var detail: Int32 = 0

    /// Requests that may still be posted.
    @inline(__always) var room: UInt32 { mask &+ 1 &- (posted &- reported) }
    /// Requests that have not ended.
    @inline(__always) var inFlight: Int { Int(posted &- ended) }
    /// Whether the NIC is through with what it was given.
    var isDrained: Bool { ended == posted &- withheld }

    /// Whether a sequence number belongs to a request in flight.
    @inline(__always) func isInFlight(_ sequence: UInt32) -> Bool {
        sequence &- ended < posted &- ended
    }

    mutating func fail(from sequence: UInt32, _ status: WorkStatus, _ detail: Int32) {
        guard !hasFailed else { return }
        hasFailed = true
        failedFrom = sequence
        self.status = status
        self.detail = detail
    }

    /// The same for all from there on, when the NIC has not said what failed.
    mutating func failRest(from sequence: UInt32, _ status: WorkStatus, _ detail: Int32) {
        guard !hasFailed else { return }
        fail(from: sequence, status, detail)
        laterStatus = status
    }

    /// Starts over with a queue pair.
    mutating func reset() {
        posted = 0
        ended = 0
        reported = 0
        withheld = 0
        hasFailed = false
        laterStatus = .peerLost
    }
}

/// A pair of queue pairs to one peer: one for writes, whose immediates consume receives without memory, and one for
/// messages, whose receives are buffers. One queue pair for both would let an immediate consume a message's buffer.
@safe struct Connection: ~Copyable {
    enum State: UInt8 {
        case free
        /// Queue pairs exist; the peer's are not known.
        case calling
        /// Ours can receive and send; whether the peer's can is not known.
        case bound
        /// Both sides' can.
        case ready
        /// Broken: no request is taken, those in flight are being returned.
        case draining
    }

    var state = State.free
    /// Distinguishes completions of this use of the place from those of earlier ones; 13 bits.
    var generation: UInt16 = 0
    var peer = -1
    var writes = SendQueue()
    var messages = SendQueue()
    /// For each message queue entry: the buffer, or `creditMark` for a credit.
    var buffers = Table<Int32>()
    static let creditMark: Int32 = -2

    // The handshake.
    var attempt: UInt32 = 0
    var remoteAttempt: UInt32 = 0
    /// When the next hello is due, the pause after it, and how many there were.
    var nextHello: UInt64 = 0
    var pause: UInt64 = 0
    var hellos = 0
    /// When the handshake, or the draining, has taken too long.
    var deadline: UInt64 = 0
    /// Whether a request waits for it. Before that nobody has to hear that a handshake failed.
    var isWanted = false
    var isWatched = false

    // What is sent: counted by the sender, taken back by the peer's credits.
    var immediatesSent: UInt32 = 0
    var immediatesTaken: UInt32 = 0
    var immediateWindow: UInt32 = 0
    var messagesSent: UInt32 = 0
    var messagesTaken: UInt32 = 0
    var messageWindow: UInt32 = 0
    var remoteCreditAddress: UInt64 = 0
    var remoteCreditKey: UInt32 = 0

    /// While a batch for several peers is handed over: how many of its requests are this one's, the first and the last.
    var gathered = 0
    var firstGathered: Int32 = 0
    var lastGathered: Int32 = 0

    /// All immediates sent and received, for the fate of requests that fail.
    var sent: UInt64 = 0
    var received: UInt64 = 0
    /// What the peer calls the connection when it asks what has come over it.
    var remoteIdentity: UInt64 = 0

    // What is received: counted here, told to the peer.
    var grantedImmediates: UInt32 = 0
    var grantedMessages: UInt32 = 0
    var immediatesReceived: UInt32 = 0
    var messagesReceived: UInt32 = 0
    var immediatesReturned: UInt32 = 0
    var messagesReturned: UInt32 = 0
    var isReturningCredit = false
    var owesCredit = false

    /// Whether it is in the list of those with ended requests to hand out.
    var isListed = false
    /// While draining: why, and since when nothing is in flight.
    var cause = WorkStatus.success
    var causeDetail: Int32 = 0
    var drainedSince: UInt64 = 0

    /// Whether enough was received that the peer should hear of it.
    @inline(__always) var isCreditDue: Bool {
        immediatesReceived &- immediatesReturned >= max(1, grantedImmediates / 4)
            || messagesReceived &- messagesReturned >= max(1, grantedMessages / 4)
    }

    /// How many immediates the peer has room for, as far as is known.
    @inline(__always) var immediateCredit: UInt32 {
        let used = immediatesSent &- immediatesTaken
        return used < immediateWindow ? immediateWindow &- used : 0
    }

    /// What we call the connection: no other one of this engine has had it, but by a chance of one in 2^24.
    var identity: UInt64 { Self.identity(writes.number, writes.psn) }
    static func identity(_ queuePair: UInt32, _ psn: UInt32) -> UInt64 {
        UInt64(queuePair) << 32 | UInt64(psn) << 1 | 1
    }

    /// Of the write with this sequence number: how many immediates were sent before it.
    func ordinal(of sequence: UInt32) -> UInt64 {
        var after: UInt64 = 0
        var next = sequence
        while next != writes.posted {
            if writes.counts[Int(next & writes.mask)] { after += 1 }
            next &+= 1
        }
        return sent - min(sent, after)
    }

    /// Takes note of what the peer has taken; numbers that cannot be are ignored.
    mutating func note(credit word: UInt64) {
        let immediates = UInt32(truncatingIfNeeded: word)
        let messages = UInt32(truncatingIfNeeded: word >> 32)
        if immediates &- immediatesTaken <= immediatesSent &- immediatesTaken { immediatesTaken = immediates }
        if messages &- messagesTaken <= messagesSent &- messagesTaken { messagesTaken = messages }
    }

    /// Forgets all but what belongs to the place: tables and generation.
    mutating func reset() {
        var fresh = Connection()
        fresh.generation = (generation &+ 1) & 0x1FFF
        swap(&fresh.writes.contexts, &writes.contexts)
        swap(&fresh.writes.tags, &writes.tags)
        swap(&fresh.writes.counts, &writes.counts)
        fresh.writes.mask = writes.mask
        swap(&fresh.messages.contexts, &messages.contexts)
        fresh.messages.mask = messages.mask
        swap(&fresh.buffers, &buffers)
        self = fresh
    }
}

/// What a completion is of: the `wr_id` that goes to the NIC and comes back. Only checked parts of it are used.
struct WorkID {
    enum Kind: UInt64 {
        case write = 1
        case message
        case datagramSend
        case datagramReceive
        case immediateReceive
        case messageReceive
    }

    var rawValue: UInt64

    @inline(__always) init(rawValue: UInt64) { self.rawValue = rawValue }

    /// A request of a connection.
    @inline(__always) init(_ kind: Kind, connection: Int, generation: UInt16, sequence: UInt32) {
        rawValue =
            kind.rawValue << 61 | UInt64(generation & 0x1FFF) << 48
            | UInt64(truncatingIfNeeded: connection & 0xFFFF) << 32
            | UInt64(sequence)
    }

    /// A buffer of the domain.
    init(_ kind: Kind, buffer: Int) { rawValue = kind.rawValue << 61 | UInt64(UInt32(buffer)) }

    @inline(__always) var kind: Kind? { Kind(rawValue: rawValue >> 61) }
    @inline(__always) var generation: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 48) & 0x1FFF }
    @inline(__always) var connection: Int { Int(rawValue >> 32) & 0xFFFF }
    @inline(__always) var sequence: UInt32 { UInt32(truncatingIfNeeded: rawValue) }
    var buffer: Int { Int(UInt32(truncatingIfNeeded: rawValue)) }
}
