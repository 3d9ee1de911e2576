internal import SimulatedProvider
internal import TransferCore

/// The faults of a case, as the network asks for them. Processes are known by the ids of their NICs.
struct FaultRule: SimulatedFaults {
    var faults: [Fault]
    var random: SeededGenerator
    /// Process and NIC of each id; those of processes that have crashed stay, so that late packets are judged alike.
    var owners: [UInt64: (process: Int, nic: Int)] = [:]

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
            case .pause, .crash: break
            }
        }
        return delay > 0 ? .delay(nanoseconds: delay) : .deliver
    }

    private mutating func hits(_ perMillion: Int) -> Bool {
        Int.random(in: 0..<1_000_000, using: &random) < perMillion
    }
}
