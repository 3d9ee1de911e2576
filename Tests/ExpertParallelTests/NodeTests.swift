import ExpertParallel
import SimulatedProvider
import Testing
import TransferEngine

/// Dispatch and combine over nodes: the right sums, to the bit, and each token once to a node.
@Suite(.serialized) struct NodeTests {
    /// A shape drawn from a seed, with what nodes need.
    static func shape(_ seed: UInt64) -> (shape: ExpertConfiguration, nodes: Int) {
        var random = SeededGenerator(seed: seed &+ 1000)
        var shape = ExchangeTests.shape(seed)
        let nodes = Int.random(in: 1...3, using: &random)
        shape.ranks = nodes * Int.random(in: 1...3, using: &random)
        shape.experts += shape.ranks
        shape.reduction = .sender
        return (shape, nodes)
    }

    /// Two nodes of two ranks.
    static func small() -> ExpertConfiguration {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 4, experts: 18, topK: 6, hidden: 40, maximumTokens: 30)
        shape.reduction = .sender
        return shape
    }

    static func drivers(
        _ ranks: Ranks, _ shape: ExpertConfiguration, step: UInt64 = 0, batch: Int = 0, count: Int? = nil,
        choose: ((inout SeededGenerator) -> Int32)? = nil
    ) throws -> [StepDriver] {
        try ranks.nodeExchanges.indices.map {
            StepDriver(
                ranks.nodeExchanges[$0], batch: batch,
                try StepInput(
                    shape, count: count ?? shape.maximumTokens, seed: step &* 100 &+ UInt64($0),
                    choose: choose ?? ExchangeTests.chooser(shape, 0)))
        }
    }

    static func expectRight(_ drivers: [StepDriver]) {
        for driver in drivers {
            #expect(driver.result?.isComplete == true && driver.result?.missingRanks == [])
            #expect(driver.input.error(of: driver.values) < 1, "rank \(driver.rank)")
        }
    }

    @Test(.timeLimit(.minutes(5)), arguments: Transport.allCases)
    func sumsAreRight(_ transport: Transport) throws {
        for seed in 1...(transport == .simulated ? 60 : 20) as ClosedRange<UInt64> {
            let (shape, nodes) = Self.shape(seed)
            let ranks = try Ranks(transport, count: shape.ranks, seed: seed)
            try ranks.open(shape, nodes: nodes)
            for step in 0..<3 as Range<UInt64> {
                let inputs = try ExchangeTests.inputs(
                    shape, ranks, seed &* 10 &+ step, kind: Int(seed + step))
                let drivers = zip(ranks.nodeExchanges, inputs).map { StepDriver($0, $1) }
                #expect(try ranks.run(drivers), "seed \(seed) hangs: \(nodes) nodes, \(shape)")
                Self.expectRight(drivers)
                if drivers.contains(where: { $0.result == nil }) { break }
            }
            try ranks.close()
        }
    }

    /// The sums of a rank in the order that is promised, in FP32: entries of a rank, ranks of a node, nodes.
    private func promised(_ input: StepInput, _ size: Int) -> [Float] {
        let shape = input.shape
        func firsts(_ list: [Int]) -> [Int] {
            list.reduce(into: []) { if !$0.contains($1) { $0.append($1) } }
        }
        return (0..<input.count * shape.hidden).map { index in
            let token = index / shape.hidden
            let value = shape.dispatchElement.value(input.tokens, index)
            let entries = (token * shape.topK..<(token + 1) * shape.topK).filter { input.experts[$0] >= 0 }
            func rank(_ entry: Int) -> Int { shape.placement.owner(of: Int(input.experts[entry])) }
            var sum: Float = 0
            for node in firsts(entries.map { rank($0) / size }) {
                var nodeSum: Float = 0
                let here = entries.filter { rank($0) / size == node }
                for mate in firsts(here.map(rank)) {
                    var rankSum: Float = 0
                    for entry in here where rank(entry) == mate {
                        let expert = Int(input.experts[entry])
                        let result = input.model.a(expert) * value + input.model.b(expert)
                        rankSum += result * input.weights[entry]
                    }
                    nodeSum += rankSum
                }
                sum += nodeSum
            }
            return sum
        }
    }

    /// Networks that reorder differently give the bits of the promised order.
    @Test func sumsHaveTheirOrder() throws {
        var shape = Self.small()
        (shape.ranks, shape.dispatchElement, shape.combineElement) = (6, .float32, .float32)
        for nodes in [2, 3] {
            var times: Set<UInt64> = []
            for seed in 1...8 as ClosedRange<UInt64> {
                let ranks = try Ranks(.simulated, count: 6, seed: seed)
                try ranks.open(shape, nodes: nodes)
                let drivers = try Self.drivers(ranks, shape)
                #expect(try ranks.run(drivers))
                for driver in drivers {
                    #expect(driver.values == promised(driver.input, 6 / nodes), "seed \(seed)")
                }
                times.insert(ranks.network?.traceHash ?? 0)
                try ranks.close()
            }
            #expect(times.count == 8, "the networks did not differ")
        }
    }

    /// The order of rows in an expert does not depend on arrival either.
    @Test func rowsHaveTheirOrder() throws {
        var shape = Self.small()
        // Two others inside the node, and two writes from each: what arrives first differs.
        (shape.ranks, shape.privateRows) = (6, 2)
        var expected: [[UInt8]] = []
        for seed in 1...8 as ClosedRange<UInt64> {
            let ranks = try Ranks(.simulated, count: 6, seed: seed)
            try ranks.open(shape, nodes: 2)
            let steps = try Self.drivers(ranks, shape)
            var found = [[UInt8]](repeating: [], count: 6)
            for step in steps {
                step.onReceived = {
                    found[step.rank] += UnsafeRawBufferPointer(start: $0.tokens, count: $0.rowCount * 80)
                }
            }
            #expect(try ranks.run(steps))
            if expected.isEmpty { expected = found }
            let bytes = found.reduce(0) { $0 + $1.count }
            #expect(found == expected && bytes == 6 * 30 * 6 * 80, "seed \(seed)")
            try ranks.close()
        }
    }

    /// Memory for a pass of a node's rank is a part of what floods it; between nodes there is one pass.
    @Test(.timeLimit(.minutes(5)), arguments: Transport.allCases)
    func aFloodedRankWorksInItsMemory(_ transport: Transport) throws {
        var shape = Self.small()
        (shape.hidden, shape.maximumTokens) = (64, 64)
        let room = try room(shape)
        shape.memoryBudget = room
        let ranks = try Ranks(transport, count: 4)
        try ranks.open(shape, nodes: 2)
        let few = Int32(shape.placement.experts(of: 1).lowerBound)
        for step in 0..<3 as Range<UInt64> {
            let steps = try Self.drivers(ranks, shape, step: step, count: step == 1 ? 5 : 64) {
                Int32.random(in: few..<few + 2, using: &$0)
            }
            #expect(try ranks.run(steps), "\(transport)")
            Self.expectRight(steps)
            #expect(step == 1 || steps[1].passes > 1, "it fits in one pass: the test shows nothing")
            #expect(steps[3].passes == 1)
        }
        #expect(ranks.nodeExchanges.allSatisfy { $0.byteCount <= room })
        #expect(ranks.nodeExchanges.allSatisfy { $0.statisticsBetweenNodes.passes == 3 })
        try ranks.close()
    }

    /// The least that a shape needs, and a bit.
    private func room(_ shape: ExpertConfiguration) throws -> Int {
        var shape = shape
        let ranks = try Ranks(.sharedMemory, count: 1)
        defer { ranks.engines[0].close() }
        var (low, high) = (0, try whole(shape, ranks))
        while high - low > 1000 {
            shape.memoryBudget = (low + high) / 2
            do { _ = try whole(shape, ranks) } catch let error as TransferError {
                #expect(error.code == .limitReached && error.message.contains("more steps"))
                low = (low + high) / 2
                continue
            }
            high = (low + high) / 2
        }
        #expect(low > 0)
        return high + high / 8
    }

    private func whole(_ shape: ExpertConfiguration, _ ranks: Ranks) throws -> Int {
        let exchange = try NodeExchange(ranks.engines[0], shape, nodes: 2)
        defer { try? exchange.close() }
        return exchange.byteCount
    }

    @Test(arguments: Transport.allCases) func microBatchesOverlap(_ transport: Transport) throws {
        let shape = Self.small()
        let ranks = try Ranks(transport, count: 4)
        try ranks.open(shape, nodes: 2)
        var flying = [0, 1].map { _ in [StepDriver]() }
        for step in 0..<10 as Range<UInt64> {
            let batch = Int(step % 2)
            #expect(try ranks.run(flying[batch]))
            Self.expectRight(flying[batch])
            flying[batch] = try Self.drivers(ranks, shape, step: step, batch: batch, count: Int(step) * 3) {
                Int32.random(in: -1..<18, using: &$0)
            }
            // Some ranks are ahead of others.
            for driver in flying[batch].prefix(2) { try driver.advance() }
        }
        for batch in 0...1 {
            #expect(try ranks.run(flying[batch]))
            Self.expectRight(flying[batch])
        }
        try ranks.close()
    }

    /// Whoever waits for one micro-batch forwards the other one: its sums leave the node before anybody calls for them.
    @Test func callsForwardOtherMicroBatches() throws {
        let shape = Self.small()
        let ranks = try Ranks(.simulated, count: 4)
        try ranks.open(shape, nodes: 2)
        let first = try Self.drivers(ranks, shape)
        #expect(try ranks.run(first))
        let later = try Self.drivers(ranks, shape, step: 1)
        let others = try Self.drivers(ranks, shape, step: 2, batch: 1)
        // Ranks 1 to 3 stop before their sums of micro-batch 0; rank 0 gets its own nevertheless.
        for driver in later.dropFirst() { driver.stopsBeforeSum = true }
        for round in 0..<20_000 where !later[0].isDone {
            for driver in later { try driver.advance() }
            for driver in others where round > 100 { try driver.advance() }
            ranks.pump()
        }
        #expect(later[0].isDone && !later[1].isDone)
        for driver in later { driver.stopsBeforeSum = false }
        #expect(try ranks.run(later + others))
        Self.expectRight(later + others)
        try ranks.close()
    }

    /// More experts than the 512 of the paper's kernels, and the longest list.
    @Test func manyExperts() throws {
        var shape = Self.small()
        (shape.ranks, shape.experts, shape.topK) = (6, 3001, 64)
        let ranks = try Ranks(.simulated, count: 6)
        try ranks.open(shape, nodes: 3)
        let steps = try Self.drivers(ranks, shape)
        #expect(try ranks.run(steps))
        Self.expectRight(steps)
        try ranks.close()
    }

    @Test func shapesThatCannotBeAreRefused() throws {
        let ranks = try Ranks(.sharedMemory, count: 1)
        func refusal(_ word: String, nodes: Int = 2, _ change: (inout ExpertConfiguration) -> Void) {
            var shape = Self.small()
            change(&shape)
            let error = #expect(throws: TransferError.self) {
                try NodeExchange(ranks.engines[0], shape, nodes: nodes)
            }
            #expect(error?.code == .invalidArgument && error?.message.contains(word) == true, "\(word)")
        }
        refusal("one size", nodes: 3) { _ in }
        refusal("one size", nodes: 0) { _ in }
        refusal("reduction") { $0.reduction = .receiver }
        refusal("replicas") { $0.replicas = 2 }
        refusal("without any") { $0.experts = 2 }
        refusal("several steps") { $0.maximumTokens = 1_048_576 }
        refusal("top-k") { $0.topK = 65 }
        try ranks.close()
    }

    @Test func callsComeInOrderAndShapesAreCompared() throws {
        let ranks = try Ranks(.sharedMemory, count: 2)
        var shape = Self.small()
        shape.ranks = 2
        try ranks.open(shape, nodes: 2)
        let exchange = ranks.nodeExchanges[0]
        #expect(throws: TransferError.self) { try exchange.dispatchReceive(0) }
        #expect(throws: TransferError.self) { try exchange.combineSend(0) }
        #expect(throws: TransferError.self) { try exchange.dispatchSend(2, try input(shape, 1).batch) }
        let error = #expect(throws: TransferError.self) {
            try exchange.dispatchSend(0, try input(shape, 99).batch)
        }
        #expect(error?.code == .invalidArgument, "expert 99 of 18")
        shape.rank = 1
        let other = try NodeExchange(ranks.engines[1], shape, nodes: 1)
        let mismatch = #expect(throws: TransferError.self) {
            try exchange.connect([exchange.address, other.address])
        }
        #expect(mismatch?.code == .invalidArgument)
        for cut in [0, 3, 20, 100, other.address.count - 1] {
            #expect(throws: TransferError.self) {
                try exchange.connect([exchange.address, Array(other.address.prefix(cut))])
            }
        }
        try other.close()
        try ranks.close()
    }

    private func input(_ shape: ExpertConfiguration, _ expert: Int32) throws -> StepInput {
        try StepInput(shape, count: 3, seed: 1) { _ in expert }
    }
}

/// What crosses between nodes, as the network sees it.
@Suite(.serialized) struct CrossingTests {
    /// Counts what goes from node to node: bytes, and writes for each pair of ranks.
    private struct Meter: SimulatedFaults {
        final class Counts {
            var bytes = 0
            var writes: [[Int]: Int] = [:]
        }
        let counts = Counts()
        let ranks: [UInt64: Int]
        let size: Int

        func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
            guard packet.kind == .data, let source = ranks[packet.source], let target = ranks[packet.target],
                source / size != target / size
            else { return .deliver }
            counts.bytes += packet.length
            if packet.offset + packet.length == packet.requestLength {
                counts.writes[[source, target], default: 0] += 1
            }
            return .deliver
        }
    }

    /// Bytes and writes of one step between nodes, in all.
    private func step(_ shape: ExpertConfiguration, nodes: Int, isFlat: Bool) throws -> (
        bytes: Int, writes: [[Int]: Int], inputs: [StepInput]
    ) {
        let ranks = try Ranks(.simulated, count: shape.ranks)
        if isFlat { try ranks.open(shape) } else { try ranks.open(shape, nodes: nodes) }
        let exchanges: [any TokenExchange] = isFlat ? ranks.exchanges : ranks.nodeExchanges
        let numbers = Dictionary(uniqueKeysWithValues: ranks.nics.enumerated().map { ($1, $0) })
        let meter = Meter(ranks: numbers, size: shape.ranks / nodes)
        ranks.network?.faults = meter
        let steps = try exchanges.enumerated().map { rank, exchange in
            StepDriver(
                exchange,
                try StepInput(
                    shape, count: 40, seed: UInt64(rank), choose: ExchangeTests.chooser(shape, 0)))
        }
        #expect(try ranks.run(steps))
        for step in steps { #expect(step.input.error(of: step.values) < 1) }
        let counts = meter.counts
        let inputs = steps.map(\.input)
        try ranks.close()
        return (counts.bytes, counts.writes, inputs)
    }

    /// Pairs of tokens and groups of `size` ranks that have one of their experts, on other nodes than the token's.
    private func pairs(_ inputs: [StepInput], _ shape: ExpertConfiguration, group: Int, node: Int) -> Int {
        inputs.enumerated().map { rank, input in
            (0..<input.count).map { token in
                let owners = input.experts[token * shape.topK..<(token + 1) * shape.topK].map {
                    shape.placement.owner(of: Int($0))
                }
                return Set(owners.filter { $0 / node != rank / node }.map { $0 / group }).count
            }.reduce(0, +)
        }.reduce(0, +)
    }

    /// A row and a sum travel once for each token and node, in one write for each rail; and else hardly anything.
    @Test func aTokenCrossesOnceToANode() throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 8, experts: 64, topK: 8, hidden: 2048, maximumTokens: 40)
        shape.reduction = .sender
        // A row in BF16 and a sum in FP32.
        let travels = 2048 * (2 + 4)
        let (bytes, writes, inputs) = try step(shape, nodes: 2, isFlat: false)
        let crossings = pairs(inputs, shape, group: 4, node: 4)
        #expect(crossings > 300, "nearly every token has an expert on the other node")
        #expect(bytes >= crossings * travels)
        // Weights, experts, and which are missing: less than 200 bytes for a row; and headers.
        #expect(bytes < crossings * (travels + 200) + 8 * 2000)
        #expect(Set(writes.keys) == Set((0..<8).map { [$0, ($0 + 4) % 8] }), "only along the rails")
        #expect(writes.values.allSatisfy { $0 == 2 }, "one for the dispatch, one for the combine")

        let flat = try step(shape, nodes: 2, isFlat: true)
        let single = pairs(inputs, shape, group: 1, node: 4)
        #expect(flat.bytes >= single * travels)
        #expect(flat.writes.count == 32 && flat.writes.values.reduce(0, +) >= 64)
        let ratio = Double(flat.bytes) / Double(bytes)
        let expected = Double(single) / Double(crossings)
        #expect(expected > 2.5 && abs(ratio - expected) < 0.1 * expected, "\(ratio), not \(expected)")
    }
}
