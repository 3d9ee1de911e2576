import Testing

@testable import Simulation

/// The contract's promises 3 to 9 under everything that the simulator can break. `te sim` runs more seeds.
@Suite struct ScenarioTests {
    @Test(arguments: Scenario.all.map(\.name)) func keepsItsPromises(_ name: String) throws {
        let scenario = try #require(Scenario.all.first { $0.name == name })
        var completed = 0
        for seed in 1...8 as ClosedRange<UInt64> {
            let outcome = try simulate(scenario.makeCase(seed: seed))
            #expect(outcome.violations == [], "te sim --replay \(name):\(seed)")
            completed += outcome.completed
        }
        #expect(completed > 60, "a scenario in which nothing is done proves nothing")
    }

    @Test func oneSeedOneHash() throws {
        let storm = try #require(Scenario.all.last)
        #expect(try simulate(storm.makeCase(seed: 5)) == simulate(storm.makeCase(seed: 5)))
        #expect(try simulate(storm.makeCase(seed: 5)).hash != simulate(storm.makeCase(seed: 6)).hash)
    }

    /// A case that breaks a promise is made smaller and still breaks it. Here the promise is one that nobody gave.
    @Test func shrinkingKeepsTheFault() throws {
        let storm = try #require(Scenario.all.last)
        let plan = storm.makeCase(seed: 3)
        let small = try shrink(plan) { !$0.faults.isEmpty && $0.operations.count > 2 }
        #expect(small.operations.count == 3)
        #expect(small.faults.count == 1)
        #expect(small.nics.allSatisfy { $0 == 1 })
    }
}
