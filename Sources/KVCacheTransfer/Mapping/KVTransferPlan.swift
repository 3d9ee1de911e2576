internal import TransferEngine

/// The pages of a request in one group.
public struct PageTable: Hashable, Sendable {
    /// Which page of the request the first one is: page `n` holds the tokens from `n * pageTokens` on.
    public var first: Int
    /// Pages of the planes, one after the other.
    public var pages: [UInt32]

    /// Describes a table.
    public init(first: Int = 0, pages: [UInt32]) {
        self.first = first
        self.pages = pages
    }

    /// Whether there is a page for each of some tokens.
    func covers(_ tokens: Range<Int>, pageTokens: Int) -> Bool {
        tokens.isEmpty
            || tokens.lowerBound / pageTokens >= first
                && (tokens.upperBound - 1) / pageTokens < first + pages.count
    }
}

/// One paged write of a layer: a piece of every page of a list.
public struct PageWrite: Hashable, Sendable {
    /// Who sends.
    public var sourceRank: Int
    /// Who receives.
    public var targetRank: Int
    /// Which of the layer's planes on the sender.
    public var sourcePlane: Int
    /// Which of the layer's planes on the receiver.
    public var targetPlane: Int
    /// Bytes before the piece in a page of the sender.
    public var sourceOffset: Int
    /// Bytes before the piece in a page of the receiver.
    public var targetOffset: Int
    /// Bytes of the piece.
    public var byteCount: Int
    /// Which of the plan's lists of pages, and so how many pieces.
    public var list: Int
}

/// What is written for some tokens of a request, layer by layer.
///
/// Page lists are made once, for all layers: a plan for 128k tokens and 64 layers has as many page numbers as the request has
/// pages, and asking for the writes of a layer allocates nothing.
public struct KVTransferPlan: Sendable {
    /// Equally many pages of the sender and of the receiver.
    public struct PageList: Hashable, Sendable {
        /// Pages of the sender.
        public var sources: [UInt32]
        /// Pages of the receiver.
        public var targets: [UInt32]
    }

    /// All page lists.
    public private(set) var lists: [PageList] = []
    private let mapping: KVMapping
    private let salt: UInt64
    /// For each group the writes of each of its layers, as if the first of several equal senders sent, and of the first stages.
    private var templates: [[PageWrite]] = []

    /// Plans `chunk`, a part of the span's tokens that ends where `chunkEnd` says.
    /// - Parameters:
    ///   - mapping: Between the two layouts.
    ///   - span: The tokens of the request.
    ///   - chunk: Those of them that are written by this plan; nil is all.
    ///   - sources: The sender's pages, for each group.
    ///   - targets: The receiver's pages, for each group.
    ///   - salt: Chooses among ranks that hold the same heads; different for different requests.
    /// - Throws: `KVError.Code.invalidLayout` when there is no page for a token.
    /// - Complexity: O(pages).
    public init(
        _ mapping: KVMapping, _ span: TokenSpan, chunk: Range<Int>? = nil, sources: [PageTable],
        targets: [PageTable], salt: UInt64 = 0
    ) throws(KVError) {
        self.mapping = mapping
        self.salt = salt
        guard sources.count == mapping.source.formats.count, targets.count == sources.count else {
            throw KVError(
                .invalidLayout, "page tables: one for each of \(mapping.source.formats.count) groups")
        }
        for group in sources.indices {
            let all = mapping.tokens(ofGroup: group, span)
            let tokens = mapping.part(of: all, group, chunk ?? all)
            try plan(group, tokens, sources[group], targets[group])
        }
    }

    private mutating func plan(
        _ group: Int, _ tokens: Range<Int>, _ source: PageTable, _ target: PageTable
    ) throws(KVError) {
        let (sourcePage, targetPage) = (
            mapping.source.formats[group].pageTokens, mapping.target.formats[group].pageTokens
        )
        for (table, page, side) in [(source, sourcePage, "prefiller"), (target, targetPage, "decoder")] {
            guard table.covers(tokens, pageTokens: page) else {
                throw KVError(
                    .invalidLayout,
                    "group \(group): the \(side)'s \(table.pages.count) pages from \(table.first) do not hold tokens \(tokens)"
                )
            }
        }
        var writes: [PageWrite] = []
        for cut in TokenCut(tokens, sourcePage: sourcePage, targetPage: targetPage).classes {
            lists.append(
                PageList(
                    sources: cut.sourcePages.map { source.pages[Int($0) - source.first] },
                    targets: cut.targetPages.map { target.pages[Int($0) - target.first] }))
            for tensorRank in 0..<mapping.target.tensorRanks {
                for link in mapping.links(group: group, targetTensorRank: tensorRank) {
                    let block = mapping.block(link, group, cut.sourceToken, cut.targetToken, cut.tokenCount)
                    for piece in PagePiece.pieces(block, mapping.target.model.groups[group]) {
                        writes.append(PageWrite(link, piece, list: lists.count - 1))
                    }
                }
            }
        }
        templates.append(writes)
    }

    /// Calls `body` for each write of a layer. Nothing is in order.
    /// - Complexity: O(writes), without an allocation.
    public func forEachWrite(layer: Int, _ body: (PageWrite) -> Void) {
        guard let group = mapping.source.group(ofLayer: layer),
            let sourceStage = mapping.source.stage(ofLayer: layer),
            let targetStage = mapping.target.stage(ofLayer: layer)
        else { return }
        let replicas = UInt64(mapping.source.replicas(ofGroup: group))
        for template in templates[group] {
            var write = template
            write.targetRank += targetStage * mapping.target.tensorRanks
            // Of equal senders another one for each layer and receiver, so that all of them, and all their NICs, send as much.
            let choice = Int((salt &+ UInt64(layer) &+ UInt64(write.targetRank)) % replicas)
            write.sourceRank += sourceStage * mapping.source.tensorRanks + choice
            body(write)
        }
    }

    /// Whether nothing of a layer is written.
    func isEmpty(layer: Int) -> Bool {
        var isEmpty = true
        forEachWrite(layer: layer) { if !lists[$0.list].targets.isEmpty { isEmpty = false } }
        return isEmpty
    }

    /// The digests of a layer, one for each tensor rank of the receiver.
    /// - Parameter digest: Computes that of one write.
    func digests(
        layer: Int, tensorRanks: Int, _ digest: (PageWrite, PageList) throws(TransferError) -> Digest
    ) throws(TransferError) -> [Digest] {
        var sums = Array(repeating: Digest.empty, count: tensorRanks)
        var failure: TransferError?
        forEachWrite(layer: layer) { write in
            guard failure == nil, !lists[write.list].targets.isEmpty else { return }
            do throws(TransferError) {
                sums[write.targetRank % tensorRanks] += try digest(write, lists[write.list])
            } catch { failure = error }
        }
        if let failure { throw failure }
        return sums
    }

    /// Counts that the plan makes at a rank of the receiver for one layer.
    public func count(layer: Int, targetRank: Int) -> Int {
        var count = 0
        forEachWrite(layer: layer) {
            if $0.targetRank == targetRank { count += lists[$0.list].targets.count }
        }
        return count
    }
}

extension PageWrite {
    fileprivate init(_ link: KVMapping.Link, _ piece: PagePiece, list: Int) {
        self.init(
            sourceRank: link.sourceTensorRank, targetRank: link.targetTensorRank,
            sourcePlane: piece.sourcePlane, targetPlane: piece.targetPlane, sourceOffset: piece.sourceOffset,
            targetOffset: piece.targetOffset, byteCount: piece.byteCount, list: list)
    }
}

extension KVMapping {
    /// The part of a group's tokens that a chunk writes. A chunk that ends inside of a page of both sides leaves the begun page
    /// to the next one, so that the counts do not depend on how a prefiller cuts its work.
    func part(of tokens: Range<Int>, _ group: Int, _ chunk: Range<Int>) -> Range<Int> {
        func border(_ token: Int) -> Int {
            TokenCut.border(
                before: token, in: tokens, sourcePage: source.formats[group].pageTokens,
                targetPage: target.formats[group].pageTokens)
        }
        let first = border(chunk.lowerBound)
        return first..<max(first, border(chunk.upperBound))
    }
}
