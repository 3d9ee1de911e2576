import CPlatform
import CVerbsStandIn
import Platform
import Synchronization
import Testing
import TransferEngine

@testable import VerbsProvider

/// Engines with threads of their own, which sleep and are woken by the NIC.
@Suite struct WorkerTests {
    private func engine(_ network: Network, _ device: Int) throws -> TransferEngine {
        let options = network.options(device)
        return try TransferEngine(
            Configuration(name: "engine\(device)", progress: .adaptive, timeout: .seconds(20)),
            clock: SystemClock(), random: SystemRandomNumberGenerator()
        ) { page throws(TransferError) in
            unsafe [try VerbsDomain(options, page: page, engine: page.engine, api: te_standin_api())]
        }
    }

    @Test(.timeLimit(.minutes(1))) func sleepersAreWoken() throws {
        let network = Network()
        let (a, b) = (try engine(network, 0), try engine(network, 1))
        defer {
            a.close()
            b.close()
        }
        let source = try a.allocate(byteCount: 4096)
        let target = try b.allocate(byteCount: 4096)
        let remote = try a.attach(b.descriptor(of: target))
        let peer = try a.connect(to: b.address)
        let messages = Atomic<Int>(0)
        unsafe try b.receive { _, _ in messages.wrappingAdd(1, ordering: .relaxed) }
        for round in 1...10 {
            // Long enough for both to sleep.
            usleep(20_000)
            try a.wait(for: a.write(from: source, byteCount: 100, to: remote, immediate: 5))
            try b.wait(for: b.expect(5, count: 1))
            usleep(20_000)
            try a.wait(for: a.send([1, 2, 3], to: peer))
            while messages.load(ordering: .relaxed) < round { usleep(100) }
        }
    }

    @Test(.timeLimit(.minutes(1))) func idleEnginesUseNoProcessor() throws {
        let network = Network()
        let (a, b) = (try engine(network, 0), try engine(network, 1))
        defer {
            a.close()
            b.close()
        }
        let remote = try a.attach(b.descriptor(of: try b.allocate(byteCount: 4096)))
        try a.wait(for: a.send(immediate: 1, to: remote))
        usleep(100_000)
        // The polls of a domain count what its worker does, whatever other tests do meanwhile.
        let before = unsafe te_standin_polls(network.standIn)
        usleep(300_000)
        let after = unsafe te_standin_polls(network.standIn)
        #expect(after - before < 100)
    }
}
