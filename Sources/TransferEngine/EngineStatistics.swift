internal import Synchronization
public import TransferCore

/// What an engine has done since it was opened. Numbers only rise, but those that say "now".
public struct EngineStatistics: Hashable, Sendable {
    /// Of one NIC.
    public struct NIC: Hashable, Sendable {
        /// Its name.
        public var name: String
        /// What it speaks.
        public var fabric: String
        /// Its speed in Mbit/s.
        public var megabitsPerSecond: UInt32
        /// Work requests that it took.
        public var requests: UInt64
        /// Their bytes.
        public var bytes: UInt64
        /// Of the requests, those that have not ended now.
        public var inFlight: UInt64
        /// Requests that failed.
        public var failed: UInt64
        /// How often it took no more: the engine tries again.
        public var pushedBack: UInt64
        /// Requests that it took over from NICs that failed.
        public var takenOver: UInt64
        /// How often its connection to a peer was given up.
        public var linkFailures: UInt64
    }

    /// Of one kind of operation.
    public struct Operation: Hashable, Sendable {
        /// `write`, `pages`, `scatter`, `send`, `wait` (for a counter) or `barrier`.
        public var name: String
        /// Operations that have begun.
        public var begun: UInt64
        /// Of those, the ones that have not ended now.
        public var inFlight: UInt64
        /// Those that ended with an error.
        public var failed: UInt64
        /// Those of the failed whose deadline passed.
        public var stalled: UInt64
        /// Bytes that were to be moved.
        public var bytes: UInt64
        /// From the submission until the NICs had taken all of it. Without short writes that were complete when they were
        /// submitted, as in `total`; `wait` has none.
        public var posting = Latency()
        /// From the submission until the end, also of those that failed.
        public var total = Latency()
    }

    /// How long operations took, as precisely as the flight recorder knows. Empty without a recorder.
    public struct Latency: Hashable, Sendable {
        /// Powers of two in nanoseconds, from 1.024 us to 17.2 s.
        public static let bounds: [UInt64] = (0..<25).map { 1024 << $0 }
        /// How many took at most the bound at the same place, and more than the one before; at last those above all bounds.
        public var counts = [UInt64](repeating: 0, count: bounds.count + 1)
        /// The sum, in nanoseconds.
        public var nanoseconds: UInt64 = 0

        /// The place of a duration in `counts`.
        @inline(__always) static func place(of nanoseconds: UInt64) -> Int {
            nanoseconds <= 1024 ? 0 : min(25, 64 - ((nanoseconds - 1) >> 10).leadingZeroBitCount)
        }
    }

    /// What went to one peer.
    public struct Peer: Hashable, Sendable {
        /// The peer's identity; nil for those beyond `Limits.countedPeers`, together.
        public var engine: EngineID?
        /// The name it gave itself; empty when it has not said.
        public var name: String
        /// Operations that had it as a target.
        public var operations: UInt64
        /// Their bytes.
        public var bytes: UInt64
        /// Whether it counts as lost now.
        public var isLost: Bool
    }

    /// The engine's identity.
    public var engine: EngineID
    /// The engine's name.
    public var name: String
    /// In the order of the configuration.
    public var nics: [NIC]
    /// All kinds.
    public var operations: [Operation]
    /// Peers that are attached, in the order of their identities.
    public var peers: [Peer]
}

extension TransferEngine {
    /// What the engine has done so far.
    ///
    /// May be called from any thread, also while the engine's worker hangs: nothing is waited for. Numbers are read one after
    /// the other, so those of one moment may differ by what happens meanwhile.
    /// - Complexity: O(peers).
    public func statistics() -> EngineStatistics {
        EngineStatistics(
            engine: id, name: configuration.name, nics: group.attributes.indices.map(statistics(ofNIC:)),
            operations: ["write", "pages", "scatter", "send", "wait", "barrier"].enumerated().map {
                statistics(ofKind: $0, $1)
            },
            peers: statisticsOfPeers())
    }

    private func statistics(ofNIC number: Int) -> EngineStatistics.NIC {
        let attributes = group.attributes[number]
        func value(_ counter: borrowing Atomic<UInt64>) -> UInt64 { counter.load(ordering: .relaxed) }
        // Ends are read before beginnings, so that what is in flight is not negative.
        let completed = value(group.counters.nics[number].completed)
        let requests = value(group.counters.nics[number].requests)
        let atOnce = value(group.counters.nics[number].writesAtOnce)
        return EngineStatistics.NIC(
            name: attributes.name, fabric: attributes.fabric, megabitsPerSecond: attributes.megabitsPerSecond,
            requests: requests &+ atOnce,
            bytes: value(group.counters.nics[number].bytes) &+ value(group.counters.nics[number].bytesAtOnce),
            inFlight: requests - min(requests, completed), failed: value(group.counters.nics[number].failed),
            pushedBack: value(group.counters.nics[number].pushedBack),
            takenOver: value(group.counters.nics[number].takenOver),
            linkFailures: value(group.counters.nics[number].linkFailures))
    }

    private func statistics(ofKind kind: Int, _ name: String) -> EngineStatistics.Operation {
        func value(_ counter: borrowing Atomic<UInt64>) -> UInt64 { counter.load(ordering: .relaxed) }
        let ended = value(group.counters.operations[kind].ended)
        var begun = value(group.counters.operations[kind].begun)
        let inFlight = begun - min(begun, ended)
        var bytes = value(group.counters.operations[kind].bytes)
        if kind == Int(TransferSlot.Kind.write.rawValue) {
            for nic in 0..<group.domains.count {
                begun &+= value(group.counters.nics[nic].writesAtOnce)
                bytes &+= value(group.counters.nics[nic].bytesAtOnce)
            }
        }
        return EngineStatistics.Operation(
            name: name, begun: begun, inFlight: inFlight,
            failed: value(group.counters.operations[kind].failed),
            stalled: value(group.counters.operations[kind].stalled), bytes: bytes,
            posting: latency(group.counters.operations[kind].posting),
            total: latency(group.counters.operations[kind].total))
    }

    private func latency(_ counter: borrowing Counters.Latency) -> EngineStatistics.Latency {
        var result = EngineStatistics.Latency()
        for place in result.counts.indices {
            result.counts[place] = counter.counts[place].load(ordering: .relaxed)
        }
        result.nanoseconds = counter.nanoseconds.load(ordering: .relaxed)
        return result
    }

    private func statisticsOfPeers() -> [EngineStatistics.Peer] {
        let known = group.links.directory.withLock { $0 }.sorted { $0.key.rawValue < $1.key.rawValue }
        var peers = known.filter { $0.value.place != Links.others }.map { entry in
            statistics(ofPeer: entry.value.place, entry.key, entry.value.name)
        }
        let others = statistics(ofPeer: Links.others, nil, "")
        if others.operations > 0 { peers.append(others) }
        return peers
    }

    private func statistics(ofPeer place: UInt32, _ engine: EngineID?, _ name: String)
        -> EngineStatistics.Peer
    {
        EngineStatistics.Peer(
            engine: engine, name: name,
            operations: group.links.totals[place].operations.load(ordering: .relaxed),
            bytes: group.links.totals[place].bytes.load(ordering: .relaxed),
            isLost: group.links.totals[place].isLost.load(ordering: .relaxed))
    }
}
