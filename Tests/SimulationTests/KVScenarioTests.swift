import Simulation
import Testing

/// Prefillers and decoders under the simulator; `te sim --scenario kv` runs many more.
@Suite struct KVScenarioTests {
    @Test(.timeLimit(.minutes(5)), arguments: Array(1...8) + [102, 183, 1144, 4113])
    func promisesHold(seed: Int) throws {
        let outcome = try simulate(KVCase.draw(seed: UInt64(seed)))
        #expect(outcome.violations == [])
        #expect(outcome.completed > 0)
    }

    /// The network damages what it carries: who compares digests never hands it over, and gets it in the end.
    @Test(.timeLimit(.minutes(5))) func damageIsFound() throws {
        var mismatches = 0
        for seed in [1, 10, 16, 25, 31] {
            let plan = KVCase.draw(seed: UInt64(seed))
            #expect(plan.digests)
            let outcome = try simulate(plan)
            #expect(outcome.violations == [])
            mismatches += outcome.mismatches
        }
        #expect(mismatches > 5)
    }

    @Test(.timeLimit(.minutes(2))) func oneSeedIsOneRun() throws {
        let first = try simulate(KVCase.draw(seed: 5))
        #expect(try simulate(KVCase.draw(seed: 5)) == first)
        #expect(try simulate(KVCase.draw(seed: 6)).hash != first.hash)
    }
}
