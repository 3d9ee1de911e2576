import Glibc
import SimulatedProvider
import Testing
import TransferEngine

@testable import Simulation

/// Less urgent traffic keeps out of the way of more urgent traffic, in virtual time; and over shared memory, turn by turn.
@Suite struct TrafficClassTests {
    private static let byteCount = 64 << 20
    private static let pageBytes = 65536

    /// Two engines with one NIC of 400 Gbit/s each; a flood of pages from one to the other, and short writes beside it.
    private struct Pair {
        let network = SimulatedNetwork(seed: 5)
        let a: TransferEngine
        let b: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion

        init() throws {
            let network = network
            func engine(_ name: String, _ seed: UInt64) throws -> TransferEngine {
                try TransferEngine(
                    Configuration(name: name, progress: .manual), clock: network,
                    random: SeededGenerator(seed: seed)
                ) { page in
                    [
                        network.openDomain(
                            SimulatedNIC(
                                name: name, megabitsPerSecond: 400_000, jitterNanoseconds: 0,
                                maximumWriteBytes: 1 << 20, queueDepth: 4096, reorder: false),
                            page: page, engine: page.engine)
                    ]
                }
            }
            a = try engine("a", 1)
            b = try engine("b", 2)
            source = try a.allocate(byteCount: byteCount, isPopulated: false)
            target = try b.allocate(byteCount: byteCount, isPopulated: false)
        }

        func run(until time: UInt64 = .max, _ isDone: () -> Bool) {
            while !isDone(), network.nowNanoseconds < time {
                if a.progress() || b.progress() { continue }
                if let next = network.nextEventNanoseconds, next < time {
                    network.step()
                } else if time != .max {
                    network.run(until: time)
                } else {
                    return
                }
            }
        }

        /// Nanoseconds that a short write took at most, and those of the flood, while one of the former began every 20
        /// microseconds.
        func race(_ short: TrafficClass, _ long: TrafficClass) throws -> (worst: UInt64, flood: UInt64) {
            let urgent = try a.attach(b.descriptor(of: target), as: short)
            let flooded = try a.attach(b.descriptor(of: target), as: long)
            func hurry() throws -> UInt64 {
                let begin = network.nowNanoseconds
                let write = try a.write(from: source, byteCount: 8192, to: urgent, immediate: 1)
                run { a.status(of: write) != .pending }
                #expect(a.status(of: write) == .complete)
                return network.nowNanoseconds - begin
            }
            _ = try hurry()
            let begin = network.nowNanoseconds
            let pages = Array(UInt32(1)..<UInt32(byteCount / pageBytes))
            let reversed = Array(pages.reversed())
            let flood = try pages.withUnsafeBufferPointer { from in
                try reversed.withUnsafeBufferPointer { to in
                    try a.write(
                        pageBytes: pageBytes, from: source, pages: Pages(from, stride: pageBytes),
                        to: flooded, pages: Pages(to, stride: pageBytes), immediate: 2)
                }
            }
            var worst: UInt64 = 0
            for _ in 0..<1000 where a.status(of: flood) == .pending {
                worst = max(worst, try hurry())
                run(until: network.nowNanoseconds + 20_000) { a.status(of: flood) != .pending }
            }
            #expect(a.status(of: flood) == .complete)
            return (worst, network.nowNanoseconds - begin)
        }
    }

    @Test(arguments: [(TrafficClass.urgent, TrafficClass.normal), (.normal, .bulk), (.urgent, .bulk)])
    func aFloodYields(_ short: TrafficClass, _ long: TrafficClass) throws {
        let alike = try Pair().race(.normal, .normal)
        let ordered = try Pair().race(short, long)
        #expect(alike.worst > 1_000_000, "64 MiB at 400 Gbit/s are before it")
        #expect(ordered.worst < 15_000, "256 KiB are, and the wire takes 4 microseconds for both ways")
        #expect(ordered.flood < 2 * alike.flood + 100_000, "and the flood keeps half of the NIC")
    }

    @Test func theMostUrgentDoesNotYield() throws {
        let alike = try Pair().race(.normal, .normal)
        let turned = try Pair().race(.bulk, .urgent)
        #expect(turned.flood <= alike.flood + 1000)
        #expect(turned.worst > 1_000_000)
    }

    @Test func copiesTakeTurns() throws {
        var configuration = Configuration(name: "turns", progress: .manual)
        configuration.yielding.hold = .seconds(60)
        let engine = try TransferEngine(configuration)
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 8 << 20)
        let target = try engine.allocate(byteCount: 8 << 20)
        let normal = try engine.attach(engine.descriptor(of: target), as: .normal)
        let urgent = try engine.attach(engine.descriptor(of: target), as: .urgent)
        #expect(normal != urgent)
        #expect(try engine.attach(engine.descriptor(of: target)) == normal)
        for place in stride(from: 0, to: 8 << 20, by: 8) {
            source.bytes.storeBytes(of: UInt64(place) &* 0x9E37, toByteOffset: place, as: UInt64.self)
        }
        try engine.wait(for: engine.write(from: source, byteCount: 8, to: urgent))
        let all = (0..<UInt32(128)).map { $0 }
        let long = try all.withUnsafeBufferPointer {
            let pages = Pages($0, stride: 65536)
            return try engine.write(
                pageBytes: 65536, from: source, pages: pages, to: normal, pages: pages, immediate: 3)
        }
        #expect(engine.status(of: long) == .pending, "a part of it in each turn")
        let short = try engine.write(from: source, byteCount: 8, to: urgent, immediate: 4)
        #expect(engine.status(of: short) == .complete && engine.status(of: long) == .pending)
        var turns = 1
        while engine.status(of: long) == .pending, turns < 100 {
            engine.progress()
            turns += 1
        }
        #expect(engine.status(of: long) == .complete)
        #expect(turns == 32, "8 MiB, 256 KiB in each")
        #expect(engine.count(of: 3) == 128 && engine.count(of: 4) == 1)
        #expect(memcmp(source.baseAddress, target.baseAddress, 8 << 20) == 0)
    }
}
