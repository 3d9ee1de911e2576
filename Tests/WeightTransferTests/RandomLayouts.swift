import TransferEngine
@testable import WeightTransfer

/// Numbers that are the same in every run (SplitMix64).
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var word = state
        word = (word ^ word >> 30) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ word >> 27) &* 0x94D0_49BB_1331_11EB
        return word ^ word >> 31
    }
}

/// Small models on random meshes, to random targets: uneven shards, vectors, matrices and stacks of them, slices that are
/// fused, transposed and quantised.
struct RandomLayouts {
    var random: Seeded
    var options = Planner.Options()
    let model: ModelDescription
    let trainers: TrainerLayout
    let inference: InferenceLayout

    init(seed: UInt64) {
        random = Seeded(state: seed &* 7919)
        options.taskBytes = [512, 4096, 1 << 20].randomElement(using: &random) ?? 4096
        do {
            let tensors = Self.tensors(&random)
            model = try ModelDescription(name: "random", tensors: tensors)
            trainers = try Self.trainers(model, &random)
            inference = Self.inference(model, &random)
        } catch { fatalError("\(error)") }
    }

    func plan() throws -> Plan {
        try Planner.plan(model, from: trainers, to: inference, options: options)
    }

    private static func tensors(_ random: inout Seeded) -> [TensorDescription] {
        (0..<Int.random(in: 1...4, using: &random)).map { number in
            let sizes = [1, 3, 5, 16, 64, 130, 200]
            let rank = Int.random(in: 1...3, using: &random)
            var shape = (0..<rank).map { _ in sizes.randomElement(using: &random) ?? 1 }
            if rank == 3 { shape[0] = Int.random(in: 1...3, using: &random) }
            return TensorDescription("t\(number)", shape, .bf16)
        }
    }

    private static func trainers(_ model: ModelDescription, _ random: inout Seeded) throws -> TrainerLayout {
        let world = [1, 2, 4, 6, 8].randomElement(using: &random) ?? 1
        var meshes: [Mesh] = []
        for number in 0..<2 {
            var ranks = Array(0..<world).shuffled(using: &random)
            if number == 1, world > 2 { ranks = Array(ranks.prefix(world / 2)) }
            let divisors = (1...ranks.count).filter { ranks.count % $0 == 0 }
            let first = divisors.randomElement(using: &random) ?? 1
            meshes.append(
                try Mesh(name: "mesh \(number)", shape: [first, ranks.count / first], ranks: ranks))
        }
        let distributions = model.tensors.map { tensor in
            TrainerLayout.Distribution(
                mesh: Int.random(in: 0..<2, using: &random),
                placements: (0..<2).map { _ in
                    let dimension = Int.random(in: -1..<tensor.shape.count, using: &random)
                    return dimension < 0 ? .replicate : .shard(dimension: dimension)
                })
        }
        return try TrainerLayout(
            model: model, worldSize: world, ranksPerNode: 2, meshes: meshes, tensors: distributions)
    }

    /// A box within the tensor: all of it, or a slice.
    private static func slice(_ tensor: TensorDescription, _ random: inout Seeded) -> Box {
        var box = tensor.box
        for axis in [Box.Axis.row, .column] where Bool.random(using: &random) {
            let range = box[axis]
            let begin = Int.random(in: range, using: &random)
            box[axis] = begin..<Int.random(in: (begin + 1)...range.upperBound, using: &random)
        }
        return box
    }

    private static func inference(_ model: ModelDescription, _ random: inout Seeded) -> InferenceLayout {
        let world = Int.random(in: 1...4, using: &random)
        var builder = RegionBuilder(worldSize: world)
        for number in 0..<Int.random(in: 1...5, using: &random) {
            let source = Int.random(in: model.tensors.indices, using: &random)
            let tensor = model.tensors[source]
            let isFlat = tensor.shape.count < 3
            let box = slice(tensor, &random)
            let isTransposed = isFlat && Bool.random(using: &random)
            var parts = [Target.Part(source: source, box: box, isTransposed: isTransposed)]
            let first = parts[0].place
            if isFlat, Bool.random(using: &random) {
                parts.append(
                    Target.Part(
                        source: source, box: box, firstRow: first.rows.count, isTransposed: isTransposed))
            }
            let rows = first.rows.count * parts.count
            let isQuantised = Bool.random(using: &random)
            let target = Target(
                name: "target \(number)",
                shape: isFlat ? [rows, first.columns.count] : [box.planes.count, rows, box.columns.count],
                type: isQuantised ? .f8e4m3 : .bf16, hasBlockScales: isQuantised, parts: parts)
            let ranks = (0..<world).filter { _ in Bool.random(using: &random) }
            builder.add(target, to: ranks.isEmpty ? [0] : ranks)
        }
        return builder.layout
    }
}
