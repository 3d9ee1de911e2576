internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import SharedMemoryProvider
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// One trainer or receiver of a push, as a process has it: an engine, an endpoint and its role.
final class WeightProcess {
    let plan: Plan
    let endpoint: WeightEndpoint
    private(set) var trainer: WeightTrainer?
    private(set) var receiver: WeightReceiver?
    /// Where this process leads.
    private(set) var controller: WeightController?
    private let source: WeightSource
    private let engine: TransferEngine
    private let rank: Int
    private let isManual: Bool
    private let counts = Reads()
    private var reader: PlatformThread?

    /// What the thread that reads all the time has seen.
    private final class Reads: Sendable {
        let count = Atomic<Int>(0)
        let torn = Atomic<Int>(0)
        let isOver = Atomic<Bool>(false)
    }

    /// - Parameter leader: The leader's address in hexadecimal digits; the leader has none.
    init(plan: Plan, rank: Int, trains: Bool, transport: String, file: String?, leader: String?) throws {
        self.plan = plan
        self.rank = rank
        source = try WeightSource(model: plan.model, path: file)
        let nics = try makeNICs(provider: transport, count: 1, nics: "", callerMemory: .automatic)
        // Over sockets somebody has to answer heartbeats while this thread looks at every byte.
        isManual = transport == "shm"
        engine = try TransferEngine(
            Configuration(
                name: "\(trains ? "trainer" : "receiver") \(rank)", nics: nics,
                progress: isManual ? .manual : .adaptive, timeout: .seconds(120)))
        endpoint = try WeightEndpoint(engine)
        var address = engine.address
        if let leader {
            guard let bytes = bytes(hexadecimal: leader) else {
                throw ValidationError("--leader is no address")
            }
            address = try EngineAddress(decoding: bytes)
        } else {
            controller = WeightController(endpoint, plan: plan)
        }
        if trains {
            trainer = try WeightTrainer(endpoint, rank: rank, plan: plan) { address }
        } else {
            receiver = try WeightReceiver(endpoint, rank: rank, plan: plan) { address }
        }
    }

    /// This process's address in hexadecimal digits.
    var address: String { hexadecimal(engine.address.encoded()) }

    /// How often all was read, and how often it changed meanwhile.
    var reads: (count: Int, torn: Int) {
        (counts.count.load(ordering: .relaxed), counts.torn.load(ordering: .relaxed))
    }

    /// Does what is to be done now; whether anything was.
    func poll() -> Bool {
        let isBusy = isManual && engine.progress()
        return endpoint.poll(at: te_monotonic_nanoseconds()) || isBusy
    }

    func close() {
        counts.isOver.store(true, ordering: .relaxed)
        reader?.join()
        engine.close()
    }

    /// Fills the trainer's memory with a version.
    func publish(_ version: Int) throws {
        guard let trainer else { return }
        try trainer.withdraw()
        for tensor in plan.model.tensors.indices where trainer.layout.entries[tensor] != nil {
            try source.bytes(tensor, version: version).withUnsafeBytes {
                trainer.layout.fill(from: $0, tensor: tensor, model: plan.model, into: trainer.memory.bytes)
            }
        }
        trainer.publish(UInt64(version))
    }

    /// Writes what the receiver serves as a safetensors file, scales as `NAME_scale_inv`.
    func save(to path: String) throws {
        guard let receiver else { return }
        var tensors: [TensorDescription] = []
        var places: [Int] = []
        for target in plan.inference.targets {
            guard let replica = target.replicas.first(where: { $0.rank == Int32(rank) }) else { continue }
            tensors.append(TensorDescription(target.name, target.shape, target.type))
            places.append(replica.offset)
            guard target.hasBlockScales else { continue }
            let (rows, columns) = target.scaleShape
            let planes = target.shape.count == 3 ? [target.shape[0]] : []
            tensors.append(TensorDescription(target.name + "_scale_inv", planes + [rows, columns], .f32))
            places.append(replica.scaleOffset)
        }
        try receiver.read { _, weights in
            try File.writeSafetensors(tensors, to: path) { index in
                Array(weights[places[index]..<places[index] + tensors[index].byteCount])
            }
        }
    }

    /// Reads some thousand bytes all the time: while a version is lent it must not change, and whenever it is lent again it
    /// must be the same.
    func startReader() {
        guard let receiver else { return }
        let reads = counts
        reader = PlatformThread(name: "te-reader") {
            var known: [UInt64: UInt64] = [:]
            while !reads.isOver.load(ordering: .relaxed) {
                let seen = receiver.read { version, weights in
                    let first = Self.sample(weights)
                    usleep(2000)
                    return (version: version, sample: first, isSame: first == Self.sample(weights))
                }
                if let seen {
                    reads.count.add(1, ordering: .relaxed)
                    let isSame = seen.isSame && known[seen.version, default: seen.sample] == seen.sample
                    known[seen.version] = seen.sample
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

    // MARK: An independent look at what is served

    func check(_ version: Int) throws -> String? {
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
        let bytes = try WeightAssembly.target(target, plan.model) { try source.bytes($0, version: version) }
        guard target.hasBlockScales else {
            return bytes.indices.first { weights[replica.offset + $0] != bytes[$0] }
        }
        let bits = stride(from: 0, to: bytes.count, by: 2).map {
            UInt16(bytes[$0]) | UInt16(bytes[$0 + 1]) << 8
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
