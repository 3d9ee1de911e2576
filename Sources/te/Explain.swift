internal import ArgumentParser
internal import Platform
internal import SharedMemoryProvider
internal import TransferEngine

/// `te explain`.
struct Explain: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show how a request would travel, and why: NICs, work requests, immediates, time.",
        discussion: """
            By default an engine is opened on --nics, and another one on --peer-nics in the place of a peer. \
            With --assume nothing is opened: NICs are taken to be there, as FABRIC:NAME@MBIT says.
              te explain --bytes 1048576 --nics tcp:127.0.0.1@1000,tcp:127.0.0.2@1000
              te explain --assume --pages 1024 --nics efa:a@100000,efa:b@100000 --peer-nics efa:c@200000
            """)

    @Option(help: "Bytes of the write, of each page, or for each peer.")
    var bytes = 1 << 20
    @Option(help: "Write this many pages instead of one range.")
    var pages: Int?
    @Option(name: .customLong("run"), help: "Of the pages, how many in a row are neighbours on both sides.")
    var neighbours = 1
    @Option(help: "Scatter to this many peers instead of writing to one.")
    var peers: Int?
    @Option(help: "NICs of this side, in the order of the configuration: FABRIC[:NAME][@MBIT],...")
    var nics = "shm"
    @Option(name: .customLong("peer-nics"), help: "NICs of the peer, if they are others.")
    var peerNics: String?
    @Option(help: "Configuration.stripeBytes")
    var stripeBytes = 65536
    @Flag(help: "Take the NICs to be there; open nothing.")
    var assume = false
    @Flag(help: "Do it, and show what was predicted beside what was measured.")
    var analyze = false
    @Flag(help: "One JSON object per line.")
    var json = false

    func validate() throws {
        guard bytes >= 0, bytes <= 1 << 40, neighbours >= 1, stripeBytes >= 4096 else {
            throw ValidationError("--bytes is 0 to 2^40, --run at least 1, --stripe-bytes at least 4096")
        }
        if let pages, pages < 1 || pages > Limits.pages {
            throw ValidationError("--pages is 1 to \(Limits.pages)")
        }
        if let peers, peers < 1 || peers > Limits.targets {
            throw ValidationError("--peers is 1 to \(Limits.targets)")
        }
        if pages != nil, peers != nil { throw ValidationError("--pages or --peers, not both") }
        if assume, analyze { throw ValidationError("--analyze needs NICs that are there, not --assume") }
    }

    func run() throws {
        if assume {
            let explanation = Explanation(
                of: request, local: try NICDescription.list(nics).map(\.attributes),
                remote: try NICDescription.list(peerNics ?? nics).map(\.remote), stripeBytes: stripeBytes)
            show(explanation)
            if explanation.plan == nil { throw ExitCode.failure }
            return
        }
        let session = try ExplainSession(self)
        defer { session.close() }
        let explanation = try session.explain(request)
        show(explanation)
        if analyze { try session.analyze(explanation, json: json) }
    }

    /// Runs of neighbouring pages with a hole after each.
    var pageNumbers: [UInt32] { (0..<(pages ?? 0)).map { UInt32($0 + $0 / neighbours) } }

    private var request: TransferPlan.Request {
        if pages != nil {
            return .pages(byteCount: bytes, sources: pageNumbers, targets: pageNumbers, areAdjacent: true)
        }
        return peers.map { .scatter(byteCount: bytes, targets: $0) } ?? .write(byteCount: bytes)
    }

    private func show(_ explanation: Explanation) {
        guard json else {
            for line in explanation.lines { print(line) }
            return
        }
        var report = Report(json: true)
        for part in explanation.plan?.parts ?? [] {
            guard let plan = explanation.plan else { break }
            report.add([
                ("kind", .text("rail")), ("nic", .text(explanation.local[plan.rails[part.rail].local].name)),
                ("peer_nic", .integer(plan.rails[part.rail].remote)), ("requests", .integer(part.requests)),
                ("without_immediate", .integer(part.silentRequests)), ("bytes", .integer(part.byteCount)),
                ("eighths", .integer(part.eighths)),
            ])
        }
        for rejection in explanation.rejected {
            report.add([
                ("kind", .text("rejected")), ("nic", .text(rejection.nic)),
                ("reason", .text(rejection.reason)),
            ])
        }
        report.add([
            ("kind", .text("total")), ("fabric", explanation.fabric.map(Field.text) ?? .null),
            ("requests", .integer(explanation.plan?.requests ?? 0)),
            ("immediates", .integer(explanation.plan?.immediates ?? 0)),
            ("counts", .integer(explanation.plan?.counts ?? 0)),
            ("bytes", .integer(explanation.plan?.byteCount ?? 0)),
            ("predicted_us", explanation.predictedNanoseconds.map { .number($0 / 1000) } ?? .null),
        ])
    }
}

/// A NIC on the command line: `tcp:eth0@1000`.
struct NICDescription {
    var fabric: String
    var name: String
    var megabitsPerSecond: UInt32?

    static func list(_ text: String) throws -> [NICDescription] {
        try text.split(separator: ",").enumerated().map { number, entry in
            let halves = entry.split(separator: "@", maxSplits: 1).map(String.init)
            let parts = (halves.first ?? "").split(separator: ":", maxSplits: 1).map(String.init)
            let speed = halves.count > 1 ? UInt32(halves[1]) : nil
            guard let fabric = parts.first, halves.count == 1 || speed != nil else {
                throw ValidationError(
                    "'\(entry)' is not a NIC: FABRIC[:NAME][@MBIT], for example tcp:eth0@25000")
            }
            return NICDescription(
                fabric: fabric, name: parts.count > 1 ? parts[1] : "\(fabric)\(number)",
                megabitsPerSecond: speed)
        }
    }

    /// What such a NIC usually is.
    var attributes: DomainAttributes {
        let isMemory = fabric == "shm"
        return DomainAttributes(
            provider: fabric, fabric: fabric, name: name, megabitsPerSecond: megabitsPerSecond ?? 100_000,
            maximumWriteBytes: isMemory ? 1 << 40 : 1 << 30, countsMany: isMemory || fabric == "tcp")
    }

    var remote: RemoteRegion.NIC {
        RemoteRegion.NIC(
            fabric: fabric, address: [], megabitsPerSecond: megabitsPerSecond ?? 100_000, key: 0, base: 0)
    }

    /// The NIC that an engine opens.
    func configuration(isNamed: Bool) throws -> [Configuration.NIC] {
        if fabric == "shm" {
            return [.sharedMemory(SharedMemoryOptions(megabitsPerSecond: megabitsPerSecond ?? 100_000))]
        }
        let provider = fabric == "roce" || fabric == "infiniband" ? "verbs" : fabric
        let speed = megabitsPerSecond.map { "@\($0)" } ?? ""
        return try makeNICs(
            provider: provider, count: 1, nics: isNamed ? name + speed : "", callerMemory: .automatic)
    }
}
