internal import ArgumentParser
internal import CPlatform
internal import Platform
internal import TransferEngine

/// `te bench trace`: what the flight recorder costs.
struct BenchTrace: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "trace",
        abstract:
            "What the flight recorder costs: transfers over a NIC that does nothing, with and without it.")

    @Option(help: "transfers in each round") var transfers = 200_000
    @Option(help: "rounds of each kind, one after the other; the fastest counts") var rounds = 15
    @Flag(help: "one JSON object per line") var json = false

    func run() throws {
        let without = try Side(traceEvents: 0)
        let with = try Side(traceEvents: 8192)
        defer {
            without.engine.close()
            with.engine.close()
        }
        var plain = Double.infinity
        var traced = Double.infinity
        for _ in 0..<rounds {
            plain = min(plain, try without.nanoseconds(transfers))
            traced = min(traced, try with.nanoseconds(transfers))
        }
        let before = with.engine.trace().next
        _ = try with.nanoseconds(64)
        let events = Double(with.engine.trace().next - before) / 64
        var report = Report(json: json)
        report.add([
            ("test", .text("trace")), ("ns_without", .number(plain)), ("ns_with", .number(traced)),
            ("events", .number(events)), ("ns_event", .number((traced - plain) / events)),
        ])
        report.finish()
    }

    /// An engine over a NIC that takes everything and completes it at the next poll.
    private struct Side {
        let engine: TransferEngine
        let source: MemoryRegion
        let remote: RemoteMemory

        init(traceEvents: Int) throws {
            engine = try TransferEngine(
                Configuration(name: "trace", progress: .manual, traceEvents: traceEvents),
                clock: SystemClock(), random: SystemRandomNumberGenerator()
            ) { _ in [IdleDomain()] }
            source = try engine.allocate(byteCount: 4096)
            remote = try engine.attach(engine.descriptor(of: source))
        }

        /// For each of `count` transfers, 16 in flight.
        func nanoseconds(_ count: Int) throws -> Double {
            let start = te_monotonic_nanoseconds()
            for _ in 0..<count / 16 {
                for _ in 0..<16 { try engine.write(from: source, byteCount: 64, to: remote, immediate: 1) }
                engine.progress()
            }
            return Double(te_monotonic_nanoseconds() - start) / Double(count / 16 * 16)
        }
    }

    private final class IdleDomain: FabricDomain {
        private var pending: [UInt64] = []

        let attributes = DomainAttributes(
            provider: "idle", fabric: "idle", name: "idle", megabitsPerSecond: 1000,
            maximumWriteBytes: 1 << 30, countsMany: false)
        let address: [UInt8] = [1]
        let wakeDescriptor: Int32 = -1

        init() { pending.reserveCapacity(Limits.transfers) }

        func prepareToSleep() -> Bool { pending.isEmpty }
        func close() {}
        func register(_ region: LocalRegion) -> DomainKey { DomainKey(local: 1, remote: 1, base: 0) }
        func deregister(_ region: LocalRegion, key: DomainKey) {}
        func importRegion(_ remote: RemoteRegion, nic: Int) -> ImportedKey {
            ImportedKey(remote: remote, nic: nic, peer: 0, maximumWriteBytes: 1 << 30)
        }
        func releaseImport(_ key: ImportedKey) {}

        func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
            for request in requests { pending.append(request.context) }
            return PostResult(accepted: requests.count, isComplete: false, status: .success)
        }
        func send(_ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64)
            -> PostResult
        {
            PostResult(accepted: 1, isComplete: true, status: .success)
        }
        func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
            let count = min(pending.count, completions.count)
            for index in 0..<count { completions[index] = Completion(context: pending[index], count: 1) }
            pending.removeFirst(count)
            return count
        }
    }
}
