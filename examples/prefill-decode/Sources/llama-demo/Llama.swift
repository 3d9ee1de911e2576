import Foundation

/// Where the cache of a model lies: pages of 16 tokens, keys of all heads before values of all heads.
struct CacheMemory {
    static let pageTokens = 16

    var base: UnsafeMutableRawPointer
    /// For each layer the first byte of page 0.
    var layers: [Int]
    /// Bytes from one page to the next.
    var stride: Int

    /// The vector of a token's key (`part` 0) or value (`part` 1) in one head.
    func vector(_ layer: Int, _ table: [UInt32], _ token: Int, head: Int, part: Int, _ shape: Llama.Shape)
        -> UnsafeMutablePointer<Float>
    {
        let page = base + layers[layer] + Int(table[token / Self.pageTokens]) * stride
        let index = (part * shape.cacheHeads + head) * Self.pageTokens + token % Self.pageTokens
        return page.assumingMemoryBound(to: Float.self) + index * shape.headSize
    }
}

/// The plain forward pass of a Llama model in single precision. An example, not an engine: one thread, one sequence at a time.
///
/// A result is the same however many tokens are computed at once, so that two processes can be compared token for token.
final class Llama: Sendable {
    struct Shape: Sendable {
        var layers: Int
        var width: Int
        var heads: Int
        var cacheHeads: Int
        var inner: Int
        var words: Int
        var ropeBase: Float
        var epsilon: Float
        var headSize: Int { width / heads }
    }

    private struct Layer: Sendable {
        var attentionNorm, query, key, value, output: [Float]
        var innerNorm, gate, up, down: [Float]
    }

    let shape: Shape
    private let embedding: [Float]
    private let finalNorm: [Float]
    private let layers: [Layer]

    init(_ file: GGUF) throws {
        func number(_ key: String) throws -> Int { Int(try file.number("llama." + key)) }
        let shape = Shape(
            layers: try number("block_count"), width: try number("embedding_length"),
            heads: try number("attention.head_count"), cacheHeads: try number("attention.head_count_kv"),
            inner: try number("feed_forward_length"), words: try number("vocab_size"),
            ropeBase: Float(try file.number("llama.rope.freq_base")),
            epsilon: Float(try file.number("llama.attention.layer_norm_rms_epsilon")))
        let (width, cacheWidth) = (shape.width, shape.cacheHeads * shape.headSize)
        embedding = try file.tensor("token_embd.weight", count: shape.words * width)
        finalNorm = try file.tensor("output_norm.weight", count: width)
        layers = try (0..<shape.layers).map { layer in
            func part(_ name: String, _ rows: Int, _ columns: Int = 1) throws -> [Float] {
                try file.tensor("blk.\(layer).\(name).weight", count: rows * columns)
            }
            return Layer(
                attentionNorm: try part("attn_norm", width), query: try part("attn_q", width, width),
                key: try part("attn_k", cacheWidth, width), value: try part("attn_v", cacheWidth, width),
                output: try part("attn_output", width, width), innerNorm: try part("ffn_norm", width),
                gate: try part("ffn_gate", shape.inner, width), up: try part("ffn_up", shape.inner, width),
                down: try part("ffn_down", width, shape.inner))
        }
        self.shape = shape
    }

    /// Computes tokens that follow `first` others, whose keys and values are in the cache. Calls `onLayer` when the keys and
    /// values of a layer are in the cache. Returns the hidden state of the last token.
    func forward(
        _ tokens: [Int32], first: Int, _ cache: CacheMemory, _ table: [UInt32],
        onLayer: (Int) -> Void = { _ in }
    ) -> [Float] {
        var states = tokens.flatMap { embedding[Int($0) * shape.width..<(Int($0) + 1) * shape.width] }
        let count = tokens.count
        for (number, layer) in layers.enumerated() {
            let input = normalized(states, layer.attentionNorm)
            var query = product(layer.query, input, count)
            var key = product(layer.key, input, count)
            let value = product(layer.value, input, count)
            rotate(&query, shape.heads, first)
            rotate(&key, shape.cacheHeads, first)
            store(key, value, number, first, cache, table)
            onLayer(number)
            add(product(layer.output, attend(query, number, first, cache, table), count), to: &states)
            let middle = normalized(states, layer.innerNorm)
            var gate = product(layer.gate, middle, count)
            let up = product(layer.up, middle, count)
            for index in gate.indices { gate[index] = gate[index] / (1 + exp(-gate[index])) * up[index] }
            add(product(layer.down, gate, count), to: &states)
        }
        return normalized(Array(states.suffix(shape.width)), finalNorm)
    }

    /// The most likely next token.
    func choose(_ hidden: [Float]) -> Int32 {
        let scores = product(embedding, hidden, 1)
        var best = 0
        for index in scores.indices where scores[index] > scores[best] { best = index }
        return Int32(best)
    }

    // MARK: Steps

    private func normalized(_ states: [Float], _ weights: [Float]) -> [Float] {
        var result = states
        for start in stride(from: 0, to: states.count, by: shape.width) {
            var sum: Float = 0
            for index in start..<start + shape.width { sum += states[index] * states[index] }
            let scale = 1 / (sum / Float(shape.width) + shape.epsilon).squareRoot()
            for index in 0..<shape.width {
                result[start + index] = states[start + index] * scale * weights[index]
            }
        }
        return result
    }

    private func add(_ other: [Float], to states: inout [Float]) {
        for index in states.indices { states[index] += other[index] }
    }

    /// Rotary positions: neighbours are a pair.
    private func rotate(_ vectors: inout [Float], _ heads: Int, _ first: Int) {
        let size = shape.headSize
        for token in 0..<vectors.count / (heads * size) {
            for pair in 0..<size / 2 {
                let angle = Float(first + token) * pow(shape.ropeBase, -Float(2 * pair) / Float(size))
                let (cosine, sine) = (cos(angle), sin(angle))
                for head in 0..<heads {
                    let place = (token * heads + head) * size + 2 * pair
                    let (a, b) = (vectors[place], vectors[place + 1])
                    vectors[place] = a * cosine - b * sine
                    vectors[place + 1] = a * sine + b * cosine
                }
            }
        }
    }

    private func store(
        _ key: [Float], _ value: [Float], _ layer: Int, _ first: Int, _ cache: CacheMemory, _ table: [UInt32]
    ) {
        let (size, heads) = (shape.headSize, shape.cacheHeads)
        for token in 0..<key.count / (heads * size) {
            for head in 0..<heads {
                for (part, vectors) in [key, value].enumerated() {
                    let place = cache.vector(layer, table, first + token, head: head, part: part, shape)
                    for index in 0..<size { place[index] = vectors[(token * heads + head) * size + index] }
                }
            }
        }
    }

    private func attend(_ query: [Float], _ layer: Int, _ first: Int, _ cache: CacheMemory, _ table: [UInt32])
        -> [Float]
    {
        let size = shape.headSize
        var result = [Float](repeating: 0, count: query.count)
        for token in 0..<query.count / shape.width {
            for head in 0..<shape.heads {
                let cacheHead = head * shape.cacheHeads / shape.heads
                let place = token * shape.width + head * size
                var scores = (0...first + token).map { other in
                    let key = cache.vector(layer, table, other, head: cacheHead, part: 0, shape)
                    var sum: Float = 0
                    for index in 0..<size { sum += query[place + index] * key[index] }
                    return sum / Float(size).squareRoot()
                }
                let largest = scores.max() ?? 0
                var total: Float = 0
                for index in scores.indices {
                    scores[index] = exp(scores[index] - largest)
                    total += scores[index]
                }
                for (other, score) in scores.enumerated() {
                    let value = cache.vector(layer, table, other, head: cacheHead, part: 1, shape)
                    for index in 0..<size { result[place + index] += score / total * value[index] }
                }
            }
        }
        return result
    }

    /// Multiplies a matrix with some vectors. Each number is one sum in one order, whatever is computed beside it.
    private func product(_ matrix: [Float], _ vectors: [Float], _ count: Int) -> [Float] {
        let width = vectors.count / count
        let rows = matrix.count / width
        return [Float](unsafeUninitializedCapacity: rows * count) { output, initialized in
            matrix.withUnsafeBufferPointer { matrix in
                vectors.withUnsafeBufferPointer { vectors in
                    guard let matrix = matrix.baseAddress, let vectors = vectors.baseAddress else { return }
                    for row in 0..<rows {
                        var vector = 0
                        while vector + 4 <= count {
                            let sums = dot4(matrix + row * width, vectors + vector * width, width)
                            for index in 0..<4 { output[(vector + index) * rows + row] = sums[index] }
                            vector += 4
                        }
                        while vector < count {
                            output[vector * rows + row] = dot(
                                matrix + row * width, vectors + vector * width, width)
                            vector += 1
                        }
                    }
                }
            }
            initialized = rows * count
        }
    }
}

@inline(__always) private func eight(_ pointer: UnsafePointer<Float>, _ index: Int) -> SIMD8<Float> {
    UnsafeRawPointer(pointer + index).loadUnaligned(as: SIMD8<Float>.self)
}

private func dot(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ count: Int) -> Float {
    var sum = SIMD8<Float>()
    for index in stride(from: 0, to: count, by: 8) { sum += eight(a, index) * eight(b, index) }
    return sum.sum()
}

/// `a` with four vectors that follow each other.
private func dot4(_ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ count: Int) -> SIMD4<Float> {
    var (sum0, sum1, sum2, sum3) = (SIMD8<Float>(), SIMD8<Float>(), SIMD8<Float>(), SIMD8<Float>())
    for index in stride(from: 0, to: count, by: 8) {
        let left = eight(a, index)
        sum0 += left * eight(b, index)
        sum1 += left * eight(b, count + index)
        sum2 += left * eight(b, 2 * count + index)
        sum3 += left * eight(b, 3 * count + index)
    }
    return SIMD4(sum0.sum(), sum1.sum(), sum2.sum(), sum3.sum())
}
