import Simulation
import Testing

/// Whole clusters in virtual time; `te kv simulate` runs larger ones.
@Suite struct KVClusterTests {
    private static func plan(seed: UInt64 = 1) -> KVClusterPlan {
        var plan = KVClusterPlan()
        plan.seed = seed
        plan.prefillers = 2
        plan.decoders = 4
        plan.seconds = 2
        plan.churn = 2
        plan.tokens = 128...1024
        plan.tokensPerSecond = 5_000
        plan.decodeSeconds = 0.1...0.5
        plan.pages = 512
        return plan
    }

    @Test(.timeLimit(.minutes(5)), arguments: 1...3 as ClosedRange<UInt64>)
    func noRequestIsLostOrWrong(seed: UInt64) throws {
        let outcome = try simulate(Self.plan(seed: seed))
        #expect(outcome.isGood, "\(outcome.problems)")
        #expect(outcome.requests > 20)
        #expect(outcome.killed > 0 && outcome.drained > 0)
        #expect(outcome.transfer.quantile(0) > 0)
        #expect(outcome.share.quantile(1) < 0.02)
    }

    @Test(.timeLimit(.minutes(5))) func oneSeedIsOneRun() throws {
        let first = try simulate(Self.plan())
        #expect(try simulate(Self.plan()) == first)
        #expect(try simulate(Self.plan(seed: 2)).hash != first.hash)
    }

    /// The checks can fail.
    @Test(.timeLimit(.minutes(5)), arguments: [KVClusterPlan.Mistake.wrongPage, .earlyFree])
    func whatIsPlantedIsFound(mistake: KVClusterPlan.Mistake) throws {
        var plan = Self.plan()
        plan.mistake = mistake
        let outcome = try simulate(plan)
        #expect(outcome.wrong > 0)
        #expect(!outcome.isGood)
    }

    @Test(.timeLimit(.minutes(5))) func aRequestThatNobodyAnswersIsLost() throws {
        var plan = Self.plan()
        plan.mistake = .noRetry
        plan.churn = 5
        let outcome = try simulate(plan)
        #expect(outcome.lost > 0)
        #expect(outcome.lost + outcome.completed == outcome.requests)
    }

    /// The load is what was asked for, and the NICs' share of it what the bytes take: 128 KiB of each token, 400 Gbit/s.
    @Test(.timeLimit(.minutes(5))) func theLoadIsAsPlanned() throws {
        var plan = Self.plan()
        plan.churn = 0
        plan.seconds = 8
        let outcome = try simulate(plan)
        #expect((0.6...0.95).contains(outcome.computing))
        let wanted = outcome.computing * plan.tokensPerSecond * 131_072 * 8 / 400e9
        #expect(abs(outcome.utilisation / wanted - 1) < 0.05)
    }

    /// The paper's table 3: 1024 pages of a layer within 0.35 ms, and not faster than the wire.
    @Test(.timeLimit(.minutes(5))) func aLayerOf1024Pages() throws {
        let row = try #require(KVTable3.rows.first { $0.tokens == 16_384 })
        #expect(row.pages == 1024)
        let outcome = try simulate(row.plan(seed: 1))
        #expect(outcome.isGood && outcome.completed == 1)
        #expect(outcome.layer.quantile(1) <= 0.35e-3)
        #expect(outcome.layer.quantile(0) >= row.wireMilliseconds / 1e3)
    }
}
