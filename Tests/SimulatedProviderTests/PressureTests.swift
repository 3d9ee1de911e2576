import SimulatedProvider
import Testing
import TransferCore

/// Takes, hands over and repeats what a test says.
private struct Pressure: SimulatedFaults {
    var taken = Int.max
    var handedOver = Int.max
    var repetition: UInt64?

    func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
        repetition.map { .duplicate(nanoseconds: $0) } ?? .deliver
    }

    func admission(of offered: Int, by nic: UInt64, nowNanoseconds: UInt64) -> SimulatedAdmission {
        SimulatedAdmission(count: min(offered, taken), status: .targetBusy)
    }

    func handOver(_ room: Int, by nic: UInt64, nowNanoseconds: UInt64) -> Int { min(room, handedOver) }
}

@Suite struct PressureTests {
    /// What is repeated is a message, once more; its sender is told once. Writes are not repeated.
    @Test func messagesComeAgain() throws {
        let pair = try Pair()
        pair.network.faults = Pressure(repetition: 1_000_000)
        pair.left.send([1, 2, 3], to: pair.key)
        try pair.left.write(pair.source, 5_000, to: pair.key, immediate: 1)
        pair.network.run(until: 900_000)
        #expect(pair.right.poll().messages.count == 1)
        pair.settle()
        #expect(pair.right.poll().messages.count == 1)
        #expect(pair.left.poll().requests == 2)
        #expect(pair.right.page.eighths(of: 1) == 8)
    }

    /// Completions that are not handed over stay, in their order, and keep their places in the queue.
    @Test func completionsAreHeldBack() throws {
        let pair = try Pair()
        pair.network.faults = Pressure(handedOver: 0)
        for context in 1...3 as ClosedRange<UInt64> {
            try pair.left.write(pair.source, 100, to: pair.key, immediate: 1, context: context)
        }
        pair.settle()
        #expect(pair.left.poll().completions.isEmpty)
        pair.network.faults = Pressure(handedOver: 1)
        let first = pair.left.poll().completions
        #expect(first.count == 1)
        pair.network.faults = NoFaults()
        let rest = pair.left.poll().completions
        #expect(Set((first + rest).map(\.context)) == [1, 2, 3])
    }

    /// Of a batch the first ones are taken; what is left is said, and why.
    @Test func batchesAreTakenInPart() throws {
        let pair = try Pair()
        pair.network.faults = Pressure(taken: 0)
        let result = try pair.left.write(pair.source, 100, to: pair.key, immediate: 1)
        #expect(result.accepted == 0 && result.status == .targetBusy)
        pair.settle()
        #expect(pair.left.poll().completions.isEmpty && pair.right.page.eighths(of: 1) == 0)
    }
}
