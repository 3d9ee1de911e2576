import Testing
import TransferEngine

/// What the planner says is what the engine does: random requests over random NICs, compared with what the NICs are given.
@Suite struct PlanTests {
    /// What a NIC was given.
    struct Given: Equatable {
        var requests = 0
        var silent = 0
        var byteCount = 0
        var eighths = 0
    }

    /// An engine whose NICs take everything at once and note it.
    final class Bench {
        let engine: TransferEngine
        let domains: [ScriptedDomain]
        let source: MemoryRegion
        let remote: RemoteMemory
        var given: [Given]

        init(_ speeds: [UInt32], peer: [UInt32], limit: UInt64, stripeBytes: Int) throws {
            let domains = speeds.enumerated().map {
                ScriptedDomain("n\($0.offset)", megabitsPerSecond: $0.element, maximumWriteBytes: limit)
            }
            self.domains = domains
            given = speeds.map { _ in Given() }
            engine = try TransferEngine(
                Configuration(name: "plan", progress: .manual, stripeBytes: stripeBytes),
                clock: ManualClock(),
                random: SeededGenerator(seed: 1)
            ) { _ in domains }
            source = try engine.allocate(byteCount: 64 << 20)
            var descriptor = engine.descriptor(of: source)
            descriptor.engine = EngineID(rawValue: 77)
            descriptor.nics = peer.map {
                RemoteRegion.NIC(fabric: "scripted", address: [1], megabitsPerSecond: $0, key: 1, base: 0)
            }
            remote = try engine.attach(descriptor)
            for (number, domain) in domains.enumerated() {
                domain.onPost = { [unowned self] in note($0, number) }
            }
        }

        private func note(_ requests: UnsafeBufferPointer<WorkRequest>, _ nic: Int) -> PostResult {
            for request in requests {
                given[nic].requests += 1
                if request.eighths == 0 { given[nic].silent += 1 }
                given[nic].byteCount += request.length
                given[nic].eighths += Int(request.eighths)
            }
            return PostResult(accepted: requests.count, isComplete: true, status: .success)
        }

        deinit { engine.close() }
    }

    private func expected(_ plan: TransferPlan, nics: Int) -> [Given] {
        var sums = [Given](repeating: Given(), count: nics)
        for part in plan.parts {
            let nic = plan.rails[part.rail].local
            sums[nic].requests += part.requests
            sums[nic].silent += part.silentRequests
            sums[nic].byteCount += part.byteCount
            sums[nic].eighths += part.eighths
        }
        return sums
    }

    @Test(arguments: 0..<60) func planIsWhatHappens(_ seed: UInt64) throws {
        var random = SeededGenerator(seed: seed)
        let limits: [UInt64] = [1 << 30, 1 << 20, 65536, 10_000]
        let stripes = [4096, 65536, 1 << 20]
        let bench = try Bench(
            speeds(&random), peer: speeds(&random), limit: limits[pick(4, &random)],
            stripeBytes: stripes[pick(3, &random)])
        for _ in 0..<20 {
            bench.given = bench.given.map { _ in Given() }
            let request = request(&random)
            let plan = try bench.engine.plan(of: request, to: bench.remote)
            let transfer = try submit(request, bench)
            while bench.engine.status(of: transfer) == .pending { bench.engine.progress() }
            #expect(bench.engine.status(of: transfer) == .complete)
            #expect(bench.given == expected(plan, nics: bench.domains.count), "\(request)")
            #expect(plan.counts * 8 == plan.parts.reduce(0) { $0 + $1.eighths })
        }
    }

    private func submit(_ request: TransferPlan.Request, _ bench: Bench) throws -> Transfer {
        switch request {
        case .write(let byteCount):
            return try bench.engine.write(
                from: bench.source, byteCount: byteCount, to: bench.remote, immediate: 1)
        case .pages(let byteCount, let sources, let targets, let areAdjacent):
            let stride = areAdjacent ? byteCount : byteCount + 64
            return try sources.withUnsafeBufferPointer { sources in
                try targets.withUnsafeBufferPointer { targets in
                    try bench.engine.write(
                        pageBytes: byteCount, from: bench.source, pages: Pages(sources, stride: stride),
                        to: bench.remote, pages: Pages(targets, stride: stride), immediate: 1)
                }
            }
        case .scatter(let byteCount, let targets):
            return try bench.engine.scatter(
                from: bench.source,
                (0..<targets).map { _ in
                    (ScatterSlice(sourceOffset: 0, byteCount: byteCount, targetOffset: 0), bench.remote)
                }, immediate: 1)
        }
    }

    /// A request for a region that has been detached is refused.
    @Test func detachedIsRefused() throws {
        let bench = try Bench([1000], peer: [1000], limit: 1 << 30, stripeBytes: 65536)
        try bench.engine.detach(bench.remote)
        let error = #expect(throws: TransferError.self) {
            try bench.engine.plan(of: .write(byteCount: 1), to: bench.remote)
        }
        #expect(error?.code == .staleRegion)
    }

    private func pick(_ count: Int, _ random: inout SeededGenerator) -> Int {
        Int(random.next() % UInt64(count))
    }

    private func speeds(_ random: inout SeededGenerator) -> [UInt32] {
        (0..<(pick(8, &random) + 1)).map { _ in [100_000, 200_000, 400_000][pick(3, &random)] }
    }

    private func request(_ random: inout SeededGenerator) -> TransferPlan.Request {
        switch pick(3, &random) {
        case 0: return .write(byteCount: [0, 1, 65536, 1 << 20, 7_777_777, 33 << 20][pick(6, &random)])
        case 1:
            let byteCount = [0, 4096, 300_000, 2 << 20][pick(4, &random)]
            return .scatter(byteCount: byteCount, targets: pick(5, &random) + 1)
        default:
            let byteCount = [1024, 4096, 40_000][pick(3, &random)]
            var sources: [UInt32] = []
            for _ in 0..<(pick(300, &random) + 1) {
                let isNext = pick(4, &random) > 0
                let next = isNext ? (sources.last ?? 0) + 1 : UInt32(pick(700, &random))
                sources.append(min(next, 700))
            }
            return .pages(
                byteCount: byteCount, sources: sources,
                targets: pick(2, &random) == 0 ? sources : sources.reversed(),
                areAdjacent: pick(2, &random) == 0)
        }
    }
}
