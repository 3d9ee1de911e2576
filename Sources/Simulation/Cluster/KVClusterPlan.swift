internal import Glibc
public import KVCacheTransfer

/// A cluster of prefillers and decoders that is simulated as a whole, as data. The defaults are Llama-3.1-8B on nodes of one GPU
/// and one NIC of 400 Gbit/s.
public struct KVClusterPlan: Hashable, Sendable {
    /// What every instance is like.
    public struct Shape: Hashable, Sendable {
        /// How it keeps the cache.
        public var layout: KVLayout
        /// NICs of each rank.
        public var nics = 1
        /// Of each NIC.
        public var megabitsPerSecond: UInt32 = 400_000
        /// One way of a packet; a random part of up to a quarter comes on top.
        public var latencyNanoseconds: UInt64 = 4_000
        /// Of a NIC's time, for each write besides its bytes.
        public var overheadNanoseconds: UInt64 = 150

        /// Describes a shape; what is not named is as the paper measured it on ConnectX-7 (see `MoELatency.NIC`).
        public init(layout: KVLayout) { self.layout = layout }

        /// Llama-3.1-8B on one GPU: pages of 16 tokens, 64 KiB.
        public static let llama8B = Shape(
            layout: layout("llama-3.1-8b", layers: 32, heads: 8, pageTokens: 16, .together, ranks: 1))

        /// Qwen3-235B over four GPUs with two NICs of 200 Gbit/s each, as in the paper's table 3: pages of 128 tokens, keys and
        /// values apart, 32 KiB. Times of the NICs are those that the paper gives for EFA.
        public static let qwen235B: Shape = {
            var shape = Shape(
                layout: layout(
                    "qwen3-235b", layers: 94, heads: 4, pageTokens: 128, .separate, ranks: 4))
            shape.nics = 2
            shape.megabitsPerSecond = 200_000
            shape.latencyNanoseconds = 14_000
            shape.overheadNanoseconds = 500
            return shape
        }()

        private static func layout(
            _ name: String, layers: Int, heads: Int, pageTokens: Int,
            _ arrangement: PageFormat.Arrangement, ranks: Int
        ) -> KVLayout {
            // 128 elements of BF16 for each head.
            let group = CacheGroup(layers: Array(0..<layers), heads: heads, keyBytes: 256, valueBytes: 256)
            return KVLayout(
                model: KVModel(name: name, elementType: "bf16", groups: [group]), tensorRanks: ranks,
                formats: [PageFormat(pageTokens: pageTokens, arrangement: arrangement)])
        }

        /// The planes of a layer: keys and values of a page are in one or in two.
        var planes: [KVPlacement.Plane] {
            KVPlacement.contiguous(layout, rank: 0, pageCount: 1).layers[0]
        }
        var layers: Int { layout.model.layerCount }
        var pageTokens: Int { layout.formats[0].pageTokens }
    }

    /// What is planted, to see that it is found.
    package enum Mistake: Hashable, Sendable {
        /// A prefiller computes the first page of every tenth request wrongly.
        case wrongPage
        /// A decoder gives the pages of every tenth request back as soon as it has asked for it.
        case earlyFree
        /// A request that fails is not asked for again.
        case noRetry
    }

    /// Everything random comes from this.
    public var seed: UInt64 = 1
    /// What every instance is like.
    public var shape = Shape.llama8B
    /// Prefillers at a time.
    public var prefillers = 64
    /// Decoders at a time.
    public var decoders = 192
    /// Virtual seconds in which requests arrive.
    public var seconds = 20.0
    /// The part of the time in which prefillers compute: it gives the rate of the arrivals.
    public var load = 0.8
    /// Nodes that leave in a second, killed and drained in turn; each is replaced at once.
    public var churn = 1.0
    /// Shortest and longest prompt; the logarithm of the length is uniform.
    public var tokens = 1024...8192
    /// Requests in all; nil is as many as arrive in time.
    public var requestLimit: Int?
    /// Tokens that a prefiller computes in a second, each layer in equal time.
    public var tokensPerSecond = 20_000.0
    /// Most tokens of one forward pass.
    public var chunkTokens = 16_384
    /// Shortest and longest time in which a decoder uses the pages of a request, in seconds.
    public var decodeSeconds = 1.0...4.0
    /// Pages of a node.
    public var pages = 4096
    /// What is planted.
    package var mistake: Mistake?

    /// Makes a plan of the defaults.
    public init() {}

    /// Arrivals in a second.
    var rate: Double { load * Double(prefillers) * tokensPerSecond / meanTokens }

    private var meanTokens: Double {
        let (low, high) = (Double(tokens.lowerBound), Double(tokens.upperBound))
        return tokens.count == 1 ? low : (high - low) / log(high / low)
    }
}

/// Some numbers, in order.
public struct Distribution: Hashable, Sendable {
    private var sorted: [Double]

    /// Takes over numbers in any order.
    public init(_ values: [Double] = []) { sorted = values.sorted() }

    /// The smallest number that is not below a part of all, for example 0.99 of them; 0 when there are none.
    public func quantile(_ part: Double) -> Double {
        sorted.isEmpty ? 0 : sorted[min(sorted.count - 1, Int(part * Double(sorted.count)))]
    }
}

/// What became of a simulated cluster.
public struct KVClusterOutcome: Hashable, Sendable {
    /// Requests that arrived.
    public var requests = 0
    /// Those of which all was there, and still was when the decoder was done.
    public var completed = 0
    /// How often a request was asked for again.
    public var retries = 0
    /// Requests that did not complete by their deadline.
    public var lost = 0
    /// Pages that did not hold what they should, each time they were looked at, or were written to while they were free.
    public var wrong = 0
    /// Nodes that had not got all of their pages back at the end.
    public var leaks = 0
    /// Nodes that were killed.
    public var killed = 0
    /// Nodes that were drained.
    public var drained = 0
    /// From the arrival until the decoder may begin, in seconds, for each request.
    public var firstToken = Distribution()
    /// From the last layer's computation until the decoder may begin, in seconds, for each request.
    public var transfer = Distribution()
    /// The latter as a part of the former, for each request.
    public var share = Distribution()
    /// From the computation of a layer until it has arrived, in seconds.
    public var layer = Distribution()
    /// The part of the prefillers' time in which they computed, while requests arrived.
    public var computing = 0.0
    /// The part of the prefillers' line rate that was used meanwhile.
    public var utilisation = 0.0
    /// Virtual time in all.
    public var nanoseconds: UInt64 = 0
    /// Events of the network.
    public var events: UInt64 = 0
    /// The fingerprint of everything that happened.
    public var hash: UInt64 = 0
    /// The first of what went wrong, in words.
    public var problems: [String] = []

    /// Whether every request completed with the right pages, and all pages came back.
    public var isGood: Bool { lost == 0 && wrong == 0 && leaks == 0 && completed == requests }
}

/// Runs a cluster in virtual time.
/// - Throws: what opening engines throws.
public func simulate(_ plan: KVClusterPlan) throws -> KVClusterOutcome { try KVCluster(plan).run() }
