import ExpertParallel
import Glibc
import SimulatedProvider
import Testing
import TransferEngine

/// Ranks that die, that are slow, that come back; and other numbers of ranks.
@Suite(.serialized) struct FailureTests {
    private static func shape(_ seed: UInt64) -> ExpertConfiguration {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 4, experts: 12, topK: 3, hidden: 32, maximumTokens: 24)
        shape.reduction = seed % 2 == 0 ? .sender : .receiver
        shape.privateRows = seed % 3 == 0 ? 2 : nil
        return shape
    }

    private static func drivers(_ ranks: Ranks, _ shape: ExpertConfiguration, _ seed: UInt64, batch: Int = 0)
        throws -> [StepDriver]
    {
        try ranks.exchanges.indices.map {
            StepDriver(
                ranks.exchanges[$0], batch: batch,
                try StepInput(shape, count: 24, seed: seed &* 10 &+ UInt64($0)) {
                    Int32.random(in: 0..<Int32(shape.experts), using: &$0)
                })
        }
    }

    /// Sums of what is there, and a result that says what is not.
    private func expectWithout(_ lost: Int, _ drivers: [StepDriver], _ shape: ExpertConfiguration) {
        let experts = shape.placement.experts(of: lost)
        for driver in drivers where driver.rank != lost {
            guard let result = driver.result else {
                Issue.record("rank \(driver.rank) has no result")
                continue
            }
            if result.missingRanks.isEmpty {
                #expect(driver.input.error(of: driver.values) < 1)
                continue
            }
            #expect(result.missingRanks == [lost])
            let dropped = driver.input.experts.count { experts.contains(Int($0)) }
            #expect(result.droppedEntries == dropped && result.isComplete == (dropped == 0))
            #expect(driver.input.error(of: driver.values, isThere: { !experts.contains($0) }) < 1)
        }
    }

    /// A wait that lasts leaves the processor to others: of several ranks on one, all others wait for the one that works.
    @Test(.timeLimit(.minutes(1))) func aWaitSleeps() throws {
        func seconds(_ clock: clockid_t) -> Double {
            var time = timespec()
            clock_gettime(clock, &time)
            return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
        }
        var shape = Self.shape(1)
        (shape.ranks, shape.deadline) = (2, .milliseconds(400))
        let ranks = try Ranks(.sharedMemory, count: 2, progress: .adaptive)
        try ranks.open(shape)
        let input = try StepInput(shape, count: 24, seed: 1) { Int32.random(in: 0..<12, using: &$0) }
        try ranks.exchanges[0].dispatchSend(0, input.batch)
        let (begin, used) = (seconds(CLOCK_MONOTONIC), seconds(CLOCK_THREAD_CPUTIME_ID))
        _ = try ranks.exchanges[0].dispatchReceive(0)  // the other rank does not come
        let waited = seconds(CLOCK_MONOTONIC) - begin
        #expect(waited >= 0.4)
        #expect(seconds(CLOCK_THREAD_CPUTIME_ID) - used < waited / 4)
        #expect(ranks.exchanges[0].missingRanks == [1])
        try ranks.close()
    }

    /// A rank ends at any moment of a step: the others end theirs, say what is missing, and go on without it. Then it comes back.
    @Test(.timeLimit(.minutes(5)), arguments: Transport.allCases) func aRankDies(_ transport: Transport)
        throws
    {
        for seed in 0..<(transport == .simulated ? 24 : transport == .sharedMemory ? 6 : 2) as Range<UInt64> {
            let shape = Self.shape(seed)
            let ranks = try Ranks(transport, count: 4, seed: seed)
            try ranks.open(shape)
            let warm = try Self.drivers(ranks, shape, seed)
            #expect(try ranks.run(warm))
            let lost = Int(seed % 4)
            let steps = try Self.drivers(ranks, shape, seed &+ 1)
            for _ in 0..<seed * 3 {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            ranks.dead.insert(lost)
            if seed % 2 == 0 { ranks.engines[lost].close() }
            #expect(try ranks.run(steps), "seed \(seed) hangs")
            expectWithout(lost, steps, shape)
            for step in 2..<5 as Range<UInt64> {
                let steps = try Self.drivers(ranks, shape, seed &+ step, batch: Int(step % 2))
                #expect(try ranks.run(steps), "seed \(seed), step \(step) hangs")
                expectWithout(lost, steps, shape)
                #expect(steps.allSatisfy { $0.rank == lost || $0.result?.missingRanks == [lost] })
            }
            if transport != .simulated { try rejoin(ranks, shape, lost, seed) }
            try ranks.close()
        }
    }

    /// A rank dies that has more rows than have come: the pass that was promised comes, and is empty.
    @Test(arguments: [ExpertConfiguration.Reduction.receiver, .sender])
    func aRankWithMoreRowsDies(_ reduction: ExpertConfiguration.Reduction) throws {
        for transport in [Transport.simulated, .sharedMemory] {
            var shape = Self.shape(0)
            (shape.ranks, shape.reduction, shape.privateRows) = (2, reduction, 2)
            let full = try MemoryPlan(shape).byteCount
            // The least that works.
            for share in 1...100 where (try? MemoryPlan(shape)) == nil || shape.memoryBudget == nil {
                shape.memoryBudget = full * share / 100
            }
            let ranks = try Ranks(transport, count: 2)
            try ranks.open(shape)
            let steps = try ranks.exchanges.map { exchange in
                StepDriver(
                    exchange,
                    try StepInput(shape, count: exchange.configuration.rank == 0 ? 24 : 0, seed: 1) {
                        Int32.random(in: 6..<12, using: &$0)
                    })
            }
            for _ in 0..<10_000 where steps[1].passes == 0 {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            ranks.dead.insert(0)
            ranks.engines[0].close()
            #expect(try ranks.run(steps), "\(transport) hangs")
            #expect(steps[1].received.last?.reduce(0, +) == 0, "\(transport) \(steps[1].received)")
            #expect(steps[1].result?.missingRanks == [0])
            try ranks.close()
        }
    }

    /// All make a new exchange, with a new engine where the lost rank was.
    private func rejoin(_ ranks: Ranks, _ shape: ExpertConfiguration, _ lost: Int, _ seed: UInt64) throws {
        let old = ranks.exchanges
        let fresh = try Ranks(ranks.transport, count: 1)
        ranks.engines[lost].close()
        ranks.engines[lost] = fresh.engines[0]
        ranks.dead = []
        try ranks.open(shape)
        for (rank, exchange) in old.enumerated() where rank != lost { try exchange.close() }
        let steps = try Self.drivers(ranks, shape, seed &+ 7)
        #expect(try ranks.run(steps))
        for step in steps {
            #expect(step.result?.isComplete == true)
            #expect(step.input.error(of: step.values) < 1)
        }
    }

    /// A rank that was given up was only slow. What it sends when it goes on lands nowhere where it is read.
    @Test func aSlowRankDoesNoHarm() throws {
        for seed in 0..<24 as Range<UInt64> {
            let shape = Self.shape(seed)
            let ranks = try Ranks(.simulated, count: 4, seed: seed)
            try ranks.open(shape)
            let steps = try Self.drivers(ranks, shape, seed)
            for _ in 0..<seed {
                for step in steps { try step.advance() }
                ranks.pump()
            }
            ranks.dead.insert(1)
            #expect(try ranks.run(steps), "seed \(seed) hangs")
            expectWithout(1, steps, shape)
            ranks.dead = []
            for step in 1..<4 as Range<UInt64> {
                // Everybody goes on, also the one that others have given up; until it sees that it is not wanted, and ends.
                let next = try Self.drivers(ranks, shape, seed &+ step).filter { $0.rank != 1 }
                for round in 0..<20000 where next.contains(where: { !$0.isDone }) {
                    if round == 2000 { ranks.dead.insert(1) }
                    if !steps[1].isDone, !ranks.dead.contains(1) { try? steps[1].advance() }
                    for step in next { try step.advance() }
                    ranks.pump()
                }
                #expect(!next.contains { !$0.isDone }, "seed \(seed), step \(step)")
                expectWithout(1, next, shape)
            }
            try ranks.close()
        }
    }

    /// Four ranks, then six, then three, on the same engines.
    @Test func theNumberOfRanksChanges() throws {
        let ranks = try Ranks(.sharedMemory, count: 6)
        for count in [4, 6, 3] {
            var shape = Self.shape(1)
            shape.ranks = count
            let old = ranks.exchanges
            try ranks.open(shape)
            for exchange in old { try exchange.close() }
            for step in 0..<3 as Range<UInt64> {
                let steps = try Self.drivers(ranks, shape, step)
                #expect(try ranks.run(steps))
                #expect(
                    steps.allSatisfy { $0.result?.isComplete == true && $0.input.error(of: $0.values) < 1 })
            }
        }
        try ranks.close()
    }

    /// A rank that lives and does not come is given up after the deadline, with a reason that says so.
    @Test func theDeadlineHolds() throws {
        var shape = Self.shape(0)
        shape.deadline = .milliseconds(300)
        let ranks = try Ranks(.simulated, count: 4)
        try ranks.open(shape)
        let steps = try Self.drivers(ranks, shape, 1)
        let begin = ranks.network?.nowNanoseconds ?? 0
        let others = steps.filter { $0.rank != 3 }
        #expect(try ranks.run(others))
        let passed = (ranks.network?.nowNanoseconds ?? 0) - begin
        #expect(passed > 300_000_000 && passed < 900_000_000, "\(passed) ns")
        expectWithout(3, steps, shape)
        let failure = ranks.exchanges[0].failure(of: 3)
        #expect(failure?.code == .stalled && failure?.message.contains("rank 3") == true)
        #expect(ranks.exchanges[0].missingRanks == [3])
        try ranks.close()
    }
}
