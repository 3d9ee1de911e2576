import SimulatedProvider
import Testing
import TransferCore

/// Gives one verdict on packets of one kind.
private struct Fault: SimulatedFaults {
    var kind: SimulatedPacket.Kind
    var verdict: SimulatedVerdict
    var remaining = Int.max
    var offset: Int?

    mutating func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
        guard packet.kind == kind, remaining > 0, offset == nil || packet.offset == offset else {
            return .deliver
        }
        remaining -= 1
        return verdict
    }
}

@Suite struct FaultTests {
    @Test func lostDataIsAnError() throws {
        let pair = try Pair()
        pair.network.faults = Fault(kind: .data, verdict: .fail(.peerLost), remaining: 1)
        try pair.left.write(pair.source, 500_000, to: pair.key, immediate: 1)
        pair.settle()
        #expect(pair.left.poll().completions.map(\.status) == [.peerLost])
        #expect(pair.right.page.eighths(of: 1) == 0)
        #expect(pair.target.bytes.allSatisfy { $0 == 0 }, "after a failure the rest is not written either")
        #expect(pair.network.nowNanoseconds > 10_000_000)
        try pair.left.write(pair.source, 500_000, to: pair.key, immediate: 1)
        pair.settle()
        #expect(pair.left.poll().completions.map(\.status) == [.success])
        #expect(pair.right.page.eighths(of: 1) == 8)
    }

    /// The case that makes retries hard: the data is there, and the sender is told that it failed.
    @Test func lostAcknowledgementsLookLikeFailures() throws {
        let pair = try Pair()
        pair.network.faults = Fault(kind: .acknowledgement, verdict: .fail(.peerLost))
        try pair.left.write(pair.source, 5_000, to: pair.key, immediate: 1)
        pair.settle()
        #expect(pair.left.poll().completions.map(\.status) == [.peerLost])
        #expect(pair.right.page.eighths(of: 1) == 8)
        #expect(pair.target.bytes[..<5_000].elementsEqual(pair.source.bytes[..<5_000]))
    }

    @Test func delaysDelay() throws {
        for kind in [SimulatedPacket.Kind.data, .acknowledgement] {
            let pair = try Pair()
            pair.network.faults = Fault(kind: kind, verdict: .delay(nanoseconds: 1_000_000))
            try pair.left.write(pair.source, 100, to: pair.key, immediate: 1)
            pair.settle()
            #expect((1_000_000...1_030_000).contains(pair.network.nowNanoseconds), "once, not for ever")
            #expect(pair.left.poll().completions.map(\.status) == [.success])
        }
    }

    @Test func oneLatePacketHoldsTheCountBack() throws {
        let pair = try Pair()
        pair.network.faults = Fault(kind: .data, verdict: .delay(nanoseconds: 1_000_000), offset: 0)
        try pair.left.write(pair.source, 500_000, to: pair.key, immediate: 1)
        pair.network.run(until: 900_000)
        #expect(pair.right.page.eighths(of: 1) == 0)
        #expect(pair.target.bytes[499_999] != 0)
        pair.settle()
        #expect(pair.right.page.eighths(of: 1) == 8)
        #expect(pair.target.bytes[..<500_000].elementsEqual(pair.source.bytes[..<500_000]))
    }

    @Test func lostMessagesAreErrors() throws {
        let pair = try Pair()
        pair.network.faults = Fault(kind: .message, verdict: .fail(.providerFailed), remaining: 1)
        pair.left.send([1], to: pair.key)
        pair.settle()
        #expect(pair.left.poll().completions.map(\.status) == [.providerFailed])
        #expect(pair.right.poll().messages.isEmpty)
    }
}
