/// How one instance, a prefiller or a decoder, cuts a model's cache over its ranks and into pages.
///
/// The two sides of a transfer may differ in everything here but the model. What a layout does not say is where memory lies:
/// that is `KVPlacement`.
public struct KVLayout: Hashable, Sendable {
    /// The model.
    public var model: KVModel
    /// Tensor-parallel ranks of each stage that this role has.
    public var tensorRanks: Int
    /// Which they are, when other roles have the rest; nil is all of them.
    public var part: Part?
    /// The model's layers in each pipeline stage, in order.
    public var stages: [Range<Int>]
    /// One for each of the model's groups.
    public var formats: [PageFormat]

    /// Some of an instance's tensor ranks. Where ranks are processes, each has a role of its own, with a part of the heads; a
    /// decoder then asks each prefiller that has some of its heads, into the same pages.
    public struct Part: Hashable, Sendable {
        /// The first of the ranks.
        public var firstTensorRank: Int
        /// Tensor-parallel ranks of each stage in all roles of the instance.
        public var allTensorRanks: Int

        /// Describes a part.
        public init(firstTensorRank: Int, allTensorRanks: Int) {
            self.firstTensorRank = firstTensorRank
            self.allTensorRanks = allTensorRanks
        }
    }

    /// Describes a layout; `stages` is one stage by default.
    public init(
        model: KVModel, tensorRanks: Int = 1, part: Part? = nil, stages: [Range<Int>]? = nil,
        formats: [PageFormat]
    ) {
        self.model = model
        self.tensorRanks = tensorRanks
        self.part = part
        self.stages = stages ?? [0..<model.layerCount]
        self.formats = formats
    }

    private var allTensorRanks: Int { part?.allTensorRanks ?? tensorRanks }

    /// Ranks of the role. Rank `stage * tensorRanks + tensorRank` holds a part of the heads of that stage's layers.
    public var rankCount: Int { tensorRanks * stages.count }

    /// The stage that computes a layer.
    public func stage(ofLayer layer: Int) -> Int? { stages.firstIndex { $0.contains(layer) } }

    /// The group that a layer belongs to.
    public func group(ofLayer layer: Int) -> Int? {
        model.groups.firstIndex { $0.layers.contains(layer) }
    }

    /// The heads of a group that one of the role's tensor ranks holds: an equal share, or one head that other ranks hold as well.
    public func heads(ofGroup group: Int, tensorRank: Int) -> Range<Int> {
        let (heads, rank) = (model.groups[group].heads, (part?.firstTensorRank ?? 0) + tensorRank)
        let first = rank * heads / allTensorRanks
        return first..<max(first + 1, (rank + 1) * heads / allTensorRanks)
    }

    /// Ranks of the role that hold each of its heads of a group; 1 unless there are more ranks than heads.
    public func replicas(ofGroup group: Int) -> Int { min(tensorRanks, allReplicas(group)) }

    private func allReplicas(_ group: Int) -> Int { max(1, allTensorRanks / model.groups[group].heads) }

    /// Heads that one rank holds.
    func localHeads(_ group: Int) -> Int { max(1, model.groups[group].heads / allTensorRanks) }

    /// The tokens of a group that are transferred: of a sliding window only its last pages, rounded to the longer of the pages.
    public func tokens(ofGroup group: Int, _ span: TokenSpan, otherPageTokens: Int) -> Range<Int> {
        guard let window = model.groups[group].window else { return span.cached..<span.end }
        let page = max(formats[group].pageTokens, otherPageTokens)
        let first = max(0, span.end - window) / page * page
        return min(max(span.cached, first), span.end)..<span.end
    }

    /// Checks that the layout describes something.
    /// - Throws: `KVError.Code.invalidLayout`, with the field.
    public func validate() throws(KVError) {
        func require(_ holds: Bool, _ text: @autoclosure () -> String) throws(KVError) {
            if !holds { throw KVError(.invalidLayout, text()) }
        }
        try require(
            (1...KVLimits.ranks).contains(tensorRanks),
            "tensorRanks is \(tensorRanks); 1 to \(KVLimits.ranks)")
        try require(rankCount <= KVLimits.ranks, "\(rankCount) ranks; at most \(KVLimits.ranks)")
        if let part {
            let (first, all) = (part.firstTensorRank, part.allTensorRanks)
            try require(
                tensorRanks < all && all <= KVLimits.ranks && all % tensorRanks == 0
                    && (0..<all).contains(first) && first % tensorRanks == 0,
                "part: \(tensorRanks) tensor ranks from \(first) on are no equal part of \(all)")
        }
        try require(
            formats.count == model.groups.count, "formats: one for each of \(model.groups.count) groups")
        let layers = model.layerCount
        try require((1...KVLimits.layers).contains(layers), "\(layers) layers; 1 to \(KVLimits.layers)")
        try require(
            model.groups.flatMap(\.layers).sorted() == Array(0..<layers),
            "groups: together they name each layer from 0 to \(layers - 1) once")
        var next = 0
        for stage in stages {
            try require(stage.lowerBound == next, "stages: they follow each other without a gap")
            next = stage.upperBound
        }
        try require(next == layers, "stages: together they hold \(next) of \(layers) layers")
        for (group, format) in zip(model.groups, formats) {
            try require(group.layers == group.layers.sorted(), "groups: layers are ascending")
            try require(
                (1...KVLimits.pageTokens).contains(format.pageTokens),
                "pageTokens is \(format.pageTokens); 1 to \(KVLimits.pageTokens)")
            try require(
                (1...KVLimits.heads).contains(group.heads), "heads is \(group.heads); 1 to \(KVLimits.heads)")
            try require(
                group.keyBytes > 0 && group.valueBytes >= 0
                    && max(group.keyBytes, group.valueBytes) <= KVLimits.headBytes,
                "keyBytes \(group.keyBytes), valueBytes \(group.valueBytes); at most \(KVLimits.headBytes)")
            try require((group.window ?? 1) >= 1, "window is \(group.window ?? 0); at least 1")
            try require(
                group.heads % allTensorRanks == 0 || allTensorRanks % group.heads == 0,
                "tensorRanks: \(group.heads) heads and \(allTensorRanks) ranks; one divides the other")
        }
        for group in model.groups.indices {
            let replicas = allReplicas(group)
            try require(
                replicas % tensorRanks == 0 || tensorRanks % replicas == 0,
                "tensorRanks: \(tensorRanks) here, \(replicas) that hold the same head; one divides the other"
            )
        }
    }

    /// Checks that what one side computes is what the other side reads.
    /// - Throws: `KVError.Code.incompatible`, with the field and both values.
    public func checkCompatible(with other: KVLayout) throws(KVError) {
        func same<Value: Equatable>(_ field: String, _ ours: Value, _ theirs: Value) throws(KVError) {
            guard ours != theirs else { return }
            throw KVError(.incompatible, "\(field): \(ours) here, \(theirs) there")
        }
        try same("model", model.name, other.model.name)
        try same("elementType", model.elementType, other.model.elementType)
        try same("groups", model.groups.count, other.model.groups.count)
        for (index, (ours, theirs)) in zip(model.groups, other.model.groups).enumerated() {
            try same("groups[\(index)].layers", ours.layers, theirs.layers)
            try same("groups[\(index)].heads", ours.heads, theirs.heads)
            try same("groups[\(index)].keyBytes", ours.keyBytes, theirs.keyBytes)
            try same("groups[\(index)].valueBytes", ours.valueBytes, theirs.valueBytes)
            try same("groups[\(index)].window", ours.window ?? 0, theirs.window ?? 0)
        }
    }
}

/// What a page of a group looks like.
public struct PageFormat: Hashable, Sendable {
    /// Which of a page's dimensions is the outer one.
    public enum Order: UInt8, Hashable, Sendable {
        /// Heads before tokens: the tokens of one head are contiguous, and so is a slice of the heads of a whole page.
        case headsFirst
        /// Tokens before heads: the heads of one token are contiguous.
        case tokensFirst
    }

    /// Where the values are.
    public enum Arrangement: UInt8, Hashable, Sendable {
        /// In a plane of pages of their own.
        case separate
        /// Behind the keys, in the same page.
        case together
    }

    /// Tokens of a page.
    public var pageTokens: Int
    /// Heads or tokens first; called HND and NHD elsewhere.
    public var order: Order
    /// Keys and values in one page or in two.
    public var arrangement: Arrangement

    /// Describes a page; the defaults are those with the fewest writes.
    public init(pageTokens: Int, order: Order = .headsFirst, arrangement: Arrangement = .together) {
        self.pageTokens = pageTokens
        self.order = order
        self.arrangement = arrangement
    }

    /// Planes that a layer of a group needs: 2 when keys and values are apart.
    func planeCount(_ group: CacheGroup) -> Int {
        arrangement == .separate && group.valueBytes > 0 ? 2 : 1
    }

    /// Bytes of one page in each plane, on a rank with so many heads.
    func pageBytes(_ group: CacheGroup, localHeads: Int) -> [Int] {
        let parts = group.partBytes.map { $0 * localHeads * pageTokens }
        return planeCount(group) == 2 ? parts : [parts.reduce(0, +)]
    }
}
