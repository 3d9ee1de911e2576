internal import TransferCore

/// Models whose parameters follow from their published configurations; names as in their checkpoints.
public enum PublishedModel: String, Hashable, Sendable, CaseIterable {
    case kimiK2 = "kimi-k2"
    case deepSeekV3 = "deepseek-v3"
    case qwen3 = "qwen3-235b-a22b"
    case llama31 = "llama-3.1-8b"
    case smolLM2 = "smollm2-135m"

    /// All parameters, in checkpoint order. Multi-token-prediction layers are left out.
    /// - Complexity: O(parameters), up to 70,000.
    public var description: ModelDescription {
        let configuration = configuration
        // The configurations above are valid, so that this cannot fail; the tests make each of them.
        do throws(TransferError) {
            return try ModelDescription(
                name: rawValue, tensors: configuration.tensors, attention: configuration.attention)
        } catch { preconditionFailure("\(error)") }
    }

    private var configuration: TransformerConfiguration {
        switch self {
        case .kimiK2:
            TransformerConfiguration(
                hiddenSize: 7168, layers: 61, vocabulary: 163_840, intermediateSize: 18_432,
                latent: .init(heads: 64, query: 1536, keyValue: 512, plain: 128, rotary: 64, value: 128),
                experts: .init(count: 384, intermediateSize: 2048, firstLayer: 1, isShared: true))
        case .deepSeekV3:
            TransformerConfiguration(
                hiddenSize: 7168, layers: 61, vocabulary: 129_280, intermediateSize: 18_432,
                latent: .init(heads: 128, query: 1536, keyValue: 512, plain: 128, rotary: 64, value: 128),
                experts: .init(count: 256, intermediateSize: 2048, firstLayer: 3, isShared: true))
        case .qwen3:
            TransformerConfiguration(
                hiddenSize: 4096, layers: 94, vocabulary: 151_936, intermediateSize: 0,
                attention: AttentionShape(heads: 64, keyValueHeads: 4, headSize: 128), hasHeadNorms: true,
                experts: .init(count: 128, intermediateSize: 1536, firstLayer: 0, isShared: false))
        case .llama31:
            TransformerConfiguration(
                hiddenSize: 4096, layers: 32, vocabulary: 128_256, intermediateSize: 14_336,
                attention: AttentionShape(heads: 32, keyValueHeads: 8, headSize: 128))
        case .smolLM2:
            TransformerConfiguration(
                hiddenSize: 576, layers: 30, vocabulary: 49_152, intermediateSize: 1536,
                attention: AttentionShape(heads: 9, keyValueHeads: 3, headSize: 64), isTied: true)
        }
    }
}

/// What of a published configuration decides names and shapes.
struct TransformerConfiguration {
    var hiddenSize: Int
    var layers: Int
    var vocabulary: Int
    var intermediateSize: Int
    var attention: AttentionShape?
    var hasHeadNorms = false
    var latent: Latent?
    var experts: Experts?
    /// Whether the output projection is the embedding.
    var isTied = false

    /// Multi-head latent attention.
    struct Latent {
        var heads: Int
        /// Rank of the query's projection.
        var query: Int
        /// Rank of the keys' and values' projection.
        var keyValue: Int
        /// Elements of a head without and with rotary embedding, and of its values.
        var plain: Int
        var rotary: Int
        var value: Int
    }

    struct Experts {
        var count: Int
        var intermediateSize: Int
        /// Layers before this one are dense.
        var firstLayer: Int
        /// Whether there is an expert that sees every token, and a bias that balances the router.
        var isShared: Bool
    }

    init(
        hiddenSize: Int, layers: Int, vocabulary: Int, intermediateSize: Int,
        attention: AttentionShape? = nil, hasHeadNorms: Bool = false, latent: Latent? = nil,
        experts: Experts? = nil, isTied: Bool = false
    ) {
        self.hiddenSize = hiddenSize
        self.layers = layers
        self.vocabulary = vocabulary
        self.intermediateSize = intermediateSize
        self.attention = attention
        self.hasHeadNorms = hasHeadNorms
        self.latent = latent
        self.experts = experts
        self.isTied = isTied
    }

    var tensors: [TensorDescription] {
        var result = [TensorDescription("model.embed_tokens.weight", [vocabulary, hiddenSize])]
        for layer in 0..<layers { append(layer: layer, to: &result) }
        result.append(TensorDescription("model.norm.weight", [hiddenSize]))
        if !isTied { result.append(TensorDescription("lm_head.weight", [vocabulary, hiddenSize])) }
        return result
    }

    private func append(layer: Int, to result: inout [TensorDescription]) {
        func add(_ name: String, _ shape: [Int], _ type: DataType = .bf16) {
            result.append(TensorDescription("model.layers.\(layer).\(name)", shape, type))
        }
        func addFeedForward(_ prefix: String, _ size: Int) {
            add("\(prefix).gate_proj.weight", [size, hiddenSize])
            add("\(prefix).up_proj.weight", [size, hiddenSize])
            add("\(prefix).down_proj.weight", [hiddenSize, size])
        }
        add("input_layernorm.weight", [hiddenSize])
        for (name, shape) in attentionTensors { add("self_attn.\(name).weight", shape) }
        add("post_attention_layernorm.weight", [hiddenSize])
        guard let experts, layer >= experts.firstLayer else {
            return addFeedForward("mlp", intermediateSize)
        }
        add("mlp.gate.weight", [experts.count, hiddenSize])
        if experts.isShared {
            add("mlp.gate.e_score_correction_bias", [experts.count], .f32)
            addFeedForward("mlp.shared_experts", experts.intermediateSize)
        }
        for expert in 0..<experts.count { addFeedForward("mlp.experts.\(expert)", experts.intermediateSize) }
    }

    private var attentionTensors: [(String, [Int])] {
        if let latent {
            let heads = latent.heads
            return [
                ("q_a_proj", [latent.query, hiddenSize]), ("q_a_layernorm", [latent.query]),
                ("q_b_proj", [heads * (latent.plain + latent.rotary), latent.query]),
                ("kv_a_proj_with_mqa", [latent.keyValue + latent.rotary, hiddenSize]),
                ("kv_a_layernorm", [latent.keyValue]),
                ("kv_b_proj", [heads * (latent.plain + latent.value), latent.keyValue]),
                ("o_proj", [hiddenSize, heads * latent.value]),
            ]
        }
        guard let attention else { return [] }
        let rows = attention.heads * attention.headSize
        let pairs = attention.keyValueHeads * attention.headSize
        let norms = hasHeadNorms ? ["q_norm", "k_norm"].map { ($0, [attention.headSize]) } : []
        return [
            ("q_proj", [rows, hiddenSize]), ("k_proj", [pairs, hiddenSize]),
            ("v_proj", [pairs, hiddenSize]), ("o_proj", [hiddenSize, rows]),
        ] + norms
    }
}
