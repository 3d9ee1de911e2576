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

    @Test(.timeLimit(.minutes(2))) func oneSeedIsOneRun() throws {
        let first = try simulate(KVCase.draw(seed: 5))
        #expect(try simulate(KVCase.draw(seed: 5)) == first)
        #expect(try simulate(KVCase.draw(seed: 6)).hash != first.hash)
    }
}
