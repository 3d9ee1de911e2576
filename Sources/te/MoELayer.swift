internal import ExpertParallel
internal import Glibc
internal import TransferEngine

/// The experts of one process, and the router that all have.
struct MoELayer {
    private let model: MoEModel
    private let experts: Range<Int>
    private let router: [Float]
    private let weights: [(gate: [Float], up: [Float], down: [Float])]
    private var gates: [Int32] = []
    private var shares: [Float] = []

    init(_ model: MoEModel, experts: Range<Int>) {
        self.model = model
        self.experts = experts
        router = model.numbers(model.experts * model.hidden, seed: 17, scale: 0.3)
        let size = model.hidden * model.inner
        weights = experts.map { expert in
            let seed = UInt64(expert + 1) * 1000
            return (
                model.numbers(size, seed: seed, scale: 0.15),
                model.numbers(size, seed: seed + 1, scale: 0.15),
                model.numbers(size, seed: seed + 2, scale: 0.15)
            )
        }
    }

    /// One layer: route, dispatch, compute, combine, add to the tokens.
    mutating func run(_ tokens: [UInt16], _ layer: Int, _ exchange: ExpertExchange) throws -> [UInt16] {
        let count = tokens.count / model.hidden
        gates = []
        shares = []
        for token in 0..<count { route(tokens[token * model.hidden..<(token + 1) * model.hidden]) }
        var sums = [UInt16](repeating: 0, count: tokens.count)
        let batch = layer % exchange.configuration.microBatches
        try tokens.withUnsafeBytes { tokens in
            try gates.withUnsafeBufferPointer { gates in
                try shares.withUnsafeBufferPointer { shares in
                    guard let tokens = tokens.baseAddress, let gates = gates.baseAddress,
                        let shares = shares.baseAddress
                    else { return }
                    try exchange.dispatchSend(
                        batch,
                        TokenBatch(
                            count: count, tokens: tokens, stride: model.hidden * 2, experts: gates,
                            weights: shares))
                    var isLast = false
                    while !isLast {
                        let received = try exchange.dispatchReceive(batch)
                        compute(received)
                        try exchange.combineSend(batch)
                        isLast = received.isLast
                    }
                    try sums.withUnsafeMutableBytes { sums in
                        guard let sums = sums.baseAddress else { return }
                        let result = try exchange.combineReceive(batch, into: sums)
                        guard result.isComplete else {
                            throw TransferError(.peerLost, "ranks \(result.missingRanks) are missing")
                        }
                    }
                }
            }
        }
        return zip(tokens, sums).map { BFloat16.bits(BFloat16.value($0) + BFloat16.value($1)) }
    }

    /// The best k experts of a token, and their shares.
    private mutating func route(_ token: ArraySlice<UInt16>) {
        let values = token.map(BFloat16.value)
        let logits = (0..<model.experts).map { expert -> Float in
            var sum: Float = 0
            for index in 0..<model.hidden { sum += values[index] * router[expert * model.hidden + index] }
            return sum
        }
        let best = (0..<model.experts).sorted { (-logits[$0], $0) < (-logits[$1], $1) }.prefix(model.topK)
        let powers = best.map { expf(logits[$0] - logits[best[0]]) }
        let total = powers.reduce(0, +)
        gates += best.map { Int32($0) }
        shares += powers.map { $0 / total }
    }

    /// down(silu(gate(x)) * up(x)) of every row.
    private func compute(_ received: ReceivedTokens) {
        for local in 0..<experts.count {
            let first = Int(received.offsets[local])
            for row in first..<first + Int(received.counts[local]) {
                let input = received.tokens + row * model.hidden * 2
                let values = (0..<model.hidden).map {
                    BFloat16.value(input.load(fromByteOffset: $0 * 2, as: UInt16.self))
                }
                let gate = Self.product(weights[local].gate, values)
                let up = Self.product(weights[local].up, values)
                let inner = zip(gate, up).map { $0 / (1 + expf(-$0)) * $1 }
                let output = Self.product(weights[local].down, inner)
                for index in 0..<model.hidden {
                    received.outputs.storeBytes(
                        of: BFloat16.bits(output[index]), toByteOffset: (row * model.hidden + index) * 2,
                        as: UInt16.self)
                }
            }
        }
    }

    /// A matrix, row by row, times a vector.
    private static func product(_ matrix: [Float], _ vector: [Float]) -> [Float] {
        let width = vector.count
        return (0..<matrix.count / width).map { row in
            var sum: Float = 0
            for index in 0..<width { sum += matrix[row * width + index] * vector[index] }
            return sum
        }
    }
}
