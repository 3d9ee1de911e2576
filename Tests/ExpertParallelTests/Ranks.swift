import ExpertParallel
import Glibc
import Platform
import SimulatedProvider
import TransferEngine

#if Libfabric
    import LibfabricProvider
#endif

/// How ranks reach each other.
enum Transport: String, CaseIterable, Sendable {
    case sharedMemory, simulated
    #if Libfabric
        case tcp
    #endif
}

/// All ranks of an exchange in one thread, each with an engine of its own.
final class Ranks {
    let network: SimulatedNetwork?
    var engines: [TransferEngine] = []
    var exchanges: [ExpertExchange] = []
    var nodeExchanges: [NodeExchange] = []
    /// The NIC of each rank, where they are simulated.
    private(set) var nics: [UInt64] = []
    let transport: Transport
    /// Ranks that take no part any more.
    var dead: Set<Int> = []

    init(
        _ transport: Transport, count: Int, seed: UInt64 = 1, progress: Configuration.Progress = .manual,
        liveness: Liveness? = nil
    ) throws {
        self.transport = transport
        let network = transport == .simulated ? SimulatedNetwork(seed: seed) : nil
        self.network = network
        for rank in 0..<count {
            var options = Configuration(name: "rank \(rank)", progress: progress)
            // A machine with much to do may leave this thread alone for some tens of milliseconds.
            options.liveness =
                liveness ?? Liveness(interval: .milliseconds(transport == .simulated ? 50 : 250))
            if let network {
                engines.append(
                    try TransferEngine(
                        options, clock: network, random: SeededGenerator(seed: seed &* 1000 &+ UInt64(rank))
                    ) { page in
                        let domain = network.openDomain(
                            SimulatedNIC(name: "nic \(rank)"), page: page, engine: page.engine)
                        nics.append(domain.id)
                        return [domain]
                    })
                continue
            }
            #if Libfabric
                if transport == .tcp {
                    options.nics = [.libfabric(LibfabricOptions(provider: "tcp", nic: "127.0.0.1"))]
                }
            #endif
            engines.append(try TransferEngine(options))
        }
    }

    /// Makes the exchange of a shape on the first `shape.ranks` engines.
    func open(_ shape: ExpertConfiguration) throws {
        exchanges = try (0..<shape.ranks).map { rank in
            var shape = shape
            shape.rank = rank
            return try ExpertExchange(engines[rank], shape, clock: network ?? nil)
        }
        let addresses = exchanges.map(\.address)
        for exchange in exchanges { try exchange.connect(addresses) }
    }

    /// Makes the exchange of a shape over nodes.
    func open(_ shape: ExpertConfiguration, nodes: Int) throws {
        nodeExchanges = try (0..<shape.ranks).map { rank in
            var shape = shape
            shape.rank = rank
            return try NodeExchange(engines[rank], shape, nodes: nodes, clock: network ?? nil)
        }
        let addresses = nodeExchanges.map(\.address)
        for exchange in nodeExchanges { try exchange.connect(addresses) }
    }

    /// One round of everybody's progress.
    func pump() {
        for (rank, engine) in engines.enumerated() where !dead.contains(rank) { engine.progress() }
        guard let network else { return }
        for _ in 0..<16 where !network.step() {
            network.advance(by: 1_000_000)
            for (rank, engine) in engines.enumerated() where !dead.contains(rank) { _ = engine.tick() }
            return
        }
    }

    /// Drives every rank's steps until all have ended; false when that takes longer than `seconds`.
    func run(_ steps: [StepDriver], seconds: Double = 60) throws -> Bool {
        let clock = ContinuousClock()
        let end = clock.now + .milliseconds(Int(seconds * 1000))
        while steps.contains(where: { !$0.isDone && !dead.contains($0.rank) }) {
            for step in steps where !dead.contains(step.rank) { try step.advance() }
            pump()
            if clock.now > end { return false }
        }
        return true
    }

    func close() throws {
        for (rank, exchange) in exchanges.enumerated() where !dead.contains(rank) { try exchange.close() }
        for (rank, exchange) in nodeExchanges.enumerated() where !dead.contains(rank) { try exchange.close() }
        exchanges = []
        nodeExchanges = []
        for (rank, engine) in engines.enumerated() where !dead.contains(rank) { engine.close() }
    }
}

/// One step of one rank, as far as it has come.
final class StepDriver {
    let rank: Int
    let exchange: any TokenExchange
    let batch: Int
    let input: StepInput
    private(set) var result: StepResult?
    private(set) var passes = 0
    private(set) var received: [[UInt32]] = []
    /// Called with the tokens of each pass.
    var onReceived: (ReceivedTokens) -> Void = { _ in }
    let sums: UnsafeMutableRawPointer
    private enum State { case send, receive, sendBack, sum, done }
    private var state = State.send
    /// Leaves the last call of the step for later.
    var stopsBeforeSum = false

    var isDone: Bool { state == .done }

    init(_ exchange: any TokenExchange, batch: Int = 0, _ input: StepInput) {
        rank = exchange.configuration.rank
        self.exchange = exchange
        self.batch = batch
        self.input = input
        sums = .allocate(
            byteCount: max(1, input.count) * exchange.configuration.hidden
                * exchange.configuration.combineElement.byteCount, alignment: 64)
    }

    deinit { sums.deallocate() }

    func advance() throws {
        switch state {
        case .send:
            if try exchange.tryDispatchSend(batch, input.batch) { state = .receive }
        case .receive:
            guard let received = try exchange.tryDispatchReceive(batch) else { return }
            passes += 1
            self.received.append(Array(received.counts))
            onReceived(received)
            input.model.run(received, exchange.configuration)
            state = .sendBack
            isLast = received.isLast
        case .sendBack:
            if try exchange.tryCombineSend(batch) { state = isLast ? .sum : .receive }
        case .sum:
            if stopsBeforeSum { return }
            result = try exchange.tryCombineReceive(batch, into: sums, stride: nil)
            if result != nil { state = .done }
        case .done: break
        }
    }
    private var isLast = false

    /// The sums as numbers.
    var values: [Float] {
        let shape = exchange.configuration
        return (0..<input.count * shape.hidden).map { shape.combineElement.value(sums, $0) }
    }

    var bits: [UInt8] {
        let shape = exchange.configuration
        return Array(
            UnsafeRawBufferPointer(
                start: sums, count: input.count * shape.hidden * shape.combineElement.byteCount))
    }
}

extension ElementType {
    func value(_ memory: UnsafeRawPointer, _ index: Int) -> Float {
        switch self {
        case .float32: memory.load(fromByteOffset: index * 4, as: Float.self)
        case .bfloat16: BFloat16.value(memory.load(fromByteOffset: index * 2, as: UInt16.self))
        case .float16: Float(memory.load(fromByteOffset: index * 2, as: Float16.self))
        case .float8: Float8.value(memory.load(fromByteOffset: index, as: UInt8.self))
        }
    }

    func store(_ value: Float, _ memory: UnsafeMutableRawPointer, _ index: Int) {
        switch self {
        case .float32: memory.storeBytes(of: value, toByteOffset: index * 4, as: Float.self)
        case .bfloat16:
            memory.storeBytes(of: BFloat16.bits(value), toByteOffset: index * 2, as: UInt16.self)
        case .float16: memory.storeBytes(of: Float16(value), toByteOffset: index * 2, as: Float16.self)
        case .float8: memory.storeBytes(of: Float8.bits(value), toByteOffset: index, as: UInt8.self)
        }
    }
}

/// Experts that are cheap and all different: expert `e` makes `a * x + b` of every value.
struct Model: Sendable {
    func a(_ expert: Int) -> Float { Float(expert % 7) * 0.25 - 0.5 }
    func b(_ expert: Int) -> Float { Float(expert % 11) * 0.125 }

    func run(_ received: ReceivedTokens, _ shape: ExpertConfiguration) {
        let experts = shape.placement.experts(of: shape.rank)
        for (local, expert) in experts.enumerated() {
            let first = Int(received.offsets[local])
            for row in first..<first + Int(received.counts[local]) {
                for column in 0..<shape.hidden {
                    var value = shape.dispatchElement.value(received.tokens, row * shape.hidden + column)
                    if let block = shape.scaleBlock, let scales = received.scales {
                        value *= scales[row * shape.scaleCount + column / block]
                    }
                    shape.combineElement.store(
                        a(expert) * value + b(expert), received.outputs, row * shape.hidden + column)
                }
            }
        }
    }
}

/// Tokens with their experts, and what must become of them.
final class StepInput {
    let count: Int
    let shape: ExpertConfiguration
    let model = Model()
    let tokens: UnsafeMutableRawPointer
    var scales: [Float]
    var experts: [Int32]
    var weights: [Float]
    private(set) var region: MemoryRegion?
    private let kept: (UnsafeMutablePointer<Float>, UnsafeMutablePointer<Int32>, UnsafeMutablePointer<Float>)

    init(
        _ shape: ExpertConfiguration, count: Int, seed: UInt64, engine: TransferEngine? = nil,
        choose: (inout SeededGenerator) -> Int32
    ) throws {
        self.count = count
        self.shape = shape
        var random = SeededGenerator(seed: seed)
        let bytes = max(64, count * shape.hidden * shape.dispatchElement.byteCount)
        if let engine {
            let region = try engine.allocate(byteCount: bytes, access: .localOnly)
            self.region = region
            tokens = region.baseAddress
        } else {
            tokens = .allocate(byteCount: bytes, alignment: 64)
        }
        for index in 0..<count * shape.hidden {
            shape.dispatchElement.store(Float.random(in: -4...4, using: &random), tokens, index)
        }
        scales = (0..<count * shape.scaleCount).map { _ in Float.random(in: 0.5...2, using: &random) }
        experts = (0..<count * shape.topK).map { _ in choose(&random) }
        weights = (0..<count * shape.topK).map { _ in Float.random(in: 0...1, using: &random) }
        kept = (
            .allocate(capacity: scales.count + 1), .allocate(capacity: experts.count + 1),
            .allocate(capacity: weights.count + 1)
        )
        kept.0.initialize(from: scales, count: scales.count)
        kept.1.initialize(from: experts, count: experts.count)
        kept.2.initialize(from: weights, count: weights.count)
    }

    deinit {
        if region == nil { tokens.deallocate() }
        kept.0.deallocate()
        kept.1.deallocate()
        kept.2.deallocate()
    }

    var batch: TokenBatch {
        TokenBatch(
            count: count, tokens: tokens, stride: shape.hidden * shape.dispatchElement.byteCount,
            region: region, scales: shape.scaleBlock == nil ? nil : UnsafePointer(kept.0),
            experts: kept.1, weights: kept.2)
    }

    /// The oracle: the dense computation in double precision, without anything of the library but the number formats. Only
    /// experts for which `isThere` holds contribute, and entries of tokens for which `contributes` does.
    func oracle(
        isThere: (Int) -> Bool = { _ in true }, contributes: (Int, Int) -> Bool = { _, _ in true }
    ) -> (values: [Double], magnitude: [Double]) {
        var values = [Double](repeating: 0, count: count * shape.hidden)
        var magnitude = values
        for token in 0..<count {
            for entry in 0..<shape.topK {
                let expert = Int(experts[token * shape.topK + entry])
                guard expert >= 0, isThere(expert), contributes(token, entry) else { continue }
                let weight = Double(weights[token * shape.topK + entry])
                for column in 0..<shape.hidden {
                    var value = Double(shape.dispatchElement.value(tokens, token * shape.hidden + column))
                    if let block = shape.scaleBlock {
                        value *= Double(scales[token * shape.scaleCount + column / block])
                    }
                    let (a, b) = (Double(model.a(expert)) * value, Double(model.b(expert)))
                    values[token * shape.hidden + column] += weight * (a + b)
                    magnitude[token * shape.hidden + column] += abs(weight) * (abs(a) + abs(b))
                }
            }
        }
        return (values, magnitude)
    }

    /// The largest error against the oracle, as a multiple of what the formats allow.
    func error(
        of sums: [Float], isThere: (Int) -> Bool = { _ in true },
        contributes: (Int, Int) -> Bool = { _, _ in true }
    ) -> Double {
        let (values, magnitude) = oracle(isThere: isThere, contributes: contributes)
        let unit: Double =
            switch shape.combineElement {
            case .float32: 0x1p-20
            case .bfloat16: 0x1p-7
            default: 0x1p-9
            }
        var worst = 0.0
        for index in values.indices {
            worst = max(worst, abs(Double(sums[index]) - values[index]) / (unit * (magnitude[index] + 1e-3)))
        }
        return worst
    }
}
