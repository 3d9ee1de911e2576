internal import TransferCore
internal import TransferEngine
internal import WeightTransfer

/// What one run of weight updates is about: layouts, and what goes wrong when. Times are nanoseconds.
enum WeightCase {
    struct Crash {
        var time: UInt64
        var member: Int
        var isRestart: Bool
    }

    struct Silence {
        var member: Int
        var from: UInt64
        var until: UInt64
    }

    static func plan(_ random: inout SeededGenerator) throws(TransferError) -> (Plan, WeightOracle) {
        var tensors = [TensorDescription("model.embed_tokens.weight", [40, 64])]
        for layer in 0..<2 {
            let shapes: [(String, [Int])] = [
                ("self_attn.q_proj.weight", [128, 64]), ("self_attn.k_proj.weight", [64, 64]),
                ("self_attn.v_proj.weight", [64, 64]), ("self_attn.o_proj.weight", [64, 128]),
                ("mlp.gate_proj.weight", [150, 64]), ("mlp.up_proj.weight", [150, 64]),
                ("mlp.down_proj.weight", [64, 150]), ("input_layernorm.weight", [64]),
            ]
            tensors += shapes.map { TensorDescription("model.layers.\(layer).\($0.0)", $0.1) }
        }
        let model = try ModelDescription(
            name: "small", tensors: tensors,
            attention: AttentionShape(heads: 4, keyValueHeads: 2, headSize: 32))
        let trainers = ParallelTrainer(
            fsdp: Int.random(in: 1...2, using: &random), replicas: Int.random(in: 1...2, using: &random),
            tensor: Int.random(in: 1...2, using: &random), pipeline: 1, ranksPerNode: 2)
        let inference = try ParallelInference(
            tensor: Int.random(in: 1...2, using: &random), replicas: Int.random(in: 1...2, using: &random),
            isQuantised: Bool.random(using: &random)
        ).layout(of: model)
        var options = Planner.Options()
        options.taskBytes = [4 << 10, 16 << 10].randomElement(using: &random) ?? 4096
        options.watermarkBytes = [128 << 10, 1 << 20].randomElement(using: &random) ?? 1 << 20
        let plan = try Planner.plan(model, from: trainers.layout(of: model), to: inference, options: options)
        return (plan, WeightOracle(model: model, inference: inference))
    }

    /// Up to three members crash, each at any time of the updates, and come back some time later.
    static func crashes(of members: Int, _ random: inout SeededGenerator) -> [Crash] {
        var crashes: [Crash] = []
        for _ in 0..<Int.random(in: 0...3, using: &random) {
            let member = Int.random(in: 0..<members, using: &random)
            let time = UInt64.random(in: 1_000_000...900_000_000, using: &random)
            let away = UInt64.random(in: 50_000_000...1_500_000_000, using: &random)
            crashes += [
                Crash(time: time, member: member, isRestart: false),
                Crash(time: time + away, member: member, isRestart: true),
            ]
        }
        return crashes.sorted { $0.time < $1.time }
    }

    /// In every third run a member says nothing for a while, longer than phases may take or not: its engine lives.
    static func silences(of members: Int, seed: UInt64) -> [Silence] {
        var random = SeededGenerator(seed: seed &+ 79)
        guard Int.random(in: 0..<3, using: &random) == 0 else { return [] }
        let member = Int.random(in: 0..<members, using: &random)
        let from = UInt64.random(in: 1_000_000...900_000_000, using: &random)
        let length = UInt64.random(in: 100_000_000...12_000_000_000, using: &random)
        return [Silence(member: member, from: from, until: from + length)]
    }

    static func faults(_ random: inout SeededGenerator) -> [Fault] {
        guard Int.random(in: 0..<3, using: &random) == 0 else { return [] }
        let begin = UInt64.random(in: 0...500_000_000, using: &random)
        return [
            Fault(.delay(perMillion: 200_000, nanoseconds: 3_000_000), from: begin, to: begin + 400_000_000)
        ]
    }
}
