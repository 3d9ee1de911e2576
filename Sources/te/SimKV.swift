internal import ArgumentParser
internal import Simulation

/// Prefillers and decoders under the simulator.
extension Sim {
    func explainKV(_ seed: UInt64) throws -> (violations: [String], details: Report.Row) {
        let plan = KVCase.draw(seed: seed)
        let small = shrink ? try Simulation.shrink(plan) : plan
        return (
            try simulate(small).violations,
            [
                ("requests", .text(small.requests.map { "\($0)" }.joined(separator: "; "))),
                ("faults", .text(small.faults.map { "\($0)" }.joined(separator: "; "))),
            ]
        )
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
