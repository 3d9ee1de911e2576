import Glibc
import Synchronization
import Testing
import TransferEngine

/// Engines with threads of their own: the three views of an end, and everything that crosses threads.
@Suite struct WorkerTests {
    static let modes: [Configuration.Progress] = [.adaptive, .adaptive(spinNanoseconds: 0)]

    final class Pair: Sendable {
        let a: TransferEngine
        let b: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion
        let remote: RemoteMemory

        init(_ progress: Configuration.Progress, timeout: Duration = .seconds(30)) throws {
            a = try TransferEngine(Configuration(name: "a", progress: progress, timeout: timeout))
            b = try TransferEngine(Configuration(name: "b", progress: progress, timeout: timeout))
            source = try a.allocate(byteCount: 1 << 20)
            target = try b.allocate(byteCount: 1 << 20)
            remote = try a.attach(b.descriptor(of: target))
        }

        deinit {
            a.close()
            b.close()
        }
    }

    @Test(.timeLimit(.minutes(1)), arguments: modes) func awaiting(_ mode: Configuration.Progress)
        async throws
    {
        let pair = try Pair(mode)
        for round in 0..<50 {
            pair.source.baseAddress.storeBytes(of: round, as: Int.self)
            let wait = try pair.b.expect(1, count: 1)
            try await pair.a.result(
                of: pair.a.write(from: pair.source, byteCount: 4096, to: pair.remote, immediate: 1))
            try await pair.b.result(of: wait)
            #expect(pair.target.baseAddress.load(as: Int.self) == round)
            #expect(pair.b.status(of: wait) == .complete)
        }
    }

    @Test(.timeLimit(.minutes(1)), arguments: modes) func blocking(_ mode: Configuration.Progress) throws {
        let pair = try Pair(mode)
        for _ in 0..<50 {
            try pair.a.wait(
                for: pair.a.write(from: pair.source, byteCount: 1 << 20, to: pair.remote, immediate: 2))
            try pair.b.wait(for: pair.b.expect(2, count: 1))
        }
    }

    /// Callbacks submit: a chain in which each end begins the next, far longer than any queue.
    @Test(.timeLimit(.minutes(1)), arguments: modes) func callbacksSubmit(_ mode: Configuration.Progress)
        async throws
    {
        let pair = try Pair(mode)
        let chain = Chain(pair, length: 3 * Limits.transfers)
        await chain.run()
        #expect(chain.links.load(ordering: .relaxed) == chain.length)
        try await pair.b.result(of: pair.b.expect(3, count: chain.length - 1))
        #expect(pair.b.count(of: 3) == 0)
    }

    /// Transfers each of which is submitted by the end of the one before.
    private final class Chain: Sendable {
        let pair: Pair
        let length: Int
        let links = Atomic<Int>(0)
        private let done = Mutex<UnsafeContinuation<Void, Never>?>(nil)

        init(_ pair: Pair, length: Int) {
            self.pair = pair
            self.length = length
        }

        func run() async {
            await withUnsafeContinuation { (continuation: UnsafeContinuation<Void, Never>) in
                done.withLock { $0 = continuation }
                next(.success(()))
            }
        }

        private func next(_ result: Result<Void, TransferError>) {
            let isLast = links.add(1, ordering: .relaxed).newValue >= length
            if isLast || !submit() { done.withLock { $0?.resume() } }
        }

        private func submit() -> Bool {
            let callback: TransferCallback = { [self] in next($0) }
            let transfer = try? pair.a.write(
                from: pair.source, byteCount: 64, to: pair.remote, immediate: 3, onEnd: callback)
            return transfer != nil
        }
    }

    /// Submissions from many threads while callbacks submit too: nothing is lost, nothing deadlocks.
    @Test(.timeLimit(.minutes(1))) func manySubmitters() async throws {
        let pair = try Pair(.adaptive)
        let perTask = 3000
        await withTaskGroup(of: Void.self) { group in
            for task in 0..<4 {
                group.addTask { await Self.submit(perTask, pair, offset: task * 64) }
            }
        }
        try await pair.b.result(of: pair.b.expect(5, count: 4 * perTask))
        try await pair.b.result(of: pair.b.expect(6, count: 4 * perTask / 8))
        #expect(pair.b.count(of: 5) == 0)
    }

    /// Submits `count` writes, of which every eighth submits an immediate when it ends.
    private static func submit(_ count: Int, _ pair: Pair, offset: Int) async {
        let followUp: TransferCallback = { _ in _ = try? pair.a.send(immediate: 6, to: pair.remote) }
        var submitted = 0
        while submitted < count {
            do {
                try pair.a.write(
                    from: pair.source, sourceOffset: offset, byteCount: 64, to: pair.remote,
                    targetOffset: offset,
                    immediate: 5, onEnd: submitted % 8 == 0 ? followUp : nil)
                submitted += 1
            } catch {
                // Back-pressure: the worker has to catch up.
                await Task.yield()
            }
        }
    }

    /// A callback that has the last reference to its engine ends it, on the worker's own thread.
    @Test(.timeLimit(.minutes(1)), arguments: [true, false]) func theLastReferenceIsACallbacks(watches: Bool)
        throws
    {
        let ended = Ended()
        for round in 1...50 as ClosedRange<Int64> {
            do {
                let holder = Holder(
                    try TransferEngine(Configuration(name: "last", progress: .adaptive(spinNanoseconds: 0))))
                let engine = try #require(holder.engine.withLock { $0 })
                let region = try engine.allocate(byteCount: 64)
                let peer = try engine.connect(to: engine.address)
                if watches {
                    let word = region.baseAddress.assumingMemoryBound(to: Atomic<UInt64>.self)
                    _ = try engine.watch(region, at: 0) { _, _ in
                        // Nobody but the watcher has the engine, and it lets go of it.
                        holder.engine.withLock { $0 = nil }
                        ended.count.wrappingAdd(1, ordering: .relaxed)
                    }
                    word.pointee.store(1, ordering: .releasing)
                    try engine.send(immediate: 1, to: peer)
                } else {
                    try engine.send(immediate: 1, to: peer) { [weak engine] _ in
                        // Closed first in every other round, as an owner's deinit does.
                        if round % 2 == 0 { engine?.close() }
                        _ = holder
                        ended.count.wrappingAdd(1, ordering: .relaxed)
                    }
                }
            }
            while ended.count.load(ordering: .relaxed) < round { usleep(100) }
        }
    }

    private final class Ended: Sendable { let count = Atomic(0 as Int64) }
    private final class Holder: Sendable {
        let engine: Mutex<TransferEngine?>
        init(_ engine: TransferEngine) { self.engine = Mutex(engine) }
    }

    @Test(.timeLimit(.minutes(1))) func backPressureIsAnError() throws {
        let engine = try TransferEngine(Configuration(name: "full", progress: .manual))
        defer { engine.close() }
        for _ in 0..<Limits.transfers { try engine.expect(7, count: 1) }
        let error = #expect(throws: TransferError.self) { try engine.expect(7, count: 1) }
        #expect(error?.code == .backPressure)
        let peer = try engine.connect(to: engine.address)
        #expect(throws: TransferError.self) { try engine.send(immediate: 7, to: peer) }
    }

    /// Contract, promise 6: a wait that nobody answers ends with a report.
    @Test(.timeLimit(.minutes(1)), arguments: modes) func stalls(_ mode: Configuration.Progress) async throws
    {
        let pair = try Pair(mode)
        try pair.a.wait(for: pair.a.write(from: pair.source, byteCount: 8, to: pair.remote, immediate: 8))
        let wait = try pair.b.expect(8, count: 3, timeout: .milliseconds(30))
        let error = await #expect(throws: TransferError.self) { try await pair.b.result(of: wait) }
        #expect(error?.code == .stalled)
        #expect(
            error?.message.contains("immediate 8 was counted 1 of 3") == true, "\(String(describing: error))")
        #expect(pair.b.status(of: wait) == .failed(try #require(error)))
        // The arrival was not consumed by the failed wait.
        try await pair.b.result(of: pair.b.expect(8, count: 1))
    }

    @Test(.timeLimit(.minutes(1))) func watchers() async throws {
        let engine = try TransferEngine(Configuration(name: "watcher"))
        defer { engine.close() }
        let region = try engine.allocate(byteCount: 4096)
        let word = (region.baseAddress + 8).assumingMemoryBound(to: Atomic<UInt64>.self)
        let seen = Mutex<[(UInt64, UInt64)]>([])
        let watcher = try engine.watch(region, at: 8) { old, new in seen.withLock { $0.append((old, new)) } }
        for _ in 0..<100 {
            word.pointee.wrappingAdd(1, ordering: .releasing)
            await Task.yield()
        }
        while seen.withLock({ $0.last?.1 }) != 100 { try await Task.sleep(for: .milliseconds(1)) }
        let changes = seen.withLock { $0 }
        #expect(changes.first?.0 == 0)
        #expect(
            zip(changes, changes.dropFirst()).allSatisfy { $0.1 == $1.0 },
            "each change begins where the last ended")
        #expect(changes.allSatisfy { $0.0 < $0.1 })
        try engine.unwatch(watcher)
        word.pointee.wrappingAdd(1, ordering: .releasing)
        try await Task.sleep(for: .milliseconds(20))
        #expect(seen.withLock { $0.count } == changes.count)
        #expect(throws: TransferError.self) { try engine.watch(region, at: 4) { _, _ in } }
        #expect(throws: TransferError.self) { try engine.watch(region, at: 4096) { _, _ in } }
    }

    @Test(.timeLimit(.minutes(1))) func closedEnginesSaySo() throws {
        let engine = try TransferEngine(Configuration(name: "closing"))
        let address = engine.address
        engine.close()
        engine.close()
        let other = try TransferEngine(Configuration(name: "other"))
        defer { other.close() }
        let error = #expect(throws: TransferError.self) { try other.connect(to: address) }
        #expect(error?.code == .unreachable)
    }

    /// An engine that failed does not take the others' results with it, and an old transfer's slot belongs to somebody else
    /// without the old handle noticing.
    @Test func statusOutlivesTheSlot() throws {
        let engine = try TransferEngine(Configuration(name: "slots", progress: .manual))
        defer { engine.close() }
        let failing = try engine.expect(1, count: 1, timeout: .zero)
        try? engine.wait(for: failing)
        let peer = try engine.connect(to: engine.address)
        for _ in 0..<100 { try engine.wait(for: engine.send(immediate: 2, to: peer)) }
        guard case .failed(let error) = engine.status(of: failing) else {
            Issue.record("the failure was forgotten")
            return
        }
        #expect(error.code == .stalled)
    }
}
