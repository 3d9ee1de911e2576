public import TransferCore

/// The usual ways to train: a layout from a few numbers.
///
/// Ranks are numbered with the pipeline stage slowest, then replicas, then fully sharded data parallelism, then
/// experts, then tensor
/// parallelism: so experts and tensor parallelism lie within a host. Experts are cut over `fsdp` only; other parameters over
/// `expert` as well where that is more than one (that is, within a host), and replicated over the rest.
public struct ParallelTrainer: Hashable, Sendable {
    /// Ranks that shard each parameter along its first dimension.
    public var fsdp = 1
    /// Copies of those (hybrid sharding).
    public var replicas = 1
    /// Ranks that cut matrices by columns and rows.
    public var tensor = 1
    /// Stages that have some layers each.
    public var pipeline = 1
    /// Groups that have some experts each.
    public var expert = 1
    /// Ranks of a host.
    public var ranksPerNode = 8

    public init(
        fsdp: Int = 1, replicas: Int = 1, tensor: Int = 1, pipeline: Int = 1, expert: Int = 1,
        ranksPerNode: Int = 8
    ) {
        self.fsdp = fsdp
        self.replicas = replicas
        self.tensor = tensor
        self.pipeline = pipeline
        self.expert = expert
        self.ranksPerNode = ranksPerNode
    }

    /// Reads `fsdp=16,pp=2,ep=8`; further keys are `replicas`, `tp` and `node` (ranks of a host).
    public init(parsing text: String) throws(TransferError) {
        self.init()
        for (key, value) in try ParallelismText.pairs(text) {
            switch key {
            case "fsdp": fsdp = value
            case "replicas": replicas = value
            case "tp": tensor = value
            case "pp": pipeline = value
            case "ep": expert = value
            case "node": ranksPerNode = value
            default: throw ParallelismText.unknown(key, ["fsdp", "replicas", "tp", "pp", "ep", "node"])
            }
        }
    }

    /// Number of ranks.
    public var worldSize: Int { fsdp * replicas * tensor * pipeline * expert }

    private func rank(_ stage: Int, _ replica: Int, _ shard: Int, _ expert: Int, _ tensor: Int) -> Int {
        (((stage * replicas + replica) * fsdp + shard) * self.expert + expert) * self.tensor + tensor
    }

    /// The layout of a model.
    /// - Throws: `invalidArgument` where the numbers do not fit the model, for example experts that do not divide.
    public func layout(of model: ModelDescription) throws(TransferError) -> TrainerLayout {
        try ParallelismText.checkRanks([fsdp, replicas, tensor, pipeline, expert])
        let names = model.tensors.map { ParameterName($0.name) }
        let layers = (names.compactMap(\.layer).max() ?? -1) + 1
        let experts = (names.compactMap(\.expert).max() ?? -1) + 1
        guard experts % expert == 0, pipeline <= max(1, layers) else {
            throw TransferError(
                .invalidArgument,
                "\(experts) experts and \(layers) layers do not divide over ep=\(expert), pp=\(pipeline)")
        }
        var meshes: [Mesh] = []
        for stage in 0..<pipeline { try appendMeshes(stage, &meshes) }
        let perStage = (layers + pipeline - 1) / pipeline
        let meshesPerStage = expert + 1
        let tensors = zip(model.tensors, names).map { tensor, name in
            let stage = name.layer.map { $0 / perStage } ?? (name.module == "embed_tokens" ? 0 : pipeline - 1)
            let isExpert = name.expert != nil && expert > 1
            let group = name.expert.map { isExpert ? 1 + $0 / (experts / expert) : 0 } ?? 0
            return TrainerLayout.Distribution(
                mesh: stage * meshesPerStage + group, placements: placements(tensor, name))
        }
        return try TrainerLayout(
            model: model, worldSize: worldSize, ranksPerNode: ranksPerNode, meshes: meshes, tensors: tensors)
    }

    /// The mesh of what is not an expert's, then one for each group of experts.
    private func appendMeshes(_ stage: Int, _ meshes: inout [Mesh]) throws(TransferError) {
        var ranks: [Int] = []
        if expert > 1 {
            for outer in 0..<replicas * fsdp {
                for part in 0..<tensor {
                    for inner in 0..<expert {
                        ranks.append(rank(stage, outer / fsdp, outer % fsdp, inner, part))
                    }
                }
            }
        } else {
            for replica in 0..<replicas {
                for part in 0..<tensor {
                    for shard in 0..<fsdp { ranks.append(rank(stage, replica, shard, 0, part)) }
                }
            }
        }
        meshes.append(
            try Mesh(
                name: "stage \(stage)",
                shape: expert > 1 ? [replicas * fsdp, tensor, expert] : [replicas, tensor, fsdp], ranks: ranks
            ))
        for group in 0..<expert {
            ranks = []
            for replica in 0..<replicas {
                for part in 0..<tensor {
                    for shard in 0..<fsdp { ranks.append(rank(stage, replica, shard, group, part)) }
                }
            }
            meshes.append(
                try Mesh(
                    name: "stage \(stage) experts \(group)", shape: [replicas, tensor, fsdp], ranks: ranks))
        }
    }

    /// Tensor parallelism cuts first, then each part is sharded along its first dimension.
    private func placements(_ tensor: TensorDescription, _ name: ParameterName) -> [Placement] {
        let cut = name.parallelDimension.flatMap { tensor.shape.indices.contains($0) ? $0 : nil }
        return [.replicate, cut.map { .shard(dimension: $0) } ?? .replicate, .shard(dimension: 0)]
    }
}

/// Text such as `tp=2,dp=4`.
enum ParallelismText {
    static func pairs(_ text: String) throws(TransferError) -> [(String, Int)] {
        var result: [(String, Int)] = []
        for part in text.split(separator: ",") {
            let sides = part.split(separator: "=", omittingEmptySubsequences: false)
            guard sides.count == 2, let value = Int(sides[1]), (1...1_000_000).contains(value) else {
                throw TransferError(
                    .invalidArgument, "'\(part)' is not NAME=NUMBER, as in fsdp=16,pp=2,ep=8")
            }
            result.append((String(sides[0]), value))
        }
        return result
    }

    /// Most ranks of a side.
    static let ranks = 65_536

    static func checkRanks(_ factors: [Int]) throws(TransferError) {
        guard let count = factors.product, (1...ranks).contains(count) else {
            throw TransferError(
                .invalidArgument, "there are 1 to \(ranks) ranks, not as many as \(factors) make")
        }
    }

    static func unknown(_ key: String, _ known: [String]) -> TransferError {
        TransferError(
            .invalidArgument, "no dimension is called '\(key)'; there are \(known.joined(separator: ", "))")
    }
}
