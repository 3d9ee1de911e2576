public import TransferCore

/// Where the parameters of a model lie among trainer ranks.
public struct TrainerLayout: Hashable, Sendable {
    /// Number of trainer ranks.
    public var worldSize: Int
    /// Ranks of a host, which reach each other without a NIC: ranks `n*k ..< n*(k+1)` share a host.
    public var ranksPerNode: Int
    /// The meshes that parameters are distributed over.
    public var meshes: [Mesh]
    /// For each parameter of the model, its mesh and how it lies there.
    public var tensors: [Distribution]

    /// A parameter's mesh and its placement along each dimension of it.
    public struct Distribution: Hashable, Sendable {
        /// Index into `meshes`.
        public var mesh: Int
        /// One for each dimension of the mesh.
        public var placements: [Placement]

        public init(mesh: Int, placements: [Placement]) {
            self.mesh = mesh
            self.placements = placements
        }
    }

    /// - Throws: `invalidArgument` for a mesh, a rank or a dimension that there is not.
    public init(
        model: ModelDescription, worldSize: Int, ranksPerNode: Int = 8, meshes: [Mesh],
        tensors: [Distribution]
    ) throws(TransferError) {
        guard worldSize > 0, worldSize <= Int(Int32.max), ranksPerNode > 0,
            tensors.count == model.tensors.count
        else {
            throw TransferError(
                .invalidArgument,
                "\(tensors.count) distributions over \(worldSize) ranks for \(model.tensors.count) parameters"
            )
        }
        for mesh in meshes where mesh.ranks.contains(where: { $0 >= worldSize }) {
            throw TransferError(
                .invalidArgument, "mesh '\(mesh.name)' names a rank beyond the \(worldSize) that there are")
        }
        for (tensor, distribution) in zip(model.tensors, tensors) {
            guard meshes.indices.contains(distribution.mesh),
                distribution.placements.count == meshes[distribution.mesh].shape.count,
                distribution.placements.allSatisfy({
                    if case .shard(let dimension) = $0 {
                        tensor.shape.indices.contains(dimension)
                    } else {
                        true
                    }
                })
            else {
                throw TransferError(
                    .invalidArgument,
                    "'\(tensor.name)' is placed on a mesh or along a dimension that there is not")
            }
        }
        self.worldSize = worldSize
        self.ranksPerNode = ranksPerNode
        self.meshes = meshes
        self.tensors = tensors
    }

    /// The host of a rank.
    public func node(of rank: Int) -> Int { rank / ranksPerNode }
}

/// The shards of a model's parameters; those of equal shape and distribution are computed once.
struct ShardTable {
    private let layout: TrainerLayout
    private let tensors: [TensorDescription]
    private var known: [Key: [Shard]] = [:]

    private struct Key: Hashable {
        var shape: [Int]
        var distribution: TrainerLayout.Distribution
    }

    init(_ model: ModelDescription, _ layout: TrainerLayout) {
        self.layout = layout
        tensors = model.tensors
    }

    mutating func shards(of tensor: Int) -> [Shard] {
        let distribution = layout.tensors[tensor]
        let key = Key(shape: tensors[tensor].shape, distribution: distribution)
        if let shards = known[key] { return shards }
        let shards = layout.meshes[distribution.mesh].shards(of: key.shape, distribution.placements)
        known[key] = shards
        return shards
    }

    /// The box that a rank holds; nil when it holds nothing of the parameter.
    mutating func box(of tensor: Int, rank: Int) -> Box? {
        shards(of: tensor).first { $0.ranks.contains(Int32(rank)) }?.box
    }
}
