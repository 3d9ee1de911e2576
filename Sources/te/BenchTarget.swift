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
    @Option var processor: Int
    @Option var regionBytes: Int
    @Flag var callerMemory = false

    func run() throws {
        _ = te_die_with_parent()
        _ = te_pin_self(Int32(processor))
        let side = try BenchSide(
            name: "target", provider: provider, nicCount: nicCount, nics: nics, progress: progress,
            processor: processor, regionBytes: regionBytes, callerMemory: callerMemory)
        _ = writeLine(side.introduction, to: 1)
        guard let greeting = readLine() else { return }
        try side.meet(greeting)
        while let command = readLine() {
            switch command {
            case "count": side.countUntilStopped()
            case "pong": try side.answerUntilStopped()
            case "sleep": break
            default: return
            }
            _ = writeLine("done", to: 1)
        }
        side.close()
    }
}

/// One process of a benchmark: an engine under test, and a shared-memory engine through which the two sides tell each
/// other how far they are without disturbing what is measured.
final class BenchSide: @unchecked Sendable {
    // SAFETY: used by one thread, and in busy mode by the engine's callbacks while that thread only sleeps.
    static let dataImmediate: Immediate = 1
    static let pingImmediate: Immediate = 2
    /// Words of the control region: a running count, and a request to stop.
    static let countWord = 0
    static let stopWord = 64

    let engine: TransferEngine
    let control: TransferEngine
    let region: MemoryRegion
    let words: MemoryRegion
    var remote: RemoteMemory?
    var remoteDescriptor: RemoteRegion?
    var remoteWords: RemoteMemory?
    private let scratch: MemoryRegion
    private var total: UInt64 = 0

    init(
        name: String, provider: String, nicCount: Int, nics: String, progress: String, processor: Int,
        regionBytes: Int, callerMemory: Bool
    ) throws {
        let mode: Configuration.Progress
        switch progress {
        case "busy": mode = .busy
        case "adaptive": mode = .adaptive
        default: mode = .manual
        }
        engine = try TransferEngine(
            Configuration(
                name: name,
                nics: makeNICs(
                    provider: provider, count: nicCount, nics: nics, callerMemory: .automatic),
                progress: mode,
                processor: processor))
        control = try TransferEngine(Configuration(name: name + "-control", progress: .manual))
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
        words = try control.allocate(byteCount: 4096)
        scratch = try control.allocate(byteCount: 4096)
    }

    /// What the other side needs to know.
    var introduction: String {
        hexadecimal(engine.descriptor(of: region).encoded()) + " "
            + hexadecimal(control.descriptor(of: words).encoded())
    }

    func meet(_ introduction: String) throws {
        let parts = introduction.split(separator: " ").compactMap { bytes(hexadecimal: $0) }
        guard parts.count == 2 else { throw TransferError(.malformedDescriptor, "not an introduction") }
        remoteDescriptor = try RemoteRegion(decoding: parts[0])
        remote = try engine.attach(decoding: parts[0])
        remoteWords = try control.attach(decoding: parts[1])
    }

    func close() {
        engine.close()
        control.close()
    }

    private func word(_ offset: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        (words.baseAddress + offset).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

    /// What the other side has told.
    /// Pairs with the other side's increments.
    func read(_ offset: Int) -> UInt64 { word(offset).pointee.load(ordering: .acquiring) }

    /// Tells the other side.
    func tell(_ offset: Int, _ value: UInt64) {
        guard let remoteWords else { return }
        scratch.baseAddress.storeBytes(of: value, as: UInt64.self)
        _ = try? control.write(from: scratch, byteCount: 8, to: remoteWords, targetOffset: offset)
    }

    /// Counts data immediates and tells the running count, until told to stop.
    func countUntilStopped() {
        let stop = read(Self.stopWord)
        while read(Self.stopWord) == stop {
            engine.progress()
            let count = engine.count(of: Self.dataImmediate)
            if count > 0, engine.consume(Self.dataImmediate, count: count) {
                total += UInt64(count)
                tell(Self.countWord, total)
            }
            // The word that is polled moves to this core at every look; a pause leaves it to the writer for a while.
            for _ in 0..<16 { te_cpu_relax() }
        }
    }

    /// Answers every ping with a ping.
    func answerUntilStopped() throws {
        let stop = read(Self.stopWord)
        if engine.isManualForBenchmark {
            while read(Self.stopWord) == stop {
                if engine.consume(Self.pingImmediate, count: 1) { try ping() } else { engine.progress() }
            }
        } else {
            answerFromCallbacks()
            while read(Self.stopWord) == stop { usleep(1000) }
        }
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
