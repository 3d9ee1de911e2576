import SimulatedProvider
import Testing
import TransferCore

/// Writes of which a part is moved, and the news that an engine has something to do.
@Suite struct SampleTests {
    private static let page = 65_536
    private static let sample = SimulatedSample(spacing: page, byteCount: 16)

    /// Virtual nanoseconds of some writes of a page each.
    private func time(_ sample: SimulatedSample?, cuts: Bool) throws -> UInt64 {
        let nic = SimulatedNIC(name: "x", megabitsPerSecond: 8_000, cutsWrites: cuts)
        let pair = try Pair(bytes: 16 * Self.page, left: nic, right: nic, sample: sample)
        for number in 0..<16 {
            try pair.left.write(
                pair.source, from: number * Self.page, Self.page, to: pair.key,
                at: UInt64(number * Self.page))
        }
        pair.settle()
        #expect(pair.left.poll().requests == 16)
        return pair.network.nowNanoseconds
    }

    @Test(arguments: [true, false]) func allBytesTakeTheirTime(cuts: Bool) throws {
        let sampled = try time(Self.sample, cuts: cuts)
        #expect(try time(nil, cuts: cuts) == sampled)
        #expect(sampled >= 16 * UInt64(Self.page))  // 1 byte a nanosecond
    }

    /// Of page 3 to page 5, with a gap before it in both.
    @Test func theBeginningIsMovedAndPacked() throws {
        let pair = try Pair(bytes: 8 * Self.page, sample: Self.sample)
        try pair.left.write(
            pair.source, from: 3 * Self.page + 4096, 32_768, to: pair.key, at: UInt64(5 * Self.page + 8192))
        pair.settle()
        #expect(Array(pair.target.bytes[5 * 16..<6 * 16]) == Array(pair.source.bytes[3 * 16..<4 * 16]))
        #expect(pair.target.bytes[..<(5 * 16)].allSatisfy { $0 == 0 })
        #expect(pair.target.bytes[(6 * 16)...].allSatisfy { $0 == 0 })
    }

    @Test func shortWritesAreMovedWhole() throws {
        let pair = try Pair(bytes: Self.page, sample: Self.sample)
        try pair.left.write(pair.source, 5, to: pair.key)
        pair.settle()
        #expect(Array(pair.target.bytes[..<5]) == Array(pair.source.bytes[..<5]))
        #expect(pair.target.bytes[5] == 0)
    }

    /// What is on the wire when its sender gives the connection up is the sample as it was then.
    @Test func whatIsGivenUpIsCaptured() throws {
        let nic = SimulatedNIC(name: "x", cutsWrites: false)
        let pair = try Pair(bytes: 2 * Self.page, left: nic, right: nic, sample: Self.sample)
        let before = Array(pair.source.bytes[16..<32])
        try pair.left.write(
            pair.source, from: Self.page, Self.page, to: pair.key, at: UInt64(Self.page))
        #expect(pair.network.step())  // its only packet has been sent
        pair.left.domain.sever(UnsafePointer(pair.key))
        for byte in pair.source.bytes.indices { pair.source.bytes[byte] = 0 }
        pair.settle()
        #expect(Array(pair.target.bytes[16..<32]) == before)
    }

    @Test func enginesAreTold() throws {
        let pair = try Pair()
        var told: [EngineID] = []
        pair.network.onReady = { told.append($0) }
        try pair.left.write(pair.source, 8, to: pair.key, immediate: 1)
        pair.settle()
        // The receiver of the count, and the writer of the end.
        #expect(told == [EngineID(rawValue: 22), EngineID(rawValue: 11)])
        told = []
        pair.left.send([1, 2, 3], to: pair.key)
        pair.settle()
        #expect(told == [EngineID(rawValue: 22), EngineID(rawValue: 11)])
    }
}
