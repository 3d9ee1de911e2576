import CAllocationCounter
import CVerbs
import CVerbsStandIn
import Glibc
import Testing
import TransferCore

@testable import VerbsProvider

/// What is posted: chains, signals, credits; and that no queue overruns.
@Suite(.serialized, .bothPostings) struct PostTests {
    private func connected(
        _ change: (inout VerbsOptions) -> Void = { _ in }
    ) throws -> (Network, End, End, UnsafeMutablePointer<ImportedKey>) {
        let (network, a, b) = try Network.pair(change)
        let target = unsafe try a.attach(b)
        #expect(network.run { a.isReady && b.isReady })
        return unsafe (network, a, b, target)
    }

    @Test(arguments: [1, 4, 16, 64]) func requestsAreChainedAndTheLastOfEachChainReports(_ length: Int) throws
    {
        let (network, a, b, target) = unsafe try connected { $0.chainLength = length }
        #expect(unsafe a.post(0..<100, to: target).accepted == 100)
        let chains = UInt64((100 + length - 1) / length)
        #expect(network.books.doorbells == chains && network.books.signaled == chains)
        #expect(network.books.called == (Network.posting == .calls ? chains : 0))
        #expect(network.books.longest_chain == UInt64(min(length, 100)) && network.books.requests == 100)
        #expect(network.run { a.ended.count == 100 })
        #expect(a.ended.values.allSatisfy { $0 == 1 } && Set(a.statuses.values) == [.success])
        #expect(b.count(of: 1) == 100)
    }

    @Test func requestsOfOneContextAreReportedTogether() throws {
        let (network, a, b, target) = unsafe try connected()
        let requests = (0..<64).map { _ in unsafe a.request(9, to: target) }
        #expect(a.post(requests).accepted == 64)
        a.poll(capacity: 1)
        #expect(a.ended[9] == 64)
        #expect(network.run { b.count(of: 1) == 64 })
    }

    @Test func shortOnesAreCopiedAndEmptyOnesHaveNoPart() throws {
        let (network, a, b, target) = unsafe try connected { $0.inlineBytes = 64 }
        let start = Int(network.books.record_count)
        let lengths = [0, 1, 64, 65, 4096]
        #expect(a.post(lengths.map { unsafe a.request(1, to: target, length: $0) }).accepted == 5)
        for (position, length) in lengths.enumerated() {
            let record = Self.record(network, start + position)
            #expect(record.parts == (length == 0 ? 0 : 1) && Int(record.length) == length)
            #expect((record.flags & IBV_SEND_INLINE.rawValue != 0) == (1...64).contains(length), "\(length)")
        }
        // Memory that the processor cannot read is never copied.
        var request = unsafe a.request(1, to: target, length: 8)
        request.localKey |= LocalKey.deviceMemory
        #expect(a.post([request]).accepted == 1)
        #expect(Self.record(network, start + 5).flags & IBV_SEND_INLINE.rawValue == 0)
        #expect(network.run { b.count(of: 1) == 6 })
    }

    private static func record(_ network: Network, _ number: Int) -> te_standin_record {
        var books = network.books
        return unsafe withUnsafeBytes(of: &books.records) {
            unsafe $0.bindMemory(to: te_standin_record.self)[number % Int(TE_STANDIN_RECORDS)]
        }
    }

    @Test func immediatesCarryTheirFractionAndDataIsRight() throws {
        let (network, a, b, target) = unsafe try connected()
        for index in 0..<4096 {
            unsafe a.memory.storeBytes(
                of: UInt8(truncatingIfNeeded: index * 7), toByteOffset: index, as: UInt8.self)
        }
        let eighths: [UInt32] = [4, 2, 1, 1, 0]
        let requests = eighths.enumerated().map { position, part in
            unsafe a.request(
                1, to: target, length: 500, from: position * 500, at: 8192 + position * 500, immediate: 77,
                eighths: part)
        }
        #expect(a.post(requests).accepted == 5)
        #expect(network.run { a.ended[1] == 5 && b.page.eighths(of: 77) == 8 })
        #expect(unsafe memcmp(a.memory, b.memory + 8192, 2500) == 0)
        #expect(unsafe (b.memory + 8192 + 2500).load(as: UInt8.self) == 0)
    }

    @Test func fullQueuePushesBackOnlyItsOwnPeer() throws {
        let network = Network(devices: 3)
        let ends = try (0..<3).map { try network.open($0) { $0.requestsPerPeer = 64 } }
        let (first, second) = unsafe (try ends[0].attach(ends[1]), try ends[0].attach(ends[2]))
        #expect(network.run { ends[0].connections(.ready).count == 2 })
        network.books.hold_requests = 1
        let result = unsafe ends[0].post(0..<200, to: first, length: 10)
        #expect(result.accepted == 64 && result.status == .targetBusy)
        #expect(unsafe ends[0].post(300..<310, to: second).accepted == 10)
        network.run(20)
        #expect(ends[0].ended.isEmpty)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        #expect(network.run { ends[0].ended.count == 74 })
        #expect(unsafe ends[0].post(64..<128, to: first).accepted == 64)
        #expect(network.run { ends[0].ended.count == 138 })
        #expect(network.books.queue_overruns == 0 && network.books.completion_overruns == 0)
    }

    /// Ends of a sender and some receivers, and the receivers as targets.
    private func scattered(
        _ count: Int, _ change: (inout VerbsOptions) -> Void = { _ in }
    ) throws -> (Network, [End], [UnsafeMutablePointer<ImportedKey>]) {
        let network = Network(devices: count + 1)
        let ends = try (0...count).map { try network.open($0, change) }
        let targets = unsafe try (1...count).map { unsafe try ends[0].attach(ends[$0]) }
        #expect(network.run { ends[0].connections(.ready).count == count })
        return unsafe (network, ends, targets)
    }

    /// However the requests to some peers lie in a batch, each queue pair's doorbell rings once for a chain.
    @Test func requestsAreGatheredByPeer() throws {
        let (network, ends, targets) = unsafe try scattered(3)
        for index in 0..<4096 {
            unsafe ends[0].memory.storeBytes(
                of: UInt8(truncatingIfNeeded: index * 7), toByteOffset: index, as: UInt8.self)
        }
        let start = Int(network.books.record_count)
        let requests = (0..<60).map { number in
            unsafe ends[0].request(
                UInt64(number), to: targets[number % 3], length: 60, from: 60 * number, at: 60 * number)
        }
        #expect(ends[0].post(requests).accepted == 60)
        #expect(network.books.doorbells == 6, "20 requests to each of 3 peers, in chains of 16")
        #expect(network.books.signaled == 6 && network.books.longest_chain == 16)
        // To each peer in the order of the batch.
        let addresses = (0..<60).map { Self.record(network, start + $0).remote_address }
        for peer in 1...3 {
            let base = UInt64(UInt(bitPattern: unsafe ends[peer].memory))
            let own = addresses.filter { (base..<base + 4096).contains($0) }
            #expect(own == own.sorted() && own.count == 20)
        }
        #expect(network.run { ends[0].ended.count == 60 })
        #expect(ends[0].ended.values.allSatisfy { $0 == 1 } && Set(ends[0].statuses.values) == [.success])
        for peer in 1...3 {
            #expect(ends[peer].count(of: 1) == 20)
            for number in stride(from: peer - 1, to: 60, by: 3) {
                let offset = 60 * number
                #expect(unsafe memcmp(ends[0].memory + offset, ends[peer].memory + offset, 60) == 0)
            }
        }
    }

    /// What is accepted of a batch is its front, up to the first that cannot be taken.
    @Test func gatheredRequestsAreAPrefix() throws {
        let (network, ends, targets) = unsafe try scattered(3) { $0.requestsPerPeer = 16 }
        network.books.hold_requests = 1
        #expect(unsafe ends[0].post(100..<110, to: targets[1]).accepted == 10)
        let before = network.books.doorbells
        let requests = (0..<60).map { unsafe ends[0].request(UInt64($0), to: targets[$0 % 3]) }
        let result = ends[0].post(requests)
        #expect(result.accepted == 19 && result.status != .success, "6 to the one with 10, and 7 and 6")
        #expect(network.books.doorbells - before == 3)
        let tooLong = unsafe ends[0].request(200, to: targets[2], length: 1 << 31)
        let mixed = [requests[0], requests[2], requests[3], tooLong, requests[5]]
        let refused = ends[0].post(mixed)
        #expect(refused.accepted == 3 && refused.status == .outOfRange)
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        #expect(network.run { ends[0].ended.values.reduce(0, +) == 32 })
        #expect((1...3).map { ends[$0].count(of: 1) } == [9, 16, 7])
        #expect(network.books.queue_overruns == 0)
        #expect(unsafe ends[0].domain.state.pointee.requestsInFlight == 0)
    }

    /// A batch that is longer than the engine's is taken whole.
    @Test func longBatchesAreGatheredInParts() throws {
        let (network, ends, targets) = unsafe try scattered(2)
        let requests = (0..<900).map { unsafe ends[0].request(UInt64($0), to: targets[$0 % 2], eighths: 0) }
        #expect(ends[0].post(requests).accepted == 900)
        #expect(network.run { ends[0].ended.count == 900 })
        #expect(ends[0].ended.values.allSatisfy { $0 == 1 })
    }

    @Test func requestsOfTheDomainAreLimitedToo() throws {
        let network = Network(devices: 5)
        let ends = try (0..<5).map { try network.open($0) { $0.requests = 100 } }
        let targets = unsafe try (1..<5).map { unsafe try ends[0].attach(ends[$0]) }
        #expect(network.run { ends[0].connections(.ready).count == 4 })
        network.books.hold_requests = 1
        let accepted = unsafe targets.map { unsafe ends[0].post(0..<60, to: $0).accepted }
        // Each as many as it leaves free.
        #expect(accepted[0] >= 48 && accepted.reduce(0, +) <= 100 && accepted.allSatisfy { $0 > 0 })
        network.books.hold_requests = 0
        unsafe te_standin_run(network.standIn, 1000)
        #expect(network.run { ends[0].ended.values.reduce(0, +) == accepted.reduce(0, +) })
        #expect(network.books.completion_overruns == 0)
    }

    /// A receiver that does not poll is not sent more than it has receives for.
    @Test func immediatesWaitForCredit() throws {
        let (network, a, b, target) = unsafe try connected {
            $0.immediateReceives = 1024
            $0.requestsPerPeer = 4096
        }
        let window = Int(b.connections(.ready)[0].grantedImmediates)
        #expect(window == (1024 - Tuning.receiveBatch) / 8)
        #expect(unsafe a.post(0..<1000, to: target).accepted == window)
        for _ in 0..<50 {
            a.poll()
            #expect(unsafe a.post(5000..<5001, to: target).status == .targetBusy)
        }
        // Writes that are not counted need no credit.
        #expect(a.post([unsafe a.request(1, to: target, eighths: 0)]).accepted == 1)
        var sent = window
        #expect(
            network.run {
                if sent < 5000 { sent += unsafe a.post(UInt64(10_000 + sent)..<15_000, to: target).accepted }
                return b.count(of: 1) == 5000
            })
        #expect(network.books.not_ready == 0)
    }

    @Test func messagesWaitForCredit() throws {
        let (network, a, b, target) = unsafe try connected { $0.messageReceives = 64 }
        let window = Int(b.connections(.ready)[0].grantedMessages)
        #expect(window == 8)
        var sent: UInt64 = 0
        while unsafe a.send([UInt8(sent)], to: target, context: sent).accepted == 1 { sent += 1 }
        #expect(sent == 8)
        #expect(
            network.run {
                while sent < 200, unsafe a.send([UInt8(sent)], to: target, context: sent).accepted == 1 {
                    sent += 1
                }
                return b.messages.count == 200 && a.ended.count == 200
            })
        #expect(b.messages.map(\.bytes) == (0..<200).map { [UInt8($0)] })
        #expect(b.messages.allSatisfy { $0.sender == a.page.engine.rawValue })
        #expect(network.books.not_ready == 0)
    }

    /// Immediates consume receives of their own: no message's buffer.
    @Test func messagesAndImmediatesDoNotMix() throws {
        let (network, a, b, target) = unsafe try connected { $0.messageReceives = 32 }
        var (sent, posted) = (0, 0)
        #expect(
            network.run {
                if posted < 3000 {
                    posted += unsafe a.post(UInt64(posted)..<UInt64(min(posted + 50, 3000)), to: target)
                        .accepted
                }
                let big = [UInt8](repeating: UInt8(sent % 251), count: Limits.packetBytes)
                if sent < 60 { sent += unsafe a.send(big, to: target, context: 1 << 40).accepted }
                return b.messages.count == 60 && b.count(of: 1) == 3000
            })
        #expect(
            b.messages.enumerated().allSatisfy {
                $1.bytes.count == Limits.packetBytes && $1.bytes[0] == $0 % 251
            })
    }

    /// What ends and finds no room in the caller's buffer is handed out later.
    @Test func smallCompletionBuffers() throws {
        let (network, a, b, target) = unsafe try connected()
        #expect(unsafe a.post(0..<200, to: target).accepted == 200)
        for round in 0..<300 {
            a.poll(capacity: 1 + round % 3)
            b.poll()
        }
        #expect(network.books.completion_overruns == 0)
        #expect(a.ended.count == 200 && a.ended.values.allSatisfy { $0 == 1 })
    }

    @Test func tooLongIsRefused() throws {
        let (_, a, _, target) = unsafe try connected()
        let result = a.post([unsafe a.request(1, to: target, length: 1 << 31)])
        #expect(result.accepted == 0 && result.status == .outOfRange)
        let long = [UInt8](repeating: 0, count: Limits.packetBytes + 1)
        #expect(unsafe a.send(long, to: target, context: 1).status == .outOfRange)
    }

    /// Without a choice calls are used where the device takes them, and lists where it does not.
    @Test(arguments: [false, true]) func postingIsChosen(_ isOld: Bool) throws {
        let network = Network()
        network.books.refuse_calls = isOld ? 1 : 0
        let ends = try (0..<2).map { try network.open($0) { $0.posting = .automatic } }
        #expect(ends[0].domain.posting == (isOld ? .lists : .calls))
        let target = unsafe try ends[0].attach(ends[1])
        #expect(network.run { unsafe ends[0].post(0..<40, to: target).accepted == 40 })
        #expect(network.run { ends[1].count(of: 1) == 40 })
        #expect((network.books.called > 0) == !isOld)
        #expect(network.books.queue_pairs == 6, "nothing is left of the trial")
        let name = network.options(0).device
        let port = unsafe VerbsSelection.ports(te_standin_api(), VerbsOptions()).first { $0.device == name }
        #expect(port?.posting == (isOld ? .lists : .calls), "what te info shows")
    }

    @Test func missingCallsAreSaid() throws {
        let network = Network()
        network.books.refuse_calls = 1
        let error = #expect(throws: TransferError.self) { try network.open(0) { $0.posting = .calls } }
        #expect(error?.code == .unavailable && error?.message.contains("ibv_wr_") == true)
        #expect(network.living == 0)
    }

    /// Contract, promise 12.
    @Test func nothingAllocatesOnceWarm() throws {
        let (_, a, b, target) = unsafe try connected()
        let output = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 32)
        defer { unsafe output.deallocate() }
        let requests = (0..<64).map { _ in unsafe a.request(1, to: target) }
        let bytes = [UInt8](repeating: 1, count: 1000)
        func round() -> UInt64 {
            unsafe requests.withUnsafeBufferPointer { requests in
                unsafe bytes.withUnsafeBytes { bytes in
                    let before = allocation_count()
                    for _ in 0..<20 {
                        _ = unsafe a.domain.post(requests)
                        _ = unsafe a.domain.send(bytes, to: target, context: 2)
                        _ = unsafe b.domain.poll(output)
                        _ = unsafe a.domain.poll(output)
                    }
                    return allocation_count() - before
                }
            }
        }
        // Other tests allocate at the same time in other threads; the least of many rounds is ours.
        #expect((0..<200).map { _ in round() }.min() == 0)
    }
}
