/// One run of a simulation, as data: so that it can be repeated, printed and made smaller.
public struct Case: Hashable, Sendable {
    /// Everything random in the run itself comes from this.
    public var seed: UInt64
    /// How many NICs each process has, at most 8.
    public var nics: [Int]
    /// What NICs are like.
    public var network: Network
    /// What processes do, ordered by time.
    public var operations: [Operation]
    /// What goes wrong.
    public var faults: [Fault]

    /// Like nothing wrong, at 10 Gbit/s, with messages and writes that overtake each other.
    public struct Network: Hashable, Sendable {
        /// Whether packets of one NIC overtake each other, as on EFA.
        public var reorder = true
        /// Requests that a NIC takes before it pushes back.
        public var queueDepth = 64
        /// Upper bound of the random part of each delay.
        public var jitterNanoseconds: UInt64 = 20_000
        /// Longest write in one request.
        public var maximumWriteBytes: UInt64 = 1 << 30
        /// Whether the processes have a cluster key.
        public var isSigned = false

        /// The defaults.
        public init() {}
    }

    public init(
        seed: UInt64, nics: [Int], network: Network = Network(), operations: [Operation], faults: [Fault]
    ) {
        self.seed = seed
        self.nics = nics
        self.network = network
        self.operations = operations
        self.faults = faults
    }
}

/// Something that a process does.
public struct Operation: Hashable, Sendable {
    /// What it is.
    public enum Kind: Hashable, Sendable {
        /// A contiguous write.
        case write(bytes: Int)
        /// Pages in random order.
        case pages(count: Int, bytes: Int)
        /// So many bytes to each of the others.
        case scatter(bytes: Int)
        /// An immediate without data.
        case immediate
        /// A message, which is echoed by nobody.
        case message(bytes: Int)
        /// A wait for an immediate that nobody sends: it ends when the peer is lost, or at its deadline.
        case await
        /// The target takes back the right to write to it, and grants it anew.
        case revoke
    }

    /// Virtual nanoseconds.
    public var time: UInt64
    /// Who does it.
    public var from: Int
    /// With whom.
    public var to: Int
    /// What.
    public var kind: Kind
    /// How long after it was begun it is cancelled; nil is never.
    public var cancelAfter: UInt64?

    public init(time: UInt64, from: Int, to: Int, kind: Kind, cancelAfter: UInt64? = nil) {
        self.time = time
        self.from = from
        self.to = to
        self.kind = kind
        self.cancelAfter = cancelAfter
    }
}

/// Something that goes wrong, from one moment of virtual time to another.
public struct Fault: Hashable, Sendable {
    /// What it is.
    public enum Kind: Hashable, Sendable {
        /// So many of a million packets are lost, of all NICs.
        case loss(perMillion: Int)
        /// So many of a million acknowledgements are lost: the data is there and only the sender does not know.
        case acknowledgementLoss(perMillion: Int)
        /// So many of a million packets come later by this much.
        case delay(perMillion: Int, nanoseconds: UInt64)
        /// So many of a million messages come again, up to this much later: the engines' own, and where there is a cluster
        /// key the callers' as well.
        case duplicates(perMillion: Int, nanoseconds: UInt64)
        /// So many of a million batches are taken in part, or not at all.
        case partialPosts(perMillion: Int)
        /// So many of a million packets of writes arrive with a bit turned over, and nobody notices.
        case damage(perMillion: Int)
        /// So many of a million polls hand over one completion, or none.
        case slowCompletions(perMillion: Int)
        /// One NIC neither sends nor receives.
        case nicDown(process: Int, nic: Int)
        /// One NIC adds this much to every packet.
        case nicSlow(process: Int, nic: Int, nanoseconds: UInt64)
        /// Packets from one process to another are lost, those of the other direction are not.
        case partition(from: Int, to: Int)
        /// A process makes no progress.
        case pause(process: Int)
        /// A process ends without a word, and comes back at the end of the fault as another one with the same name.
        case crash(process: Int)
    }

    /// What goes wrong.
    public var kind: Kind
    /// Virtual nanoseconds.
    public var begin: UInt64
    /// The first moment at which it is over.
    public var end: UInt64

    public init(_ kind: Kind, from begin: UInt64, to end: UInt64) {
        self.kind = kind
        self.begin = begin
        self.end = end
    }

    /// Whether NICs take less, or hand over less, than they could.
    var isPressing: Bool {
        switch kind {
        case .partialPosts, .slowCompletions: true
        default: false
        }
    }
}

/// What a run came to.
public struct Outcome: Hashable, Sendable {
    /// Promises that were broken; empty is good.
    public var violations: [String] = []
    /// The fingerprint of everything that happened.
    public var hash: UInt64 = 0
    /// Virtual time that passed.
    public var nanoseconds: UInt64 = 0
    /// Events of the network.
    public var events: UInt64 = 0
    /// Operations that did what they were to do.
    public var completed = 0
    /// Operations that ended with an error.
    public var failed = 0
    /// Cancelled operations of which nothing can land any more.
    public var quiescent = 0
    /// Cancelled operations of which that could not be proven.
    public var unproven = 0
    /// Operations that ended because a digest told that the data was damaged.
    public var mismatches = 0
}
