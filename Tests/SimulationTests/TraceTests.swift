import SimulatedProvider
import Testing
import TransferEngine

/// Under the simulator traces are a function of the seed.
@Suite struct SimulatedTraceTests {
    private func trace(seed: UInt64) throws -> [UInt8] {
        let network = SimulatedNetwork(seed: seed)
        let engine = try TransferEngine(
            Configuration(name: "a", progress: .manual), clock: network, random: SeededGenerator(seed: seed)
        ) { page in
            (0..<2).map {
                network.openDomain(
                    SimulatedNIC(name: "\($0)", megabitsPerSecond: 10_000), page: page, engine: page.engine)
            }
        }
        defer { engine.close() }
        let region = try engine.allocate(byteCount: 1 << 20, isPopulated: false)
        let remote = try engine.attach(engine.descriptor(of: region))
        for number in 1...20 {
            try engine.write(from: region, byteCount: number * 40_000, to: remote, immediate: 1)
            try engine.expect(1, count: 1)
        }
        for _ in 0..<100_000 {
            engine.progress()
            if !network.step() { break }
        }
        #expect(engine.count(of: 1) == 0)
        return engine.trace().encoded()
    }

    @Test func oneSeedOneTrace() throws {
        #expect(try trace(seed: 4) == trace(seed: 4))
        #expect(try trace(seed: 4) != trace(seed: 5))
    }
}
