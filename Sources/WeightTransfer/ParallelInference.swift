public import TransferCore

/// The usual ways to serve: a layout from a few numbers.
///
/// An instance has as many ranks as the larger of `tensor` and `expert`; rank `u` of it has tensor part `u % tensor` and expert
/// group `u`. Instances follow each other. With `expert` at 1 experts are cut by tensor parallelism as well.
public struct ParallelInference: Hashable, Sendable {
    /// Ranks that cut matrices by heads, columns and rows.
    public var tensor = 1
    /// Groups that have some experts each.
    public var expert = 1
    /// Instances.
    public var replicas = 1
    /// Whether linear layers become FP8 with a scale for each block.
    public var isQuantised = false
    /// Whether q, k and v, and gate and up, become one matrix each.
    public var isFused = true

    public init(
        tensor: Int = 1, expert: Int = 1, replicas: Int = 1, isQuantised: Bool = false, isFused: Bool = true
    ) {
        self.tensor = tensor
        self.expert = expert
        self.replicas = replicas
        self.isQuantised = isQuantised
        self.isFused = isFused
    }

    /// Reads `ep=32,tp=8,dp=4`; `fp8=1` quantises, `fused=0` would not fuse but 0 is written `unfused=1`.
    public init(parsing text: String) throws(TransferError) {
        self.init()
        for (key, value) in try ParallelismText.pairs(text) {
            switch key {
            case "tp": tensor = value
            case "ep": expert = value
            case "dp": replicas = value
            case "fp8": isQuantised = value == 1
            case "unfused": isFused = value != 1
            default: throw ParallelismText.unknown(key, ["tp", "ep", "dp", "fp8", "unfused"])
            }
        }
    }

    /// Ranks of an instance.
    public var instanceSize: Int { max(tensor, expert) }
    /// Number of ranks.
    public var worldSize: Int { instanceSize * replicas }

    /// The layout of a model.
    /// - Throws: `invalidArgument` where the numbers do not fit the model.
    /// - Complexity: O(parameters times ranks that hold them).
    public func layout(of model: ModelDescription) throws(TransferError) -> InferenceLayout {
        try ParallelismText.checkRanks([tensor, replicas])
        try ParallelismText.checkRanks([expert, replicas])
        guard expert == 1 || expert % tensor == 0 else {
            throw TransferError(
                .invalidArgument, "ep=\(expert) is not a multiple of tp=\(tensor); choose one that is")
        }
        let names = model.tensors.map { ParameterName($0.name) }
        let experts = (names.compactMap(\.expert).max() ?? -1) + 1
        guard experts % expert == 0 else {
            throw TransferError(.invalidArgument, "\(experts) experts do not divide over ep=\(expert)")
        }
        let perGroup = experts / expert
        var builder = RegionBuilder(worldSize: worldSize)
        for group in fused(model, names) {
            let name = names[group.members[0]]
            let parts = try slices(model, names, group.members)
            for (part, slice) in parts.enumerated() {
                let ranks = (0..<worldSize).filter { rank in
                    let unit = rank % instanceSize
                    if let number = name.expert, expert > 1 { return unit == number / perGroup }
                    return parts.count == 1 || unit % tensor == part
                }
                builder.add(target(model, name, group, slice, builder.targets.count), to: ranks)
            }
        }
        return builder.layout
    }

    private struct Group {
        var module: String
        var members: [Int]
    }

    /// Parameters that become one matrix, or stay alone.
    private func fused(_ model: ModelDescription, _ names: [ParameterName]) -> [Group] {
        var result: [Group] = []
        var places: [String: Int] = [:]
        for (index, name) in names.enumerated() {
            guard isFused, let fusion = name.fusion, let position = fusion.members.firstIndex(of: name.module)
            else {
                result.append(Group(module: name.module, members: [index]))
                continue
            }
            let key = name.prefix + fusion.module + name.suffix
            if let place = places[key] {
                let before = result[place].members.firstIndex {
                    (fusion.members.firstIndex(of: names[$0].module) ?? 0) > position
                }
                result[place].members.insert(index, at: before ?? result[place].members.count)
            } else {
                places[key] = result.count
                result.append(Group(module: fusion.module, members: [index]))
            }
        }
        return result
    }

    /// For each tensor part, which box of each member; one element when nothing is cut.
    private func slices(
        _ model: ModelDescription, _ names: [ParameterName], _ members: [Int]
    ) throws(TransferError) -> [[(source: Int, box: Box)]] {
        let isWhole = members.allSatisfy { index in
            names[index].parallelDimension == nil || (names[index].expert != nil && expert > 1)
                || !model.tensors[index].shape.indices.contains(names[index].parallelDimension ?? 0)
        }
        let parts = isWhole ? 1 : tensor
        var result: [[(source: Int, box: Box)]] = []
        for part in 0..<parts {
            var slice: [(source: Int, box: Box)] = []
            for index in members {
                var box = model.tensors[index].box
                if parts > 1, let dimension = names[index].parallelDimension {
                    let axis = Box.axis(dimension, rank: model.tensors[index].shape.count)
                    box[axis] = try range(names[index], box[axis].count, part, model)
                }
                slice.append((index, box))
            }
            result.append(slice)
        }
        return result
    }

    /// The rows or columns of a tensor part. Heads stay whole: query heads go with their key and value head, and where there are
    /// more parts than key and value heads these are repeated.
    private func range(
        _ name: ParameterName, _ size: Int, _ part: Int, _ model: ModelDescription
    ) throws(TransferError) -> Range<Int> {
        guard let shape = model.attention, ["q_proj", "k_proj", "v_proj", "o_proj"].contains(name.module)
        else {
            return size * part / tensor..<size * (part + 1) / tensor
        }
        let isPair = name.module == "k_proj" || name.module == "v_proj"
        let heads = isPair ? shape.keyValueHeads : shape.heads
        guard size == heads * shape.headSize, shape.heads % shape.keyValueHeads == 0,
            tensor <= shape.keyValueHeads || tensor % shape.keyValueHeads == 0, tensor <= shape.heads
        else {
            throw TransferError(
                .invalidArgument,
                "\(name.module) of \(size) rows, \(shape.heads) heads and \(shape.keyValueHeads) pairs: tp=\(tensor) does not fit"
            )
        }
        if tensor > shape.keyValueHeads {
            let first = isPair ? part * heads / tensor : heads * part / tensor
            let end = isPair ? first + 1 : heads * (part + 1) / tensor
            return first * shape.headSize..<end * shape.headSize
        }
        let perPair = heads / shape.keyValueHeads * shape.headSize
        return shape.keyValueHeads * part / tensor * perPair..<shape.keyValueHeads * (part + 1) / tensor
            * perPair
    }

    private func target(
        _ model: ModelDescription, _ name: ParameterName, _ group: Group,
        _ slice: [(source: Int, box: Box)], _ number: Int
    ) -> Target {
        var row = 0
        var parts: [Target.Part] = []
        for (source, box) in slice where !box.isEmpty {
            parts.append(Target.Part(source: source, box: box, firstRow: row))
            row += box.rows.count
        }
        let first = model.tensors[group.members[0]]
        let box = slice[0].box
        let shape: [Int] =
            switch first.shape.count {
            case 1: [row]
            case 2: [row, box.columns.count]
            default: [box.planes.count, row, box.columns.count]
            }
        let isQuantised = isQuantised && name.isLinear && first.type == .bf16
        return Target(
            name: name.prefix + group.module + name.suffix, shape: shape,
            type: isQuantised ? .f8e4m3 : first.type, hasBlockScales: isQuantised, parts: parts)
    }
}

extension TensorDescription {
    /// All of it.
    var box: Box { Box(shape: shape) }
}

/// Lays targets out in the regions of their ranks, one after the other.
struct RegionBuilder {
    /// Tensors begin at multiples of this.
    static let alignment = 256
    private(set) var targets: [Target] = []
    private var ends: [Int]

    init(worldSize: Int) { ends = Array(repeating: 0, count: worldSize) }

    mutating func add(_ target: Target, to ranks: [Int]) {
        var target = target
        target.replicas = ranks.map { rank in
            let offset = place(target.byteCount, rank)
            let scales = target.hasBlockScales ? place(target.scaleByteCount, rank) : -1
            return Target.Replica(rank: rank, offset: offset, scaleOffset: scales)
        }
        targets.append(target)
    }

    private mutating func place(_ byteCount: Int, _ rank: Int) -> Int {
        defer { ends[rank] += (byteCount + Self.alignment - 1) / Self.alignment * Self.alignment }
        return ends[rank]
    }

    var layout: InferenceLayout {
        InferenceLayout(
            worldSize: ends.count, regionBytes: ends.map { max($0, Self.alignment) }, targets: targets)
    }
}
