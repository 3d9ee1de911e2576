/// From one layout to another: which bytes of which pages go where, and how many counts that makes.
///
/// Pure functions of the two layouts and of the tokens. Both sides compute the same, so that no message needs to say how much
/// will come: the decoder waits for `count`, the prefiller writes what `KVTransferPlan` says.
///
/// ```swift
/// let mapping = try KVMapping(source: prefiller, target: decoder)
/// mapping.count(TokenSpan(cached: 1024, end: 4000), targetRank: 0)  // writes that will arrive at rank 0
/// ```
public struct KVMapping: Hashable, Sendable {
    /// The prefiller's layout.
    public let source: KVLayout
    /// The decoder's layout.
    public let target: KVLayout

    /// Heads that one tensor rank of the source sends to one of the target.
    struct Link: Hashable, Sendable {
        var sourceTensorRank: Int
        var targetTensorRank: Int
        var heads: Range<Int>
    }

    /// Checks both layouts, and that they keep the same things.
    /// - Throws: `KVError` of codes `invalidLayout` and `incompatible`, with the field.
    public init(source: KVLayout, target: KVLayout) throws(KVError) {
        try source.validate()
        try target.validate()
        try source.checkCompatible(with: target)
        self.source = source
        self.target = target
        for group in target.model.groups.indices
        where (0..<target.tensorRanks).allSatisfy({ links(group: group, targetTensorRank: $0).isEmpty }) {
            throw KVError(
                .incompatible,
                "part: the prefiller's tensor ranks have none of the heads that the decoder's have in group \(group)"
            )
        }
    }

    /// The tokens of a group that are transferred.
    public func tokens(ofGroup group: Int, _ span: TokenSpan) -> Range<Int> {
        target.tokens(ofGroup: group, span, otherPageTokens: source.formats[group].pageTokens)
    }

    /// Writes that arrive at a rank of the target for all layers of its stage; the tail is not among them.
    /// - Complexity: O(groups times ranks), whatever the number of tokens.
    public func count(_ span: TokenSpan, targetRank: Int) -> Int {
        let stage = target.stages[targetRank / target.tensorRanks]
        return target.model.groups.indices.reduce(0) { sum, group in
            let layers = target.model.groups[group].layers.count { stage.contains($0) }
            return layers == 0 ? sum : sum + layers * count(span, targetRank: targetRank, group: group)
        }
    }

    /// Writes that arrive at a rank of the target for one of its layers.
    public func count(_ span: TokenSpan, targetRank: Int, layer: Int) -> Int {
        guard let group = target.group(ofLayer: layer) else { return 0 }
        return count(span, targetRank: targetRank, group: group)
    }

    private func count(_ span: TokenSpan, targetRank: Int, group: Int) -> Int {
        let cuts = TokenCut.counts(
            tokens(ofGroup: group, span), sourcePage: source.formats[group].pageTokens,
            targetPage: target.formats[group].pageTokens)
        return links(group: group, targetTensorRank: targetRank % target.tensorRanks).reduce(0) { sum, link in
            cuts.reduce(sum) { sum, cut in
                let block = block(link, group, cut.source, cut.target, cut.tokenCount)
                return sum + cut.stretches * PagePiece.pieces(block, target.model.groups[group]).count
            }
        }
    }

    /// Who sends which heads of a group to a tensor rank of the target. Of ranks that hold the same head the first is named.
    func links(group: Int, targetTensorRank: Int) -> [Link] {
        let wanted = target.heads(ofGroup: group, tensorRank: targetTensorRank)
        return stride(from: 0, to: source.tensorRanks, by: source.replicas(ofGroup: group)).compactMap {
            let heads = source.heads(ofGroup: group, tensorRank: $0).clamped(to: wanted)
            return heads.isEmpty
                ? nil : Link(sourceTensorRank: $0, targetTensorRank: targetTensorRank, heads: heads)
        }
    }

    /// The block that a link moves for some tokens of a page.
    func block(
        _ link: Link, _ group: Int, _ sourceToken: Int, _ targetToken: Int, _ tokenCount: Int
    ) -> PageBlock {
        func side(_ layout: KVLayout, _ rank: Int, _ token: Int) -> PageBlock.Side {
            PageBlock.Side(
                format: layout.formats[group],
                heads: layout.heads(ofGroup: group, tensorRank: rank), firstToken: token)
        }
        return PageBlock(
            source: side(source, link.sourceTensorRank, sourceToken),
            target: side(target, link.targetTensorRank, targetToken),
            heads: link.heads, tokenCount: tokenCount)
    }
}
