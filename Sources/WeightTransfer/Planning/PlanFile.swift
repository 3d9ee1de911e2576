public import TransferCore

// The file: "TEWP", a version byte, variable-length integers (seven bits a byte, lowest first; signed ones zigzag), and eight
// bytes of checksum. docs/weights.md describes the sections.
extension Plan {
    /// The version of the format that is written; older ones are read as long as there are any.
    public static let fileVersion: UInt8 = 1
    private static let magic = Array("TEWP".utf8)

    /// The plan as bytes, the same ones for equal plans.
    /// - Complexity: O(tasks + pieces + writes).
    public func encoded() -> [UInt8] {
        var out = PlanWriter()
        out.bytes = Self.magic + [Self.fileVersion]
        out.write(model)
        out.write(trainers)
        out.write(inference)
        out.write(policy.rawValue)
        out.write(watermarkBytes)
        out.write(taskBytes)
        out.write(excluded.sorted().map { Int($0) })
        out.write(tasks.count)
        for task in tasks {
            for value in [task.target, task.owner, Int32(task.preparation.rawValue)] { out.write(Int(value)) }
            out.write(task.box)
            for range in [task.pieces, task.writes] { out.write([Int(range.first), Int(range.count)]) }
        }
        out.write(pieces.count)
        for piece in pieces {
            out.write(Int(piece.rank))
            out.write(Int(piece.part))
            out.write(piece.box)
        }
        out.write(writes.count)
        for write in writes {
            out.write(Int(write.rank))
            out.write(write.offset)
            out.write(write.scaleOffset)
        }
        out.write(gathers.count)
        for gather in gathers {
            out.write(Int(gather.tensor))
            out.write(gather.ranks.map { Int($0) })
        }
        out.write(sequences.count)
        for steps in sequences {
            // Tasks are even, gathers are odd.
            out.write(
                steps.map {
                    switch $0 {
                    case .task(let index): 2 * Int(index)
                    case .gather(let index): 2 * Int(index) + 1
                    }
                })
        }
        let checksum = Self.checksum(out.bytes[...])
        for shift in stride(from: 0, to: 64, by: 8) {
            out.bytes.append(UInt8(truncatingIfNeeded: checksum >> UInt64(shift)))
        }
        return out.bytes
    }

    /// Reads what `encoded` wrote.
    /// - Throws: `malformedDescriptor` for anything else, `unsupportedVersion` for a newer format. Whether the plan
    ///   is any good is
    ///   for `lint` to say.
    public init(decoding bytes: [UInt8]) throws(TransferError) {
        guard bytes.count > 13, Array(bytes[..<4]) == Self.magic else {
            throw TransferError(.malformedDescriptor, "this is not a plan; make one with 'te weights plan'")
        }
        guard bytes[4] == Self.fileVersion else {
            throw TransferError(
                .unsupportedVersion, "a plan of version \(bytes[4]); this library reads \(Self.fileVersion)")
        }
        let found = bytes.suffix(8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard Self.checksum(bytes.dropLast(8)) == found else {
            throw TransferError(
                .malformedDescriptor, "the plan's checksum is wrong: it is damaged or cut off")
        }
        var input = PlanReader(bytes: bytes, place: 5, end: bytes.count - 8)
        let model = try input.model()
        let trainers = try input.trainers(model)
        let inference = try input.inference()
        guard let policy = Policy(rawValue: try input.text()) else { throw input.error("an unknown policy") }
        self.init(
            model: model, trainers: trainers, inference: inference, policy: policy,
            watermarkBytes: try input.integer(), taskBytes: try input.integer())
        excluded = Set(try input.integers().map { Int32(truncatingIfNeeded: $0) })
        try readTables(&input)
    }

    private mutating func readTables(_ input: inout PlanReader) throws(TransferError) {
        tasks = try input.list { input throws(TransferError) in
            let target = try input.small()
            let owner = try input.small()
            let preparation = Preparation(rawValue: UInt8(truncatingIfNeeded: try input.small()))
            let box = try input.box()
            let ranges = try (input.integers(), input.integers())
            guard ranges.0.count == 2, ranges.1.count == 2 else { throw input.error("a range") }
            let limit = 0...Int(Int32.max)
            guard (ranges.0 + ranges.1).allSatisfy(limit.contains) else { throw input.error("a range") }
            return PlanTask(
                target: target, owner: owner, box: box, preparation: preparation,
                pieces: PlanRange(ranges.0[0], count: ranges.0[1]),
                writes: PlanRange(ranges.1[0], count: ranges.1[1]))
        }
        pieces = try input.list { input throws(TransferError) in
            PlanPiece(rank: try input.small(), part: try input.small(), box: try input.box())
        }
        writes = try input.list { input throws(TransferError) in
            PlanWrite(rank: try input.small(), offset: try input.integer(), scaleOffset: try input.integer())
        }
        gathers = try input.list { input throws(TransferError) in
            PlanGather(
                tensor: try input.small(), ranks: try input.integers().map { Int32(truncatingIfNeeded: $0) })
        }
        sequences = try input.list { input throws(TransferError) in
            try input.integers().map {
                $0 & 1 == 0
                    ? .task(Int32(truncatingIfNeeded: $0 >> 1)) : .gather(Int32(truncatingIfNeeded: $0 >> 1))
            }
        }
        guard input.place == input.end else { throw input.error("something follows the plan") }
    }

    /// Tells plans apart: two sides that were given different files notice it.
    public static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x0100_0000_01B3 }
        return hash
    }
}

private struct PlanWriter {
    var bytes: [UInt8] = []

    mutating func write(_ value: Int) {
        var rest = UInt64(bitPattern: Int64(value << 1 ^ value >> 63))
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: rest))
    }

    mutating func write(_ values: [Int]) {
        write(values.count)
        for value in values { write(value) }
    }

    mutating func write(_ text: String) {
        write(text.utf8.count)
        bytes.append(contentsOf: text.utf8)
    }

    mutating func write(_ box: Box) {
        for value in [
            box.firstPlane, box.endPlane, box.firstRow, box.endRow, box.firstColumn, box.endColumn,
        ] { write(Int(value)) }
    }

    mutating func write(_ model: ModelDescription) {
        write(model.name)
        if let attention = model.attention {
            write([attention.heads, attention.keyValueHeads, attention.headSize])
        } else {
            write([])
        }
        write(model.tensors.count)
        for tensor in model.tensors {
            write(tensor.name)
            write(tensor.shape)
            write(tensor.type.rawValue)
        }
    }

    mutating func write(_ layout: TrainerLayout) {
        write([layout.worldSize, layout.ranksPerNode])
        write(layout.meshes.count)
        for mesh in layout.meshes {
            write(mesh.name)
            write(mesh.shape)
            write(mesh.ranks)
        }
        for tensor in layout.tensors {
            write(tensor.mesh)
            write(
                tensor.placements.map {
                    if case .shard(let dimension) = $0 { dimension } else { -1 }
                })
        }
    }

    mutating func write(_ layout: InferenceLayout) {
        write(layout.worldSize)
        write(layout.regionBytes)
        write(layout.targets.count)
        for target in layout.targets {
            write(target.name)
            write(target.shape)
            write(target.type.rawValue)
            write(target.hasBlockScales ? 1 : 0)
            write(target.parts.count)
            for part in target.parts {
                write([part.source, part.isTransposed ? 1 : 0])
                write(part.box)
                write(part.place)
            }
            write(target.replicas.count)
            for replica in target.replicas {
                write([Int(replica.rank), replica.offset, replica.scaleOffset])
            }
        }
    }
}

private struct PlanReader {
    let bytes: [UInt8]
    var place: Int
    let end: Int

    func error(_ what: String) -> TransferError {
        TransferError(.malformedDescriptor, "the plan is damaged at byte \(place): \(what)")
    }

    mutating func integer() throws(TransferError) -> Int {
        var result: UInt64 = 0
        var shift: UInt64 = 0
        while place < end, shift < 64 {
            let byte = bytes[place]
            place += 1
            result |= UInt64(byte & 0x7F) << shift
            if byte < 0x80 { return Int(truncatingIfNeeded: result >> 1) ^ -Int(result & 1) }
            shift += 7
        }
        throw error("a number does not end")
    }

    mutating func small() throws(TransferError) -> Int32 {
        guard let value = Int32(exactly: try integer()) else { throw error("a number is too large") }
        return value
    }

    /// How many follow, each of at least one byte.
    private mutating func count() throws(TransferError) -> Int {
        let count = try integer()
        guard (0...(end - place)).contains(count) else {
            throw error("\(count) elements in \(end - place) bytes")
        }
        return count
    }

    mutating func list<Element>(
        _ element: (inout PlanReader) throws(TransferError) -> Element
    ) throws(TransferError) -> [Element] {
        let count = try count()
        var result: [Element] = []
        result.reserveCapacity(count)
        for _ in 0..<count { result.append(try element(&self)) }
        return result
    }

    mutating func integers() throws(TransferError) -> [Int] {
        try list { input throws(TransferError) in try input.integer() }
    }

    mutating func text() throws(TransferError) -> String {
        let count = try count()
        defer { place += count }
        guard let text = String(validating: bytes[place..<place + count], as: UTF8.self) else {
            throw error("a text that is not UTF-8")
        }
        return text
    }

    mutating func box() throws(TransferError) -> Box {
        var box = Box(rows: 0..<0, columns: 0..<0)
        box.firstPlane = try small()
        box.endPlane = try small()
        box.firstRow = try small()
        box.endRow = try small()
        box.firstColumn = try small()
        box.endColumn = try small()
        guard box.firstPlane >= 0, box.firstRow >= 0, box.firstColumn >= 0, !box.isEmpty else {
            throw error("a box without elements")
        }
        return box
    }

    private mutating func type() throws(TransferError) -> DataType {
        let name = try text()
        guard let type = DataType(rawValue: name) else { throw error("dtype '\(name)'") }
        return type
    }

    private mutating func flag() throws(TransferError) -> Bool { try integer() != 0 }

    mutating func model() throws(TransferError) -> ModelDescription {
        let name = try text()
        let shape = try integers()
        let tensors = try list { input throws(TransferError) in
            TensorDescription(try input.text(), try input.integers(), try input.type())
        }
        let attention =
            shape.count == 3
            ? AttentionShape(heads: shape[0], keyValueHeads: shape[1], headSize: shape[2]) : nil
        return try ModelDescription(name: name, tensors: tensors, attention: attention)
    }

    mutating func trainers(_ model: ModelDescription) throws(TransferError) -> TrainerLayout {
        let sizes = try integers()
        // Each rank has a list of steps, of at least one byte.
        guard sizes.count == 2, sizes[0] <= end - place else { throw error("the trainers' layout") }
        let meshes = try list { input throws(TransferError) in
            try Mesh(name: try input.text(), shape: try input.integers(), ranks: try input.integers())
        }
        var tensors: [TrainerLayout.Distribution] = []
        for _ in model.tensors {
            let mesh = try integer()
            let placements = try integers().map { $0 < 0 ? Placement.replicate : .shard(dimension: $0) }
            tensors.append(TrainerLayout.Distribution(mesh: mesh, placements: placements))
        }
        return try TrainerLayout(
            model: model, worldSize: sizes[0], ranksPerNode: sizes[1], meshes: meshes, tensors: tensors)
    }

    mutating func inference() throws(TransferError) -> InferenceLayout {
        let worldSize = try integer()
        let regions = try integers()
        guard worldSize == regions.count else {
            throw error("\(regions.count) regions of \(worldSize) ranks")
        }
        let targets = try list { input throws(TransferError) in
            let name = try input.text()
            let shape = try input.integers()
            let type = try input.type()
            let hasScales = try input.flag()
            guard (1...3).contains(shape.count), shape.allSatisfy({ (1...Int(Int32.max)).contains($0) })
            else {
                throw input.error("the shape of '\(name)'")
            }
            let parts = try input.list { input throws(TransferError) in try input.part() }
            let replicas = try input.list { input throws(TransferError) in try input.replica() }
            return Target(
                name: name, shape: shape, type: type, hasBlockScales: hasScales, parts: parts,
                replicas: replicas)
        }
        return InferenceLayout(worldSize: worldSize, regionBytes: regions, targets: targets)
    }

    private mutating func part() throws(TransferError) -> Target.Part {
        let numbers = try integers()
        guard numbers.count == 2 else { throw error("a part") }
        var part = Target.Part(source: numbers[0], box: try box(), isTransposed: numbers[1] != 0)
        part.place = try box()
        return part
    }

    private mutating func replica() throws(TransferError) -> Target.Replica {
        let numbers = try integers()
        guard numbers.count == 3, Int32(exactly: numbers[0]) != nil else { throw error("a replica") }
        return Target.Replica(rank: numbers[0], offset: numbers[1], scaleOffset: numbers[2])
    }
}
