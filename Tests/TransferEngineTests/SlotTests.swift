import Synchronization
import Testing
import TransferEngine

/// A number that callbacks raise.
final class Tally: Sendable {
    let count = Atomic<Int>(0)
}

/// Each operation ends once, whatever comes in which order.
@Suite struct SlotTests {
    /// One NIC takes its stripe and reports a failure, while the other one still pushes back: the transfer had both a
    /// place in the queue of those to be posted and nothing in flight any more.
    @Test func aTransferThatWasPushedBackAndFailedEndsOnce() throws {
        let nics = [ScriptedDomain("a"), ScriptedDomain("b")]
        var contexts: [UInt64] = []
        nics[0].onPost = { requests in
            contexts += requests.map(\.context)
            return PostResult(accepted: requests.count, isComplete: false, status: .success)
        }
        nics[1].onPost = { _ in PostResult(accepted: 0, isComplete: false, status: .again) }
        let engine = try makeEngine(nics)
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 1 << 20)
        let remote = try engine.attach(engine.descriptor(of: source))
        let ends = Tally()
        let transfer = try engine.write(from: source, byteCount: 1 << 20, to: remote, immediate: 1) { _ in
            ends.count.add(1, ordering: .relaxed)
        }
        #expect(engine.isPending(transfer))
        nics[0].completions = contexts.map { Completion(context: $0, count: 1, status: .peerLost, detail: 5) }
        for _ in 0..<10 { engine.progress() }
        #expect(ends.count.load(ordering: .relaxed) == 1)
        guard case .failed(let error) = engine.status(of: transfer) else {
            Issue.record("the transfer has not failed")
            return
        }
        #expect(error.code == .peerLost)
        #expect(error.message.contains("(error 5)"), "what there is when the provider has no words")
        // Every slot is there once: as many transfers as there may be get slots of their own.
        nics[1].onPost = nics[0].onPost
        var all = Set<Transfer>()
        for _ in 0..<Limits.transfers {
            all.insert(try engine.write(from: source, byteCount: 8, to: remote, immediate: 1))
        }
        #expect(all.count == Limits.transfers)
        #expect(throws: TransferError.self) {
            try engine.write(from: source, byteCount: 8, to: remote, immediate: 1)
        }
    }

    /// A handle of a region that was detached is not taken for the one that got its place.
    @Test func aDetachedHandleStaysDead() throws {
        let engine = try makeEngine([ScriptedDomain("a")])
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 4096)
        var descriptor = engine.descriptor(of: source)
        let old = try engine.attach(descriptor)
        try engine.detach(old)
        // Another engine may well have used the same number of generation.
        descriptor.engine = EngineID(rawValue: 77)
        let new = try engine.attach(descriptor)
        #expect(throws: TransferError.self) { try engine.write(from: source, byteCount: 8, to: old) }
        try engine.write(from: source, byteCount: 8, to: new)
    }

    /// Deadlines that have passed before the worker sees the transfer, from several threads at once.
    @Test(.timeLimit(.minutes(1))) func deadlinesInTheSubmissionQueue() async throws {
        let pair = try WorkerTests.Pair(.adaptive(spinNanoseconds: 0))
        let ends = Tally()
        let rounds = 5000
        await withTaskGroup(of: Int.self) { group in
            for _ in 0..<4 {
                group.addTask {
                    var submitted = 0
                    for _ in 0..<rounds {
                        let wait = try? pair.b.expect(9, count: 1, timeout: .zero) { _ in
                            ends.count.add(1, ordering: .relaxed)
                        }
                        if wait != nil { submitted += 1 } else { await Task.yield() }
                    }
                    return submitted
                }
            }
            var submitted = 0
            for await count in group { submitted += count }
            let deadline = ContinuousClock.now + .seconds(30)
            while ends.count.load(ordering: .relaxed) < submitted, ContinuousClock.now < deadline {
                await Task.yield()
            }
            #expect(ends.count.load(ordering: .relaxed) == submitted)
        }
        try pair.a.wait(for: pair.a.write(from: pair.source, byteCount: 64, to: pair.remote, immediate: 3))
        try pair.b.wait(for: pair.b.expect(3, count: 1))
    }
}
