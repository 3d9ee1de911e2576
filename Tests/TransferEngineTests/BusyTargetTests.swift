import Testing
import TransferEngine

/// A target that its NIC takes nothing for holds up what is for it, and nothing else.
@Suite struct BusyTargetTests {
    /// What a NIC was given, by region, and for which regions it takes no more than so many.
    private final class Books: @unchecked Sendable {
        // SAFETY: the tests that use it have one thread.
        var room: [UInt32: Int] = [:]
        var posted: [UInt32: [(offset: UInt64, length: Int, eighths: UInt32)]] = [:]
        var context: UInt64 = 0
        var calls = 0

        func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
            calls += 1
            for (position, request) in requests.enumerated() {
                let region = request.target.pointee.index
                if let left = room[region] {
                    if left == 0 {
                        return PostResult(accepted: position, isComplete: false, status: .targetBusy)
                    }
                    room[region] = left - 1
                }
                context = request.context
                posted[region, default: []].append((request.targetOffset, request.length, request.eighths))
            }
            return PostResult(accepted: requests.count, isComplete: false, status: .success)
        }

        var total: Int { posted.values.reduce(0) { $0 + $1.count } }
    }

    private func engine(
        _ count: Int, maximumWriteBytes: UInt64 = 1 << 30
    ) throws -> (TransferEngine, ScriptedDomain, Books, MemoryRegion, [RemoteMemory], [UInt32]) {
        let nic = ScriptedDomain("a", maximumWriteBytes: maximumWriteBytes)
        let books = Books()
        nic.onPost = { books.post($0) }
        let engine = try makeEngine([nic])
        let source = try engine.allocate(byteCount: 1 << 20)
        let descriptors = try (0..<count).map { _ in
            engine.descriptor(of: try engine.allocate(byteCount: 1 << 20))
        }
        let targets = try descriptors.map { try engine.attach($0) }
        return (engine, nic, books, source, targets, descriptors.map(\.index))
    }

    private func complete(_ engine: TransferEngine, _ nic: ScriptedDomain, _ books: Books, _ ended: inout Int)
    {
        if books.total > ended {
            nic.completions = [Completion(context: books.context, count: UInt32(books.total - ended))]
            ended = books.total
        }
        engine.progress()
    }

    /// Each of four targets in turn is the slow one, in scatters that are cut and counted at the end.
    @Test(arguments: 0..<4, [1 << 30, 1000] as [UInt64])
    func threeOfFourGoOn(_ slow: Int, _ maximum: UInt64) throws {
        let (engine, nic, books, source, targets, regions) = try engine(4, maximumWriteBytes: maximum)
        defer { engine.close() }
        books.room[regions[slow]] = maximum == 1000 ? 2 : 0
        let slices = (0..<4).map {
            ScatterSlice(sourceOffset: $0 * 5000, byteCount: 5000, targetOffset: $0 * 100)
        }
        let scatter = try engine.scatter(from: source, slices, to: PeerGroup(targets), immediate: 1)
        let silent = maximum == 1000 ? 4 : 1
        for (target, region) in regions.enumerated() where target != slow {
            #expect(books.posted[region]?.count == silent)
        }
        #expect(books.posted[regions[slow]]?.count ?? 0 == (maximum == 1000 ? 2 : 0))
        var ended = 0
        for _ in 0..<5 { complete(engine, nic, books, &ended) }
        #expect(engine.isPending(scatter))
        // A transfer that comes later passes by.
        let other = try engine.write(from: source, byteCount: 10, to: targets[(slow + 1) % 4])
        #expect(books.posted[regions[(slow + 1) % 4]]?.last?.length == 10)
        _ = other
        books.room = [:]
        ended = books.total
        nic.completions = [Completion(context: books.context, count: 1)]
        for _ in 0..<20 { complete(engine, nic, books, &ended) }
        #expect(engine.status(of: scatter) == .complete)
        for (target, region) in regions.enumerated() {
            let requests = (books.posted[region] ?? []).filter { $0.length != 10 }
            // Every byte once, and one count.
            #expect(requests.reduce(0) { $0 + $1.length } == 5000)
            #expect(Set(requests.map(\.offset)).count == requests.count)
            #expect(requests.map(\.offset).min() == UInt64(target * 100))
            #expect(requests.reduce(0) { $0 + $1.eighths } == 8 && requests.last?.eighths == 8)
        }
    }

    /// Busy ones are asked for again in every round, once, and only they.
    @Test func onlyTheBusyOnesAreTriedAgain() throws {
        let (engine, _, books, source, targets, regions) = try engine(300)
        defer { engine.close() }
        for region in regions where region % 3 == 0 { books.room[region] = 0 }
        let busy = regions.filter { $0 % 3 == 0 }.count
        let slices = targets.indices.map { _ in
            ScatterSlice(sourceOffset: 0, byteCount: 8, targetOffset: 0)
        }
        let scatter = try engine.scatter(from: source, slices, to: PeerGroup(targets), immediate: 1)
        #expect(books.total == 300 - busy)
        books.calls = 0
        engine.progress()
        #expect(books.calls == busy && books.total == 300 - busy)
        for region in regions where region % 6 == 0 { books.room[region] = 1 }
        engine.progress()
        #expect(books.total == 300 - busy + regions.filter { $0 % 6 == 0 }.count)
        books.room = [:]
        engine.progress()
        #expect(books.total == 300 && books.posted.values.allSatisfy { $0.count == 1 })
        #expect(engine.isPending(scatter))
    }

    /// A NIC that is full for everybody is left alone until the next round.
    @Test func fullNICsAreAskedOnce() throws {
        let (engine, nic, _, source, targets, _) = try engine(10)
        defer { engine.close() }
        var calls = 0
        nic.onPost = { _ in
            calls += 1
            return PostResult(accepted: 0, isComplete: false, status: .again)
        }
        let slices = targets.indices.map { _ in ScatterSlice(sourceOffset: 0, byteCount: 8, targetOffset: 0) }
        try engine.scatter(from: source, slices, to: PeerGroup(targets), immediate: 1)
        #expect(calls == 1)
        engine.progress()
        #expect(calls == 2)
    }

    /// Much that waits for a full NIC costs a round little, and goes all at once when there is room again.
    @Test func manyTransfersTryAFewRequestsEach() throws {
        let (engine, nic, books, source, targets, _) = try engine(1)
        defer { engine.close() }
        var offered = 0
        nic.onPost = {
            offered += $0.count
            return PostResult(accepted: 0, isComplete: false, status: .again)
        }
        let pages = [UInt32](0..<1000)
        for _ in 0..<20 {
            try pages.withUnsafeBufferPointer { list in
                _ = try engine.write(
                    pageBytes: 64, from: source, pages: Pages(list, stride: 64), to: targets[0],
                    pages: Pages(list, stride: 128), immediate: 1)
            }
        }
        offered = 0
        engine.progress()
        #expect(offered == 20 * Limits.requestsPerRetry)
        nic.onPost = { books.post($0) }
        engine.progress()
        #expect(books.total == 20 * 1000)
        #expect(books.calls <= 20 * (2 + 1000 / Limits.requestsPerPost))
    }
}
