import SimulatedProvider
import Testing
import TransferCore

@Suite struct DeterminismTests {
    private struct Trace: Hashable {
        var hash: UInt64
        var events: UInt64
        var end: UInt64
    }

    /// A busy conversation of two NICs: writes, messages, failures, polls.
    private func run(seed: UInt64, load: UInt64 = 1) throws -> Trace {
        let pair = try Pair(seed: seed)
        let back = try pair.right.key(pair.target.remote)  // to itself: a NIC reaches its own engine
        var random = SeededGenerator(seed: load)
        for _ in 0..<400 {
            let length = Int.random(in: 0...20_000, using: &random)
            let offset = UInt64.random(in: 0...1_050_000, using: &random)
            try pair.left.write(pair.source, length, to: pair.key, at: offset, immediate: 5)
            try pair.right.write(pair.target, length, to: back, immediate: 6)
            pair.left.send([1, 2, 3], to: pair.key)
            for _ in 0..<Int.random(in: 0...12, using: &random) { pair.network.step() }
            _ = pair.left.poll()
            _ = pair.right.poll()
        }
        pair.settle()
        return Trace(
            hash: pair.network.traceHash, events: pair.network.eventCount, end: pair.network.nowNanoseconds)
    }

    @Test func oneSeedIsOneTrace() throws {
        let first = try run(seed: 42)
        #expect(first.events > 2_000)
        #expect(try run(seed: 42) == first)
        #expect(try run(seed: 42) == first)
    }

    @Test func otherSeedsAreOtherTraces() throws {
        let traces = try (0..<20).map { try run(seed: $0) }
        #expect(Set(traces.map(\.hash)).count == 20)
        #expect(Set(traces.map(\.end)).count > 10, "not only the names differ")
    }

    @Test func otherWorkIsAnotherTrace() throws {
        #expect(try run(seed: 1, load: 1).hash != run(seed: 1, load: 2).hash)
    }

    @Test func timeMovesOnlyWhenTold() throws {
        let pair = try Pair()
        #expect(pair.network.nowNanoseconds == 0)
        #expect(!pair.network.step())
        pair.network.advance(by: 500)
        #expect(pair.network.nowNanoseconds == 500)
        try pair.left.write(pair.source, 100, to: pair.key)
        // The packet leaves now and arrives later.
        #expect(pair.network.nextEventNanoseconds == 500)
        pair.network.run(until: 500)
        #expect(pair.network.eventCount == 1)
        let left = try #require(pair.network.nextEventNanoseconds)
        #expect(left >= 550)
        pair.network.run(until: left)
        let due = try #require(pair.network.nextEventNanoseconds)
        #expect(due >= 500 + 50 + 2_000)
        #expect(pair.left.poll().requests == 0)
        pair.network.run(until: due - 1)
        #expect(pair.network.nowNanoseconds == due - 1)
        #expect(pair.network.eventCount == 2)
        pair.network.run(until: due)
        #expect(pair.network.eventCount == 3)
        pair.network.run(until: 3)
        #expect(pair.network.nowNanoseconds == due, "time never goes back")
        pair.network.advance(by: 1_000_000)
        #expect(pair.left.poll().requests == 1)
        #expect(pair.network.nextEventNanoseconds == nil)
    }
}
