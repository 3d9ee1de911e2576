internal import ArgumentParser
internal import Platform
internal import Simulation

/// Deterministic simulation: the real engine in virtual time, with faults, and the checks over it.
struct Sim: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Runs the engine under a seeded simulator that breaks NICs, packets and processes.",
        discussion: """
            Every seed is one run, the same each time. A run that breaks a promise is made smaller and \
            printed with the command that repeats it. Exit code 1 when there was one.
            """)

    @Option(
        help: """
            A scenario, or all: \(Scenario.all.map(\.name).joined(separator: ", ")), kv, weights, moe, moe-nodes. \
            Or moe-latency: what dispatch and combine would take on NICs that are not here.
            """)
    var scenario = "all"
    @Option(help: "For moe-latency: cx7 or efa.")
    var nic = "cx7"
    @Option(help: "For moe-latency: ranks, A or A..B, doubling.")
    var ep = "8..64"
    @Option(help: "Seeds, A or A..B.")
    var seeds = "1..100"
    @Option(help: "Repeats one run, as SCENARIO:SEED.")
    var replay: String?
    @Flag(inversion: .prefixedNo, help: "Makes cases that break a promise smaller.")
    var shrink = true
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        var report = Report(json: json)
        if let replay {
            guard let colon = replay.lastIndex(of: ":"),
                let seed = UInt64(replay[replay.index(after: colon)...])
            else {
                throw ValidationError("--replay takes SCENARIO:SEED, for example storm:7")
            }
            return try find(String(replay[..<colon])).replay(seed)
        }
        if scenario == "moe-latency" { return try showMoELatency(parse(ep), &report) }
        let subjects = scenario == "all" ? subjects : [try find(scenario)]
        let range = try parse(seeds)
        var violations = 0
        var hash: UInt64 = 0
        for subject in subjects {
            let start = monotonicSeconds()
            var sum = Totals()
            for seed in range {
                if seed & 31 == 0 { showProgress("\(subject.name) \(seed)") }
                let outcome = try subject.simulate(seed)
                sum.add(outcome)
                hash = hash &* 0x100_0000_01B3 ^ outcome.hash
                guard !outcome.violations.isEmpty else { continue }
                violations += 1
                if violations <= 3 { try explain(subject, seed, &report) }
            }
            let rate = Double(sum.nanoseconds) / 1e9 / max(monotonicSeconds() - start, 1e-9)
            var row: Report.Row = [("scenario", .text(subject.name)), ("seeds", .integer(range.count))]
            row += sum.row
            row.append(("virtual_per_real", .number(rate)))
            report.add(row)
        }
        report.finish()
        report.add([
            ("seeds", .integer(range.count)), ("runs", .integer(range.count * subjects.count)),
            ("violations", .integer(violations)), ("hash", .text(String(hash, radix: 16))),
        ])
        report.finish()
        if violations > 0 { throw ExitCode(1) }
    }

    // MARK: What is simulated

    /// A scenario of the engine, or one of a system that stands on it.
    struct Subject {
        var name: String
        var simulate: (UInt64) throws -> Outcome
        /// The violations of the smallest case that still has them, and what there is in it.
        var explain: (UInt64) throws -> (violations: [String], details: Report.Row)
        /// Runs one seed and prints what happens.
        var replay: (UInt64) throws -> Void
    }

    private var subjects: [Subject] {
        Scenario.all.map { scenario in
            Subject(
                name: scenario.name, simulate: { try Simulation.simulate(scenario.makeCase(seed: $0)) },
                explain: { try explain(scenario.makeCase(seed: $0)) }, replay: { try repeatRun(scenario, $0) }
            )
        } + [
            Subject(
                name: "kv", simulate: { try Simulation.simulate(KVCase.draw(seed: $0)) }, explain: explainKV,
                replay: repeatKV),
            plain("weights") { try simulateWeights(seed: $0) },
            plain("moe") { try MoEScenario.run(seed: $0) },
            plain("moe-nodes") { try MoEScenario.run(seed: $0, overNodes: true) },
        ]
    }

    /// A subject whose cases are not made smaller.
    private func plain(_ name: String, _ simulate: @escaping (UInt64) throws -> Outcome) -> Subject {
        Subject(
            name: name, simulate: simulate, explain: { (try simulate($0).violations, []) },
            replay: { seed in
                let outcome = try simulate(seed)
                print("\(outcome)")
                for violation in outcome.violations { print(violation) }
                if !outcome.violations.isEmpty { throw ExitCode(1) }
            })
    }

    private func find(_ name: String) throws -> Subject {
        guard let found = subjects.first(where: { $0.name == name }) else {
            throw ValidationError(
                "no scenario '\(name)'; there are: \(subjects.map(\.name).joined(separator: ", "))")
        }
        return found
    }

    private func explain(_ subject: Subject, _ seed: UInt64, _ report: inout Report) throws {
        report.finish()
        let (violations, details) = try subject.explain(seed)
        for violation in violations {
            var row: Report.Row = [
                ("violation", .text(violation)), ("scenario", .text(subject.name)),
                ("replay", .text("te sim --replay \(subject.name):\(seed)")),
            ]
            row += details
            report.add(row)
        }
        report.finish()
    }

    private func explain(_ plan: Case) throws -> (violations: [String], details: Report.Row) {
        let small = shrink ? try Simulation.shrink(plan) : plan
        return (
            try Simulation.simulate(small).violations,
            [
                ("processes", .text("\(small.nics)")),
                ("operations", .text(small.operations.map { "\($0)" }.joined(separator: "; "))),
                ("faults", .text(small.faults.map { "\($0)" }.joined(separator: "; "))),
            ]
        )
    }

    /// Sums over runs.
    struct Totals {
        var completed = 0
        var failed = 0
        var quiescent = 0
        var unproven = 0
        var nanoseconds: UInt64 = 0

        mutating func add(_ outcome: Outcome) {
            completed += outcome.completed
            failed += outcome.failed
            quiescent += outcome.quiescent
            unproven += outcome.unproven
            nanoseconds += outcome.nanoseconds
        }

        var row: Report.Row {
            [
                ("completed", .integer(completed)), ("failed", .integer(failed)),
                ("quiescent", .integer(quiescent)), ("unproven", .integer(unproven)),
                ("virtual_s", .number(Double(nanoseconds) / 1e9)),
            ]
        }
    }

    private func parse(_ text: String) throws -> ClosedRange<UInt64> {
        let parts = text.split(separator: ".", omittingEmptySubsequences: true).map { UInt64($0) }
        guard let first = parts.first ?? nil, let last = parts.last ?? nil, first <= last, parts.count <= 2
        else {
            throw ValidationError("--seeds takes A or A..B, for example 1..1000")
        }
        return first...last
    }

    private func repeatRun(_ scenario: Scenario, _ seed: UInt64) throws {
        let plan = scenario.makeCase(seed: seed)
        print("processes with NICs: \(plan.nics); \(plan.network)")
        for operation in plan.operations { print("  \(operation)") }
        for fault in plan.faults { print("  \(fault)") }
        let outcome = try Simulation.simulate(plan)
        print("\(outcome)")
        if !outcome.violations.isEmpty {
            let small = try Simulation.shrink(plan)
            print("smaller: NICs \(small.nics)")
            for operation in small.operations { print("  \(operation)") }
            for fault in small.faults { print("  \(fault)") }
            for violation in try Simulation.simulate(small).violations { print(violation) }
            throw ExitCode(1)
        }
    }
}
