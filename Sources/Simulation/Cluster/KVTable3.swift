internal import KVCacheTransfer

/// A row of the paper's table 3 (v2): Qwen3-235B from four GPUs to four GPUs, each with two NICs of 200 Gbit/s.
public struct KVTable3: Hashable, Sendable {
    /// Tokens of the prompt.
    public var tokens: Int
    /// What the paper measured: computation of one layer and chunk, and its transfer.
    public var computeMilliseconds: Double
    /// The transfer of one layer and chunk, as measured there.
    public var paperMilliseconds: Double

    /// All rows.
    public static let rows = [
        KVTable3(tokens: 4096, computeMilliseconds: 2.267, paperMilliseconds: 0.661),
        KVTable3(tokens: 8192, computeMilliseconds: 4.578, paperMilliseconds: 0.952),
        KVTable3(tokens: 16_384, computeMilliseconds: 9.860, paperMilliseconds: 1.610),
        KVTable3(tokens: 32_768, computeMilliseconds: 13.295, paperMilliseconds: 1.606),
        KVTable3(tokens: 65_536, computeMilliseconds: 20.344, paperMilliseconds: 1.611),
        KVTable3(tokens: 131_072, computeMilliseconds: 34.895, paperMilliseconds: 1.609),
    ]

    private static let shape = KVClusterPlan.Shape.qwen235B
    private var chunkTokens: Int { min(tokens, 16_384) }

    /// Forward passes.
    public var chunks: Int { tokens / chunkTokens }

    /// Pages of one layer and chunk: those of keys and of values, of all ranks.
    public var pages: Int {
        chunkTokens / Self.shape.pageTokens * Self.shape.planes.count * Self.shape.layout.rankCount
    }

    /// What the bytes of these pages take at least, at the line rate of all NICs.
    public var wireMilliseconds: Double {
        let nics = Double(Self.shape.layout.rankCount * Self.shape.nics)
        let bits = Double(pages * Self.shape.planes[0].stride * 8)
        return bits / (nics * Double(Self.shape.megabitsPerSecond) * 1e6) * 1e3
    }

    /// One request from one prefiller to one decoder. The times of layers are those of the last chunk.
    public func plan(seed: UInt64) -> KVClusterPlan {
        var plan = KVClusterPlan()
        plan.seed = seed
        plan.shape = Self.shape
        plan.prefillers = 1
        plan.decoders = 1
        plan.churn = 0
        plan.tokens = tokens...tokens
        plan.requestLimit = 1
        plan.chunkTokens = chunkTokens
        plan.pages = tokens / Self.shape.pageTokens
        plan.tokensPerSecond =
            Double(chunkTokens) / (Double(Self.shape.layers) * computeMilliseconds / 1e3)
        plan.seconds = 1e9  // until it has arrived
        return plan
    }
}
