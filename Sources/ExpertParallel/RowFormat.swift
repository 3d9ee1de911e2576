/// How rows lie in memory and on the wire.
///
/// A block of `n` rows is three arrays behind each other: what is known of each row (its weights and local experts), its scales,
/// and the rows themselves. So a block is one contiguous range, and rows may also be written alone, straight from where
/// tokens lie.
struct RowFormat: Hashable, Sendable {
    /// Entries of a row's list.
    let topK: Int
    /// Bytes that are known of one row: `topK` FP32 weights, `topK` 16-bit local experts, up to a multiple of 16.
    let metaBytes: Int
    /// Bytes of one row's scales, and of what travels with them.
    let scaleBytes: Int
    /// Bytes of one row as it travels.
    let rowBytes: Int
    /// Bytes before a first block: `Header` and the counts of the target's experts.
    let headerBytes: Int

    /// A local expert that is none: the entry's expert is not on the row's target.
    static let noExpert = UInt16.max

    init(_ configuration: ExpertConfiguration) {
        topK = configuration.topK
        metaBytes = Self.up(configuration.topK * 6, 16)
        scaleBytes = configuration.scaleCount * 4 + configuration.level.cargoBytes
        rowBytes = configuration.hidden * configuration.dispatchElement.byteCount
        headerBytes = Self.up(Header.byteCount + configuration.placement.most * 4, 64)
    }

    /// Where the parts of a block of `rows` rows begin.
    struct Block: Hashable {
        var scales: Int
        var rows: Int
        var byteCount: Int
    }

    /// The block of `rows` rows. O(1).
    @inline(__always) func block(_ rows: Int) -> Block {
        let scales = Self.up(rows * metaBytes, 64)
        let first = scales + Self.up(rows * scaleBytes, 64)
        return Block(scales: scales, rows: first, byteCount: first + Self.up(rows * rowBytes, 64))
    }

    /// Most rows, at most `limit`, whose block fits into `byteCount` bytes.
    func rows(in byteCount: Int, limit: Int) -> Int {
        var rows = min(limit, byteCount / (metaBytes + scaleBytes + rowBytes))
        while rows > 0, block(rows).byteCount > byteCount { rows -= 1 }
        return rows
    }

    @inline(__always) static func up(_ value: Int, _ unit: Int) -> Int { (value + unit - 1) / unit * unit }
}

extension ExpertConfiguration {
    /// FP32 scales of a token.
    public var scaleCount: Int { scaleBlock.map { (hidden + $0 - 1) / $0 } ?? 0 }

    /// Bytes of a row of results as it travels, and in the memory where it arrives.
    var resultBytes: Int {
        let bytes = hidden * (reduction == .sender ? ElementType.float32 : combineElement).byteCount
        return level.isBetween ? RowFormat.up(bytes + Level.droppedBytes, 64) : bytes
    }

    /// Bytes from one of the experts' results to the next.
    var outputBytes: Int { level.isBetween ? resultBytes : hidden * combineElement.byteCount }

    /// What sums are made of: those of a node are added to those of others before they are rounded.
    var sumElement: ElementType { if case .inside = level { .float32 } else { combineElement } }

    /// Most rows of results that a rank gets back in one step.
    var resultRows: Int { maximumTokens * (reduction == .sender ? min(topK, ranks) : topK) }

    /// Rows of the memory for results: more than a step needs, for what lost ranks may still write to. A quarter, or the
    /// shares of two ranks when that is more; nobody is lost when there is nobody else.
    var resultCapacity: Int {
        ranks == 1 ? resultRows : resultRows + max((resultRows + 3) / 4, (2 * resultRows + ranks - 1) / ranks)
    }
}

/// What a source tells a target about one step, in front of the first rows.
struct Header: Hashable {
    static let byteCount = 16
    /// The step of the micro-batch, to see that both count alike.
    var step: UInt32
    /// Rows that travel from the source to the target in this step.
    var rows: UInt32
    /// The first row for the target's results in the source's memory.
    var resultBase: UInt32
    /// Tokens of the source, for reports.
    var tokens: UInt32

    func store(_ memory: UnsafeMutableRawPointer) {
        memory.storeBytes(of: step.littleEndian, as: UInt32.self)
        memory.storeBytes(of: rows.littleEndian, toByteOffset: 4, as: UInt32.self)
        memory.storeBytes(of: resultBase.littleEndian, toByteOffset: 8, as: UInt32.self)
        memory.storeBytes(of: tokens.littleEndian, toByteOffset: 12, as: UInt32.self)
    }

    init(step: UInt32, rows: Int, resultBase: Int, tokens: Int) {
        self.step = step
        self.rows = UInt32(rows)
        self.resultBase = UInt32(resultBase)
        self.tokens = UInt32(tokens)
    }

    init(_ memory: UnsafeRawPointer) {
        step = UInt32(littleEndian: memory.load(as: UInt32.self))
        rows = UInt32(littleEndian: memory.load(fromByteOffset: 4, as: UInt32.self))
        resultBase = UInt32(littleEndian: memory.load(fromByteOffset: 8, as: UInt32.self))
        tokens = UInt32(littleEndian: memory.load(fromByteOffset: 12, as: UInt32.self))
    }
}

/// What a target tells a source: where in the shared room its next rows go.
struct Grant: Hashable {
    static let byteCount = 16
    /// First byte within the room.
    var offset: UInt64
    /// How many rows; at least one.
    var rows: UInt64

    func store(_ memory: UnsafeMutableRawPointer) {
        memory.storeBytes(of: offset.littleEndian, as: UInt64.self)
        memory.storeBytes(of: rows.littleEndian, toByteOffset: 8, as: UInt64.self)
    }

    init(offset: Int, rows: Int) {
        self.offset = UInt64(offset)
        self.rows = UInt64(rows)
    }

    init(_ memory: UnsafeRawPointer) {
        offset = UInt64(littleEndian: memory.load(as: UInt64.self))
        rows = UInt64(littleEndian: memory.load(fromByteOffset: 8, as: UInt64.self))
    }
}
