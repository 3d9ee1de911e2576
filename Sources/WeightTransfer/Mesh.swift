public import TransferCore

/// How a parameter lies along one dimension of a mesh (the placements of PyTorch's DTensor).
public enum Placement: Hashable, Sendable {
    /// Dimension `dimension` of the tensor is cut into as many chunks as the mesh dimension is long: chunks of
    /// ceil(size / length), the last ones shorter or empty.
    case shard(dimension: Int)
    /// Every rank has all.
    case replicate
}

/// Trainer ranks, arranged in some dimensions.
public struct Mesh: Hashable, Sendable {
    /// For people.
    public var name: String
    /// The length of each dimension.
    public var shape: [Int]
    /// As many as the product of the lengths, the last dimension fastest.
    public var ranks: [Int]

    /// - Throws: `invalidArgument` when there are not as many ranks as the shape says, or one is there twice.
    public init(name: String, shape: [Int], ranks: [Int]) throws(TransferError) {
        guard !shape.isEmpty, shape.allSatisfy({ $0 > 0 }), shape.product == ranks.count,
            Set(ranks).count == ranks.count, ranks.allSatisfy({ $0 >= 0 })
        else {
            throw TransferError(
                .invalidArgument, "mesh '\(name)' of shape \(shape) has \(ranks.count) ranks, or one twice")
        }
        self.name = name
        self.shape = shape
        self.ranks = ranks
    }

    /// What each rank of the mesh holds of a tensor.
    /// - Returns: Boxes in ascending order that tile the tensor; empty ones are left out.
    /// - Complexity: O(ranks log ranks).
    public func shards(of shape: [Int], _ placements: [Placement]) -> [Shard] {
        var owners: [Box: [Int32]] = [:]
        for position in ranks.indices {
            let box = box(of: shape, placements, at: position)
            if !box.isEmpty { owners[box, default: []].append(Int32(ranks[position])) }
        }
        return owners.map { Shard(box: $0.key, ranks: $0.value) }.sorted {
            ($0.box.firstPlane, $0.box.firstRow, $0.box.firstColumn)
                < ($1.box.firstPlane, $1.box.firstRow, $1.box.firstColumn)
        }
    }

    private func box(of shape: [Int], _ placements: [Placement], at position: Int) -> Box {
        var box = Box(shape: shape)
        var stride = ranks.count
        for (length, placement) in zip(self.shape, placements) {
            stride /= length
            guard case .shard(let dimension) = placement else { continue }
            let axis = Box.axis(dimension, rank: shape.count)
            let all = box[axis]
            let chunk = (all.count + length - 1) / length
            let index = position / stride % length
            let begin = min(all.lowerBound + index * chunk, all.upperBound)
            box[axis] = begin..<min(begin + chunk, all.upperBound)
        }
        return box
    }
}

/// A part of a tensor and who has it.
public struct Shard: Hashable, Sendable {
    /// Which part.
    public var box: Box
    /// Trainer ranks that all hold these bytes.
    public var ranks: [Int32]
}
