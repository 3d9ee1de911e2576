/// What a model keeps for each token: the same on both sides of a transfer, whatever their parallelism and page sizes are.
public struct KVModel: Hashable, Sendable {
    /// Model and revision, for example `meta-llama/Llama-3.1-8B@0e9e39f`. Two sides transfer only when they are equal.
    public var name: String
    /// Element type of the cache, for example `bf16` or `fp8_e4m3`.
    public var elementType: String
    /// Layers that are cached alike. Together they name each of the model's layers once.
    public var groups: [CacheGroup]

    /// Describes a model.
    public init(name: String, elementType: String, groups: [CacheGroup]) {
        self.name = name
        self.elementType = elementType
        self.groups = groups
    }

    /// Layers of the model, in all groups.
    public var layerCount: Int { groups.reduce(0) { $0 + $1.layers.count } }
}

/// Layers that keep the same things for the same tokens: all of a plain model, the sliding-window layers of a hybrid one, or
/// those with a recurrent state.
///
/// - Attention with `h` KV heads: `heads` is h, `keyBytes` and `valueBytes` are head dimension times element size.
/// - MLA: `heads` is 1, `keyBytes` is the latent with its rotary part, `valueBytes` is 0. Over tensor ranks it is replicated,
///   as every head is when there are more ranks than heads.
/// - A recurrent state (Mamba): `window` is 1 and the page holds one token: what is kept is that of the last token.
public struct CacheGroup: Hashable, Sendable {
    /// The model's layers, ascending.
    public var layers: [Int]
    /// KV heads in all tensor ranks together.
    public var heads: Int
    /// Bytes that one head keeps for one token as key.
    public var keyBytes: Int
    /// Bytes that one head keeps for one token as value; 0 when there is nothing besides the key.
    public var valueBytes: Int
    /// Only so many of the last tokens are ever read again; nil is all of them.
    public var window: Int?

    /// Describes a group.
    public init(layers: [Int], heads: Int, keyBytes: Int, valueBytes: Int, window: Int? = nil) {
        self.layers = layers
        self.heads = heads
        self.keyBytes = keyBytes
        self.valueBytes = valueBytes
        self.window = window
    }

    /// Bytes of each part: the key, and the value where there is one.
    var partBytes: [Int] { valueBytes > 0 ? [keyBytes, valueBytes] : [keyBytes] }
}

/// The tokens of a request as far as its cache is transferred: those from `cached` on, which the decoder does not have yet.
public struct TokenSpan: Hashable, Sendable {
    /// Tokens at the beginning that the decoder has: a prefix that it found in its own cache.
    public var cached: Int
    /// Tokens whose cache the decoder needs to begin, the cached ones included.
    public var end: Int

    /// Describes a span; `cached` is at most `end`.
    public init(cached: Int = 0, end: Int) {
        self.cached = cached
        self.end = end
    }
}
