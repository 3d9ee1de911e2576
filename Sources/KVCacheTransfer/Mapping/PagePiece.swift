/// Bytes that lie together in a page of the source and in one of the target: what one count stands for.
struct PagePiece: Hashable, Sendable {
    /// Planes of the layer, on either side.
    var sourcePlane: Int
    var targetPlane: Int
    /// Bytes before it in the page.
    var sourceOffset: Int
    var targetOffset: Int
    var byteCount: Int

    private func isFollowed(by next: PagePiece) -> Bool {
        sourcePlane == next.sourcePlane && targetPlane == next.targetPlane
            && sourceOffset + byteCount == next.sourceOffset && targetOffset + byteCount == next.targetOffset
    }

    /// The fewest pieces for some tokens of some heads.
    static func pieces(_ block: PageBlock, _ group: CacheGroup) -> [PagePiece] {
        var pieces: [PagePiece] = []
        for part in group.partBytes.indices {
            let runs = block.runs(part, group)
            // The values follow the keys at once where both are whole.
            if runs.count == 1, let last = pieces.last, pieces.count == 1, last.isFollowed(by: runs[0]) {
                pieces[0].byteCount += runs[0].byteCount
            } else {
                pieces += runs
            }
        }
        return pieces
    }
}

/// Some tokens of some heads, inside of one page of the source and one of the target.
struct PageBlock: Hashable, Sendable {
    /// One side of it.
    struct Side: Hashable, Sendable {
        var format: PageFormat
        /// All heads of the rank.
        var heads: Range<Int>
        /// The first token, counted from the beginning of the page.
        var firstToken: Int

        func tokenStride(_ bytes: Int) -> Int { format.order == .headsFirst ? bytes : bytes * heads.count }
        func headStride(_ bytes: Int) -> Int {
            format.order == .headsFirst ? bytes * format.pageTokens : bytes
        }

        /// Where a part begins: its plane, and the bytes before it in the page.
        func start(_ part: Int, _ group: CacheGroup) -> (plane: Int, offset: Int) {
            if format.planeCount(group) == 2 { return (part, 0) }
            return (0, group.partBytes[..<part].reduce(0, +) * heads.count * format.pageTokens)
        }
    }

    var source: Side
    var target: Side
    /// The heads that are transferred; both sides hold them.
    var heads: Range<Int>
    var tokenCount: Int

    /// A dimension that is walked through: how often, and how far apart on both sides.
    private struct Dimension {
        var count: Int
        var source: Int
        var target: Int
    }

    /// The contiguous runs of one part. A dimension whose steps are as long as a run, on both sides, makes the run longer.
    fileprivate func runs(_ part: Int, _ group: CacheGroup) -> [PagePiece] {
        let bytes = group.partBytes[part]
        var dimensions = [
            Dimension(
                count: tokenCount, source: source.tokenStride(bytes), target: target.tokenStride(bytes)),
            Dimension(count: heads.count, source: source.headStride(bytes), target: target.headStride(bytes)),
        ].filter { $0.count > 1 }
        var run = bytes
        while let index = dimensions.firstIndex(where: { $0.source == run && $0.target == run }) {
            run *= dimensions.remove(at: index).count
        }
        var piece = first(part, group)
        piece.byteCount = run
        return dimensions.reduce([piece]) { pieces, dimension in
            pieces.flatMap { piece in
                (0..<dimension.count).map { step in
                    var next = piece
                    next.sourceOffset += step * dimension.source
                    next.targetOffset += step * dimension.target
                    return next
                }
            }
        }
    }

    private func first(_ part: Int, _ group: CacheGroup) -> PagePiece {
        let bytes = group.partBytes[part]
        func offset(_ side: Side) -> (plane: Int, offset: Int) {
            let (plane, start) = side.start(part, group)
            let head = (heads.lowerBound - side.heads.lowerBound) * side.headStride(bytes)
            return (plane, start + head + side.firstToken * side.tokenStride(bytes))
        }
        let (sourcePlane, sourceOffset) = offset(source)
        let (targetPlane, targetOffset) = offset(target)
        return PagePiece(
            sourcePlane: sourcePlane, targetPlane: targetPlane, sourceOffset: sourceOffset,
            targetOffset: targetOffset, byteCount: bytes)
    }
}
