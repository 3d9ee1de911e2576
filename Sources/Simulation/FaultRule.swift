internal import SimulatedProvider
internal import TransferCore

/// The faults of a case, as the network asks for them. Processes are known by the ids of their NICs.
struct FaultRule: SimulatedFaults {
    let faults: [Fault]
    /// Those that are looked at for each batch and each poll.
    private let pressing: [Fault]
    /// Those that are looked at for each packet that lands.
    private let damaging: [Fault]
    var random: SeededGenerator
    /// Process and NIC of each id; those of processes that have crashed stay, so that late packets are judged alike.
    let owners: [UInt64: (process: Int, nic: Int)]

    init(faults: [Fault], random: SeededGenerator, owners: [UInt64: (process: Int, nic: Int)]) {
        self.faults = faults
        self.random = random
        self.owners = owners
        pressing = faults.filter(\.isPressing)
        damaging = faults.filter {
            guard case .damage = $0.kind else { return false }
            return true
        }
    }

    mutating func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
        let now = packet.nowNanoseconds
        guard let source = owners[packet.source], let target = owners[packet.target] else { return .deliver }
        let isAcknowledgement = packet.kind == .acknowledgement
        var delay: UInt64 = 0
        for fault in faults where fault.begin <= now && now < fault.end {
            switch fault.kind {
            case .loss(let share):
                if !isAcknowledgement, hits(share) { return .fail(.peerLost) }
            case .acknowledgementLoss(let share):
                if isAcknowledgement, hits(share) { return .fail(.peerLost) }
            case .delay(let share, let nanoseconds):
                if hits(share) { delay += nanoseconds }
            case .nicDown(let process, let nic):
                if source == (process, nic) || target == (process, nic) { return .fail(.peerLost) }
            case .nicSlow(let process, let nic, let nanoseconds):
                if source == (process, nic) || target == (process, nic) { delay += nanoseconds }
            case .partition(let from, let to):
                // An acknowledgement travels from the target to the source.
                let way =
                    isAcknowledgement ? (target.process, source.process) : (source.process, target.process)
                if way == (from, to) { return .fail(.peerLost) }
            case .duplicates(let share, let nanoseconds):
                if packet.kind == .message, mayRepeat(packet.head), hits(share) {
                    return .duplicate(nanoseconds: UInt64.random(in: 0...nanoseconds, using: &random))
                }
            case .pause, .crash, .partialPosts, .slowCompletions, .damage: break
            }
        }
        return delay > 0 ? .delay(nanoseconds: delay) : .deliver
    }

    /// Whether a receiver must stand to get a message twice: it is the engine's own, or sealed (docs/wire-format.md).
    private func mayRepeat(_ head: UInt64) -> Bool { head >> 8 & 0xFF != 0 || head >> 24 & 0xFF != 0 }

    mutating func admission(
        of offered: Int, by nic: UInt64, nowNanoseconds now: UInt64
    ) -> SimulatedAdmission {
        for case .partialPosts(let share) in kinds(at: now) where hits(share) {
            return SimulatedAdmission(
                count: Int.random(in: 0..<max(1, offered), using: &random),
                status: Bool.random(using: &random) ? .again : .targetBusy)
        }
        return SimulatedAdmission(count: offered)
    }

    mutating func handOver(_ room: Int, by nic: UInt64, nowNanoseconds now: UInt64) -> Int {
        for case .slowCompletions(let share) in kinds(at: now) where hits(share) {
            return Int.random(in: 0...1, using: &random)
        }
        return room
    }

    mutating func damagedByte(of length: Int, nowNanoseconds now: UInt64) -> Int? {
        for case .damage(let share) in damaging.filter({ $0.begin <= now && now < $0.end }).map(\.kind)
        where hits(share) {
            return Int.random(in: 0..<length, using: &random)
        }
        return nil
    }

    private func kinds(at now: UInt64) -> [Fault.Kind] {
        pressing.isEmpty ? [] : pressing.filter { $0.begin <= now && now < $0.end }.map(\.kind)
    }

    private mutating func hits(_ perMillion: Int) -> Bool {
        Int.random(in: 0..<1_000_000, using: &random) < perMillion
    }
}
