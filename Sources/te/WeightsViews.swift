internal import ArgumentParser
internal import TransferEngine
internal import WeightTransfer

/// Pictures of a prediction.
struct WeightGantt: ParsableArguments {
    @Option(help: "Writes what some ranks do when, for the Perfetto viewer.")
    var trace: String?
    @Option(help: "Draws what some ranks do when.")
    var svg: String?

    /// Eight trainers from the first to the last, or one.
    func ranks(of plan: Plan, only rank: Int? = nil) -> Set<Int> {
        if trace == nil, svg == nil { return [] }
        if let rank { return [rank] }
        let count = min(8, plan.trainers.worldSize)
        return Set((0..<count).map { $0 * plan.trainers.worldSize / count })
    }

    func write(_ prediction: Prediction, of plan: Plan) throws(TransferError) {
        if let trace { try File.write(Array(prediction.perfetto.description.utf8), to: trace) }
        guard let svg else { return }
        let title =
            "\(plan.model.name), \(plan.trainers.worldSize) to \(plan.inference.worldSize), \(plan.policy.rawValue)"
        try File.write(Array(prediction.svg(title: title).utf8), to: svg)
    }
}

/// `te weights predict`.
struct WeightsPredict: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "predict",
        abstract: "Predicts how long a plan takes, and what each rank does meanwhile.",
        discussion: "By a cost model, without any network: docs/weights.md says where its numbers come from.")

    @Argument(help: "A plan's file; without it the plan of the layouts.")
    var plan: String?
    @OptionGroup var layouts: WeightLayouts
    @OptionGroup var gantt: WeightGantt
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        let plan = try File.plan(plan, layouts)
        let ranks = plan.trainers.worldSize
        let prediction = plan.predict(tracing: gantt.ranks(of: plan))
        var row: Report.Row = [
            ("model", .text(plan.model.name)), ("policy", .text(plan.policy.rawValue)),
            ("trainers", .integer(ranks)), ("receivers", .integer(plan.inference.worldSize)),
            ("total_ms", .number(prediction.seconds * 1000)),
        ]
        for stage in Prediction.Stage.allCases {
            row.append(("\(stage.rawValue)_ms", .number((prediction.stages[stage] ?? 0) * 1000)))
        }
        for stage in [Prediction.Stage.load, .gather, .fuse, .quantise, .submit] {
            row.append(("\(stage.rawValue)_calls", .number(prediction.calls[stage] ?? 0)))
        }
        row += [
            ("receiver_nic_ms", .number((prediction.receiverSeconds.max() ?? 0) * 1000)),
            ("sender_nic_ms", .number((prediction.senderSeconds.max() ?? 0) * 1000)),
        ]
        var report = Report(json: json)
        if json { report.add(row) } else { for field in row { print("\(field.name): \(field.value.human)") } }
        try gantt.write(prediction, of: plan)
    }
}

/// `te weights show`.
struct WeightsShow: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "show",
        abstract:
            "Shows a plan's tasks as JSON, one a line, after a line with its figures; or draws who does what when."
    )

    @Argument(help: "A plan's file; without it the plan of the layouts.")
    var plan: String?
    @OptionGroup var layouts: WeightLayouts
    @Option(help: "Only this trainer's tasks, in its order.")
    var rank: Int?
    @Option(help: "Only tasks whose target's name contains this.")
    var target: String?
    @Option(help: "At most so many tasks.")
    var limit = 20
    @OptionGroup var gantt: WeightGantt

    func run() throws {
        let plan = try File.plan(plan, layouts)
        print(plan.summary.description)
        if let rank, !plan.sequences.indices.contains(rank) {
            throw ValidationError("--rank is 0 to \(plan.sequences.count - 1).")
        }
        try gantt.write(plan.predict(tracing: gantt.ranks(of: plan, only: rank)), of: plan)
        let order = rank.map { rank in
            plan.sequences[rank].compactMap { step in
                if case .task(let index) = step { Int(index) } else { nil }
            }
        }
        var left = limit
        for index in order ?? Array(plan.tasks.indices) where left > 0 {
            if let target, !plan.target(of: plan.tasks[index]).name.contains(target) { continue }
            print(plan.json(of: index).description)
            left -= 1
        }
    }
}
