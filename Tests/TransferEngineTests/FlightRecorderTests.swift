import Foundation
import Synchronization
import Testing

@testable import TransferEngine

/// What the flight recorder keeps, and that it keeps it whole.
@Suite struct FlightRecorderTests {
    /// The events of one transfer over two NICs, one of which pushes back for long.
    @Test func aTransferLeavesItsSteps() throws {
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
        let before = engine.trace()
        #expect(before.events.map(\.kind).contains(.registered))
        #expect(before.events.last?.kind == .attached)
        try engine.write(from: source, byteCount: 1 << 20, to: remote, immediate: 9)
        for _ in 0..<100 { engine.progress() }
        nics[0].completions = contexts.map { Completion(context: $0, count: 1, status: .peerLost, detail: 5) }
        engine.progress()
        let events = engine.trace().events.dropFirst(before.events.count)
        #expect(events.map(\.kind) == [.started, .posted, .pushedBack, .completed, .peerLost, .ended])
        #expect(events.map(\.nic) == [nil, 0, 1, 0, 0, nil])
        #expect(Set(events.compactMap(\.transfer)).count == 1)
        #expect(events.last?.status == .peerLost)
        // Not as optionals: the compiler would compare them as AnyHashable, through a thunk that reads beyond its buffer.
        let first = try #require(events.first)
        #expect(first.length == 1 << 20)
        #expect(first.second == 1 << 32 | 9)
    }

    @Test func waitsAndMessagesAreEvents() throws {
        let nic = ScriptedDomain("a")
        let engine = try makeEngine([nic])
        defer { engine.close() }
        let peer = try engine.connect(to: engine.address)
        let before = engine.trace().events.count
        let wait = try engine.expect(7, count: 1)
        try engine.send(Array("hello".utf8), to: peer)
        engine.page.add(eighths: 8, to: 7)
        while engine.isPending(wait) { engine.progress() }
        let events = engine.trace().events.dropFirst(before)
        #expect(events.map(\.kind) == [.waitBegan, .started, .messageOut, .ended, .ended])
        #expect(events.first?.operation == .counterWait)
    }

    /// What one engine does and another one notices are the two ends of an arrow, sealed or not.
    @Test(arguments: [false, true]) func twoEnginesTracesAreJoined(isSealed: Bool) throws {
        let engines = try ["one", "other"].map { name in
            var configuration = Configuration(name: name, progress: .manual)
            if isSealed { configuration.clusterKey = try ClusterKey(bytes: Array(repeating: 7, count: 32)) }
            return try TransferEngine(configuration)
        }
        defer { for engine in engines { engine.close() } }
        let source = try engines[0].allocate(byteCount: 4096)
        let target = try engines[1].allocate(byteCount: 4096)
        let peer = try engines[0].connect(to: engines[1].address)
        let heard = Mutex<[Int]>([])
        try engines[1].receive { bytes, _ in heard.withLock { $0.append(bytes.count) } }
        for text in ["a", "bc"] { try engines[0].send(Array(text.utf8), to: peer) }
        let wait = try engines[1].expect(7, count: 2)
        // Pages, because short writes over shared memory are counted together.
        let pages: [UInt32] = [0, 1]
        let remote = try engines[0].attach(engines[1].descriptor(of: target))
        try pages.withUnsafeBufferPointer { list in
            _ = try engines[0].write(
                pageBytes: 1024, from: source, pages: Pages(list, stride: 1024), to: remote,
                pages: Pages(list, stride: 1024), immediate: 7)
        }
        let end = ContinuousClock.now + .seconds(20)
        while heard.withLock({ $0.count }) < 2 || engines[1].isPending(wait), ContinuousClock.now < end {
            for engine in engines { engine.progress() }
        }
        #expect(heard.withLock { $0 } == [1, 2])
        let traces = engines.map { $0.trace() }
        let numbers = traces.map { $0.events.compactMap(\.messageNumber) }
        #expect(numbers == [[1, 2], [1, 2]])
        let json = Trace.json(traces)
        for name in ["message 1", "message 2", "immediate 7"] {
            #expect(
                json.split(separator: "\"\(name)\"").count == 5,
                "two slices, a beginning and an end of \(name)")
        }
    }

    /// The ring keeps the last events, and says how many it has forgotten.
    @Test func theRingForgetsTheOldest() {
        let recorder = FlightRecorder(capacity: 100, clock: ManualClock(), directory: nil)
        for number in 0..<1000 as Range<UInt64> { recorder.record(.posted, 1 << 32, nic: 0, number, 0) }
        let (events, lost) = recorder.snapshot()
        // 128 entries, of which the oldest may be being written over.
        #expect(events.map(\.first) == Array(873..<1000))
        #expect(lost == 873)
    }

    @Test func capacityZeroKeepsNothing() throws {
        let engine = try TransferEngine(
            Configuration(name: "off", progress: .manual, traceEvents: 0), clock: ManualClock(),
            random: SeededGenerator(seed: 1)
        ) { _ in [ScriptedDomain("a")] }
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 4096)
        try engine.write(from: source, byteCount: 64, to: engine.attach(engine.descriptor(of: source)))
        #expect(engine.trace().events.isEmpty)
    }

    /// A reader on another thread never sees half of one event and half of another.
    @Test(.timeLimit(.minutes(1))) func snapshotsAreNotTorn() async throws {
        let box = Box(capacity: 64)
        let seen = await withTaskGroup(of: Int.self) { group in
            group.addTask {
                var seen = 0
                repeat { seen += box.check() } while !box.isDone.load(ordering: .relaxed)
                return seen
            }
            group.addTask {
                for number in 0..<3_000_000 as Range<UInt64> {
                    box.recorder.record(.posted, 1 << 32, nic: Int(number & 7), number, number &* Box.factor)
                }
                box.isDone.store(true, ordering: .relaxed)
                return 0
            }
            return await group.reduce(0, +)
        }
        #expect(seen > 0)
        #expect(box.torn.load(ordering: .relaxed) == 0)
    }

    private final class Box: @unchecked Sendable {
        // SAFETY: one thread records, one takes snapshots, which is what the recorder is for.
        let recorder: FlightRecorder
        let isDone = Atomic<Bool>(false)
        let torn = Atomic<Int>(0)
        static let factor: UInt64 = 0x9E37_79B9_7F4A_7C15

        init(capacity: Int) {
            recorder = FlightRecorder(capacity: capacity, clock: ManualClock(), directory: nil)
        }

        func check() -> Int {
            let (events, lost) = recorder.snapshot()
            for (place, event) in events.enumerated() {
                let isWhole =
                    event.first == lost + UInt64(place) && event.second == event.first &* Self.factor
                    && event.nic == Int(event.first & 7)
                if !isWhole { torn.add(1, ordering: .relaxed) }
            }
            return events.count
        }
    }

    // MARK: Stalls

    @Test func aStallQuotesItsEventsAndWritesAFile() throws {
        let directory = NSTemporaryDirectory() + "te-trace-\(UInt64.random(in: 0...(.max)))"
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
        defer { try? FileManager.default.removeItem(atPath: directory) }
        let clock = ManualClock()
        let engine = try TransferEngine(
            Configuration(name: "stalls/../x", progress: .manual, traceDirectory: directory), clock: clock,
            random: SeededGenerator(seed: 1)
        ) { _ in [ScriptedDomain("a")] }
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 4096)
        let remote = try engine.attach(engine.descriptor(of: source))
        func stall() throws -> TransferError {
            let transfer = try engine.write(
                from: source, byteCount: 64, to: remote, timeout: .milliseconds(20))
            clock.nowNanoseconds += 21_500_000
            for _ in 0..<1024 { engine.progress() }
            guard case .failed(let error) = engine.status(of: transfer) else {
                throw TransferError(.invalidArgument, "it has not stalled")
            }
            return error
        }
        let error = try stall()
        #expect(error.code == .stalled)
        let lines = error.message.split(separator: "\n")
        #expect(lines.count == 4)
        #expect(lines[1] == "  21.5 ms ago: write began: 1 x 64 bytes, immediate 0")
        #expect(lines[2] == "  21.5 ms ago: scripted a: posted 1 requests, 1 in flight")
        let path = try #require(lines[3].split(separator: ": ").last)
        let trace = try Trace(decoding: Data(contentsOf: URL(fileURLWithPath: String(path))))
        #expect(trace.events.last?.kind == .stalled)
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory).count == 1)
        // Another one within a second writes none, and later ones only so many.
        #expect(try !stall().message.contains("trace:"))
        for _ in 0..<2 * Limits.traceFiles {
            clock.nowNanoseconds += 1_000_000_000
            _ = try stall()
        }
        #expect(try FileManager.default.contentsOfDirectory(atPath: directory).count == Limits.traceFiles)
    }

    /// A report finds the events of its transfer however many others there were since, unless many stall at a time.
    @Test func historyIsFoundBehindOthers() {
        let recorder = FlightRecorder(capacity: 1024, clock: ManualClock(), directory: nil)
        recorder.record(.started, 5 | 1 << 32, 1, 1)
        for _ in 0..<9 { recorder.record(.completed, 5 | 1 << 32, nic: 0, 1, 1) }
        for _ in 0..<500 { recorder.record(.completed, 6 | 1 << 32, nic: 0, 1, 1) }
        #expect(recorder.last(6, of: 5 | 1 << 32, at: 10).count == 6)
        #expect(recorder.last(20, of: 5 | 1 << 32, at: 11).isEmpty)
        #expect(recorder.last(20, of: 6 | 1 << 32, at: 11).count == 20)
        #expect(recorder.last(20, of: 5 | 1 << 32, at: 1_000_010).first?.kind == .started)
        #expect(recorder.last(20, of: 5 | 2 << 32, at: 3_000_010).isEmpty)
    }

    @Test func aTraceIsWrittenOnce() throws {
        let path = NSTemporaryDirectory() + "te-trace-\(UInt64.random(in: 0...(.max))).trace"
        defer { try? FileManager.default.removeItem(atPath: path) }
        let engine = try TransferEngine(Configuration(name: "writer"))
        defer { engine.close() }
        try engine.writeTrace(to: path)
        let trace = try Trace(decoding: Data(contentsOf: URL(fileURLWithPath: path)))
        #expect(trace.name == "writer")
        #expect(trace.events.map(\.kind) == [.registered])
        #expect(trace.clock.wallNanoseconds > 0)
        #expect(throws: TransferError.self) { try engine.writeTrace(to: path) }
        #expect(throws: TransferError.self) { try engine.writeTrace(to: "/nonexistent/a") }
    }

    /// Times of the processor's clock become those of the engine's clock, and submissions have the right time.
    @Test func timesAreThoseOfTheEnginesClock() throws {
        let engine = try TransferEngine(Configuration(name: "times", progress: .manual))
        defer { engine.close() }
        let clock = engine.group.clock
        for _ in 0..<40 {
            let before = clock.nowNanoseconds
            let now = engine.group.recorder.now()
            let after = clock.nowNanoseconds
            #expect(now &+ 100_000 > before && now < after &+ 100_000)
            usleep(1000)
            let wait = try engine.expect(1, count: 1)
            let event = try #require(engine.trace().events.last { $0.kind == .waitBegan })
            let time = engine.trace().nanoseconds(of: event)
            #expect(time &+ 1_000_000 > after && time < clock.nowNanoseconds &+ 100_000)
            engine.page.add(eighths: 8, to: 1)
            engine.progress()
            #expect(!engine.isPending(wait))
        }
    }
}
