import Testing
import TransferEngine

@testable import ExpertParallel

/// The two exchanges that one over nodes consists of.
@Suite(.serialized) struct LevelTests {
    /// Experts are where they are without nodes, whatever does not divide what.
    @Test func expertsStayWhereTheyAre() throws {
        for nodes in 1...5 {
            for size in 1...4 {
                let ranks = nodes * size
                for experts in (ranks - size + 1)...(ranks * 3) {
                    var shape = ExpertConfiguration(
                        rank: 0, ranks: ranks, experts: experts, topK: 3, hidden: 8, maximumTokens: 4)
                    shape.reduction = .sender
                    for rank in 0..<ranks {
                        shape.rank = rank
                        let (between, inside) = try shape.levels(nodes: nodes)
                        let first = shape.experts(ofNode: rank / size, of: nodes).lowerBound
                        let local = inside.placement.experts(of: inside.rank)
                        let found = local.lowerBound + first..<local.upperBound + first
                        #expect(found == shape.placement.experts(of: rank))
                        #expect(between.placement.experts(of: between.rank) == rank / size..<rank / size + 1)
                    }
                }
            }
        }
    }

    /// Between nodes there is room for all that can come, and it is the first write that brings it; for balanced tokens the
    /// output inside a node is what it is without nodes.
    @Test func roomIsForEverythingBetweenNodes() throws {
        for seed in 1...40 as ClosedRange<UInt64> {
            let (shape, nodes) = NodeTests.shape(seed)
            let (between, inside) = try shape.levels(nodes: nodes)
            let plan = try MemoryPlan(between)
            #expect(plan.privateRows == shape.maximumTokens)
            #expect(plan.outputRows == nodes * shape.maximumTokens)
            #expect(plan.combineBytes == 0)
            #expect(inside.maximumTokens == plan.outputRows)
        }
        var shape = ExpertConfiguration(
            rank: 0, ranks: 64, experts: 256, topK: 8, hidden: 7168, maximumTokens: 128)
        shape.reduction = .sender
        let flat = try MemoryPlan(shape)
        #expect(try MemoryPlan(shape.levels(nodes: 8).inside).outputRows == flat.outputRows)
    }

    /// A rank of another node sends a row that is two: it is left out, and the step ends.
    @Test func aRowIsOneCopy() throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 2, experts: 4, topK: 2, hidden: 16, maximumTokens: 8)
        shape.reduction = .sender
        let ranks = try Ranks(.simulated, count: 2)
        let ours = try NodeExchange(ranks.engines[0], shape, nodes: 2, clock: ranks.network)
        shape.rank = 1
        let other = try NodeExchange(ranks.engines[1], shape, nodes: 2, clock: ranks.network)
        let levels = try shape.levels(nodes: 2)
        let theirs = try ExpertExchange(ranks.engines[1], levels.between, clock: ranks.network)
        let told = try NodeAddress(decoding: other.address)
        let address = NodeAddress(
            fingerprint: told.fingerprint, rank: 1, between: theirs.address, inside: told.inside)
        try ours.connect([ours.address, address.encoded()])
        try theirs.connect([ours.between.address, theirs.address])

        let step = StepDriver(
            ours, try StepInput(shape, count: 8, seed: 1, choose: { Int32.random(in: 0..<4, using: &$0) }))
        // Each entry is the first node, and so many scales that they are also what travels behind them.
        var both = levels.between
        both.scaleBlock = 1
        let input = try StepInput(both, count: 8, seed: 2, choose: { _ in 0 })
        #expect(try theirs.tryDispatchSend(0, input.batch))
        for _ in 0..<100_000 where !step.isDone {
            try step.advance()
            _ = try? theirs.tryDispatchReceive(0)
            ranks.pump()
        }
        #expect(step.result?.missingRanks == [1])
        #expect(ours.failure(of: 1)?.code == .malformedDescriptor)
        let experts = shape.placement.experts(of: 1)
        #expect(step.input.error(of: step.values, isThere: { !experts.contains($0) }) < 1)
        withExtendedLifetime(input) {}
        try ours.close()
        try other.close()
        try theirs.close()
        try ranks.close()
    }
}
