import CAllocationCounter
import ExpertParallel
import Testing
import TransferEngine

/// Once warm, a step allocates nothing (contract, promise 12). Counted by a replaced malloc; the least of several steps counts.
@Suite(.serialized) struct MoEAllocationTests {
    @Test(arguments: [ExpertConfiguration.Reduction.receiver, .sender], [nil, 3])
    func stepsDoNotAllocate(_ reduction: ExpertConfiguration.Reduction, _ privateRows: Int?) throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 2, experts: 8, topK: 4, hidden: 64, maximumTokens: 32)
        shape.reduction = reduction
        shape.privateRows = privateRows
        let ranks = try Ranks(.sharedMemory, count: 2)
        try ranks.open(shape)
        let (first, second) = (ranks.exchanges[0], ranks.exchanges[1])
        let inputs = try (0..<2).map { rank in
            try StepInput(shape, count: 32, seed: UInt64(rank), engine: ranks.engines[rank]) {
                Int32.random(in: 0..<8, using: &$0)
            }
        }
        // Batches point into the inputs.
        defer { withExtendedLifetime(inputs) {} }
        let batches = inputs.map(\.batch)
        let sums = (0..<2).map { _ in UnsafeMutableRawPointer.allocate(byteCount: 32 * 64 * 2, alignment: 64)
        }
        defer { for memory in sums { memory.deallocate() } }
        func step() throws {
            while try !first.tryDispatchSend(0, batches[0]) {}
            while try !second.tryDispatchSend(0, batches[1]) {}
            var isLast = (false, false)
            while !isLast.0 || !isLast.1 {
                if !isLast.0, let received = try first.tryDispatchReceive(0) {
                    isLast.0 = received.isLast
                    while try !first.tryCombineSend(0) {}
                }
                if !isLast.1, let received = try second.tryDispatchReceive(0) {
                    isLast.1 = received.isLast
                    while try !second.tryCombineSend(0) {}
                }
                ranks.engines[0].progress()
                ranks.engines[1].progress()
            }
            var done = (false, false)
            while !done.0 || !done.1 {
                if !done.0 { done.0 = try first.tryCombineReceive(0, into: sums[0]) != nil }
                if !done.1 { done.1 = try second.tryCombineReceive(0, into: sums[1]) != nil }
                ranks.engines[0].progress()
                ranks.engines[1].progress()
            }
        }
        for _ in 0..<20 { try step() }
        var least = UInt64.max
        for _ in 0..<50 {
            let before = allocation_count()
            try step()
            least = min(least, allocation_count() - before)
        }
        #if DEBUG
            // Unoptimised code boxes closures and tuples; the optimised suite of `make test` allows none.
            #expect(least <= 200)
        #else
            #expect(least == 0, "\(least) allocations in a step")
        #endif
        try ranks.close()
    }
}
