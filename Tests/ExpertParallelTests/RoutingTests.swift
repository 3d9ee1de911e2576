import Testing
import TransferEngine

@testable import ExpertParallel

/// The arithmetic of an exchange, against its definition.
@Suite struct RoutingTests {
    @Test func placementCoversEveryExpertOnce() {
        for experts in 1...70 {
            for ranks in 1...20 {
                let placement = ExpertPlacement(experts: experts, ranks: ranks)
                let all = (0..<ranks).flatMap { Array(placement.experts(of: $0)) }
                #expect(all == Array(0..<experts))
                #expect((0..<ranks).map { placement.experts(of: $0).count }.max() == placement.most)
                for expert in 0..<experts {
                    #expect(placement.experts(of: placement.owner(of: expert)).contains(expert))
                }
            }
        }
    }

    @Test(arguments: 1...200 as ClosedRange<UInt64>)
    func everyEntryGetsItsRow(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        var shape = ExchangeTests.shape(seed)
        shape.ranks = Int.random(in: 1...9, using: &random)
        let count = Int.random(in: 0...shape.maximumTokens, using: &random)
        let lost = Int.random(in: 0..<4, using: &random) == 0 ? 0 : -1
        let experts = (0..<count * shape.topK).map { _ in
            Int32.random(in: -1..<Int32(shape.experts), using: &random)
        }
        var routing = Routing(shape)
        let base = Table(repeating: 0, count: shape.ranks)
        experts.withUnsafeBufferPointer { list in
            let empty = UnsafeMutablePointer<Int32>.allocate(capacity: 1)
            defer { empty.deallocate() }
            let list = list.baseAddress ?? UnsafePointer(empty)
            #expect(routing.route(list, count: count) { $0 != lost })
            var next = 0
            for rank in 0..<shape.ranks {
                base[rank] = next
                next += routing.results[rank]
            }
            routing.assignResults(list, base: base)
        }
        check(shape, routing, base, experts, count, lost)
    }

    private func check(
        _ shape: ExpertConfiguration, _ routing: borrowing Routing, _ base: borrowing Table<Int>,
        _ experts: [Int32], _ count: Int, _ lost: Int
    ) {
        let placement = shape.placement
        for rank in 0..<shape.ranks {
            // What the rank is to get: each token that has an expert there, once, in order.
            let expected =
                rank == lost
                ? []
                : (0..<count).filter { token in
                    (0..<shape.topK).contains {
                        let expert = experts[token * shape.topK + $0]
                        return expert >= 0 && placement.owner(of: Int(expert)) == rank
                    }
                }
            let list = (0..<routing.rows[rank]).map { Int(routing.tokens[routing.start[rank] + $0]) }
            #expect(list == expected)
            var results: [Int] = []
            for token in list {
                let entries = (token * shape.topK..<(token + 1) * shape.topK).filter {
                    experts[$0] >= 0 && placement.owner(of: Int(experts[$0])) == rank
                }
                let positions = entries.map { Int(routing.position[$0]) }.filter { $0 >= 0 }
                if shape.reduction == .sender { #expect(positions.count == 1) }
                results += positions
            }
            #expect(results == Array(base[rank]..<base[rank] + routing.results[rank]))
        }
        let dropped = experts.count { $0 >= 0 && placement.owner(of: Int($0)) == lost }
        #expect(routing.dropped == dropped)
    }

    @Test func unknownExpertsAreRefused() {
        let shape = ExpertConfiguration(
            rank: 0, ranks: 2, experts: 4, topK: 1, hidden: 4, maximumTokens: 4)
        var routing = Routing(shape)
        let experts: [Int32] = [4]
        experts.withUnsafeBufferPointer { list in
            guard let list = list.baseAddress else { return }
            #expect(!routing.route(list, count: 1) { _ in true })
        }
    }

    /// What is handed out never overlaps what is in quarantine or itself, and nothing of the room is wasted.
    @Test(arguments: 1...100 as ClosedRange<UInt64>)
    func arenaKeepsOutOfQuarantine(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let size = Int.random(in: 1...200, using: &random)
        var arena = Arena(byteCount: size)
        var used = [Bool](repeating: false, count: size)
        for _ in 0..<Int.random(in: 0...4, using: &random) {
            let first = Int.random(in: 0..<size, using: &random)
            guard let last = (first..<min(size, first + 9)).last, !used[first...last].contains(true) else {
                continue
            }
            for place in first...last { used[place] = true }
            arena.keepBack(first..<last + 1)
        }
        arena.restart()
        while let place = arena.take({ min($0, Int.random(in: 1...7, using: &random)) }) {
            #expect(!used[place])
            used[place] = true
            // The rest of the piece is found by the next one: pieces of one byte fill it.
            break
        }
        arena.restart()
        var free = used
        for place in free.indices { free[place] = false }
        for hole in arena.quarantine { for place in hole { free[place] = true } }
        while let place = arena.take(1) {
            #expect(!free[place])
            free[place] = true
        }
        #expect(!free.contains(false))
    }

    @Test func blocksHoldTheirRows() {
        for seed in 1...50 as ClosedRange<UInt64> {
            let format = RowFormat(ExchangeTests.shape(seed))
            for rows in 0...40 {
                let block = format.block(rows)
                #expect(block.scales >= rows * format.metaBytes)
                #expect(block.rows >= block.scales + rows * format.scaleBytes)
                #expect(block.byteCount >= block.rows + rows * format.rowBytes)
                #expect(block.byteCount % 64 == 0 && block.rows % 64 == 0 && block.scales % 64 == 0)
                #expect(format.rows(in: block.byteCount, limit: 100) >= rows)
                #expect(
                    block.byteCount == 0 || format.rows(in: block.byteCount - 1, limit: 100) < rows
                        || rows == 0)
            }
        }
    }

    /// The budget holds, and below the least that works there is an error that says how much that is.
    @Test func memoryStaysInItsBudget() throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 8, experts: 64, topK: 8, hidden: 512, maximumTokens: 256)
        let full = try MemoryPlan(shape).byteCount
        for share in [2, 3] {
            shape.memoryBudget = full * share / 4
            #expect(try MemoryPlan(shape).byteCount <= full * share / 4)
        }
        shape.memoryBudget = 1000
        let error = #expect(throws: TransferError.self) { try MemoryPlan(shape) }
        #expect(error?.code == .limitReached)
    }

    /// DeepSeek-V3 prefill over 64 ranks: at most a quarter of what the paper's formula needs.
    @Test func prefillNeedsAQuarterOfThePapersMemory() throws {
        var shape = ExpertConfiguration(
            rank: 0, ranks: 64, experts: 256, topK: 8, hidden: 7168, maximumTokens: 4096)
        shape.dispatchElement = .float8
        shape.scaleBlock = 128
        #expect(MemoryPlan.paperBytes(shape) > 28 << 30, "2 x 14.5 GiB, says the digest of the paper's code")
        #expect(try MemoryPlan(shape).byteCount * 4 <= MemoryPlan.paperBytes(shape))
    }
}
