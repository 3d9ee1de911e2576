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

    @Option(help: "A scenario, or all: \(Scenario.all.map(\.name).joined(separator: ", ")), weights.")
    var scenario = "all"
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
            try repeatRun(try find(String(replay[..<colon])), seed)
            return
        }
        let range = try parse(seeds)
        let isWeights = scenario == "weights"
        let scenarios = scenario == "all" ? Scenario.all : isWeights ? [] : [try find(scenario)]
        var violations = 0
        var hash: UInt64 = 0
        var total = Totals()
        for scenario in scenarios {
            let start = monotonicSeconds()
            var sum = Totals()
            for seed in range {
                if seed & 31 == 0 { showProgress("\(scenario.name) \(seed)") }
                let plan = scenario.makeCase(seed: seed)
                let outcome = try simulate(plan)
                sum.add(outcome)
                hash = hash &* 0x100_0000_01B3 ^ outcome.hash
                if !outcome.violations.isEmpty {
                    violations += 1
                    if violations <= 3 { try explain(plan, scenario, seed, &report) }
                }
            }
            let seconds = monotonicSeconds() - start
            report.add(
                [("scenario", .text(scenario.name)), ("seeds", .integer(range.count))] + sum.row
                    + [("virtual_per_real", .number(Double(sum.nanoseconds) / 1e9 / max(seconds, 1e-9)))])
            total.add(sum)
        }
        let hasWeights = isWeights || scenario == "all"
        if hasWeights { violations += try runWeights(range, &hash, &report) }
        report.finish()
        report.add([
            ("seeds", .integer(range.count)),
            ("runs", .integer(range.count * (scenarios.count + (hasWeights ? 1 : 0)))),
            ("violations", .integer(violations)), ("hash", .text(String(hash, radix: 16))),
        ])
        report.finish()
        if violations > 0 { throw ExitCode(1) }
    }

    /// Weight updates, whose members crash: a scenario of another kind, which is repeated by its seed.
    private func runWeights(
        _ range: ClosedRange<UInt64>, _ hash: inout UInt64, _ report: inout Report
    ) throws -> Int {
        let start = monotonicSeconds()
        var sum = Totals()
        var violations = 0
        for seed in range {
            if seed & 31 == 0 { showProgress("weights \(seed)") }
            let outcome = try simulateWeights(seed: seed)
            sum.add(outcome)
            hash = hash &* 0x100_0000_01B3 ^ outcome.hash
            guard let first = outcome.violations.first else { continue }
            violations += 1
            if violations <= 3 {
                report.finish()
                report.add([
                    ("violation", .text(first)),
                    ("replay", .text("te sim --scenario weights --seeds \(seed)")),
                ])
                report.finish()
            }
        }
        report.add(
            [("scenario", .text("weights")), ("seeds", .integer(range.count))] + sum.row
                + [
                    (
                        "virtual_per_real",
                        .number(Double(sum.nanoseconds) / 1e9 / max(monotonicSeconds() - start, 1e-9))
                    )
                ])
        return violations
    }

    /// Sums over runs.
    private struct Totals {
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

        mutating func add(_ other: Totals) {
            completed += other.completed
            failed += other.failed
            quiescent += other.quiescent
            unproven += other.unproven
            nanoseconds += other.nanoseconds
        }

        var row: Report.Row {
            [
                ("completed", .integer(completed)), ("failed", .integer(failed)),
                ("quiescent", .integer(quiescent)), ("unproven", .integer(unproven)),
                ("virtual_s", .number(Double(nanoseconds) / 1e9)),
            ]
        }
    }

    private func find(_ name: String) throws -> Scenario {
        guard let found = Scenario.all.first(where: { $0.name == name }) else {
            throw ValidationError(
                "no scenario '\(name)'; there are: \(Scenario.all.map(\.name).joined(separator: ", "))")
        }
        return found
    }

    private func parse(_ text: String) throws -> ClosedRange<UInt64> {
        let parts = text.split(separator: ".", omittingEmptySubsequences: true).map { UInt64($0) }
        guard let first = parts.first ?? nil, let last = parts.last ?? nil, first <= last, parts.count <= 2
        else {
            throw ValidationError("--seeds takes A or A..B, for example 1..1000")
        }
        return first...last
    }

    private func explain(_ plan: Case, _ scenario: Scenario, _ seed: UInt64, _ report: inout Report) throws {
        report.finish()
        let small = shrink ? try Simulation.shrink(plan) : plan
        let outcome = try simulate(small)
        for violation in outcome.violations {
            report.add([
                ("violation", .text(violation)), ("scenario", .text(scenario.name)),
                ("replay", .text("te sim --replay \(scenario.name):\(seed)")),
                ("processes", .text("\(small.nics)")),
                ("operations", .text(small.operations.map { "\($0)" }.joined(separator: "; "))),
                ("faults", .text(small.faults.map { "\($0)" }.joined(separator: "; "))),
            ])
        }
        report.finish()
    }

    private func repeatRun(_ scenario: Scenario, _ seed: UInt64) throws {
        let plan = scenario.makeCase(seed: seed)
        print("processes with NICs: \(plan.nics); \(plan.network)")
        for operation in plan.operations { print("  \(operation)") }
        for fault in plan.faults { print("  \(fault)") }
        let outcome = try simulate(plan)
        print("\(outcome)")
        if !outcome.violations.isEmpty {
            let small = try Simulation.shrink(plan)
            print("smaller: NICs \(small.nics)")
            for operation in small.operations { print("  \(operation)") }
            for fault in small.faults { print("  \(fault)") }
            for violation in try simulate(small).violations { print(violation) }
            throw ExitCode(1)
        }
    }
}
