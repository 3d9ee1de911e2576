import ExpertParallel
import SimulatedProvider
import Testing
import TransferEngine

/// Dispatch and combine over every transport: the right sums, to the bit, in few writes.
@Suite(.serialized) struct ExchangeTests {
    /// A shape drawn from a seed: any ranks, experts that do not divide, any types, padding, scales, duplicates.
    static func shape(_ seed: UInt64) -> ExpertConfiguration {
        var random = SeededGenerator(seed: seed)
        let ranks = Int.random(in: 1...6, using: &random)
        var shape = ExpertConfiguration(
            rank: 0, ranks: ranks, experts: Int.random(in: 1...40, using: &random),
            topK: Int.random(in: 1...8, using: &random), hidden: Int.random(in: 1...70, using: &random),
            maximumTokens: Int.random(in: 1...40, using: &random))
        shape.dispatchElement = ElementType.allCases.randomElement(using: &random) ?? .float32
        shape.combineElement = [.float32, .bfloat16, .float16].randomElement(using: &random) ?? .float32
        shape.scaleBlock = [nil, 16, 128].randomElement(using: &random) ?? nil
        shape.reduction = Bool.random(using: &random) ? .sender : .receiver
        shape.padding = [1, 1, 4, 16].randomElement(using: &random) ?? 1
        shape.privateRows = [nil, 1, 3].randomElement(using: &random) ?? nil
        return shape
    }

    /// How experts are chosen: evenly, all the same one, hardly any, or of one rank.
    static func chooser(_ shape: ExpertConfiguration, _ kind: Int) -> (inout SeededGenerator) -> Int32 {
        switch kind % 4 {
        case 0: return { Int32.random(in: 0..<Int32(shape.experts), using: &$0) }
        case 1: return { _ in Int32(shape.experts - 1) }
        case 2: return { Int.random(in: 0..<8, using: &$0) == 0 ? 0 : -1 }
        default:
            let few = max(1, shape.placement.experts(of: 0).count)
            return { Int32.random(in: 0..<Int32(few), using: &$0) }
        }
    }

    static func inputs(_ shape: ExpertConfiguration, _ ranks: Ranks, _ seed: UInt64, kind: Int) throws
        -> [StepInput]
    {
        var random = SeededGenerator(seed: seed &+ 99)
        return try (0..<shape.ranks).map { rank in
            let count =
                Int.random(in: 0..<4, using: &random) == 0
                ? 0 : Int.random(in: 0...shape.maximumTokens, using: &random)
            return try StepInput(
                shape, count: count, seed: seed &* 77 &+ UInt64(rank),
                engine: Bool.random(using: &random) ? ranks.engines[rank] : nil, choose: chooser(shape, kind))
        }
    }

    @Test(.timeLimit(.minutes(5)), arguments: Transport.allCases)
    func sumsAreRight(_ transport: Transport) throws {
        for seed in 1...(transport == .simulated ? 60 : 24) as ClosedRange<UInt64> {
            let shape = Self.shape(seed)
            let ranks = try Ranks(transport, count: shape.ranks, seed: seed)
            try ranks.open(shape)
            for step in 0..<3 as Range<UInt64> {
                let inputs = try Self.inputs(shape, ranks, seed &* 10 &+ step, kind: Int(seed + step))
                let drivers = zip(ranks.exchanges, inputs).map { StepDriver($0, $1) }
                #expect(try ranks.run(drivers), "seed \(seed) hangs: \(shape)")
                for driver in drivers {
                    #expect(driver.result?.isComplete == true, "seed \(seed)")
                    let error = driver.input.error(of: driver.values)
                    #expect(error < 1, "seed \(seed), rank \(driver.rank): \(error) x what is allowed")
                }
                if driversFailed(drivers) { break }
            }
            try ranks.close()
        }
    }

    private func driversFailed(_ drivers: [StepDriver]) -> Bool { drivers.contains { $0.result == nil } }

    /// With results added where they are needed, the number of ranks does not change a bit.
    @Test func sumsDoNotDependOnTheRanks() throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 1, experts: 10, topK: 4, hidden: 48, maximumTokens: 30)
        shape.dispatchElement = .float8
        shape.scaleBlock = 16
        var expected: [UInt8] = []
        for count in [1, 2, 3, 5] {
            shape.ranks = count
            let ranks = try Ranks(.simulated, count: count, seed: UInt64(count))
            try ranks.open(shape)
            let drivers = try (0..<count).map {
                StepDriver(
                    ranks.exchanges[$0],
                    try StepInput(
                        shape, count: $0 == 0 ? 30 : 7, seed: $0 == 0 ? 5 : UInt64(count + $0),
                        choose: Self.chooser(shape, 0)))
            }
            #expect(try ranks.run(drivers))
            if count == 1 { expected = drivers[0].bits }
            #expect(drivers[0].bits == expected, "\(count) ranks")
            try ranks.close()
        }
    }

    /// The same step under networks that reorder differently gives the same bits.
    @Test(arguments: [ExpertConfiguration.Reduction.receiver, .sender])
    func sumsDoNotDependOnArrival(_ reduction: ExpertConfiguration.Reduction) throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 4, experts: 9, topK: 5, hidden: 40, maximumTokens: 50)
        shape.reduction = reduction
        shape.privateRows = 5
        var expected: [[UInt8]] = []
        var times: Set<UInt64> = []
        for seed in 1...10 as ClosedRange<UInt64> {
            let ranks = try Ranks(.simulated, count: 4, seed: seed)
            try ranks.open(shape)
            let drivers = try (0..<4).map {
                StepDriver(
                    ranks.exchanges[$0],
                    try StepInput(shape, count: 50 - $0, seed: UInt64($0), choose: Self.chooser(shape, 0)))
            }
            #expect(try ranks.run(drivers))
            if expected.isEmpty { expected = drivers.map(\.bits) }
            #expect(drivers.map(\.bits) == expected, "seed \(seed)")
            times.insert(ranks.network?.traceHash ?? 0)
            try ranks.close()
        }
        #expect(times.count == 10, "the networks did not differ")
    }
}

/// Memory, writes, micro-batches and replicas.
@Suite(.serialized) struct ProtocolTests {
    private func shape(ranks: Int = 4) -> ExpertConfiguration {
        ExpertConfiguration(rank: 0, ranks: ranks, experts: 16, topK: 4, hidden: 64, maximumTokens: 64)
    }

    private func drivers(
        _ ranks: Ranks, _ shape: ExpertConfiguration, step: UInt64 = 0, batch: Int = 0, count: Int = 64,
        choose: @escaping (inout SeededGenerator) -> Int32
    ) throws -> [StepDriver] {
        try ranks.exchanges.indices.map {
            StepDriver(
                ranks.exchanges[$0], batch: batch,
                try StepInput(
                    shape, count: count, seed: step &* 100 &+ UInt64($0 / shape.replicas), choose: choose))
        }
    }

    private func expectRight(_ drivers: [StepDriver]) {
        for driver in drivers {
            #expect(driver.result?.isComplete == true)
            #expect(driver.input.error(of: driver.values) < 1, "rank \(driver.rank)")
        }
    }

    /// Writes as the network sees them: packets with an immediate, whatever the library says of itself.
    private struct WriteCounter: SimulatedFaults {
        final class Counts { var writes: [UInt64: [UInt32: Int]] = [:] }
        let counts: Counts

        func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
            if packet.kind == .data, packet.offset + packet.length == packet.requestLength {
                counts.writes[packet.source << 32 | packet.target, default: [:]][
                    packet.immediate, default: 0] += 1
            }
            return .deliver
        }
    }

    @Test(arguments: [1, 4, 64]) func writesPerPeerAreFew(_ privateRows: Int) throws {
        var shape = shape()
        shape.privateRows = privateRows
        let ranks = try Ranks(.simulated, count: 4)
        try ranks.open(shape)
        let counter = WriteCounter(counts: .init())
        ranks.network?.faults = counter
        let steps = try drivers(ranks, shape) { Int32.random(in: 0..<16, using: &$0) }
        #expect(try ranks.run(steps))
        expectRight(steps)
        #expect(counter.counts.writes.count == 12, "every rank writes to every other one")
        for (_, writes) in counter.counts.writes {
            // One or two writes for a dispatch and one for a combine, each with an immediate of its own; and where there are two,
            // the sixteen bytes that say where the second goes.
            #expect(writes.values.allSatisfy { $0 == 1 })
            #expect(writes.count <= (privateRows == 64 ? 2 : 4))
        }
        for exchange in ranks.exchanges {
            let statistics = exchange.statistics
            #expect(statistics.dispatchWrites == 3 && statistics.resultWrites == 3)
            #expect(statistics.chunkWrites <= 3 && statistics.passes == 1)
        }
        try ranks.close()
    }

    /// Everything goes to one rank, whose memory is a small part of what that takes.
    @Test(arguments: [ExpertConfiguration.Reduction.receiver, .sender])
    func oneFloodedRankWorksInItsMemory(_ reduction: ExpertConfiguration.Reduction) throws {
        for transport in Transport.allCases {
            var shape = shape()
            shape.reduction = reduction
            let full = try MemoryPlan(shape).byteCount
            shape.memoryBudget = full / 2
            let ranks = try Ranks(transport, count: 4)
            try ranks.open(shape)
            for step in 0..<3 as Range<UInt64> {
                let steps = try drivers(ranks, shape, step: step) { Int32.random(in: 4..<6, using: &$0) }
                #expect(try ranks.run(steps), "\(transport)")
                expectRight(steps)
                #expect(steps[1].passes > 1, "it fits in one pass: the test shows nothing")
            }
            #expect(ranks.exchanges[1].plan.byteCount <= full / 2)
            try ranks.close()
        }
    }

    /// Two micro-batches in flight; and the first one's next step begins while the second one's is on its way.
    @Test(arguments: Transport.allCases) func microBatchesOverlap(_ transport: Transport) throws {
        let shape = shape()
        let ranks = try Ranks(transport, count: 4)
        try ranks.open(shape)
        var flying = [0, 1].map { _ in [StepDriver]() }
        for step in 0..<10 as Range<UInt64> {
            let batch = Int(step % 2)
            #expect(try ranks.run(flying[batch]))
            expectRight(flying[batch])
            flying[batch] = try drivers(ranks, shape, step: step, batch: batch, count: Int(step) * 6) {
                Int32.random(in: -1..<16, using: &$0)
            }
            // Some ranks are ahead of others.
            for driver in flying[batch].prefix(2) { try driver.advance() }
        }
        for batch in 0...1 {
            #expect(try ranks.run(flying[batch]))
            expectRight(flying[batch])
        }
        try ranks.close()
    }

    /// Replicas hold the same tokens: each token travels once, all get the sums.
    @Test(arguments: [2, 3]) func replicasShareTheWork(_ replicas: Int) throws {
        for reduction in [ExpertConfiguration.Reduction.receiver, .sender] {
            var shape = shape(ranks: 6)
            shape.replicas = replicas
            shape.reduction = reduction
            let ranks = try Ranks(.simulated, count: 6)
            try ranks.open(shape)
            for step in 0..<3 as Range<UInt64> {
                let steps = try drivers(ranks, shape, step: step) { Int32.random(in: 0..<16, using: &$0) }
                #expect(try ranks.run(steps))
                expectRight(steps)
                let rows = steps.map { $0.received.joined().reduce(0, +) }.reduce(0, +)
                #expect(rows == UInt32(6 / replicas * 64 * 4), "each entry is computed once")
            }
            try ranks.close()
        }
    }

    /// More experts than the 512 of the paper's kernels, and more than there are tokens.
    @Test func manyExperts() throws {
        let shape = ExpertConfiguration(
            rank: 0, ranks: 5, experts: 3001, topK: 8, hidden: 16, maximumTokens: 40)
        let ranks = try Ranks(.simulated, count: 5)
        try ranks.open(shape)
        let steps = try drivers(ranks, shape, count: 40) { Int32.random(in: 0..<3001, using: &$0) }
        #expect(try ranks.run(steps))
        expectRight(steps)
        try ranks.close()
    }

    @Test func callsComeInOrder() throws {
        let shape = shape(ranks: 1)
        let ranks = try Ranks(.sharedMemory, count: 1)
        try ranks.open(shape)
        let exchange = ranks.exchanges[0]
        #expect(throws: TransferError.self) { try exchange.dispatchReceive(0) }
        #expect(throws: TransferError.self) { try exchange.combineSend(0) }
        let input = try StepInput(shape, count: 3, seed: 1) { _ in 99 }
        let error = #expect(throws: TransferError.self) { try exchange.dispatchSend(0, input.batch) }
        #expect(error?.code == .invalidArgument, "expert 99 of 16")
        #expect(throws: TransferError.self) { try exchange.dispatchSend(2, input.batch) }
        try ranks.close()
    }

    /// Ranks of different shapes do not work together, and say so.
    @Test func shapesAreCompared() throws {
        let ranks = try Ranks(.sharedMemory, count: 2)
        var shape = shape(ranks: 2)
        let first = try ExpertExchange(ranks.engines[0], shape)
        shape.rank = 1
        shape.topK = 3
        let second = try ExpertExchange(ranks.engines[1], shape)
        let error = #expect(throws: TransferError.self) {
            try first.connect([first.address, second.address])
        }
        #expect(error?.code == .invalidArgument)
        for cut in [0, 3, 20, second.address.count - 1] {
            #expect(throws: TransferError.self) {
                try first.connect([first.address, Array(second.address.prefix(cut))])
            }
        }
        try first.close()
        try second.close()
        try ranks.close()
    }
}
