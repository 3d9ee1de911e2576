internal import ArgumentParser
internal import Glibc
internal import Platform
internal import TransferEngine
internal import WeightTransfer

/// `te weights push`: trainers and receivers as processes of their own, which push versions of a model and check them.
struct WeightsPush: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "push",
        abstract: "Pushes versions of a model from trainer processes to inference processes.",
        discussion: """
            Every receiver compares what it serves, byte by byte, with a slow conversion of its own, while a \
            thread of it reads all the time. Exit code 1 when anything is wrong.
            """)

    @Option(help: "The model; its parameters are generated without --file.")
    var model = "smollm2-135m"
    @Option(help: "A GGUF file of F32, Q8_0 and Q4_1, for example .models/SmolLM2.gguf.")
    var file: String?
    @Option(help: "Trainer ranks.")
    var trainers = "fsdp=2,tp=2"
    @Option(help: "Inference ranks.")
    var inference = "tp=2,fp8=1"
    @Option(help: "shm or tcp.")
    var transport = "shm"
    @Option(help: "How many versions.")
    var versions = 2
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        let model = try WeightLayouts.model(model)
        var options = Planner.Options()
        options.watermarkBytes = 64 << 20
        options.taskBytes = 4 << 20
        let plan = try Planner.plan(
            model, from: ParallelTrainer(parsing: trainers).layout(of: model),
            to: ParallelInference(parsing: inference).layout(of: model), options: options)
        let findings = plan.lint()
        guard findings.isEmpty else {
            for finding in findings { print(finding) }
            throw ExitCode.failure
        }
        let cluster = try WeightCluster(plan, file: file, transport: transport)
        defer { cluster.end() }
        var report = Report(json: json)
        var isRight = true
        for version in 1...max(1, versions) {
            let update = try cluster.update(to: version)
            let checks = try cluster.verify(version)
            isRight = isRight && checks.wrong.isEmpty && checks.torn == 0
            report.add([
                ("version", .integer(version)), ("bytes_sent", .integer(update.bytes)),
                ("update_ms", .number(update.seconds * 1000)),
                ("writing_ms", .number(update.phases[1] * 1000)),
                ("verifying_ms", .number(update.phases[2] * 1000)),
                ("commit_ms", .number(update.phases[3] * 1000)),
                ("reads_meanwhile", .integer(checks.reads)), ("torn_reads", .integer(checks.torn)),
                (
                    "verdict",
                    .text(checks.wrong.isEmpty ? "every byte right" : checks.wrong.joined(separator: "; "))
                ),
            ])
        }
        report.finish()
        if !isRight { throw ExitCode.failure }
    }
}

/// Processes that do a plan.
final class WeightCluster {
    private var trainers: [ChildProcess] = []
    private var receivers: [ChildProcess] = []
    private let path: String
    private var sent = 0

    init(_ plan: Plan, file: String?, transport: String, whole: Bool = false) throws {
        path = "/tmp/te-weights-\(getpid()).plan"
        try File.write(plan.encoded(), to: path)
        var arguments = ["weights-member", "--plan", path, "--transport", transport]
        if let file { arguments += ["--file", file] }
        if whole { arguments.append("--whole") }
        let first = try ChildProcess(arguments + ["--trains", "--rank", "0"])
        trainers = [first]
        let leader = try Self.expect("address", from: first)
        for rank in 1..<max(1, plan.trainers.worldSize) {
            trainers.append(
                try ChildProcess(arguments + ["--trains", "--rank", "\(rank)", "--leader", leader[1]]))
        }
        for rank in 0..<plan.inference.worldSize {
            receivers.append(try ChildProcess(arguments + ["--rank", "\(rank)", "--leader", leader[1]]))
        }
        for child in trainers.dropFirst() + receivers { _ = try Self.expect("address", from: child) }
        try first.send("complete")
        _ = try Self.expect("complete", from: first)
    }

    func end() {
        for child in trainers + receivers { child.end() }
        unlink(path)
    }

    static func expect(_ word: String, from child: ChildProcess) throws -> [String] {
        let words = try child.receive(within: 120).split(separator: " ").map(String.init)
        guard words.first == word else {
            throw TransferError(.providerFailed, "a member said '\(words.joined(separator: " "))'")
        }
        return words
    }

    /// Publishes a version and pushes it. Seconds of opening, writing, verifying and committing.
    func update(to version: Int) throws -> (seconds: Double, phases: [Double], bytes: Int) {
        for child in trainers { try child.send("publish \(version)") }
        for child in trainers { _ = try Self.expect("published", from: child) }
        try trainers[0].send("update \(version)")
        let numbers = try Self.expect("committed", from: trainers[0]).dropFirst().compactMap(Double.init)
        var total = 0
        for child in trainers {
            try child.send("sent")
            total += Int(try Self.expect("sent", from: child)[1]) ?? 0
        }
        defer { sent = total }
        return (numbers[0], Array(numbers.dropFirst()), total - sent)
    }

    /// Lets every receiver look at each of its bytes.
    func verify(_ version: Int) throws -> (wrong: [String], reads: Int, torn: Int) {
        for child in receivers { try child.send("verify \(version)") }
        var result: (wrong: [String], reads: Int, torn: Int) = ([], 0, 0)
        for child in receivers {
            let words = try child.receive(within: 120).split(separator: " ").map(String.init)
            guard words.count >= 3, words[0] == "right" || words[0] == "wrong" else {
                throw TransferError(.providerFailed, "a receiver said '\(words.joined(separator: " "))'")
            }
            if words[0] == "wrong" { result.wrong.append(words.dropFirst(3).joined(separator: " ")) }
            result.reads += Int(words[1]) ?? 0
            result.torn += Int(words[2]) ?? 0
        }
        return result
    }
}

/// `te bench weights`: 2 trainers to 2 receivers over shared memory, beside what two cores can copy.
struct BenchWeights: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "weights", abstract: "Push a model between processes, beside a copy with two cores.")

    @Option(help: "MiB of the model, BF16.")
    var mebibytes = 1024
    @Option(help: "Repetitions, each beside a measurement of the limit; the median is printed.")
    var repeats = 5
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        var report = Report(json: json)
        for isQuantised in [false, true] { try measure(isQuantised, &report) }
        report.finish()
    }

    private func measure(_ isQuantised: Bool, _ report: inout Report) throws {
        let rows = mebibytes << 20 / 16 / (2 * 4096) / 256 * 256
        let model = try ModelDescription(
            name: "bench",
            tensors: (0..<16).map {
                TensorDescription("model.layers.\($0).mlp.down_proj.weight", [rows, 4096])
            })
        var options = Planner.Options()
        options.watermarkBytes = 64 << 20
        options.taskBytes = 4 << 20
        let inference = ParallelInference(tensor: 1, replicas: 1, isQuantised: isQuantised)
        let plan = try Planner.plan(
            model, from: ParallelTrainer(fsdp: 2).layout(of: model), to: Self.halves(inference, model),
            options: options)
        let cluster = try WeightCluster(plan, file: nil, transport: "shm", whole: true)
        defer { cluster.end() }
        _ = try cluster.update(to: 1)
        _ = try cluster.update(to: 2)
        var writing: [Double] = []
        var whole: [Double] = []
        var copies: [Double] = []
        for number in 0..<repeats {
            copies.append(Self.copy(seconds: 0.5))
            let update = try cluster.update(to: number + 3)
            writing.append(Double(model.byteCount) / update.phases[1])
            whole.append(Double(model.byteCount) / update.seconds)
        }
        let checks = try cluster.verify(repeats + 2)
        report.add([
            ("test", .text(isQuantised ? "push fp8" : "push bf16")),
            ("model_bytes", .integer(model.byteCount)),
            ("writing_gb_s", .number(median(writing) / 1e9)),
            ("with_verification_gb_s", .number(median(whole) / 1e9)),
            ("two_core_memcpy_gb_s", .number(median(copies) / 1e9)),
            ("writing_over_memcpy", .number(median(zip(writing, copies).map { $0 / $1 }))),
            (
                "verdict",
                .text(checks.wrong.isEmpty ? "every byte right" : checks.wrong.joined(separator: "; "))
            ),
        ])
    }

    /// Every other matrix on each of two receivers.
    private static func halves(_ inference: ParallelInference, _ model: ModelDescription) throws
        -> InferenceLayout
    {
        let whole = try inference.layout(of: model)
        var ends = [0, 0]
        let targets = whole.targets.enumerated().map { index, target in
            var target = target
            let rank = index % 2
            let scales = ends[rank] + target.byteCount
            target.replicas = [
                Target.Replica(
                    rank: rank, offset: ends[rank], scaleOffset: target.hasBlockScales ? scales : -1)
            ]
            ends[rank] = scales + target.scaleByteCount
            return target
        }
        return InferenceLayout(worldSize: 2, regionBytes: ends, targets: targets)
    }

    /// What two cores copy together; bytes per second.
    private static func copy(seconds: Double) -> Double {
        let total = CopyTotal()
        let threads = (0..<2).compactMap { number in
            PlatformThread(name: "te-copy") {
                let bytes = 128 << 20
                let source = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
                let target = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 4096)
                defer {
                    source.deallocate()
                    target.deallocate()
                }
                memset(source, Int32(number + 1), bytes)
                memset(target, 0, bytes)
                total.add(
                    BenchLimits.copy(
                        from: source, to: target, regionBytes: bytes, size: 4 << 20, seconds: seconds))
            }
        }
        for thread in threads { thread.join() }
        return total.value
    }
}
