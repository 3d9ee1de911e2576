/// How the shards of one trainer rank lie in its memory: in the model's order, each from a multiple of 256 bytes on.
public struct ShardMemory: Hashable, Sendable {
    /// A shard and its place.
    public struct Entry: Hashable, Sendable {
        /// Which part of the parameter the rank holds.
        public var box: Box
        /// Its first byte.
        public var offset: Int
    }

    /// For each parameter of which the rank holds something.
    public let entries: [Int: Entry]
    /// Bytes of all shards.
    public let byteCount: Int

    /// - Complexity: O(parameters).
    public init(model: ModelDescription, trainers: TrainerLayout, rank: Int) {
        var shards = ShardTable(model, trainers)
        var entries: [Int: Entry] = [:]
        var place = 0
        for tensor in model.tensors.indices {
            guard let box = shards.box(of: tensor, rank: rank) else { continue }
            entries[tensor] = Entry(box: box, offset: place)
            let bytes = box.count * model.tensors[tensor].type.byteCount
            place += (bytes + RegionBuilder.alignment - 1) / RegionBuilder.alignment * RegionBuilder.alignment
        }
        self.entries = entries
        byteCount = max(place, RegionBuilder.alignment)
    }

    /// Cuts this rank's shards out of whole parameters.
    /// - Parameters:
    ///   - whole: A parameter's bytes, row by row.
    ///   - tensor: Its number in the model.
    ///   - model: The model.
    ///   - memory: `byteCount` bytes.
    public func fill(
        from whole: UnsafeRawBufferPointer, tensor: Int, model: ModelDescription,
        into memory: UnsafeMutableRawBufferPointer
    ) {
        guard let entry = entries[tensor], let from = whole.baseAddress, let to = memory.baseAddress else {
            return
        }
        let bytes = model.tensors[tensor].type.byteCount
        let source = Strips(entry.box, in: model.tensors[tensor].box, at: 0, elementBytes: bytes)
        let target = Strips(packed: entry.box, at: entry.offset, elementBytes: bytes)
        unsafe Assembly.copy(from, source, to, target)
    }
}
