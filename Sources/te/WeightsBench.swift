internal import ArgumentParser
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// `te bench weights`: pushes between processes over shared memory, beside what the machine can do and beside the usual way.
struct BenchWeights: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "weights",
        abstract: "Push a model between processes, beside copies, conversions and gather-and-broadcast.",
        discussion: """
            Tests: bf16 and fp8 push from 2 trainers to 2 receivers; broadcast pushes from 4 to 4 that \
            have a quarter each, \
            and then everything to trainer 0 and from there to all 4. Needs six times the model's memory.
            """)

    @Option(help: "MiB of the model, BF16; a quarter of it for broadcast.")
    var mebibytes = 1024
    @Option(help: "Repetitions, each beside a measurement of the limit; the median is printed.")
    var repeats = 5
    @Option(help: "Which tests, of bf16, fp8 and broadcast.")
    var tests = "bf16,fp8,broadcast"
    @Option(help: "KiB of the largest task.")
    var task = 512
    @Flag(help: "One JSON object per line.")
    var json = false

    func validate() throws {
        guard (64...65536).contains(mebibytes), (1...1000).contains(repeats), (64...65536).contains(task)
        else {
            throw ValidationError("--mebibytes and --task are 64 to 65536, --repeats 1 to 1000.")
        }
    }

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        var report = Report(json: json)
        for test in tests.split(separator: ",") {
            switch test {
            case "bf16": try measure(isQuantised: false, &report)
            case "fp8": try measure(isQuantised: true, &report)
            case "broadcast": try measureBroadcast(&report)
            default: throw ValidationError("no test '\(test)'; there are bf16, fp8 and broadcast")
            }
        }
        report.finish()
    }

    // MARK: 2 to 2

    private func measure(isQuantised: Bool, _ report: inout Report) throws {
        let model = try Self.model(mebibytes: mebibytes)
        let inference = ParallelInference(isQuantised: isQuantised)
        let cluster = try cluster(
            plan(model, trainers: 2, to: Self.shared(inference.layout(of: model), among: 2)))
        defer { cluster.end() }
        var (writing, update, copying, converting): ([Double], [Double], [Double], [Double]) = (
            [], [], [], []
        )
        var phases: [[Double]] = [[], [], [], []]
        // The first two touch the memory of both slots.
        for number in 1...repeats + 2 {
            let copies = Self.copyRate(seconds: 0.3)
            let conversions = isQuantised ? Self.conversionRate(seconds: 0.3) : 0
            let result = try cluster.update(to: number)
            guard number > 2 else { continue }
            copying.append(copies)
            converting.append(conversions)
            writing.append(Double(model.byteCount) / result.phases[1])
            update.append(Double(model.byteCount) / result.seconds)
            for phase in phases.indices { phases[phase].append(result.phases[phase] * 1000) }
        }
        let wrong = try cluster.verify(repeats + 2).wrong
        // Bytes of the model for each second, as converted; copies move half of them.
        let limit = zip(copying, converting).map { isQuantised ? min($1, 2 * $0) : $0 }
        var row: Report.Row = [
            ("test", .text(isQuantised ? "fp8 2 to 2" : "bf16 2 to 2")),
            ("model_bytes", .integer(model.byteCount)),
            ("writing_gb_s", .number(median(writing) / 1e9)), ("update_gb_s", .number(median(update) / 1e9)),
            ("copy_gb_s", .number(median(copying) / 1e9)),
        ]
        if isQuantised { row.append(("convert_gb_s", .number(median(converting) / 1e9))) }
        for (phase, name) in ["opening", "writing", "verifying", "committing"].enumerated() {
            row.append(("\(name)_ms", .number(median(phases[phase]))))
        }
        row += [
            ("writing_over_limit", .number(median(zip(writing, limit).map { $0 / $1 }))),
            ("update_over_limit", .number(median(zip(update, limit).map { $0 / $1 }))),
            ("verdict", .text(wrong.isEmpty ? "every byte right" : wrong.joined(separator: "; "))),
        ]
        report.add(row)
        report.finish()
    }

    // MARK: 4 to 4

    /// The usual way over the same engine: a rank that has everything, and sends everything to everybody.
    private func measureBroadcast(_ report: inout Report) throws {
        let model = try Self.model(mebibytes: mebibytes / 4)
        let direct = try cluster(
            plan(model, trainers: 4, to: ParallelInference(tensor: 4, isFused: false).layout(of: model)))
        defer { direct.end() }
        let gather = try cluster(plan(model, trainers: 4, to: ParallelInference().layout(of: model)))
        defer { gather.end() }
        let broadcast = try cluster(
            plan(model, trainers: 1, to: ParallelInference(replicas: 4).layout(of: model)))
        defer { broadcast.end() }
        // Writing alone, and the whole update.
        var (ours, theirs): ([[Double]], [[Double]]) = ([[], []], [[], []])
        for number in 1...repeats + 2 {
            let result = try direct.update(to: number)
            let usual = (try gather.update(to: number), try broadcast.update(to: number))
            guard number > 2 else { continue }
            ours[0].append(result.phases[1])
            ours[1].append(result.seconds)
            theirs[0].append(usual.0.phases[1] + usual.1.phases[1])
            theirs[1].append(usual.0.seconds + usual.1.seconds)
        }
        let wrong = try direct.verify(repeats + 2).wrong
        report.add([
            ("test", .text("bf16 4 to 4")), ("model_bytes", .integer(model.byteCount)),
            ("writing_ms", .number(median(ours[0]) * 1000)), ("update_ms", .number(median(ours[1]) * 1000)),
            ("usual_writing_ms", .number(median(theirs[0]) * 1000)),
            ("usual_update_ms", .number(median(theirs[1]) * 1000)),
            ("writing_times_faster", .number(median(zip(theirs[0], ours[0]).map { $0 / $1 }))),
            ("update_times_faster", .number(median(zip(theirs[1], ours[1]).map { $0 / $1 }))),
            ("verdict", .text(wrong.isEmpty ? "every byte right" : wrong.joined(separator: "; "))),
        ])
        report.finish()
    }

    // MARK: Models and plans

    /// Layers of two matrices, one cut by rows and one by columns where tensors are parallel.
    private static func model(mebibytes: Int) throws -> ModelDescription {
        let layers = max(1, mebibytes / 128)
        let rows = max(256, (mebibytes << 20) / layers / 2 / (2 * 4096) / 256 * 256)
        return try ModelDescription(
            name: "bench",
            tensors: (0..<layers).flatMap {
                [
                    TensorDescription("model.layers.\($0).mlp.up_proj.weight", [rows, 4096]),
                    TensorDescription("model.layers.\($0).mlp.down_proj.weight", [4096, rows]),
                ]
            })
    }

    private func plan(_ model: ModelDescription, trainers: Int, to layout: InferenceLayout) throws -> Plan {
        var options = Planner.Options()
        options.watermarkBytes = 64 << 20
        options.taskBytes = task << 10
        return try Planner.plan(
            model, from: ParallelTrainer(fsdp: trainers).layout(of: model), to: layout, options: options)
    }

    private func cluster(_ plan: Plan) throws -> WeightCluster {
        try WeightCluster(plan, file: nil, transport: "shm", whole: true, reads: false)
    }

    /// Whole matrices, each on one of some receivers in turn.
    private static func shared(_ whole: InferenceLayout, among ranks: Int) -> InferenceLayout {
        var ends = Array(repeating: 0, count: ranks)
        let targets = whole.targets.enumerated().map { index, target in
            var target = target
            let rank = index % ranks
            let scales = ends[rank] + target.byteCount
            target.replicas = [
                Target.Replica(
                    rank: rank, offset: ends[rank], scaleOffset: target.hasBlockScales ? scales : -1)
            ]
            ends[rank] = scales + target.scaleByteCount
            return target
        }
        return InferenceLayout(worldSize: ranks, regionBytes: ends, targets: targets)
    }

    // MARK: Limits

    /// What two cores copy together; bytes per second.
    private static func copyRate(seconds: Double) -> Double {
        onTwoCores { number in
            let bytes = 128 << 20
            let source = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
            let target = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
            defer {
                source.deallocate()
                target.deallocate()
            }
            memset(source, Int32(number + 1), bytes)
            memset(target, 0, bytes)
            return BenchLimits.copy(
                from: source, to: target, regionBytes: bytes, size: 4 << 20, seconds: seconds)
        }
    }

    /// What two cores convert together, from memory to the cache; bytes of BF16 per second.
    private static func conversionRate(seconds: Double) -> Double {
        onTwoCores { number in
            let (rows, columns, blocks) = (128, 4096, 128)
            let size = rows * columns
            let source = UnsafeMutablePointer<UInt16>.allocate(capacity: size * blocks)
            let target = UnsafeMutablePointer<UInt8>.allocate(capacity: size)
            let scales = UnsafeMutablePointer<Float>.allocate(capacity: columns / 128)
            defer {
                source.deallocate()
                target.deallocate()
                scales.deallocate()
            }
            for index in 0..<size * blocks {
                source[index] = UInt16(truncatingIfNeeded: 0x3C00 + (index &* 31 &+ number) & 0x3FF)
            }
            var count = 0
            let start = monotonicSeconds()
            var elapsed = 0.0
            repeat {
                BlockQuantisation.quantise(
                    source + count % blocks * size, sourceStride: columns, rows: rows, columns: columns,
                    to: target, scales: scales)
                count += 1
                elapsed = monotonicSeconds() - start
            } while elapsed < seconds
            return Double(count * size * 2) / elapsed
        }
    }

    private static func onTwoCores(_ rate: @escaping @Sendable (Int) -> Double) -> Double {
        let total = RateTotal()
        let threads = (0..<2).compactMap { number in
            PlatformThread(name: "te-limit") { total.add(rate(number)) }
        }
        for thread in threads { thread.join() }
        return total.value
    }
}

/// A sum that several threads add to.
private final class RateTotal: Sendable {
    private let sum = Mutex(0.0)

    var value: Double { sum.withLock { $0 } }

    func add(_ value: Double) { sum.withLock { $0 += value } }
}
