internal import ArgumentParser
internal import Simulation

/// Prefillers and decoders under the simulator.
extension Sim {
    func runKV(
        _ range: ClosedRange<UInt64>, _ hash: inout UInt64, _ violations: inout Int, _ report: inout Report
    ) throws {
        let start = monotonicSeconds()
        var sum = Totals()
        for seed in range {
            if seed & 31 == 0 { showProgress("kv \(seed)") }
            let plan = KVCase.draw(seed: seed)
            let outcome = try simulate(plan)
            sum.add(outcome)
            hash = hash &* 0x100_0000_01B3 ^ outcome.hash
            if !outcome.violations.isEmpty {
                violations += 1
                if violations <= 3 { try explainKV(plan, &report) }
            }
        }
        let seconds = monotonicSeconds() - start
        report.add(
            [("scenario", .text("kv")), ("seeds", .integer(range.count))] + sum.row
                + [("virtual_per_real", .number(Double(sum.nanoseconds) / 1e9 / max(seconds, 1e-9)))])
    }

    private func explainKV(_ plan: KVCase, _ report: inout Report) throws {
        report.finish()
        let small = shrink ? try Simulation.shrink(plan) : plan
        for violation in try simulate(small).violations {
            report.add([
                ("violation", .text(violation)), ("replay", .text("te sim --replay kv:\(plan.seed)")),
                ("requests", .text(small.requests.map { "\($0)" }.joined(separator: "; "))),
                ("faults", .text(small.faults.map { "\($0)" }.joined(separator: "; "))),
            ])
        }
        report.finish()
    }

    func repeatKV(_ seed: UInt64) throws {
        let plan = KVCase.draw(seed: seed)
        for (index, node) in plan.nodes.enumerated() {
            print(index < plan.prefillers ? "prefiller" : "decoder", index, node)
        }
        for request in plan.requests { print("  \(request)") }
        for fault in plan.faults { print("  \(fault)") }
        let outcome = try simulate(plan)
        print("\(outcome)")
        guard !outcome.violations.isEmpty else { return }
        let small = shrink ? try Simulation.shrink(plan) : plan
        print("smaller:")
        for request in small.requests { print("  \(request)") }
        for fault in small.faults { print("  \(fault)") }
        for violation in try simulate(small).violations { print(violation) }
        throw ExitCode(1)
    }
}
