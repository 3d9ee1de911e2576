public import TransferCore

/// Decides what becomes of packets: the place where tests break the network.
///
/// The network asks once for every packet, at the virtual moment at which it reaches the other side. Whatever
/// an implementation draws must come from its own seeded generator, or runs cannot be repeated. It may keep
/// state (a link that goes down at a time, a NIC that dies after its n-th packet) and must not call the
/// network.
public protocol SimulatedFaults {
    /// What happens to `packet`.
    mutating func verdict(for packet: SimulatedPacket) -> SimulatedVerdict
    /// How many of `offered` requests a NIC takes now, and why not the next one: `again` or `targetBusy`.
    mutating func admission(of offered: Int, by nic: UInt64, nowNanoseconds: UInt64) -> SimulatedAdmission
    /// How many completions and messages a NIC hands over in one poll, of at most `room`.
    mutating func handOver(_ room: Int, by nic: UInt64, nowNanoseconds: UInt64) -> Int
    /// Which of the `length` bytes of a write's packet arrives with a bit turned over, unnoticed by the network; nil is none.
    mutating func damagedByte(of length: Int, nowNanoseconds: UInt64) -> Int?
}

extension SimulatedFaults {
    /// All of them.
    public mutating func admission(
        of offered: Int, by nic: UInt64, nowNanoseconds: UInt64
    ) -> SimulatedAdmission {
        SimulatedAdmission(count: offered)
    }

    /// As many as there is room for.
    public mutating func handOver(_ room: Int, by nic: UInt64, nowNanoseconds: UInt64) -> Int { room }

    /// None.
    public mutating func damagedByte(of length: Int, nowNanoseconds: UInt64) -> Int? { nil }
}

/// What a NIC takes of a batch.
public struct SimulatedAdmission: Hashable, Sendable {
    /// Requests from the front.
    public var count: Int
    /// Why the next one is not taken.
    public var status: WorkStatus

    public init(count: Int, status: WorkStatus = .again) {
        self.count = count
        self.status = status
    }
}

/// One packet, as fault rules see it.
public struct SimulatedPacket: Hashable, Sendable {
    /// What a packet carries.
    public enum Kind: UInt8, Sendable {
        /// Part of a write.
        case data
        /// A two-sided message.
        case message
        /// The news that a write or a message has been delivered, on its way back to the sender.
        case acknowledgement
    }

    /// What it carries.
    public var kind: Kind
    /// Virtual time.
    public var nowNanoseconds: UInt64
    /// The NIC that posted the request; for an acknowledgement, the one that will get it.
    public var source: UInt64
    /// The NIC that the request is for.
    public var target: UInt64
    /// First byte of this packet within the request.
    public var offset: Int
    /// Bytes of this packet; 0 for an acknowledgement.
    public var length: Int
    /// Bytes of the whole request.
    public var requestLength: Int
    /// The immediate of a write, or 0.
    public var immediate: UInt32
    /// What the write adds to the counter, or 0.
    public var eighths: UInt32
    /// The first eight bytes of a message, the first one lowest; 0 for others.
    public var head: UInt64 = 0
}

/// What happens to a packet.
public enum SimulatedVerdict: Hashable, Sendable {
    /// It goes through.
    case deliver
    /// It goes through, this many nanoseconds later.
    case delay(nanoseconds: UInt64)
    /// It goes through, and if it is a message it comes once more, this many nanoseconds later: as from somebody who has recorded
    /// it. The sender does not notice. Like `deliver` for what is no message.
    case duplicate(nanoseconds: UInt64)
    /// It is lost for good, and after the retry timeout the sender's request ends with this status, which is
    /// not `success`. Of a lost data packet nothing lands and the write counts nothing. When an
    /// acknowledgement is lost, the data is there and was counted, and only the sender does not know.
    case fail(WorkStatus)
}

/// A network on which nothing goes wrong.
public struct NoFaults: SimulatedFaults {
    /// Makes the rule.
    public init() {}

    /// Always `deliver`.
    public func verdict(for packet: SimulatedPacket) -> SimulatedVerdict { .deliver }
}
