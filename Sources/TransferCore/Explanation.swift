/// Why a request travels as it does: the fabric and NICs that are chosen, those that are not and why, the work requests, and how
/// long it should take. A pure function, by the engine's own rules.
public struct Explanation: Hashable, Sendable {
    /// A NIC that carries nothing of it.
    public struct Rejection: Hashable, Sendable {
        /// The NIC's name.
        public var nic: String
        /// Why.
        public var reason: String
    }

    /// What was asked for.
    public var request: TransferPlan.Request
    /// Our NICs.
    public var local: [DomainAttributes]
    /// The peer's.
    public var remote: [RemoteRegion.NIC]
    /// What both speak; nil when the peer cannot be reached.
    public var fabric: String?
    /// Our NICs that carry nothing.
    public var rejected: [Rejection]
    /// What becomes of the request; nil when the peer cannot be reached.
    public var plan: TransferPlan?
    /// `Configuration.stripeBytes`.
    public var stripeBytes: Int

    /// - Parameters:
    ///   - request: What is asked for; it carries an immediate.
    ///   - local: Our NICs, in the order of the configuration.
    ///   - remote: The NICs of the peer's region.
    ///   - stripeBytes: `Configuration.stripeBytes`.
    ///   - sequence: The number of the transfer; small ones take turns by it.
    public init(
        of request: TransferPlan.Request, local: [DomainAttributes], remote: [RemoteRegion.NIC],
        stripeBytes: Int, sequence: UInt32 = 1
    ) {
        let route = Route.candidates(local: local, remote: remote).first
        let rails = route?.rails(local: local, remote: remote) ?? []
        let plan = route.map { _ in
            TransferPlan(
                of: request, rails: rails, domains: local,
                maximumWriteBytes: rails.map { local[$0.local].maximumWriteBytes }, stripeBytes: stripeBytes,
                sequence: sequence)
        }
        self.init(of: request, local: local, remote: remote, stripeBytes: stripeBytes, plan: plan)
    }

    /// With the plan of a live engine.
    public init(
        of request: TransferPlan.Request, local: [DomainAttributes], remote: [RemoteRegion.NIC],
        stripeBytes: Int, plan: TransferPlan?
    ) {
        self.request = request
        self.local = local
        self.remote = remote
        self.plan = plan
        self.stripeBytes = stripeBytes
        fabric = plan?.rails.first.map { local[$0.local].fabric }
        rejected = []
        for number in local.indices {
            if let reason = reason(against: number) {
                rejected.append(Rejection(nic: local[number].name, reason: reason))
            }
        }
    }

    /// Why one of our NICs carries nothing; nil when it does.
    private func reason(against number: Int) -> String? {
        let own = local[number].fabric
        guard let plan, let fabric else {
            let theirs = Set(remote.map(\.fabric)).sorted().joined(separator: ", ")
            return "it speaks \(own), the peer speaks \(theirs.isEmpty ? "nothing" : theirs)"
        }
        if own != fabric {
            let isShared = remote.contains { $0.fabric == own }
            return isShared
                ? "\(own) comes after \(fabric) in the configuration"
                : "the peer has no NIC that speaks \(own)"
        }
        if plan.parts.contains(where: { plan.rails[$0.rail].local == number }) { return nil }
        if case .pages(_, let sources, _, _) = request, sources.count >= local.count {
            return "its share is too small"
        }
        return "it is another one's turn: less than 2 x \(stripeBytes) bytes use one NIC"
    }

    /// How long it should take, in nanoseconds, when nothing else goes on; nil when the peer cannot be reached.
    public var predictedNanoseconds: Double? {
        guard let plan, let fabric else { return nil }
        return plan.nanoseconds(local: local, remote: remote, cost: .usual(of: fabric))
    }

    // MARK: In words

    /// For people.
    public var lines: [String] {
        var lines = [request.words]
        guard let plan, let fabric else {
            lines.append("cannot be sent: no NIC of this side speaks what one of the peer's does")
            return lines + rejected.map { "  \($0.nic): \($0.reason)" }
        }
        let used = Set(plan.parts.map { plan.rails[$0.rail].local }).count
        lines.append("over \(fabric), \(used) of \(local.count) NICs, \(plan.parts.count) pairs of NICs")
        for part in plan.parts { lines.append("  " + words(part, plan)) }
        lines += rejected.map { "  not \($0.nic): \($0.reason)" }
        lines.append(
            "\(plan.requests) work requests, \(plan.immediates) immediates, counted \(plan.counts)"
                + " \(plan.counts == 1 ? "time" : "times")")
        if plan.hasTwoStages {
            lines.append(
                "in two stages: what carries no immediate has to be there first, because one write takes at most "
                    + "\(Self.words(bytes: Int(clamping: plan.rails.map { local[$0.local].maximumWriteBytes }.min() ?? 0)))"
                    + " and eight immediates make one count")
        }
        if let time = predictedNanoseconds {
            let rate = time > 0 ? Double(plan.byteCount) / time : 0
            lines.append(
                "about \(Self.words(nanoseconds: time)), \(Self.rounded(rate)) GB/s, when nothing else goes on"
            )
        }
        return lines
    }

    private func words(_ part: TransferPlan.Part, _ plan: TransferPlan) -> String {
        let rail = plan.rails[part.rail]
        let start = part.rail == 0 ? 0 : plan.rails[part.rail - 1].end
        let share = Double(rail.end - start) * 100 / Double(Rail.scale)
        let silent = part.silentRequests > 0 ? ", \(part.silentRequests) without immediate" : ""
        return
            "\(local[rail.local].name) to NIC \(rail.remote): \(part.requests) requests\(silent), "
            + "\(Self.words(bytes: part.byteCount)), \(part.eighths)/8 counts; its share is \(Self.rounded(share)) %"
    }

    /// `1 MiB`, `300 B`.
    static func words(bytes: Int) -> String {
        let units = ["B", "KiB", "MiB", "GiB", "TiB"]
        var value = Double(bytes)
        var unit = 0
        while value >= 1024, unit + 1 < units.count {
            value /= 1024
            unit += 1
        }
        return "\(rounded(value)) \(units[unit])"
    }

    private static func words(nanoseconds: Double) -> String {
        if nanoseconds < 1000 { return "\(rounded(nanoseconds)) ns" }
        if nanoseconds < 1e6 { return "\(rounded(nanoseconds / 1000)) us" }
        return nanoseconds < 1e9 ? "\(rounded(nanoseconds / 1e6)) ms" : "\(rounded(nanoseconds / 1e9)) s"
    }

    /// With at most one decimal.
    private static func rounded(_ value: Double) -> String {
        let tenths = Int((value * 10).rounded())
        return tenths % 10 == 0 ? "\(tenths / 10)" : "\(tenths / 10).\(tenths % 10)"
    }
}

extension TransferPlan.Request {
    /// For people.
    var words: String {
        switch self {
        case .write(let byteCount): "write of \(Explanation.words(bytes: byteCount))"
        case .pages(let byteCount, let sources, _, let areAdjacent):
            "\(sources.count) pages of \(Explanation.words(bytes: byteCount))"
                + (areAdjacent ? ", side by side" : ", apart")
        case .scatter(let byteCount, let targets):
            "scatter of \(Explanation.words(bytes: byteCount)) to each of \(targets) peers"
        }
    }
}
