internal import ArgumentParser
internal import Simulation

// Scenarios of expert parallelism.
extension Sim {
    /// Dispatch and combine with faults: no hang, no wrong sum.
    func runMoE(_ seeds: ClosedRange<UInt64>, _ report: inout Report) throws {
        var whole = 0
        var partial = 0
        var bad = 0
        var hash: UInt64 = 0
        var nanoseconds: UInt64 = 0
        let start = monotonicSeconds()
        for seed in seeds {
            if seed & 31 == 0 { showProgress("moe \(seed)") }
            let outcome = try MoEScenario.run(seed: seed)
            whole += outcome.completed
            partial += outcome.failed
            nanoseconds += outcome.nanoseconds
            hash = hash &* 0x100_0000_01B3 ^ outcome.hash
            guard !outcome.violations.isEmpty else { continue }
            bad += 1
            if bad <= 3 {
                for violation in outcome.violations {
                    report.add([
                        ("violation", .text(violation)), ("replay", .text("te sim --replay moe:\(seed)")),
                    ])
                }
                report.finish()
            }
        }
        let seconds = monotonicSeconds() - start
        report.add([
            ("scenario", .text("moe")), ("seeds", .integer(seeds.count)), ("whole_steps", .integer(whole)),
            ("partial_steps", .integer(partial)), ("violations", .integer(bad)),
            ("virtual_s", .number(Double(nanoseconds) / 1e9)),
            ("virtual_per_real", .number(Double(nanoseconds) / 1e9 / max(seconds, 1e-9))),
            ("hash", .text(String(hash, radix: 16))),
        ])
        report.finish()
        if bad > 0 { throw ExitCode(1) }
    }

    /// The model of two NICs beside what the paper measured on them.
    func showMoELatency(_ ranks: ClosedRange<UInt64>, _ report: inout Report) throws {
        guard let nic = [MoELatency.NIC.cx7, .efa].first(where: { $0.name == nic }), ranks.lowerBound > 0,
            ranks.upperBound <= 4096
        else { throw ValidationError("--nic is cx7 or efa, and --ep a number of ranks up to 4096") }
        var count = Int(ranks.lowerBound)
        while count <= Int(ranks.upperBound) {
            let model = MoELatency(nic: nic, ranks: count)
            let measured = model.measured
            for (name, time) in [("dispatch", \MoELatency.Times.dispatch), ("combine", \.combine)] {
                let paper = model.paper[keyPath: time]
                let real = measured?.paper[keyPath: time]
                report.add([
                    ("nic", .text(nic.name)), ("ep", .integer(count)), ("what", .text(name)),
                    ("ours_model_us", .number(model.ours[keyPath: time])), ("paper_model_us", .number(paper)),
                    ("paper_us", real.map { .number($0) } ?? .null),
                    ("model_error", real.map { .number(paper / $0 - 1) } ?? .null),
                    ("deepep_cx7_us", measured.map { .number($0.deepEP[keyPath: time]) } ?? .null),
                ])
            }
            count *= 2
        }
        report.finish()
    }
}
