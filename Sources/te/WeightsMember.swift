internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import SharedMemoryProvider
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// One trainer or receiver of `te weights push`, told what to do by lines.
struct WeightsMember: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "weights-member", shouldDisplay: false)

    @Option var plan: String
    @Option var rank: Int
    @Flag var trains = false
    @Option var transport = "shm"
    @Option var file: String?
    @Option(help: "The leader's address; the leader has none.")
    var leader: String?
    @Flag(help: "Send everything, whether it has changed or not.")
    var whole = false

    func run() throws {
        _ = te_die_with_parent()
        signal(SIGPIPE, SIG_IGN)
        do { try MemberLoop(self).serve() } catch {
            _ = writeLine("error \(error)", to: 1)
            throw ExitCode.failure
        }
    }
}

private final class MemberLoop {
    private let source: WeightSource
    private let plan: Plan
    private let engine: TransferEngine
    private let endpoint: WeightEndpoint
    private var trainer: WeightTrainer?
    private var receiver: WeightReceiver?
    private var controller: WeightController?
    private let rank: Int
    private let isManual: Bool
    private var input: [UInt8] = []
    private var waiting: (words: [String], begun: Double)?
    private let reads = Reads()
    private var reader: PlatformThread?

    /// What the thread that reads all the time has seen.
    private final class Reads: Sendable {
        let count = Atomic<Int>(0)
        let torn = Atomic<Int>(0)
        let isOver = Atomic<Bool>(false)
    }

    init(_ options: WeightsMember) throws {
        plan = try Plan(decoding: File.read(options.plan))
        source = try WeightSource(model: plan.model, path: options.file)
        rank = options.rank
        let nics = try makeNICs(provider: options.transport, count: 1, nics: "", callerMemory: .automatic)
        // Over sockets somebody has to answer heartbeats while this thread looks at every byte.
        isManual = options.transport == "shm"
        let name = "\(options.trains ? "trainer" : "receiver") \(rank)"
        engine = try TransferEngine(
            Configuration(
                name: name, nics: nics, progress: isManual ? .manual : .adaptive, timeout: .seconds(120)))
        endpoint = try WeightEndpoint(engine)
        var address = engine.address
        if let leader = options.leader {
            guard let bytes = bytes(hexadecimal: leader) else {
                throw ValidationError("--leader is no address")
            }
            address = try EngineAddress(decoding: bytes)
        } else {
            controller = WeightController(endpoint, plan: plan)
        }
        if options.trains {
            trainer = try WeightTrainer(endpoint, rank: rank, plan: plan) { address }
            trainer?.isDelta = !options.whole
        } else {
            receiver = try WeightReceiver(endpoint, rank: rank, plan: plan) { address }
            startReader()
        }
        _ = writeLine("address " + hexadecimal(engine.address.encoded()), to: 1)
    }

    /// Reads one byte of each page all the time: whatever is served, it must not change under the reader.
    private func startReader() {
        guard let receiver else { return }
        let reads = reads
        reader = PlatformThread(name: "te-reader") {
            while !reads.isOver.load(ordering: .relaxed) {
                let isSame = receiver.read { _, weights in
                    let first = Self.sample(weights)
                    usleep(2000)
                    return first == Self.sample(weights)
                }
                if let isSame {
                    reads.count.add(1, ordering: .relaxed)
                    if !isSame { reads.torn.add(1, ordering: .relaxed) }
                }
                usleep(1000)
            }
        }
    }

    private static func sample(_ weights: UnsafeRawBufferPointer) -> UInt64 {
        stride(from: 0, to: weights.count, by: max(4096, weights.count / 4096)).reduce(0) {
            ($0 ^ UInt64(weights[$1])) &* 0x0100_0000_01B3
        }
    }

    func serve() throws {
        var idle = 0
        while true {
            var isBusy = isManual && engine.progress()
            if endpoint.poll(at: te_monotonic_nanoseconds()) { isBusy = true }
            look()
            idle = isBusy ? 0 : idle + 1
            guard idle > 200 || !isBusy && idle % 16 == 0 else { continue }
            var poll = pollfd(fd: 0, events: Int16(POLLIN), revents: 0)
            guard Glibc.poll(&poll, 1, idle > 200 ? 1 : 0) > 0 else { continue }
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = read(0, &bytes, bytes.count)
            guard count > 0 else { break }
            input += bytes.prefix(count)
            while let end = input.firstIndex(of: 10) {
                let line = String(decoding: input[..<end], as: UTF8.self)
                input.removeFirst(end + 1)
                try perform(line.split(separator: " ").map(String.init))
            }
        }
        reads.isOver.store(true, ordering: .relaxed)
        reader?.join()
        engine.close()
    }

    private func perform(_ words: [String]) throws {
        let version = words.count > 1 ? Int(words[1]) ?? 0 : 0
        switch words.first {
        case "publish":
            for tensor in plan.model.tensors.indices where trainer?.layout.entries[tensor] != nil {
                try source.bits(tensor, version: version).withUnsafeBytes {
                    guard let trainer else { return }
                    trainer.layout.fill(
                        from: $0, tensor: tensor, model: plan.model, into: trainer.memory.bytes)
                }
            }
            trainer?.publish(UInt64(version))
            _ = writeLine("published", to: 1)
        case "update":
            try controller?.update(to: UInt64(version))
            waiting = (words, monotonicSeconds())
        case "complete": waiting = (words, monotonicSeconds())
        case "sent": _ = writeLine("sent \(trainer?.sentBytes ?? 0)", to: 1)
        case "verify":
            let wrong = try check(version)
            _ = writeLine(
                "\(wrong == nil ? "right" : "wrong") \(reads.count.load(ordering: .relaxed)) "
                    + "\(reads.torn.load(ordering: .relaxed)) \(wrong ?? "")", to: 1)
        default: throw ValidationError("no command \(words)")
        }
    }

    private func look() {
        guard let (words, begun) = waiting, let controller else { return }
        if words[0] == "complete", controller.isComplete {
            waiting = nil
            _ = writeLine("complete", to: 1)
        } else if words[0] == "update", let outcome = controller.outcomes[UInt64(words[1]) ?? 0] {
            waiting = nil
            let seconds = monotonicSeconds() - begun
            let parts = ["opening", "training", "verifying", "committing"].map {
                controller.phaseSeconds[$0] ?? 0
            }
            switch outcome {
            case .committed:
                _ = writeLine("committed \(seconds) \(parts.map { "\($0)" }.joined(separator: " "))", to: 1)
            case .failed(let reason): _ = writeLine("failed \(reason)", to: 1)
            }
        }
    }

    // MARK: An independent look at what is served

    private func check(_ version: Int) throws -> String? {
        guard let receiver else { return "not a receiver" }
        var wrong: String?
        try receiver.read { served, weights in
            guard served == UInt64(version) else {
                wrong = "version \(served) is served"
                return
            }
            for target in plan.inference.targets where wrong == nil {
                guard let replica = target.replicas.first(where: { $0.rank == Int32(rank) }) else { continue }
                if let place = try mismatch(target, replica, weights, version) {
                    wrong = "\(target.name) at \(place)"
                }
            }
        }
        return wrong
    }

    private func mismatch(
        _ target: Target, _ replica: Target.Replica, _ weights: UnsafeRawBufferPointer, _ version: Int
    ) throws -> Int? {
        let width = target.box.columns.count
        var bits = [UInt16](repeating: 0, count: target.box.count)
        for part in target.parts {
            let whole = try source.bits(part.source, version: version)
            let columns = Box(shape: plan.model.tensors[part.source].shape).columns.count
            for (i, row) in part.box.rows.enumerated() {
                let to = (part.place.rows.lowerBound + i) * width + part.place.columns.lowerBound
                for (j, column) in part.box.columns.enumerated() {
                    bits[to + j] = whole[row * columns + column]
                }
            }
        }
        guard target.hasBlockScales else {
            return bits.indices.first {
                weights.loadUnaligned(fromByteOffset: replica.offset + 2 * $0, as: UInt16.self) != bits[$0]
            }
        }
        let blocks = target.scaleShape.columns
        var largest = [Float](repeating: 1e-4, count: target.scaleByteCount / 4)
        for index in bits.indices {
            let block = index / width / 128 * blocks + index % width / 128
            largest[block] = max(largest[block], Float(bitPattern: UInt32(bits[index]) << 16).magnitude)
        }
        for (block, magnitude) in largest.enumerated() {
            let found = weights.loadUnaligned(fromByteOffset: replica.scaleOffset + 4 * block, as: Float.self)
            if found != magnitude / 448 { return block }
        }
        return bits.indices.first { index in
            let block = index / width / 128 * blocks + index % width / 128
            let value = Float(bitPattern: UInt32(bits[index]) << 16) * (1 / largest[block] * 448)
            return weights[replica.offset + index] != Self.nearest(value)
        }
    }

    /// The values of the codes 0...126, from the format's definition.
    private static let values: [Double] = (0..<127).map { code in
        let exponent = code >> 3
        var value = exponent == 0 ? Double(code & 7) / 8 : 1 + Double(code & 7) / 8
        for _ in 0..<abs(max(exponent, 1) - 7) { value *= exponent >= 7 ? 2 : 0.5 }
        return value
    }

    private static func nearest(_ number: Float) -> UInt8 {
        let magnitude = Double(number.magnitude)
        var (low, high) = (0, 126)
        while high - low > 1 {
            let middle = (low + high) / 2
            if values[middle] <= magnitude { low = middle } else { high = middle }
        }
        let (below, above) = (magnitude - values[low], values[high] - magnitude)
        let code = below < above || below == above && low % 2 == 0 ? low : high
        return UInt8(code) | (number.sign == .minus ? 0x80 : 0)
    }
}
