import ExpertParallel
import SimulatedProvider
import Testing
import TransferEngine

/// Ranks of nodes that die or are slow: everybody else's step ends, and what is missing in it is said.
@Suite(.serialized) struct NodeFailureTests {
    /// Three nodes of two ranks.
    private static func shape(_ seed: UInt64) -> ExpertConfiguration {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 6, experts: 13, topK: 4, hidden: 32, maximumTokens: 24)
        shape.reduction = .sender
        shape.privateRows = seed % 3 == 0 ? 2 : nil
        return shape
    }

    private let nodes = 3
    private let size = 2

    /// Ranks whose experts a rank does without when it has lost another one.
    private func missing(_ rank: Int, _ lost: Int) -> [Int] {
        let isWay = rank / size != lost / size && rank % size == lost % size
        return isWay ? Array(lost / size * size..<(lost / size + 1) * size) : [lost]
    }

    /// Whether two ranks write to each other.
    private func meets(_ rank: Int, _ other: Int) -> Bool {
        rank / size == other / size || rank % size == other % size
    }

    /// Sums are those of all entries that are not reported, and what is reported has a reason.
    private func expectWithout(_ lost: Int, _ drivers: [StepDriver], _ ranks: Ranks) {
        for driver in drivers where driver.rank != lost {
            guard let result = driver.result else {
                Issue.record("rank \(driver.rank) has no result")
                continue
            }
            let exchange = ranks.nodeExchanges[driver.rank]
            let input = driver.input
            let shape = input.shape
            func isDropped(_ token: Int, _ entry: Int) -> Bool {
                exchange.droppedEntries(driver.batch, of: token) & 1 << UInt64(entry) != 0
            }
            #expect(input.error(of: driver.values, contributes: { !isDropped($0, $1) }) < 1)
            #expect(
                result.missingRanks.allSatisfy(missing(driver.rank, lost).contains), "rank \(driver.rank)")
            var dropped = 0
            for token in 0..<input.count {
                for entry in 0..<shape.topK where isDropped(token, entry) {
                    dropped += 1
                    let expert = Int(input.experts[token * shape.topK + entry])
                    #expect(expert >= 0 && result.missingRanks.contains(shape.placement.owner(of: expert)))
                }
            }
            #expect(result.droppedEntries == dropped && result.isComplete == (dropped == 0))
        }
    }

    /// Steps without a rank that all know to be lost: exactly its experts are missing, and for its rail its node.
    private func expectExactly(_ lost: Int, _ drivers: [StepDriver], _ ranks: Ranks) {
        expectWithout(lost, drivers, ranks)
        for driver in drivers where driver.rank != lost {
            let placement = driver.input.shape.placement
            let missing = missing(driver.rank, lost)
            let entries = driver.input.experts.count {
                $0 >= 0 && missing.contains(placement.owner(of: Int($0)))
            }
            #expect(driver.result?.droppedEntries == entries)
            // Without an entry for it, one hears of another rank of another node from nobody.
            let isSaid = meets(driver.rank, lost) || entries > 0
            #expect(driver.result?.missingRanks == (isSaid ? missing : []), "rank \(driver.rank)")
        }
    }

    /// Any rank ends at any moment of a step. For others it is of the own node, the way to a node, or another one of a node.
    @Test(.timeLimit(.minutes(5)), arguments: Transport.allCases)
    func aRankDies(_ transport: Transport) throws {
        for seed in 0..<(transport == .simulated ? 36 : transport == .sharedMemory ? 6 : 2) as Range<UInt64> {
            let shape = Self.shape(seed)
            let ranks = try Ranks(transport, count: 6, seed: seed)
            try ranks.open(shape, nodes: nodes)
            #expect(try ranks.run(NodeTests.drivers(ranks, shape, step: seed)))
            let lost = Int(seed % 6)
            let steps = try NodeTests.drivers(ranks, shape, step: seed &+ 1)
            for _ in 0..<seed / 2 * (transport == .simulated ? 4 : 1) {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            ranks.dead.insert(lost)
            if seed % 2 == 0 { ranks.engines[lost].close() }
            #expect(try ranks.run(steps), "seed \(seed) hangs")
            expectWithout(lost, steps, ranks)
            for step in 2..<6 as Range<UInt64> {
                let steps = try NodeTests.drivers(
                    ranks, shape, step: seed &+ step, batch: Int(step % 2), count: step == 5 ? 0 : 24)
                #expect(try ranks.run(steps), "seed \(seed), step \(step) hangs")
                if step == 2 { expectWithout(lost, steps, ranks) } else { expectExactly(lost, steps, ranks) }
            }
            for rank in 0..<6 where rank != lost {
                let exchange = ranks.nodeExchanges[rank]
                #expect(exchange.missingRanks == (meets(rank, lost) ? missing(rank, lost) : []))
                #expect((exchange.failure(of: lost) != nil) == meets(rank, lost))
            }
            try ranks.close()
        }
    }

    /// A rank dies while a flooded one is in the middle of its passes.
    @Test(arguments: 0..<6) func aRankDiesBetweenPasses(_ lost: Int) throws {
        for passes in 1...3 {
            var shape = Self.shape(0)
            shape.privateRows = 1
            shape.memoryBudget = 250_000
            let ranks = try Ranks(.simulated, count: 6, seed: UInt64(passes))
            try ranks.open(shape, nodes: nodes)
            let few = shape.placement.experts(of: 3)
            let steps = try NodeTests.drivers(ranks, shape) {
                Int32.random(in: Int32(few.lowerBound)..<Int32(few.upperBound), using: &$0)
            }
            for _ in 0..<100_000 where steps[3].passes < passes {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            ranks.dead.insert(lost)
            #expect(try ranks.run(steps), "rank \(lost) hangs others")
            #expect(lost == 3 || steps[3].passes > passes, "\(steps[3].passes): the test shows nothing")
            expectWithout(lost, steps, ranks)
            try ranks.close()
        }
    }

    /// A rank that lives and does not come costs a deadline, and nobody but itself and the way to its node.
    @Test(arguments: 0..<6) func theDeadlineHolds(_ slow: Int) throws {
        var shape = Self.shape(0)
        shape.deadline = .milliseconds(1200)
        let ranks = try Ranks(.simulated, count: 6)
        try ranks.open(shape, nodes: nodes)
        let begin = ranks.network?.nowNanoseconds ?? 0
        let steps = try NodeTests.drivers(ranks, shape, step: 1)
        let others = steps.filter { $0.rank != slow }
        #expect(try ranks.run(others))
        let passed = (ranks.network?.nowNanoseconds ?? 0) - begin
        #expect(passed > 300_000_000 && passed < 1_200_000_000, "\(passed) ns")
        expectExactly(slow, steps, ranks)
        let mate = slow / size * size + 1 - slow % size
        let failure = ranks.nodeExchanges[mate].failure(of: slow)
        #expect(failure?.code == .stalled && failure?.message.contains("in node \(slow / size)") == true)
        // Three steps on, nobody has given up anybody else.
        for step in 2..<5 as Range<UInt64> {
            let steps = try NodeTests.drivers(ranks, shape, step: step)
            #expect(try ranks.run(steps.filter { $0.rank != slow }))
            expectExactly(slow, steps, ranks)
        }
        try ranks.close()
    }

    /// A rank stops in the middle of a step and lives: after a deadline the others are rid of it, and of nobody else.
    @Test(arguments: 0..<6) func aRankStops(_ slow: Int) throws {
        for rounds in [3, 20, 40, 60, 80, 100, 120] {
            var shape = Self.shape(1)
            shape.deadline = .milliseconds(1200)
            let ranks = try Ranks(.simulated, count: 6, seed: UInt64(rounds))
            try ranks.open(shape, nodes: nodes)
            let steps = try NodeTests.drivers(ranks, shape, step: 1)
            for _ in 0..<rounds {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            // Everybody's engine goes on, and so do the others, each from step to step on its own.
            var current = steps
            var number = [UInt64](repeating: 1, count: 6)
            for _ in 0..<200_000 where (0..<6).contains(where: { $0 != slow && number[$0] < 5 }) {
                for rank in 0..<6 where rank != slow && number[rank] < 5 {
                    try current[rank].advance()
                    guard current[rank].isDone else { continue }
                    expectWithout(slow, [current[rank]], ranks)
                    number[rank] += 1
                    current[rank] = StepDriver(
                        ranks.nodeExchanges[rank],
                        try StepInput(
                            shape, count: 24, seed: number[rank] &* 10 &+ UInt64(rank),
                            choose: ExchangeTests.chooser(shape, 0)))
                }
                ranks.pump()
            }
            #expect((0..<6).allSatisfy { $0 == slow || number[$0] == 5 }, "\(number), \(rounds) rounds")
            try ranks.close()
        }
    }

    /// All make a new exchange, and everything is there again.
    @Test func aNewExchangeIsWhole() throws {
        let shape = Self.shape(1)
        let ranks = try Ranks(.sharedMemory, count: 6)
        try ranks.open(shape, nodes: nodes)
        ranks.dead.insert(2)
        ranks.engines[2].close()
        #expect(try ranks.run(NodeTests.drivers(ranks, shape, step: 1)))
        let old = ranks.nodeExchanges
        ranks.engines[2] = try Ranks(.sharedMemory, count: 1).engines[0]
        ranks.dead = []
        try ranks.open(shape, nodes: nodes)
        for (rank, exchange) in old.enumerated() where rank != 2 { try exchange.close() }
        let steps = try NodeTests.drivers(ranks, shape, step: 2)
        #expect(try ranks.run(steps))
        NodeTests.expectRight(steps)
        try ranks.close()
    }
}
