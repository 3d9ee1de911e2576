import Testing

@testable import Simulation

/// Expert parallelism under faults, and the model of its latency.
@Suite struct MoETests {
    @Test(arguments: [false, true]) func stepsEndAndSumsAreRight(_ overNodes: Bool) throws {
        var (whole, partial) = (0, 0)
        for seed in 1...40 as ClosedRange<UInt64> {
            let outcome = try MoEScenario.run(seed: seed, overNodes: overNodes)
            #expect(outcome.violations == [], "te sim --replay moe\(overNodes ? "-nodes" : ""):\(seed)")
            whole += outcome.completed
            partial += outcome.failed
        }
        #expect(whole > 300 && partial > 20, "\(whole) whole and \(partial) partial steps prove nothing")
    }

    @Test func oneSeedOneRun() throws {
        #expect(try MoEScenario.run(seed: 9) == MoEScenario.run(seed: 9))
        #expect(
            try MoEScenario.run(seed: 9, overNodes: true) == MoEScenario.run(seed: 9, overNodes: true))
        #expect(try MoEScenario.run(seed: 9).hash != MoEScenario.run(seed: 10).hash)
    }

    /// The paper's algorithm gives the paper's table within 15 %, and ours is faster in every cell of it.
    @Test(arguments: [MoELatency.NIC.cx7, .efa], [8, 16, 32, 64])
    func theModelGivesThePapersTable(_ nic: MoELatency.NIC, _ ranks: Int) throws {
        let model = MoELatency(nic: nic, ranks: ranks)
        let (paper, deepEP) = try #require(model.measured)
        for time in [\MoELatency.Times.dispatch, \.combine] {
            let ratio = model.paper[keyPath: time] / paper[keyPath: time]
            #expect(abs(ratio - 1) <= 0.15, "\(nic.name) \(ranks): \(ratio)")
            #expect(model.ours[keyPath: time] < paper[keyPath: time], "\(nic.name) \(ranks)")
            if nic == .cx7, ranks == 64 { #expect(model.ours[keyPath: time] < deepEP[keyPath: time]) }
        }
    }
}
