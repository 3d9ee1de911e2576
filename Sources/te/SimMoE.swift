internal import ArgumentParser
internal import Simulation

// Scenarios of expert parallelism.
extension Sim {
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
