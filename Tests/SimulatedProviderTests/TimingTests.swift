import SimulatedProvider
import Testing
import TransferCore

@Suite struct TimingTests {
    private static func nic(_ megabits: UInt32, cuts: Bool = true) -> SimulatedNIC {
        SimulatedNIC(name: "\(megabits)", megabitsPerSecond: megabits, cutsWrites: cuts)
    }

    /// Virtual nanoseconds until `senders` have each written `bytes` to one receiver.
    private func time(
        senders: [SimulatedNIC], receiver: SimulatedNIC, bytes: Int, writes: Int = 1
    ) throws -> Double {
        let network = SimulatedNetwork(seed: 9)
        let target = try Node(network, receiver)
        let memory = try target.memory(bytes)
        var nodes: [(Node, Memory)] = []
        for nic in senders {
            let node = try Node(network, nic)
            let source = try node.memory(bytes, access: .localOnly)
            let key = try node.key(memory.remote)
            for _ in 0..<writes { try node.write(source, bytes / writes, to: key, immediate: 1) }
            nodes.append((node, source))
        }
        while target.page.eighths(of: 1) < 8 * senders.count * writes { #expect(network.step()) }
        while network.step() {}
        #expect(nodes.allSatisfy { $0.0.poll().requests == writes })
        return Double(network.nowNanoseconds)
    }

    private func expect(_ found: Double, near wanted: Double) {
        #expect(abs(found / wanted - 1) < 0.02, "\(found) ns instead of \(wanted) ns")
    }

    @Test(arguments: [true, false]) func bandwidth(cuts: Bool) throws {
        let bytes = 64 << 20
        let nic = Self.nic(1_000, cuts: cuts)
        expect(try time(senders: [nic], receiver: nic, bytes: bytes), near: Double(bytes) * 8)
        expect(try time(senders: [nic], receiver: nic, bytes: bytes, writes: 64), near: Double(bytes) * 8)
    }

    @Test func theSlowerSideDecides() throws {
        let bytes = 16 << 20
        let slow = Double(bytes) * 8
        let (one, four) = (Self.nic(1_000), Self.nic(4_000))
        expect(try time(senders: [one], receiver: four, bytes: bytes, writes: 16), near: slow)
        expect(try time(senders: [four], receiver: one, bytes: bytes, writes: 16), near: slow)
        expect(try time(senders: [four], receiver: four, bytes: bytes, writes: 16), near: slow / 4)
    }

    @Test func incastIsLimitedByTheReceiver() throws {
        let bytes = 8 << 20
        let alone = Double(bytes) * 8
        let senders = [SimulatedNIC](repeating: Self.nic(1_000), count: 4)
        expect(try time(senders: senders, receiver: Self.nic(1_000), bytes: bytes), near: alone * 4)
        expect(try time(senders: senders, receiver: Self.nic(2_000), bytes: bytes), near: alone * 2)
        expect(try time(senders: senders, receiver: Self.nic(4_000), bytes: bytes), near: alone)
        expect(try time(senders: senders, receiver: Self.nic(100_000), bytes: bytes), near: alone)
    }

    @Test func smallWritesPayForLatencyAndOverhead() throws {
        let nic = SimulatedNIC(
            name: "exact", megabitsPerSecond: 8_000, latencyNanoseconds: 700, jitterNanoseconds: 0,
            requestOverheadNanoseconds: 300)
        // 1 byte a nanosecond: overhead, latency, bytes, and the way back.
        #expect(try time(senders: [nic], receiver: nic, bytes: 100) == 300 + 700 + 100 + 700)
        // Of ten in a row the last one leaves after ten overheads and ten times the bytes.
        #expect(try time(senders: [nic], receiver: nic, bytes: 1000, writes: 10) == 4_000 + 700 + 700)
    }

    @Test func jitterStaysInItsBounds() throws {
        for seed in 0..<200 as Range<UInt64> {
            let nic = SimulatedNIC(
                name: "x", megabitsPerSecond: 8_000, latencyNanoseconds: 1_000, jitterNanoseconds: 10,
                requestOverheadNanoseconds: 0)
            let pair = try Pair(seed: seed, bytes: 8, left: nic, right: nic)
            try pair.left.write(pair.source, 8, to: pair.key)
            pair.settle()
            #expect((2_008...2_028).contains(pair.network.nowNanoseconds))
        }
    }
}
