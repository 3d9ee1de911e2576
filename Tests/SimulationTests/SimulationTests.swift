import SimulatedProvider
import Testing
import TransferEngine

/// The engine's own logic in virtual time: one seed, one run.
@Suite struct SimulationTests {
    /// Three engines with unequal NICs that write to each other at random until all is counted.
    private func run(seed: UInt64) throws -> (hash: UInt64, events: UInt64, time: UInt64) {
        let network = SimulatedNetwork(seed: seed)
        let engines = try [2, 3, 1].enumerated().map { index, nics in
            try TransferEngine(
                Configuration(name: "engine\(index)", progress: .manual), clock: network,
                random: SeededGenerator(seed: seed &+ UInt64(index))
            ) { page in
                (0..<nics).map {
                    network.openDomain(
                        SimulatedNIC(name: "\(index).\($0)", megabitsPerSecond: UInt32(($0 + 1) * 10_000)),
                        page: page,
                        engine: page.engine)
                }
            }
        }
        defer { for engine in engines { engine.close() } }
        let regions = try engines.map { try $0.allocate(byteCount: 1 << 20, isPopulated: false) }
        var generator = SeededGenerator(seed: seed)
        var expected = [0, 0, 0]
        var transfers: [(Int, Transfer)] = []
        for _ in 0..<200 {
            let from = Int.random(in: 0..<3, using: &generator)
            let to = (from + Int.random(in: 1..<3, using: &generator)) % 3
            let length = Int.random(in: 0..<300_000, using: &generator)
            let remote = try engines[from].attach(engines[to].descriptor(of: regions[to]))
            transfers.append(
                (
                    from,
                    try engines[from].write(from: regions[from], byteCount: length, to: remote, immediate: 1)
                ))
            expected[to] += 1
        }
        for _ in 0..<1_000_000 {
            for engine in engines { engine.progress() }
            if !network.step() { break }
        }
        for (engine, transfer) in transfers { #expect(engines[engine].status(of: transfer) == .complete) }
        for (engine, count) in zip(engines, expected) { #expect(engine.count(of: 1) == count) }
        return (network.traceHash, network.eventCount, network.nowNanoseconds)
    }

    @Test(arguments: [1, 2, 3] as [UInt64]) func oneSeedOneTrace(_ seed: UInt64) throws {
        let first = try run(seed: seed)
        let second = try run(seed: seed)
        #expect(first == second)
        #expect(first.events > 1000)
    }

    @Test func anotherSeedAnotherTrace() throws {
        #expect(try run(seed: 10).hash != run(seed: 11).hash)
    }

    /// Virtual time says what striping is worth: 64 MiB over NICs of different speed take as long as the sum of the speeds
    /// says, on whichever side the NICs are fewer.
    @Test(arguments: [
        ([1000], [1000]), ([1000, 1000], [1000, 1000]), ([1000, 1000], [1000, 1000, 1000, 1000]),
        ([2000, 1000], [3000]), ([2000, 2000], [1000, 1000, 1000, 1000]), ([3000], [2000, 1000]),
        ([1000, 1000, 1000], [2000, 1000]),
    ])
    func stripingUsesEveryNIC(_ local: [Int], _ remote: [Int]) throws {
        let network = SimulatedNetwork(seed: 5)
        func engine(_ name: String, _ speeds: [Int], _ seed: UInt64) throws -> TransferEngine {
            try TransferEngine(
                Configuration(name: name, progress: .manual), clock: network,
                random: SeededGenerator(seed: seed)
            ) { page in
                speeds.enumerated().map { index, speed in
                    network.openDomain(
                        SimulatedNIC(name: "\(name)\(index)", megabitsPerSecond: UInt32(speed)), page: page,
                        engine: page.engine)
                }
            }
        }
        let a = try engine("a", local, 1)
        let b = try engine("b", remote, 2)
        defer {
            a.close()
            b.close()
        }
        let bytes = 64 << 20
        let source = try a.allocate(byteCount: bytes, isPopulated: false)
        let target = try b.allocate(byteCount: bytes, isPopulated: false)
        let transfer = try a.write(
            from: source, byteCount: bytes, to: a.attach(b.descriptor(of: target)), immediate: 1,
            timeout: .seconds(100))
        while a.isPending(transfer) {
            a.progress()
            if !network.step() { break }
        }
        #expect(b.count(of: 1) == 1)
        let ideal = Double(bytes) * 8 / Double(min(local.reduce(0, +), remote.reduce(0, +))) * 1000
        // A NIC that is faster than its targets ends with a whole packet to each, up to a thirty-second of what it sends there.
        let allowed = local.max() ?? 0 > remote.max() ?? 0 ? 1.08 : 1.05
        #expect(
            Double(network.nowNanoseconds) < ideal * allowed, "\(network.nowNanoseconds) ns, ideal \(ideal)")
    }
}
