public import TransferCore

/// A parameter as checkpoints know it.
public struct TensorDescription: Hashable, Sendable {
    /// For example `model.layers.3.self_attn.q_proj.weight`.
    public var name: String
    /// One to three dimensions.
    public var shape: [Int]
    /// What its elements are.
    public var type: DataType

    public init(_ name: String, _ shape: [Int], _ type: DataType = .bf16) {
        self.name = name
        self.shape = shape
        self.type = type
    }

    /// Elements.
    /// - Precondition: There is memory for as many: what was read from elsewhere has been checked by whoever read it.
    public var count: Int { shape.reduce(1, *) }
    /// Bytes.
    public var byteCount: Int { count * type.byteCount }

    /// Bytes, where no memory need be large enough for them: nil for a shape that no tensor has, or beyond 2^62.
    var checkedByteCount: Int? {
        guard let bytes = (shape + [type.byteCount]).product, bytes <= 1 << 62 else { return nil }
        return bytes
    }
}

extension [Int] {
    /// The product; nil where there is a negative factor, or no `Int` is large enough.
    var product: Int? {
        var result = 1
        for factor in self {
            let (product, overflow) = result.multipliedReportingOverflow(by: factor)
            guard factor >= 0, !overflow else { return nil }
            result = product
        }
        return result
    }
}

/// How attention heads divide the rows of the query, key and value projections.
public struct AttentionShape: Hashable, Sendable {
    /// Query heads.
    public var heads: Int
    /// Key and value heads; as many as query heads without grouping.
    public var keyValueHeads: Int
    /// Elements of a head.
    public var headSize: Int

    public init(heads: Int, keyValueHeads: Int, headSize: Int) {
        self.heads = heads
        self.keyValueHeads = keyValueHeads
        self.headSize = headSize
    }
}

/// A model: its parameters in a fixed order, and what of its architecture decides how they may be divided.
public struct ModelDescription: Hashable, Sendable {
    /// For people.
    public var name: String
    /// Every plan numbers parameters in this order.
    public var tensors: [TensorDescription]
    /// Needed for tensor parallel attention with fused projections; nil divides rows evenly.
    public var attention: AttentionShape?

    /// - Throws: `invalidArgument` for a parameter without a name, named twice, or whose shape no tensor has, and for more
    ///   than 2^62 bytes in all.
    public init(
        name: String, tensors: [TensorDescription], attention: AttentionShape? = nil
    ) throws(TransferError) {
        var names: Set<String> = []
        var bytes = 0
        for tensor in tensors {
            guard names.insert(tensor.name).inserted, !tensor.name.isEmpty else {
                throw TransferError(.invalidArgument, "parameter '\(tensor.name)' is described twice")
            }
            guard (1...3).contains(tensor.shape.count),
                tensor.shape.allSatisfy({ (1...Int(Int32.max)).contains($0) })
            else {
                throw TransferError(
                    .invalidArgument,
                    "parameter '\(tensor.name)' has shape \(tensor.shape); one to three positive dimensions")
            }
            guard let more = tensor.checkedByteCount, more <= 1 << 62 - bytes else {
                throw TransferError(
                    .invalidArgument, "parameter '\(tensor.name)' makes the model larger than any memory")
            }
            bytes += more
        }
        self.name = name
        self.tensors = tensors
        self.attention = attention
    }

    /// Elements of all parameters.
    public var parameterCount: Int { tensors.reduce(0) { $0 + $1.count } }
    /// Bytes of all parameters.
    public var byteCount: Int { tensors.reduce(0) { $0 + $1.byteCount } }
}

extension ModelDescription {
    /// Reads `{"name": ..., "attention": {"heads": 9, "key_value_heads": 3, "head_size": 64}, "tensors": [{"name": ...,
    /// "shape": [...], "dtype": "BF16"}, ...]}`.
    public init(json: JSON) throws(TransferError) {
        guard let name = json["name"]?.text, let list = json["tensors"]?.elements else {
            throw TransferError(.malformedDescriptor, "a model's description needs 'name' and 'tensors'")
        }
        var tensors: [TensorDescription] = []
        for element in list { tensors.append(try TensorDescription(json: element)) }
        var attention: AttentionShape?
        if let shape = json["attention"] {
            guard let heads = shape["heads"]?.integer, let pairs = shape["key_value_heads"]?.integer,
                let size = shape["head_size"]?.integer, heads > 0, pairs > 0, size > 0
            else {
                throw TransferError(
                    .malformedDescriptor, "'attention' needs 'heads', 'key_value_heads' and 'head_size'")
            }
            attention = AttentionShape(heads: heads, keyValueHeads: pairs, headSize: size)
        }
        try self.init(name: name, tensors: tensors, attention: attention)
    }

    /// What `init(json:)` reads.
    public var json: JSON {
        var members = [JSON.Member("name", .string(name))]
        if let attention {
            members.append(
                JSON.Member(
                    "attention",
                    .object([
                        "heads": .integer(attention.heads),
                        "key_value_heads": .integer(attention.keyValueHeads),
                        "head_size": .integer(attention.headSize),
                    ])))
        }
        members.append(JSON.Member("tensors", .array(tensors.map(\.json))))
        return .object(members)
    }
}

extension TensorDescription {
    init(json: JSON) throws(TransferError) {
        guard let name = json["name"]?.text, let shape = json["shape"]?.integers,
            let text = json["dtype"]?.text
        else {
            throw TransferError(.malformedDescriptor, "a parameter needs 'name', 'shape' and 'dtype'")
        }
        guard let type = DataType(rawValue: text) else {
            let known = DataType.allCases.map(\.rawValue).joined(separator: ", ")
            throw TransferError(.malformedDescriptor, "'\(name)' is of dtype \(text); known are \(known)")
        }
        self.init(name, shape, type)
    }

    var json: JSON {
        .object([
            "name": .string(name), "shape": .array(shape.map(JSON.integer)), "dtype": .string(type.rawValue),
        ])
    }
}
