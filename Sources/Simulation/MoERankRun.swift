internal import ExpertParallel
internal import TransferCore
internal import TransferEngine

/// One rank of a simulated exchange: it makes steps, and checks their sums.
final class MoERankRun {
    let rank: Int
    let engine: TransferEngine
    private(set) var exchange: (any TokenExchange)?
    private(set) var isAlive = true
    private(set) var wholeSteps = 0
    private(set) var partialSteps = 0
    private var shape: ExpertConfiguration?
    private var left = 0
    private var random = SeededGenerator(seed: 0)
    private enum Place { case send, receive, sendBack, sum }
    private var at = Place.send
    private var isLast = false
    private var count = 0
    private var tokens: [Float] = []
    private var experts: [Int32] = []
    private var weights: [Float] = []
    private let memory = MoEMemory()

    init(_ rank: Int, _ engine: TransferEngine) {
        self.rank = rank
        self.engine = engine
    }

    var isDone: Bool { left == 0 }
    var place: String { "has \(left) steps left, at \(at)" }

    /// Makes a new exchange and returns its address.
    func renew(
        _ shape: ExpertConfiguration, nodes: Int?, clock: any TransferClock
    ) throws(TransferError) -> [UInt8] {
        try exchange?.close()
        let exchange: any TokenExchange
        if let nodes {
            exchange = try NodeExchange(engine, shape, nodes: nodes, clock: clock)
        } else {
            exchange = try ExpertExchange(engine, shape, clock: clock)
        }
        self.exchange = exchange
        self.shape = shape
        return exchange.address
    }

    func begin(steps: Int, seed: UInt64) {
        left = isAlive ? steps : 0
        (wholeSteps, partialSteps, at) = (0, 0, .send)
        random = SeededGenerator(seed: seed &* 100 &+ UInt64(rank))
        draw()
    }

    /// Ends without a word to anybody.
    func close() {
        guard isAlive else { return }
        isAlive = false
        left = 0
        engine.close()
    }

    private func draw() {
        guard let shape else { return }
        count =
            Int.random(in: 0..<5, using: &random) == 0
            ? 0 : Int.random(in: 0...shape.maximumTokens, using: &random)
        // Now and then everything goes to one expert.
        let flood =
            Int.random(in: 0..<4, using: &random) == 0
            ? Int32.random(in: 0..<Int32(shape.experts), using: &random) : -1
        tokens = (0..<count * shape.hidden).map { _ in Float(Int.random(in: -64...64, using: &random)) / 16 }
        experts = (0..<count * shape.topK).map { _ in
            flood >= 0 ? flood : Int32.random(in: -1..<Int32(shape.experts), using: &random)
        }
        weights = (0..<count * shape.topK).map { _ in Float(Int.random(in: 0...16, using: &random)) / 16 }
        memory.set(tokens, experts, weights, sums: shape.maximumTokens * shape.hidden)
    }

    /// Goes on as far as is possible now; reports what is wrong.
    func advance(_ report: (String) -> Void) {
        guard left > 0, let exchange, let shape else { return }
        do throws(TransferError) {
            switch at {
            case .send:
                if try exchange.tryDispatchSend(0, memory.batch(count, shape)) { at = .receive }
            case .receive:
                guard let received = try exchange.tryDispatchReceive(0) else { return }
                memory.compute(received, shape)
                isLast = received.isLast
                at = .sendBack
            case .sendBack:
                if try exchange.tryCombineSend(0) { at = isLast ? .sum : .receive }
            case .sum:
                guard let result = try unsafe exchange.tryCombineReceive(0, into: memory.sums, stride: nil)
                else { return }
                check(result, shape, report)
                if result.missingRanks.isEmpty { wholeSteps += 1 } else { partialSteps += 1 }
                left -= 1
                at = .send
                draw()
            }
        } catch {
            // Memory that lost ranks may still write to can run out; that is said, and the rank leaves.
            if error.code != .limitReached { report("rank \(rank): \(error)") }
            left = 0
            partialSteps += 1
        }
    }

    /// Whether an expert is reported not to have contributed.
    private func isDropped(_ entry: Int, _ result: StepResult, _ shape: ExpertConfiguration) -> Bool {
        guard experts[entry] >= 0, !result.missingRanks.isEmpty else { return false }
        if let exchange = exchange as? NodeExchange {
            let bits = exchange.droppedEntries(0, of: entry / shape.topK)
            return bits & 1 << UInt64(entry % shape.topK) != 0
        }
        return result.missingRanks.contains(shape.placement.owner(of: Int(experts[entry])))
    }

    /// Numbers are such that FP32 is exact: every bit must be right.
    private func check(_ result: StepResult, _ shape: ExpertConfiguration, _ report: (String) -> Void) {
        var dropped = 0
        for entry in 0..<count * shape.topK where isDropped(entry, result, shape) {
            dropped += 1
            if !result.missingRanks.contains(shape.placement.owner(of: Int(experts[entry]))) {
                report("rank \(rank): entry \(entry) is missing, and its rank is not")
            }
        }
        if dropped != result.droppedEntries {
            report("rank \(rank): \(dropped) entries are missing, not \(result.droppedEntries)")
        }
        for token in 0..<count {
            for column in 0..<shape.hidden {
                var expected: Float = 0
                for entry in token * shape.topK..<(token + 1) * shape.topK where experts[entry] >= 0 {
                    if isDropped(entry, result, shape) { continue }
                    expected +=
                        weights[entry]
                        * MoEMemory.result(Int(experts[entry]), tokens[token * shape.hidden + column])
                }
                let found = memory.sum(token * shape.hidden + column)
                if found != expected {
                    report(
                        "rank \(rank): a wrong sum, \(found) instead of \(expected), token \(token), "
                            + "missing \(result.missingRanks)"
                    )
                    return
                }
            }
        }
    }
}

/// The memory of a step's tokens and sums, in places that stay.
@safe final class MoEMemory {
    // SAFETY: each buffer is as long as `set` made it, and the loops below stay inside of what the shape says.
    private var tokens = UnsafeMutablePointer<Float>.allocate(capacity: 1)
    private var experts = UnsafeMutablePointer<Int32>.allocate(capacity: 1)
    private var weights = UnsafeMutablePointer<Float>.allocate(capacity: 1)
    private var results = UnsafeMutablePointer<Float>.allocate(capacity: 1)

    deinit { free() }

    private func free() {
        unsafe tokens.deallocate()
        unsafe experts.deallocate()
        unsafe weights.deallocate()
        unsafe results.deallocate()
    }

    func set(_ tokens: [Float], _ experts: [Int32], _ weights: [Float], sums: Int) {
        free()
        unsafe self.tokens = .allocate(capacity: tokens.count + 1)
        unsafe self.experts = .allocate(capacity: experts.count + 1)
        unsafe self.weights = .allocate(capacity: weights.count + 1)
        unsafe results = .allocate(capacity: sums + 1)
        unsafe self.tokens.initialize(from: tokens, count: tokens.count)
        unsafe self.experts.initialize(from: experts, count: experts.count)
        unsafe self.weights.initialize(from: weights, count: weights.count)
        unsafe results.initialize(repeating: .nan, count: sums + 1)
    }

    func batch(_ count: Int, _ shape: ExpertConfiguration) -> TokenBatch {
        unsafe TokenBatch(
            count: count, tokens: tokens, stride: shape.hidden * 4, experts: experts, weights: weights)
    }

    var sums: UnsafeMutableRawPointer { unsafe UnsafeMutableRawPointer(results) }
    func sum(_ index: Int) -> Float { unsafe results[index] }

    /// What an expert makes of a value.
    static func result(_ expert: Int, _ value: Float) -> Float {
        value * Float(expert % 8 + 1) + Float(expert)
    }

    func compute(_ received: ReceivedTokens, _ shape: ExpertConfiguration) {
        for (local, expert) in shape.placement.experts(of: shape.rank).enumerated() {
            let first = unsafe Int(received.offsets[local])
            let count = unsafe Int(received.counts[local])
            for place in first * shape.hidden..<(first + count) * shape.hidden {
                let value = unsafe received.tokens.load(fromByteOffset: place * 4, as: Float.self)
                unsafe received.outputs.storeBytes(
                    of: Self.result(expert, value), toByteOffset: place * 4, as: Float.self)
            }
        }
    }
}
