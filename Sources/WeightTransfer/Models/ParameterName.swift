/// The parts of a checkpoint's parameter name that decide how it is divided.
struct ParameterName: Hashable {
    /// `N` of `layers.N`.
    var layer: Int?
    /// `N` of `experts.N`.
    var expert: Int?
    /// The module: for `a.b.q_proj.weight` it is `q_proj`.
    var module: String
    /// What precedes the module, with its dot.
    var prefix: String
    /// What follows it, with its dot.
    var suffix: String

    init(_ name: String) {
        let words = name.split(separator: ".").map(String.init)
        func number(after word: String) -> Int? {
            guard let place = words.firstIndex(of: word), place + 1 < words.count else { return nil }
            return Int(words[place + 1])
        }
        layer = number(after: "layers")
        expert = number(after: "experts")
        let position = max(0, words.count - 2)
        module = words[position]
        prefix = words[..<position].map { $0 + "." }.joined()
        suffix = words[(position + 1)...].map { "." + $0 }.joined()
    }

    /// Along which dimension tensor parallelism cuts the parameter; nil is not at all.
    var parallelDimension: Int? {
        switch module {
        case "q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "embed_tokens",
            "lm_head":
            0
        case "o_proj", "down_proj": suffix == ".weight" ? 1 : nil
        default: nil
        }
    }

    /// Whether FP8 deployments quantise it: the linear layers, not embeddings, norms and routers.
    var isLinear: Bool { layer != nil && suffix == ".weight" && module.contains("_proj") }

    /// Projections that inference engines keep as one matrix: the fused module and the place of this one in it.
    var fusion: (module: String, members: [String])? {
        switch module {
        case "q_proj", "k_proj", "v_proj": ("qkv_proj", ["q_proj", "k_proj", "v_proj"])
        case "gate_proj", "up_proj": ("gate_up_proj", ["gate_proj", "up_proj"])
        case "q_a_proj", "kv_a_proj_with_mqa": ("fused_qkv_a_proj", ["q_a_proj", "kv_a_proj_with_mqa"])
        default: nil
        }
    }
}
