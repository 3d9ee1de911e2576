/// What a scheduler knows of a prefiller or a decoder.
public struct KVWorker: Hashable, Sendable {
    /// Its name in the directory.
    public var name: String
    /// Tokens that it has been given and not finished.
    public var load: Int
    /// Whether it leaves: it finishes what it has and takes nothing new.
    public var isDraining: Bool

    /// Describes a worker.
    public init(name: String, load: Int = 0, isDraining: Bool = false) {
        self.name = name
        self.load = load
        self.isDraining = isDraining
    }
}

/// Picks a prefiller and a decoder for a request. A value without a thread or a clock.
public protocol KVScheduler: Sendable {
    /// Chooses by position, or nil when nobody takes requests. `tokens` are those of the prompt.
    mutating func choose(_ tokens: [UInt32], prefillers: [KVWorker], decoders: [KVWorker]) -> (
        prefiller: Int, decoder: Int
    )?
}

/// The least loaded worker, unless another one has seen a long part of the prompt before and is not much busier.
///
/// A prompt is remembered as one hash for each block of tokens, chained, so that a hash stands for the whole prefix. A
/// decoder that had the prefix saves the transfer, a prefiller that had it saves the computation.
public struct PrefixAffinityScheduler: KVScheduler {
    /// Tokens of a block; a multiple of the page size makes sense.
    public var blockTokens: Int
    /// How many tokens of load one token of known prefix is worth.
    public var weight: Double
    /// Prefix blocks remembered; the oldest are forgotten.
    public var capacity: Int

    private var prefillers: [UInt64: String] = [:]
    private var decoders: [UInt64: String] = [:]
    private var remembered: [UInt64] = []
    private var forgotten = 0

    /// Makes a scheduler that knows no prefix yet.
    public init(blockTokens: Int = 64, weight: Double = 1, capacity: Int = 1 << 16) {
        precondition(blockTokens > 0 && capacity > 0, "blocks have tokens, and some are remembered")
        self.blockTokens = blockTokens
        self.weight = weight
        self.capacity = capacity
    }

    /// See `KVScheduler`.
    /// - Complexity: O(tokens + workers).
    public mutating func choose(
        _ tokens: [UInt32], prefillers workers: [KVWorker], decoders others: [KVWorker]
    ) -> (prefiller: Int, decoder: Int)? {
        let blocks = blockHashes(tokens)
        guard let prefiller = best(workers, blocks, prefillers), let decoder = best(others, blocks, decoders)
        else { return nil }
        for block in blocks {
            if prefillers[block] == nil { remembered.append(block) }
            prefillers[block] = workers[prefiller].name
            decoders[block] = others[decoder].name
        }
        forgetOldest()
        return (prefiller, decoder)
    }

    private func best(_ workers: [KVWorker], _ blocks: [UInt64], _ known: [UInt64: String]) -> Int? {
        var matches: [String: Int] = [:]
        for (index, block) in blocks.enumerated() {
            guard let name = known[block] else { break }
            matches[name] = (index + 1) * blockTokens
        }
        func cost(_ worker: KVWorker) -> Double {
            Double(worker.load) - weight * Double(matches[worker.name] ?? 0)
        }
        return workers.indices.filter { !workers[$0].isDraining }.min {
            cost(workers[$0]) < cost(workers[$1])
        }
    }

    /// FNV-1a over all tokens up to the end of each whole block.
    private func blockHashes(_ tokens: [UInt32]) -> [UInt64] {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        var hashes: [UInt64] = []
        for (index, token) in tokens.enumerated() {
            for shift in stride(from: 0, to: 32, by: 8) {
                hash = (hash ^ UInt64(token >> UInt32(shift) & 0xFF)) &* 0x100_0000_01B3
            }
            if (index + 1) % blockTokens == 0 { hashes.append(hash) }
        }
        return hashes
    }

    private mutating func forgetOldest() {
        while remembered.count - forgotten > capacity {
            prefillers[remembered[forgotten]] = nil
            decoders[remembered[forgotten]] = nil
            forgotten += 1
        }
        if forgotten > capacity {
            remembered.removeFirst(forgotten)
            forgotten = 0
        }
    }
}
