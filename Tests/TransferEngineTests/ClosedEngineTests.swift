import Platform
import Synchronization
import Testing

@testable import TransferEngine

/// Nothing that a caller does after `close`, or while another thread closes, ends the process or waits for ever.
@Suite(.serialized) struct ClosedEngineTests {
    /// An engine that has been used for everything, and what it handed out.
    private struct Used: Sendable {
        typealias Operation = @Sendable () throws(TransferError) -> Void

        // SAFETY: one number, which nobody changes.
        nonisolated(unsafe) private static let firstPage: UnsafeMutablePointer<UInt32> = {
            let numbers = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
            numbers.initialize(to: 0)
            return numbers
        }()

        let engine: TransferEngine
        let other: TransferEngine
        let region: MemoryRegion
        let descriptor: RemoteRegion
        let remote: RemoteMemory
        let peer: Peer
        let lease: ImmediateLease
        let quarantined: ImmediateLease
        let complete: Transfer
        let waiting: Transfer
        let watcher: Watcher

        init(_ progress: Configuration.Progress) throws {
            engine = try TransferEngine(Configuration(name: "a", progress: progress))
            other = try TransferEngine(Configuration(name: "b"))
            region = try engine.allocate(byteCount: 1 << 16)
            descriptor = try other.descriptor(of: other.allocate(byteCount: 1 << 16))
            remote = try engine.attach(descriptor)
            peer = try engine.connect(to: other.address)
            lease = try engine.lease(2)
            quarantined = try engine.lease()
            try engine.end(quarantined, isQuiet: false)
            complete = try engine.write(from: region, byteCount: 100_000 >> 1, to: remote, immediate: 1)
            try engine.wait(for: complete)
            waiting = try engine.expect(7, count: 1, timeout: .seconds(3600))
            watcher = try engine.watch(region, at: 0) { _, _ in }
        }

        /// Every operation that throws, by name.
        func operations() throws -> [(name: String, run: Operation)] { memory + (try transfers()) + waits }

        private var memory: [(name: String, run: Operation)] {
            [
                (
                    "allocate",
                    { @Sendable () throws(TransferError) in _ = try engine.allocate(byteCount: 4096) }
                ),
                (
                    "register",
                    { @Sendable () throws(TransferError) in
                        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
                        defer { memory.deallocate() }
                        _ = try engine.register(memory)
                    }
                ),
                ("deregister", { @Sendable () throws(TransferError) in try engine.deregister(region) }),
                ("revoke", { @Sendable () throws(TransferError) in _ = try engine.revoke(region) }),
                ("attach", { @Sendable () throws(TransferError) in _ = try engine.attach(descriptor) }),
                (
                    "attach anew",
                    { @Sendable () throws(TransferError) in
                        var descriptor = descriptor
                        descriptor.generation += 1
                        _ = try engine.attach(descriptor)
                    }
                ),
                (
                    "connect",
                    { @Sendable () throws(TransferError) in _ = try engine.connect(to: other.address) }
                ),
                ("detach", { @Sendable () throws(TransferError) in try engine.detach(remote) }),
                ("disconnect", { @Sendable () throws(TransferError) in try engine.disconnect(peer) }),
            ]
        }

        private func transfers() throws -> [(name: String, run: Operation)] {
            let group = try PeerGroup([remote])
            let digest = Digest.empty
            // SAFETY: one page, the first, in memory that stays.
            nonisolated(unsafe) let pages = Pages(
                UnsafeBufferPointer(start: Self.firstPage, count: 1), stride: 4096)
            return [
                (
                    "write",
                    { @Sendable () throws(TransferError) in
                        try engine.write(from: region, byteCount: 8, to: remote)
                    }
                ),
                (
                    "paged write",
                    { @Sendable () throws(TransferError) in
                        try engine.write(
                            pageBytes: 4096, from: region, pages: pages, to: remote, pages: pages,
                            immediate: 1)
                    }
                ),
                (
                    "scatter",
                    { @Sendable () throws(TransferError) in
                        try engine.scatter(
                            from: region, [ScatterSlice(sourceOffset: 0, byteCount: 8, targetOffset: 0)],
                            to: group, immediate: 1)
                    }
                ),
                (
                    "immediate",
                    { @Sendable () throws(TransferError) in try engine.send(immediate: 1, to: remote) }
                ),
                (
                    "immediate to peer",
                    { @Sendable () throws(TransferError) in try engine.send(immediate: 1, to: peer) }
                ),
                ("message", { @Sendable () throws(TransferError) in try engine.send([1, 2, 3], to: peer) }),
                (
                    "barrier",
                    { @Sendable () throws(TransferError) in try engine.barrier(group, immediate: 1) }
                ),
                (
                    "digest",
                    { @Sendable () throws(TransferError) in _ = try engine.digest(of: region, byteCount: 8) }
                ),
                (
                    "digest of pages",
                    { @Sendable () throws(TransferError) in
                        _ = try engine.digest(of: region, pageBytes: 8, pages: pages)
                    }
                ),
                (
                    "digest list",
                    { @Sendable () throws(TransferError) in
                        _ = try engine.digestList(of: region, byteCount: 8)
                    }
                ),
                (
                    "verify",
                    { @Sendable () throws(TransferError) in
                        try engine.verify(digest, of: region, byteCount: 8)
                    }
                ),
            ]
        }

        private var waits: [(name: String, run: Operation)] {
            [
                ("receive", { @Sendable () throws(TransferError) in try engine.receive { _, _ in } }),
                ("expect", { @Sendable () throws(TransferError) in try engine.expect(1, count: 1) }),
                ("expect nothing", { @Sendable () throws(TransferError) in try engine.expect(1, count: 0) }),
                (
                    "watch",
                    { @Sendable () throws(TransferError) in _ = try engine.watch(region, at: 8) { _, _ in } }
                ),
                ("unwatch", { @Sendable () throws(TransferError) in try engine.unwatch(watcher) }),
                ("cancel", { @Sendable () throws(TransferError) in try engine.cancel(waiting) { _ in } }),
                ("lease", { @Sendable () throws(TransferError) in _ = try engine.lease() }),
                ("end", { @Sendable () throws(TransferError) in try engine.end(lease, isQuiet: true) }),
                ("reclaim", { @Sendable () throws(TransferError) in _ = try engine.reclaim(quarantined) }),
                (
                    "late",
                    { @Sendable () throws(TransferError) in _ = try engine.lateArrivals(of: quarantined) }
                ),
            ]
        }

        /// What does not throw.
        func look() -> [Bool] {
            [
                engine.count(of: 1) == 0, !engine.consume(1, count: 1),
                engine.status(of: complete) == .complete,
                !engine.isPending(waiting), engine.id == engine.address.landing.engine,
                !engine.trace().events.isEmpty, engine.descriptor(of: region).nics.isEmpty,
            ]
        }
    }

    @Test(arguments: [Configuration.Progress.manual, .adaptive(spinNanoseconds: 1000)])
    func everyOperationSaysSo(_ progress: Configuration.Progress) throws {
        let used = try Used(progress)
        used.engine.close()
        used.engine.close()
        for (name, operation) in try used.operations() {
            let error = #expect(throws: TransferError.self, "\(name)") { try operation() }
            #expect(error?.code == .closed, "\(name): \(String(describing: error))")
        }
        #expect(used.look() == [Bool](repeating: true, count: 7))
        if progress == .manual { #expect(!used.engine.progress()) }
        #expect(throws: TransferError.self) { try used.engine.wait(for: used.waiting) }
        try used.engine.wait(for: used.complete)
        used.other.close()
    }

    /// Handlers that have the engine do not keep it once it is closed.
    @Test(arguments: [Configuration.Progress.manual, .adaptive(spinNanoseconds: 1000)])
    func aClosedEngineLetsGoOfItsHandlers(_ progress: Configuration.Progress) throws {
        weak var seen: TransferEngine?
        do {
            let engine = try TransferEngine(Configuration(progress: progress))
            seen = engine
            let region = try engine.allocate(byteCount: 64)
            try engine.receive { _, _ in _ = engine.id }
            _ = try engine.watch(region, at: 0) { _, _ in _ = engine.id }
            _ = try engine.expect(9, count: 1) { _ in _ = engine.id }
            engine.close()
        }
        #expect(seen == nil)
    }

    /// Whoever waits when the engine closes is told, in every way of waiting.
    @Test(arguments: [Configuration.Progress.manual, .adaptive(spinNanoseconds: 1000)])
    func thoseWhoWaitAreTold(_ progress: Configuration.Progress) async throws {
        let used = try Used(progress)
        let codes = Mutex<[TransferError.Code]>([])
        let called = try used.engine.expect(8, count: 1, timeout: .seconds(3600)) { result in
            if case .failure(let error) = result { codes.withLock { $0.append(error.code) } }
        }
        let awaited = Task { try await used.engine.result(of: used.waiting) }
        while progress != .manual, used.engine.group.outcomes.withLock({ $0.waiters.isEmpty }) {
            await Task.yield()
        }
        used.engine.close()
        #expect(codes.withLock { $0 } == [.closed])
        guard case .failed(let error) = used.engine.status(of: called) else {
            Issue.record("a wait of a closed engine is \(used.engine.status(of: called))")
            return
        }
        #expect(error.code == .closed)
        await #expect(throws: TransferError.self) { try await awaited.value }
        used.other.close()
    }

    /// Threads that use an engine while it is closed: each operation works or says `closed`, and every transfer ends.
    @Test(arguments: 0..<4) func closingWhileOthersWork(_ round: Int) async throws {
        let used = try Used(.adaptive(spinNanoseconds: round % 2 == 0 ? 1_000_000 : 1000))
        let names = [
            "allocate", "register", "attach", "connect", "write", "paged write", "scatter", "immediate",
            "message",
            "barrier", "expect nothing", "watch", "unwatch", "cancel", "lease", "late",
        ]
        let operations = try used.operations().filter { names.contains($0.name) }
        let begun = Atomic<Int>(0)
        let wrong = Mutex<[String]>([])
        let threads = (0..<3).map { number in
            PlatformThread(name: "te-closing") {
                var isClosed = false
                var turn = number
                while !isClosed {
                    let (name, operation) = operations[turn % operations.count]
                    do throws(TransferError) { try operation() } catch {
                        isClosed = error.code == .closed
                        let isHarmless =
                            error.code == .limitReached || error.code == .backPressure
                            || error.code == .staleRegion
                        if !isClosed && !isHarmless { wrong.withLock { $0.append("\(name): \(error)") } }
                    }
                    _ = used.engine.count(of: 1)
                    _ = used.engine.consume(9, count: 1)
                    turn += 1
                    begun.add(1, ordering: .relaxed)
                }
            }
        }
        while begun.load(ordering: .relaxed) < 200 * (round + 1) {
            try await Task.sleep(for: .milliseconds(1))
        }
        used.engine.close()
        for thread in threads { thread?.join() }
        #expect(wrong.withLock { $0 } == [])
        #expect(used.engine.usage.pending == 0, "everything has ended")
        used.other.close()
    }
}
