internal import ArgumentParser
internal import Glibc
internal import TransferEngine
internal import WeightTransfer

/// `te weights`: plans of weight updates.
struct Weights: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Plan, check, predict and do the push of a model's weights from trainers to inference.",
        subcommands: [
            WeightsPlan.self, WeightsLint.self, WeightsPredict.self, WeightsDiff.self, WeightsShow.self,
            WeightsPush.self, WeightsServe.self, WeightsReassemble.self,
        ])
}

/// The layouts that a plan is made from.
struct WeightLayouts: ParsableArguments {
    @Option(help: "A published model, a .json description, a safetensors file or a directory of those.")
    var model = "kimi-k2"
    @Option(help: "Trainer ranks: fsdp, replicas, tp, pp, ep, node (ranks of a host).")
    var trainers = "fsdp=4,replicas=4,pp=2,ep=8"
    @Option(help: "Inference ranks: tp, ep, dp; fp8=1 quantises, unfused=1 keeps projections apart.")
    var inference = "ep=32,tp=8,dp=4,fp8=1"
    @Option(help: "direct, or full-tensor as in the paper (for predictions).")
    var policy = "direct"
    @Option(help: "Most temporary memory of a trainer rank, in MiB.")
    var watermark = 2048
    @Option(help: "Trainer ranks that are lost, separated by commas.")
    var without: String?

    func plan() throws -> Plan {
        guard let policy = Plan.Policy(rawValue: policy) else {
            throw ValidationError("--policy takes direct or full-tensor.")
        }
        guard (1...1 << 20).contains(watermark) else {
            throw ValidationError("--watermark is 1 to 1048576 MiB.")
        }
        var options = Planner.Options()
        options.policy = policy
        options.watermarkBytes = watermark << 20
        options.excluded = Set((without ?? "").split(separator: ",").compactMap { Int($0) })
        return try Planner.plan(model, from: trainers, to: inference, options: options)
    }
}

extension File {
    static func write(_ bytes: [UInt8], to path: String) throws(TransferError) {
        let file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard file >= 0 else {
            throw TransferError(.invalidArgument, "\(path) cannot be written: error \(errno)")
        }
        defer { Glibc.close(file) }
        var place = 0
        while place < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(file, $0.baseAddress.map { $0 + place }, bytes.count - place)
            }
            guard count > 0 else {
                throw TransferError(.limitReached, "\(path) cannot be written: error \(errno)")
            }
            place += count
        }
    }

    /// A plan from a file, or made anew.
    static func plan(_ path: String?, _ layouts: WeightLayouts) throws -> Plan {
        guard let path else { return try layouts.plan() }
        return try Plan(decoding: read(path))
    }
}

extension Report.Row {
    /// The members of a JSON object.
    init(_ json: JSON) {
        self = json.members.map { member in
            let value: Field =
                switch member.value {
                case .integer(let value): .integer(value)
                case .number(let value): .number(value)
                case .bool(let value): .flag(value)
                case .null: .null
                case .string(let value): .text(value)
                case .array, .object: .text(member.value.description)
                }
            return (member.name, value)
        }
    }
}

/// `te weights plan`.
struct WeightsPlan: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "plan", abstract: "Computes who sends what to whom.")

    @OptionGroup var layouts: WeightLayouts
    @Option(help: "Writes the plan to this file.")
    var output: String?
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        let start = monotonicSeconds()
        let plan = try layouts.plan()
        let seconds = monotonicSeconds() - start
        var usage = rusage()
        getrusage(RUSAGE_SELF.rawValue, &usage)
        if let output { try File.write(plan.encoded(), to: output) }
        var report = Report(json: json)
        let row =
            Report.Row(plan.summary) + [
                ("plan_seconds", .number(seconds)), ("peak_memory_bytes", .integer(usage.ru_maxrss << 10)),
            ]
        if json { report.add(row) } else { for field in row { print("\(field.name): \(field.value.human)") } }
    }
}

/// `te weights lint`.
struct WeightsLint: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lint", abstract: "Proves that a plan does what it must, or names counter-examples.",
        discussion: "Exit code 1 when there is one.")

    @Argument(help: "A plan's file; without it the plan of the layouts.")
    var plan: String?
    @OptionGroup var layouts: WeightLayouts
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        let plan = try File.plan(plan, layouts)
        let findings = plan.lint()
        var report = Report(json: json)
        for finding in findings {
            report.add([("rule", .text(finding.rule.rawValue)), ("message", .text(finding.message))])
        }
        report.finish()
        report.add([
            ("tasks", .integer(plan.tasks.count)), ("findings", .integer(findings.count)),
            ("sent_max_over_mean", .number(Plan.imbalance(plan.sentBytes))),
            (
                "verdict",
                .text(findings.isEmpty ? "every byte once, balanced, below the watermark" : "not good")
            ),
        ])
        report.finish()
        if !findings.isEmpty { throw ExitCode(1) }
    }
}

/// `te weights diff`.
struct WeightsDiff: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diff", abstract: "Says what differs between two plans.",
        discussion: "Exit code 1 when something does.")

    @Argument(help: "A plan's file.") var first: String
    @Argument(help: "Another one.") var second: String
    @Flag(help: "One JSON object per line.") var json = false

    func run() throws {
        let difference = try PlanDifference(
            from: Plan(decoding: File.read(first)), to: Plan(decoding: File.read(second)))
        var report = Report(json: json)
        report.add([
            ("notes", .list(difference.notes.map(Field.text))), ("removed", .integer(difference.removed)),
            ("added", .integer(difference.added)), ("moved", .integer(difference.moved)),
            ("sent_bytes_changed", .integer(difference.sentBytes.reduce(0) { $0 + abs($1) })),
        ])
        report.finish()
        if !difference.isEmpty { throw ExitCode(1) }
    }
}
