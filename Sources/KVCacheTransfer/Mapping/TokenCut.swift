/// Tokens cut at the page borders of both sides, those that lie alike in their pages together.
struct TokenCut: Sendable {
    /// Stretches of tokens that begin at the same place of their pages and are equally long.
    struct Stretches: Sendable {
        /// The first token, counted from the beginning of its page.
        var sourceToken: Int
        var targetToken: Int
        var tokenCount: Int
        /// For each stretch the page, counted from token 0 of the request.
        var sourcePages: [UInt32]
        var targetPages: [UInt32]
    }

    var classes: [Stretches] = []

    /// Cuts `tokens`. There are as many classes as ways in which the two kinds of pages can overlap, and at most four more.
    /// - Complexity: O(pages).
    init(_ tokens: Range<Int>, sourcePage: Int, targetPage: Int) {
        Self.forEach(tokens, sourcePage, targetPage) { token, count in
            let (source, target) = (token % sourcePage, token % targetPage)
            let known = classes.firstIndex {
                $0.sourceToken == source && $0.targetToken == target && $0.tokenCount == count
            }
            let index = known ?? classes.endIndex
            if known == nil {
                classes.append(
                    Stretches(
                        sourceToken: source, targetToken: target, tokenCount: count, sourcePages: [],
                        targetPages: []))
            }
            classes[index].sourcePages.append(UInt32(token / sourcePage))
            classes[index].targetPages.append(UInt32(token / targetPage))
        }
    }

    /// The last token at or before `token` at which a chunk may end: a border of either side, or the end.
    static func border(before token: Int, in tokens: Range<Int>, sourcePage: Int, targetPage: Int) -> Int {
        if token >= tokens.upperBound { return tokens.upperBound }
        let border = max(token / sourcePage * sourcePage, token / targetPage * targetPage)
        return max(tokens.lowerBound, border)
    }

    private static func forEach(
        _ tokens: Range<Int>, _ sourcePage: Int, _ targetPage: Int,
        _ body: (_ token: Int, _ count: Int) -> Void
    ) {
        var token = tokens.lowerBound
        while token < tokens.upperBound {
            let end = min(
                (token / sourcePage + 1) * sourcePage, (token / targetPage + 1) * targetPage,
                tokens.upperBound)
            body(token, end - token)
            token = end
        }
    }

    /// How many stretches of each kind there are, without their pages.
    /// - Complexity: O(borders in the longest common pattern), whatever the number of tokens.
    static func counts(
        _ tokens: Range<Int>, sourcePage: Int, targetPage: Int
    ) -> [(source: Int, target: Int, tokenCount: Int, stretches: Int)] {
        let period = sourcePage / greatestCommonDivisor(sourcePage, targetPage) * targetPage
        var result: [(source: Int, target: Int, tokenCount: Int, stretches: Int)] = []
        func add(_ part: Range<Int>, times: Int) {
            forEach(part, sourcePage, targetPage) { token, count in
                result.append((token % sourcePage, token % targetPage, count, times))
            }
        }
        let head = min((tokens.lowerBound + period - 1) / period * period, tokens.upperBound)
        let tail = max(head, tokens.upperBound / period * period)
        add(tokens.lowerBound..<head, times: 1)
        if tail > head { add(head..<head + period, times: (tail - head) / period) }
        add(tail..<tokens.upperBound, times: 1)
        return result
    }

    private static func greatestCommonDivisor(_ a: Int, _ b: Int) -> Int {
        b == 0 ? a : greatestCommonDivisor(b, a % b)
    }
}
