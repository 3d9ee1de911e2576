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
        try expectNoAllocations(ranks, ranks.exchanges, shape)
    }

    /// Over nodes, of one and of two ranks.
    @Test(arguments: [2, 4]) func stepsOverNodesDoNotAllocate(_ count: Int) throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: count, experts: 8, topK: 4, hidden: 64, maximumTokens: 32)
        shape.reduction = .sender
        let ranks = try Ranks(.sharedMemory, count: count)
        try ranks.open(shape, nodes: 2)
        try expectNoAllocations(ranks, ranks.nodeExchanges, shape)
    }

    private func expectNoAllocations(
        _ ranks: Ranks, _ exchanges: [any TokenExchange], _ shape: ExpertConfiguration
    ) throws {
        let inputs = try exchanges.indices.map { rank in
            try StepInput(shape, count: 32, seed: UInt64(rank), engine: ranks.engines[rank]) {
                Int32.random(in: 0..<8, using: &$0)
            }
        }
        // Batches point into the inputs.
        defer { withExtendedLifetime(inputs) {} }
        let batches = inputs.map(\.batch)
        let sums = inputs.map { _ in UnsafeMutableRawPointer.allocate(byteCount: 32 * 64 * 2, alignment: 64) }
        defer { for memory in sums { memory.deallocate() } }
        // What each rank does next: send tokens, receive some, send results, receive sums; then it is done.
        var places = exchanges.map { _ in 0 }
        var isLast = exchanges.map { _ in false }
        func step() throws {
            for rank in places.indices { places[rank] = 0 }
            while places.contains(where: { $0 < 4 }) {
                for rank in places.indices {
                    let exchange = exchanges[rank]
                    switch places[rank] {
                    case 0: if try exchange.tryDispatchSend(0, batches[rank]) { places[rank] = 1 }
                    case 1:
                        if let received = try exchange.tryDispatchReceive(0) {
                            isLast[rank] = received.isLast
                            places[rank] = 2
                        }
                    case 2: if try exchange.tryCombineSend(0) { places[rank] = isLast[rank] ? 3 : 1 }
                    case 3:
                        if try exchange.tryCombineReceive(0, into: sums[rank], stride: nil) != nil {
                            places[rank] = 4
                        }
                    default: break
                    }
                    ranks.engines[rank].progress()
                }
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
            #expect(least <= 200 * exchanges.count)
        #else
            #expect(least == 0, "\(least) allocations in a step")
        #endif
        try ranks.close()
    }
}
