import Glibc
import SimulatedProvider
import Synchronization
import Testing
import TransferEngine

@testable import Simulation

/// What failing over costs, measured in virtual time.
@Suite struct FailoverTests {
    /// Two engines with four NICs each.
    private struct Pair {
        let network: SimulatedNetwork
        let a: TransferEngine
        let b: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion
        let remote: RemoteMemory
        let nicsOfA: [UInt64]

        init(bytes: Int, nics: Int = 4, latency: UInt64 = 2_000) throws {
            let network = SimulatedNetwork(seed: 3)
            final class IDs { var all: [UInt64] = [] }
            let ids = IDs()
            func engine(_ name: String, _ seed: UInt64) throws -> TransferEngine {
                var configuration = Configuration(name: name, progress: .manual)
                configuration.liveness = Liveness(interval: .milliseconds(50))
                return try TransferEngine(configuration, clock: network, random: SeededGenerator(seed: seed))
                {
                    page in
                    (0..<nics).map {
                        let domain = network.openDomain(
                            SimulatedNIC(
                                name: "\(name)\($0)", megabitsPerSecond: 10_000, latencyNanoseconds: latency,
                                maximumWriteBytes: 1 << 20, queueDepth: 32, reorder: false),
                            page: page, engine: page.engine)
                        ids.all.append(domain.id)
                        return domain
                    }
                }
            }
            self.network = network
            a = try engine("a", 1)
            nicsOfA = ids.all
            b = try engine("b", 2)
            source = try a.allocate(byteCount: bytes, isPopulated: false)
            target = try b.allocate(byteCount: bytes, isPopulated: false)
            remote = try a.attach(b.descriptor(of: target))
            for place in stride(from: 0, to: bytes, by: 8) {
                source.bytes.storeBytes(of: UInt64(place) &* 0x9E37, toByteOffset: place, as: UInt64.self)
            }
        }

        func close() {
            a.close()
            b.close()
        }

        /// Lets virtual time pass until `isDone` or nothing is left to happen.
        func run(until limit: UInt64 = .max, _ isDone: () -> Bool) {
            while !isDone(), network.nowNanoseconds < limit {
                if a.progress() || b.progress() { continue }
                let due = min(a.tick(), b.tick())
                if let next = network.nextEventNanoseconds, next <= due {
                    network.step()
                } else if due != .max {
                    network.run(until: due)
                } else {
                    return
                }
            }
        }

        func isEqual() -> Bool { memcmp(source.baseAddress, target.baseAddress, source.byteCount) == 0 }

        /// Eight small writes, until they have ended well; their immediates.
        func writeEight() throws -> [Immediate] {
            let immediates: [Immediate] = [1, 2, 3, 4, 5, 6, 7, 8]
            let writes = try immediates.map {
                try a.write(from: source, byteCount: 4096, to: remote, immediate: $0)
            }
            run { !writes.contains { a.isPending($0) } }
            #expect(writes.allSatisfy { a.status(of: $0) == .complete })
            return immediates
        }

        /// All of the source in pages of 16 KiB.
        func writePages(_ immediate: Immediate?) throws -> Transfer {
            let pages = (0..<UInt32(source.byteCount >> 14)).map { $0 }
            return try pages.withUnsafeBufferPointer { pages in
                let pages = Pages(pages, stride: 16384)
                return try a.write(
                    pageBytes: 16384, from: source, pages: pages, to: remote, pages: pages,
                    immediate: immediate)
            }
        }
    }

    /// One NIC does not answer from some moment on, to some moment; what it sends meanwhile is counted.
    private final class Outage: SimulatedFaults, @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        let nic: UInt64
        var begin: UInt64
        var end: UInt64
        var dataBytes = 0

        init(nic: UInt64, from begin: UInt64, to end: UInt64 = .max) {
            self.nic = nic
            self.begin = begin
            self.end = end
        }

        func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
            if packet.kind == .data { dataBytes += packet.length }
            let isOut = packet.source == nic && begin <= packet.nowNanoseconds && packet.nowNanoseconds < end
            return isOut ? .fail(.peerLost) : .deliver
        }
    }

    /// One of four NICs is lost in the middle of a transfer: at most a tenth more bytes, and what comes afterwards goes at
    /// 0.95 of three NICs.
    @Test func losingOneOfFourNICsCostsLittle() throws {
        let bytes = 16 << 20
        let pair = try Pair(bytes: bytes)
        defer { pair.close() }
        let outage = Outage(nic: pair.nicsOfA[1], from: 1_000_000)
        pair.network.faults = outage
        let first = try pair.writePages(1)
        pair.run { !pair.a.isPending(first) }
        #expect(pair.a.status(of: first) == .complete)
        #expect(pair.b.count(of: 1) == 1024)
        #expect(pair.isEqual())
        #expect(Double(outage.dataBytes) <= 1.1 * Double(bytes), "\(outage.dataBytes) bytes for \(bytes)")

        let begin = pair.network.nowNanoseconds
        let second = try pair.writePages(2)
        pair.run { !pair.a.isPending(second) }
        let ideal = Double(bytes) * 8 / 30  // nanoseconds at 3 x 10 Gbit/s
        let taken = Double(pair.network.nowNanoseconds - begin)
        #expect(taken <= ideal / 0.95, "\(ideal / taken) of three NICs")
    }

    /// Pages that nobody counts travel many in one request, and go one by one over the NICs that are left.
    @Test func runsOfPagesAreSentAgain() throws {
        let pair = try Pair(bytes: 16 << 20)
        defer { pair.close() }
        pair.network.faults = Outage(nic: pair.nicsOfA[1], from: 1_000_000)
        let transfer = try pair.writePages(nil)
        pair.run { !pair.a.isPending(transfer) }
        #expect(pair.a.status(of: transfer) == .complete)
        #expect(pair.isEqual())
        #expect(pair.a.statistics().nics.map(\.takenOver).reduce(0, +) >= 64)
    }

    /// A NIC that comes back is used again.
    @Test func aNICThatComesBackIsUsedAgain() throws {
        let bytes = 16 << 20
        let pair = try Pair(bytes: bytes)
        defer { pair.close() }
        pair.network.faults = Outage(nic: pair.nicsOfA[2], from: 0, to: 100_000_000)
        let first = try pair.a.write(from: pair.source, byteCount: bytes, to: pair.remote, immediate: 1)
        pair.run { !pair.a.isPending(first) }
        #expect(pair.a.status(of: first) == .complete)
        #expect(pair.a.usage.downLinks == 1)
        pair.run(until: 700_000_000) { pair.a.usage.downLinks == 0 }
        #expect(pair.a.usage.downLinks == 0, "tried again at the latest five intervals after it is well")
        let begin = pair.network.nowNanoseconds
        let second = try pair.a.write(from: pair.source, byteCount: bytes, to: pair.remote, immediate: 2)
        pair.run { !pair.a.isPending(second) }
        let taken = Double(pair.network.nowNanoseconds - begin)
        #expect(taken <= Double(bytes) * 8 / 40 / 0.95)
    }

    /// With the last NIC gone a transfer fails, with the reason.
    @Test func withTheLastNICGoneTransfersFail() throws {
        let pair = try Pair(bytes: 1 << 20, nics: 1)
        defer { pair.close() }
        pair.network.faults = Outage(nic: pair.nicsOfA[0], from: 0)
        let transfer = try pair.a.write(from: pair.source, byteCount: 1 << 20, to: pair.remote, immediate: 1)
        pair.run { !pair.a.isPending(transfer) }
        guard case .failed(let error) = pair.a.status(of: transfer) else {
            Issue.record("it did not fail")
            return
        }
        #expect(error.code == .peerLost)
        #expect(pair.b.count(of: 1) == 0)
    }

    /// A peer that stops for ever is noticed within three intervals, and named.
    @Test func aDeadPeerIsNamedWithinThreeIntervals() throws {
        let pair = try Pair(bytes: 4096, nics: 2)
        defer { pair.close() }
        let peer = try pair.a.connect(to: pair.b.address)
        let wait = try pair.a.expect(9, count: 1, from: [peer])
        pair.run(until: 1_000_000_000) { false }
        #expect(pair.a.isPending(wait), "a peer that answers is waited for")
        let begin = pair.network.nowNanoseconds
        // b makes no progress any more, its NICs live.
        while pair.a.isPending(wait), pair.network.nowNanoseconds < begin + 1_000_000_000 {
            if pair.a.progress() { continue }
            let due = pair.a.tick()
            if let next = pair.network.nextEventNanoseconds, next <= due {
                pair.network.step()
            } else {
                pair.network.run(until: due)
            }
        }
        guard case .failed(let error) = pair.a.status(of: wait) else {
            Issue.record("it was not noticed")
            return
        }
        #expect(error.code == .peerLost)
        #expect(error.message.contains("b (engine \(pair.b.id))"))
        let intervals = Double(pair.network.nowNanoseconds - begin) / 50_000_000
        #expect(intervals <= 3.3, "\(intervals) intervals")
    }

    /// A process that was stopped does not hold its own silence against those who have answered meanwhile.
    @Test func aPauseIsHeldAgainstNobody() throws {
        let pair = try Pair(bytes: 4096, nics: 2)
        defer { pair.close() }
        let peer = try pair.a.connect(to: pair.b.address)
        let wait = try pair.a.expect(9, count: 1, from: [peer])
        // a has asked, and stops; b answers.
        pair.run(until: 60_000_000) { false }
        let end = pair.network.nowNanoseconds + 10_000_000_000
        while pair.network.nowNanoseconds < end {
            if pair.b.progress() { continue }
            pair.network.run(until: pair.network.nowNanoseconds + 1_000_000)
        }
        // The first look comes before the answers are read.
        _ = pair.a.tick()
        #expect(pair.a.isPending(wait), "the peer lives")
        pair.run(until: pair.network.nowNanoseconds + 1_000_000_000) { false }
        #expect(pair.a.isPending(wait))
    }

    /// A transfer in flight is quiet two round trips after its cancellation.
    @Test func cancellingTakesTwoRoundTrips() throws {
        let latency: UInt64 = 500_000
        let pair = try Pair(bytes: 65536, nics: 2, latency: latency)
        defer { pair.close() }
        let transfer = try pair.a.write(from: pair.source, byteCount: 65536, to: pair.remote, immediate: 1)
        let receipt = Mutex<CancelReceipt?>(nil)
        let begin = pair.network.nowNanoseconds
        try pair.a.cancel(transfer) { received in receipt.withLock { $0 = received } }
        #expect(receipt.withLock { $0 } == nil, "what is on its way may still land")
        pair.run { receipt.withLock { $0 } != nil }
        #expect(receipt.withLock { $0 } == .quiescent)
        #expect(pair.network.nowNanoseconds - begin <= 4 * latency)
        guard case .failed(let error) = pair.a.status(of: transfer) else {
            Issue.record("it was not cancelled")
            return
        }
        #expect(error.code == .cancelled)
    }

    /// On the only NIC of a peer, a transfer that is cancelled and does not end leaves the others alone.
    @Test func cancellingOnTheOnlyNICLeavesOthersAlone() throws {
        let pair = try Pair(bytes: 65536, nics: 1)
        defer { pair.close() }
        struct Late: SimulatedFaults {
            func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
                packet.kind == .data ? .delay(nanoseconds: 40_000_000) : .deliver
            }
        }
        pair.network.faults = Late()
        let first = try pair.a.write(from: pair.source, byteCount: 4096, to: pair.remote, immediate: 1)
        let second = try pair.a.write(from: pair.source, byteCount: 4096, to: pair.remote, immediate: 2)
        let receipt = Mutex<CancelReceipt?>(nil)
        try pair.a.cancel(first, timeout: .milliseconds(16)) { received in receipt.withLock { $0 = received }
        }
        pair.run { !pair.a.isPending(second) && receipt.withLock { $0 } != nil }
        #expect(pair.a.status(of: second) == .complete)
        #expect(pair.b.count(of: 2) == 1)
        guard case .unproven = receipt.withLock({ $0 }) else {
            Issue.record("it was on its way when its time was over")
            return
        }
        // Alone it is broken, and the receiver's word is the proof.
        let third = try pair.a.write(from: pair.source, byteCount: 4096, to: pair.remote, immediate: 3)
        receipt.withLock { $0 = nil }
        try pair.a.cancel(third, timeout: .milliseconds(32)) { received in receipt.withLock { $0 = received }
        }
        pair.run { receipt.withLock { $0 } != nil }
        #expect(receipt.withLock { $0 } == .quiescent)
        #expect(pair.network.nowNanoseconds < 80_000_000)
    }

    /// While acknowledgements do not come, a cancelled transfer is not called quiet; the receiver's word makes it so.
    @Test func aLostAcknowledgementIsSettled() throws {
        let pair = try Pair(bytes: 65536, nics: 2)
        defer { pair.close() }
        struct NoAcknowledgements: SimulatedFaults {
            var until: UInt64
            func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
                packet.kind == .acknowledgement && packet.nowNanoseconds < until ? .fail(.peerLost) : .deliver
            }
        }
        pair.network.faults = NoAcknowledgements(until: 5_000_000)
        let transfer = try pair.a.write(from: pair.source, byteCount: 4096, to: pair.remote, immediate: 1)
        pair.run { !pair.a.isPending(transfer) }
        #expect(pair.a.status(of: transfer) == .complete, "the other NIC asked the receiver")
        #expect(pair.b.count(of: 1) == 1, "and nothing was counted twice")
    }

    /// A NIC may report a request of a connection that broke only after the receiver has said what it counted of it: what was
    /// counted is not sent again.
    @Test func aFailureThatIsReportedLateIsNotCountedTwice() throws {
        /// A NIC whose acknowledgements are lost at first, and that hands over one completion in five milliseconds.
        struct OneByOne: SimulatedFaults {
            let nic: UInt64
            var next: UInt64 = 0

            func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
                packet.kind == .acknowledgement && packet.source == nic && packet.nowNanoseconds < 5_000_000
                    ? .fail(.peerLost) : .deliver
            }

            mutating func handOver(_ room: Int, by nic: UInt64, nowNanoseconds: UInt64) -> Int {
                guard nic == self.nic else { return room }
                guard nowNanoseconds >= next else { return 0 }
                next = nowNanoseconds + 5_000_000
                return min(room, 1)
            }
        }
        let pair = try Pair(bytes: 65536, nics: 2)
        defer { pair.close() }
        pair.network.faults = OneByOne(nic: pair.nicsOfA[0])
        let immediates = try pair.writeEight()
        #expect(pair.a.statistics().nics[0].failed >= 2)
        for immediate in immediates { #expect(pair.b.count(of: immediate) == 1) }
    }

    /// What a receiver has said it did not count, and what was sent again over another NIC, may still be under way: it does
    /// not land any more.
    @Test func whatIsLateAfterTheReceiversWordDoesNotLand() throws {
        /// A NIC whose first write arrives and is not acknowledged, and whose others take 50 ms.
        struct SlowBehindTheFirst: SimulatedFaults {
            let nic: UInt64
            var isFirst = true

            mutating func verdict(for packet: SimulatedPacket) -> SimulatedVerdict {
                guard packet.source == nic, packet.nowNanoseconds < 5_000_000 else { return .deliver }
                if packet.kind == .acknowledgement { return .fail(.peerLost) }
                defer { isFirst = isFirst && packet.kind != .data }
                return packet.kind == .data && !isFirst ? .delay(nanoseconds: 50_000_000) : .deliver
            }
        }
        let pair = try Pair(bytes: 65536, nics: 2)
        defer { pair.close() }
        pair.network.faults = SlowBehindTheFirst(nic: pair.nicsOfA[0])
        let immediates = try pair.writeEight()
        #expect(pair.a.statistics().nics[1].takenOver >= 2)
        let ended = pair.network.nowNanoseconds
        #expect(ended < 50_000_000, "the other NIC has carried them before they came")
        pair.target.bytes.storeBytes(of: 7, as: UInt64.self)
        pair.network.run(until: 60_000_000)
        pair.run(until: 70_000_000) { false }
        for immediate in immediates { #expect(pair.b.count(of: immediate) == 1) }
        #expect(pair.target.bytes.load(as: UInt64.self) == 7, "nothing landed")
    }

    /// How long operations take is what the clock says: until the NICs have taken all, and until the end.
    @Test func durationsAreCounted() throws {
        let pair = try Pair(bytes: 8 << 20, nics: 2)
        defer { pair.close() }
        func pages() throws -> EngineStatistics.Operation {
            try #require(pair.a.statistics().operations.first { $0.name == "pages" })
        }
        var elapsed: [UInt64] = []
        for _ in 0..<2 {
            let begin = pair.network.nowNanoseconds
            let transfer = try pair.writePages(1)
            pair.run { !pair.a.isPending(transfer) }
            elapsed.append(pair.network.nowNanoseconds - begin)
        }
        let now = try pages()
        #expect(now.total.nanoseconds == elapsed.reduce(0, +))
        var expected = [UInt64](repeating: 0, count: EngineStatistics.Latency.bounds.count + 1)
        for duration in elapsed { expected[try #require(place(of: duration))] += 1 }
        #expect(now.total.counts == expected)
        // A NIC holds 32 of the 256 pages of each.
        #expect(now.posting.counts.reduce(0, +) == 2)
        let share = Double(now.posting.nanoseconds) / Double(now.total.nanoseconds)
        #expect(share > 0.8 && share < 0.95)
        // Chunks that nobody counts go first, and those that are counted behind them.
        let write = try pair.a.write(from: pair.source, byteCount: 8 << 20, to: pair.remote, immediate: 2)
        pair.run { !pair.a.isPending(write) }
        let writes = try #require(pair.a.statistics().operations.first { $0.name == "write" })
        #expect(writes.posting.counts.reduce(0, +) == 1 && writes.total.counts.reduce(0, +) == 1)
    }

    private func place(of duration: UInt64) -> Int? {
        EngineStatistics.Latency.bounds.firstIndex { duration <= $0 }
    }

    /// After `revoke` nothing lands, and the new descriptor works.
    @Test func revokingEndsTheRightOfWriters() throws {
        let pair = try Pair(bytes: 1 << 20)
        defer { pair.close() }
        let transfer = try pair.a.write(from: pair.source, byteCount: 1 << 20, to: pair.remote, immediate: 1)
        pair.run(until: 50_000) { false }
        let fresh = try pair.b.revoke(pair.target)
        let before = Array(fresh.bytes)
        pair.run { !pair.a.isPending(transfer) }
        #expect(Array(fresh.bytes) == before)
        guard case .failed(let error) = pair.a.status(of: transfer) else {
            Issue.record("a write into a revoked region did not fail")
            return
        }
        #expect(error.code == .staleRegion || error.code == .accessDenied)
        let again = try pair.a.write(
            from: pair.source, byteCount: 1 << 20, to: pair.a.attach(pair.b.descriptor(of: fresh)),
            immediate: 2)
        pair.run { !pair.a.isPending(again) }
        #expect(pair.b.count(of: 2) == 1)
        #expect(throws: TransferError.self) { try pair.b.revoke(pair.target) }
    }
}
