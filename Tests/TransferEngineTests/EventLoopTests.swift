import CPlatform
import Glibc
import Testing

@testable import TransferEngine

/// Engines without a thread in an event loop: what makes their file readable.
@Suite struct EventLoopTests {
    private final class Pair {
        let sleeper: TransferEngine
        let writer: TransferEngine
        let source: MemoryRegion
        let target: MemoryRegion
        let remote: RemoteMemory
        let file: Int32

        init() throws {
            sleeper = try TransferEngine(
                Configuration(name: "sleeper", progress: .eventLoop, timeout: .seconds(20)))
            writer = try TransferEngine(Configuration(name: "writer"))
            source = try writer.allocate(byteCount: 1 << 20)
            target = try sleeper.allocate(byteCount: 1 << 20)
            file = try sleeper.openWaitFile()
            remote = try writer.attach(sleeper.descriptor(of: target))
        }

        deinit {
            writer.close()
            sleeper.close()
        }

        func isReadable(_ milliseconds: Int32) -> Bool { te_wait_readable([file], 1, milliseconds) == 1 }

        /// As an event loop does it, until nothing is left to do; how often it came around.
        func settle(_ place: SourceLocation = #_sourceLocation) -> Int {
            for round in 0..<10_000 {
                guard isReadable(round == 0 ? 0 : 20) else { return round }
                sleeper.progress()
                sleeper.rest()
            }
            Issue.record("the file stays readable", sourceLocation: place)
            return 0
        }

        /// As an event loop does it, until something holds.
        func until(_ place: SourceLocation = #_sourceLocation, _ holds: () -> Bool) {
            let deadline = te_monotonic_nanoseconds() + 20_000_000_000
            while !holds() {
                guard te_monotonic_nanoseconds() < deadline else {
                    Issue.record("waited in vain", sourceLocation: place)
                    return
                }
                guard isReadable(20_000) else { continue }
                sleeper.progress()
                sleeper.rest()
            }
        }
    }

    @Test(.timeLimit(.minutes(1))) func whoeverBringsSomethingMakesItReadable() throws {
        let pair = try Pair()
        #expect(try pair.sleeper.openWaitFile() == pair.file)
        #expect(pair.isReadable(0), "whoever opens it looks once")
        _ = pair.settle()
        #expect(!pair.isReadable(50))
        let wait = try pair.sleeper.expect(7, count: 2)
        #expect(pair.isReadable(0), "its deadline has to be kept")
        _ = pair.settle()
        for _ in 0..<2 {
            #expect(pair.sleeper.isPending(wait))
            _ = try pair.writer.write(from: pair.source, byteCount: 8, to: pair.remote, immediate: 7)
            #expect(pair.isReadable(20_000))
            _ = pair.settle()
        }
        #expect(pair.sleeper.status(of: wait) == .complete)
    }

    /// Progress of others, a wait for example, does not leave a loop asleep that nobody wakes.
    @Test(.timeLimit(.minutes(1))) func whoMakesProgressElsewhereLeavesItReadable() throws {
        let pair = try Pair()
        _ = pair.settle()
        pair.sleeper.progress()
        #expect(pair.isReadable(0))
        _ = pair.settle()
        #expect(!pair.isReadable(0))
    }

    @Test(.timeLimit(.minutes(1))) func deadlinesMakeItReadable() throws {
        let pair = try Pair()
        let wait = try pair.sleeper.expect(7, count: 1, timeout: .milliseconds(50))
        pair.until { !pair.sleeper.isPending(wait) }
        guard case .failed(let error) = pair.sleeper.status(of: wait) else {
            Issue.record("the wait has not failed")
            return
        }
        #expect(error.code == .stalled)
    }

    /// A loop with nothing to do is not called: at most once a second for peers and links.
    @Test(.timeLimit(.minutes(1))) func anIdleEngineSleeps() throws {
        let pair = try Pair()
        let wait = try pair.sleeper.expect(7, count: 1)
        _ = pair.settle()
        var rounds = 0
        let end = te_monotonic_nanoseconds() + 500_000_000
        while te_monotonic_nanoseconds() < end {
            guard pair.isReadable(100) else { continue }
            rounds += 1
            pair.sleeper.progress()
            pair.sleeper.rest()
        }
        #expect(rounds <= 5)
        #expect(pair.sleeper.isPending(wait))
    }

    @Test(.timeLimit(.minutes(1))) func withoutAFileNothingIsDone() throws {
        let engine = try TransferEngine(Configuration(name: "e", progress: .eventLoop))
        engine.rest()
        engine.close()
        #expect(throws: TransferError.engineClosed) { try engine.openWaitFile() }
    }
}
