internal import ArgumentParser
internal import Glibc
internal import Platform
internal import TransferEngine
internal import WeightTransfer

/// `te weights push`: trainers and receivers as processes of their own, which push versions of a model and check them; or
/// one trainer of those that `te weights serve` waits for.
struct WeightsPush: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "push",
        abstract: "Pushes versions of a model from trainer processes to inference processes.",
        discussion: """
            Starts all processes here. Every receiver compares what it serves, byte by byte, with a \
            slow conversion of \
            its own, while a thread of it reads all the time. Exit code 1 when anything is wrong.

            With --plan, --rank and --leader it is one trainer instead; `te weights serve` is one \
            receiver, and they may \
            be on different hosts. Trainer 0 leads: it writes its address to the file that --leader \
            names, which \
            the others read.
            """)

    @Option(help: "The model; its parameters are generated without --file.")
    var model = "smollm2-135m"
    @Option(help: "A GGUF file of F32, Q8_0 and Q4_1, a safetensors file, or a directory of those.")
    var file: String?
    @Option(help: "Trainer ranks.")
    var trainers = "fsdp=2,tp=2"
    @Option(help: "Inference ranks.")
    var inference = "tp=2,fp8=1"
    @Option(help: "shm or tcp.")
    var transport = "shm"
    @Option(help: "How many versions.")
    var versions = 2
    @Option(help: "Receivers write each version that they serve to DIRECTORY/VERSION/rank-N.safetensors.")
    var save: String?
    @OptionGroup var member: WeightMemberOptions
    @Flag(help: "One JSON object per line.")
    var json = false

    func validate() throws {
        guard (member.plan == nil) == (member.rank == nil), (member.plan == nil) == (member.leader == nil)
        else {
            throw ValidationError("--plan, --rank and --leader belong together.")
        }
        guard (1...1000).contains(versions) else { throw ValidationError("--versions is 1 to 1000.") }
    }

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        if let rank = member.rank {
            let process = try member.process(rank, trains: true, transport: transport, file: file)
            defer { process.close() }
            try process.publish(member.version)
            return try member.run(process, json: json)
        }
        var options = Planner.Options()
        options.watermarkBytes = 64 << 20
        options.taskBytes = 4 << 20
        // The shapes of the file, unless they are known.
        let model = try ModelDescription(named: model == "file" ? file ?? model : model)
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
        for version in 1...versions {
            isRight = try push(version, cluster, &report) && isRight
        }
        report.finish()
        if !isRight { throw ExitCode.failure }
    }

    private func push(_ version: Int, _ cluster: WeightCluster, _ report: inout Report) throws -> Bool {
        let update = try cluster.update(to: version)
        let checks = try cluster.verify(version)
        if let save { try cluster.save(to: WeightFiles.directory(save, version)) }
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
        return checks.wrong.isEmpty && checks.torn == 0
    }
}
