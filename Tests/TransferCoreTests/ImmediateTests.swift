import Testing
import TransferCore

@Suite struct ImmediateTests {
    @Test func theWireKeepsBothNumbers() {
        for eighths in [8, 4, 2, 1] as [UInt32] {
            for immediate in [0, 1, 0x1234_5678, Immediate.max.value] as [UInt32] {
                let wire = WireImmediate(immediate, eighths: eighths)
                #expect(wire.immediate == immediate)
                #expect(wire.eighths == eighths)
                #expect(WireImmediate(rawValue: wire.rawValue) == wire)
            }
        }
        #expect(WireImmediate(5, eighths: 8).rawValue == 5, "a whole count looks like the plain number")
        #expect(WireImmediate(5, eighths: 1).rawValue == 3 << 30 | 5)
    }

    @Test func everyWordIsAWireImmediate() {
        var random = SeededGenerator(seed: 11)
        for _ in 0..<10_000 {
            let wire = WireImmediate(rawValue: UInt32(truncatingIfNeeded: random.next()))
            #expect(WireImmediate(wire.immediate, eighths: wire.eighths) == wire)
        }
    }

    @Test func partsMakeOneCount() {
        for parts in 1...8 {
            let shares = (0..<parts).map { Eighths.share(of: $0, in: parts) }
            #expect(shares.reduce(0, +) == Eighths.whole)
            #expect(shares.allSatisfy { [1, 2, 4, 8].contains($0) })
        }
    }

    @Test func thirtyBitsAreTheCallers() {
        #expect(Immediate(exactly: (1 << 30) - 1) == Immediate.max)
        #expect(Immediate(exactly: 1 << 30) == nil)
        #expect(Immediate(exactly: -1) == nil)
        #expect(Immediate(truncatingIfNeeded: UInt64.max) == Immediate.max)
        #expect(Immediate(truncatingIfNeeded: 1 << 30 | 3) == 3)
    }

    @Test func generatorIsTheKnownOne() {
        var random = SeededGenerator(seed: 1_234_567)
        let known: [UInt64] = [
            6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423,
        ]
        #expect(known.map { _ in random.next() } == known)
    }
}
