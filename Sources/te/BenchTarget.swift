internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import SharedMemoryProvider
internal import Synchronization
internal import TransferEngine

/// The other side of `te bench`: a process that is written into, and tells how far it has counted.
struct BenchTarget: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "bench-target", shouldDisplay: false)

    @Option var provider: String
    @Option var nicCount: Int
    @Option var nics: String = ""
    @Option var progress: String
    @Option var processor: Int?
    @Option var regionBytes: Int
    @Flag var callerMemory = false

    func run() throws {
        _ = te_die_with_parent()
        if let processor { _ = te_pin_self(Int32(processor)) }
        let side = try BenchSide(
            name: "target", board: BenchBoard(inherited: BenchBoard.inheritedFile), provider: provider,
            nicCount: nicCount, nics: nics, progress: progress, processor: processor,
            regionBytes: regionBytes,
            callerMemory: callerMemory)
        _ = writeLine(side.introduction, to: 1)
        guard let greeting = readLine() else { return }
        try side.meet(greeting)
        while let command = readLine() {
            switch command {
            case "count": side.countUntilStopped()
            case "pong": try side.answerUntilStopped()
            case "watch": try side.watch()
            case "idle":
                _ = writeLine(String(side.idle(seconds: Double(readLine() ?? "") ?? 0)), to: 1)
                continue
            default: return
            }
            _ = writeLine("done", to: 1)
        }
        side.close()
    }
}

/// One process of a benchmark: an engine under test, and the board that it shares with the other side.
final class BenchSide: @unchecked Sendable {
    // SAFETY: used by one thread, and in busy mode by the engine's callbacks while that thread only sleeps.
    static let dataImmediate: Immediate = 1
    static let pingImmediate: Immediate = 2

    let engine: TransferEngine
    let board: BenchBoard
    let region: MemoryRegion
    var remote: RemoteMemory?
    var remoteDescriptor: RemoteRegion?
    private var total: UInt64 = 0
    /// Whether the other side counts by itself.
    private let isMapped: Bool
    /// Round trips that are timed together: where one takes less than looking at the clock does.
    var pingBatch: Int { isMapped ? 20 : 1 }

    init(
        name: String, board: BenchBoard, provider: String, nicCount: Int, nics: String, progress: String,
        processor: Int?, regionBytes: Int, callerMemory: Bool, traceEvents: Int = 8192
    ) throws {
        self.board = board
        let mode: Configuration.Progress
        switch progress {
        case "busy": mode = .busy
        case "adaptive": mode = .adaptive
        default: mode = .manual
        }
        isMapped = provider == "shm"
        engine = try TransferEngine(
            Configuration(
                name: name,
                nics: makeNICs(
                    provider: provider, count: nicCount, nics: nics, callerMemory: .automatic),
                progress: mode,
                processor: processor, traceEvents: traceEvents))
        if callerMemory {
            guard
                let memory = mmap(
                    nil, regionBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                memory != MAP_FAILED
            else { throw TransferError(.limitReached, "no \(regionBytes) bytes of memory") }
            memset(memory, 1, regionBytes)
            region = try engine.register(UnsafeMutableRawBufferPointer(start: memory, count: regionBytes))
        } else {
            region = try engine.allocate(byteCount: regionBytes)
            memset(region.baseAddress, 1, regionBytes)
        }
    }

    /// What the other side needs to know.
    var introduction: String {
        hexadecimal(engine.descriptor(of: region).encoded())
    }

    func meet(_ introduction: String) throws {
        guard let descriptor = bytes(hexadecimal: introduction) else {
            throw TransferError(.malformedDescriptor, "not an introduction")
        }
        remoteDescriptor = try RemoteRegion(decoding: descriptor)
        remote = try engine.attach(decoding: descriptor)
    }

    func close() {
        engine.close()
        board.close()
    }

    /// Counts data immediates and tells the running count, until told to stop.
    func countUntilStopped() {
        let stop = board.read(.stop)
        while board.read(.stop) == stop {
            if engine.isManualForBenchmark { engine.progress() } else { usleep(100) }
            let count = engine.count(of: Self.dataImmediate)
            if count > 0, engine.consume(Self.dataImmediate, count: count) {
                total += UInt64(count)
                board.tell(.counted, total)
            }
            // On shared memory the word that is polled moves to this core at every look; a pause leaves it to the writer for a
            // while. NICs are polled at once.
            if isMapped { for _ in 0..<16 { te_cpu_relax() } }
        }
    }

    /// Answers every ping with a ping.
    func answerUntilStopped() throws {
        let stop = board.read(.stop)
        if engine.isManualForBenchmark {
            while board.read(.stop) == stop {
                if engine.consume(Self.pingImmediate, count: 1) { try ping() } else { engine.progress() }
            }
        } else {
            answerFromCallbacks()
            while board.read(.stop) == stop { usleep(1000) }
        }
    }

    /// Watches a word that nobody changes.
    func watch() throws(TransferError) {
        _ = try engine.watch(region, at: 0) { _, _ in }
    }

    /// Does nothing for `seconds`; returns the percentage of a core that this process, which is the engine and a
    /// sleeping thread, used meanwhile.
    func idle(seconds: Double) -> Double {
        let start = (te_process_cpu_nanoseconds(), te_monotonic_nanoseconds())
        usleep(UInt32(seconds * 1e6))
        let used = te_process_cpu_nanoseconds() - start.0
        return 100 * Double(used) / Double(te_monotonic_nanoseconds() - start.1)
    }

    /// Writes eight bytes with the ping immediate.
    @inline(__always) func ping() throws(TransferError) {
        guard let remote else { return }
        try engine.write(from: region, byteCount: 8, to: remote, immediate: Self.pingImmediate)
    }

    /// Keeps one counter wait open whose callback answers and waits again.
    private func answerFromCallbacks() {
        let answer: @Sendable (Result<Void, TransferError>) -> Void = { [self] result in
            guard case .success = result else { return }
            try? ping()
            answerFromCallbacks()
        }
        _ = try? engine.expect(Self.pingImmediate, count: 1, onReached: answer)
    }
}

extension TransferEngine {
    /// Whether the benchmark makes progress itself.
    var isManualForBenchmark: Bool { progressMode == .manual }
}
