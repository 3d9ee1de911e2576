internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import SharedMemoryProvider
internal import TransferEngine

/// The other side of `te demo`: a process with an engine and memory of its own, told what to expect by lines.
struct DemoReceiver: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "demo-receiver", shouldDisplay: false)

    @Option var transport = "shm"
    @Option var nicCount = 1
    @Option var regionBytes: Int
    @Option var processor: Int
    @Flag(help: "Empty a plain TCP socket instead, for the limit.")
    var sink = false

    func run() throws {
        _ = te_die_with_parent()
        signal(SIGPIPE, SIG_IGN)
        _ = te_pin_self(Int32(processor))
        do {
            if sink {
                try DemoSink(byteCount: regionBytes).serve()
            } else {
                let receiver = try DemoTarget(
                    transport: transport, nicCount: nicCount, regionBytes: regionBytes)
                defer { receiver.close() }
                try receiver.serve()
            }
        } catch {
            // The parent shows it: two processes writing to one terminal are hard to read.
            _ = writeLine("error \(error)", to: 1)
            throw ExitCode.failure
        }
    }
}

/// Immediates are counted here, bytes are digested here; only the verdict is the sender's.
private final class DemoTarget {
    private let engine: TransferEngine
    private let region: MemoryRegion
    private var used: Set<Immediate> = []

    init(transport: String, nicCount: Int, regionBytes: Int) throws(TransferError) {
        let nics = try makeNICs(provider: transport, count: nicCount, nics: "", callerMemory: .automatic)
        engine = try TransferEngine(Configuration(name: "demo receiver", nics: nics, progress: .manual))
        region = try engine.allocate(byteCount: regionBytes)
    }

    func close() { engine.close() }

    func serve() throws {
        _ = writeLine("region " + hexadecimal(engine.descriptor(of: region).encoded()), to: 1)
        while let line = readLine() {
            let words = line.split(separator: " ")
            let numbers = words.dropFirst().compactMap { Int($0) }
            switch (words.first, numbers.count) {
            case ("expect", 4):
                try receive(
                    Immediate(truncatingIfNeeded: numbers[0]), count: numbers[1], byteCount: numbers[2],
                    within: .seconds(numbers[3]))
            case ("digest", 2):
                let bytes = UnsafeRawBufferPointer(rebasing: region.bytes[..<numbers[0]])
                let digest = try VerifyDigest.sha256(of: bytes, within: Double(numbers[1]))
                _ = writeLine("digest \(digest)", to: 1)
            case ("finish", 0):
                linger()
                _ = writeLine("surplus \(used.reduce(0) { $0 + engine.count(of: $1) })", to: 1)
            default:
                throw TransferError(.invalidArgument, "a line that is not understood: \(line)")
            }
        }
    }

    /// Waits for exactly `count` arrivals. Tells when the last one was counted, how many there were, and what went wrong.
    private func receive(_ immediate: Immediate, count: Int, byteCount: Int, within time: Duration) throws {
        used.insert(immediate)
        // Bytes of the round before must not pass for bytes of this one.
        memset(region.baseAddress, 0xA5, byteCount)
        let early = engine.count(of: immediate)
        guard early == 0 else { throw TransferError(.invalidArgument, "\(early) arrivals before the start") }
        let wait = try engine.expect(immediate, count: count, timeout: time)
        _ = writeLine("ready", to: 1)
        while engine.isPending(wait) {
            if !engine.progress() { sched_yield() }
        }
        let end = te_monotonic_nanoseconds()
        linger()
        if case .failed(let error) = engine.status(of: wait) {
            _ = writeLine("arrived \(end) \(engine.count(of: immediate)) \(error)", to: 1)
        } else {
            _ = writeLine("arrived \(end) \(count + engine.count(of: immediate))", to: 1)
        }
    }

    /// Leaves surplus arrivals some time to show up.
    private func linger() {
        let end = monotonicSeconds() + 0.005
        while monotonicSeconds() < end { engine.progress() }
    }
}
