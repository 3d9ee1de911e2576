internal import TransferEngine

/// Which rows go where in one step of one rank: a pure function of the lists of experts.
///
/// A token travels once to each rank that has one of its experts. Rows for one rank are in the order of the tokens; results
/// come back in the same order, or, where every result travels by itself, in the order of (token, entry). Everything is
/// counted first and placed then, so nothing depends on when something arrives.
struct Routing: ~Copyable {
    /// Rows for each rank.
    let rows: Table<Int>
    /// Results that come back from each rank.
    let results: Table<Int>
    /// Where the list of each rank's rows begins in `tokens`.
    let start: Table<Int>
    /// Tokens, in the order of ranks.
    let tokens: Table<UInt32>
    /// Copies for each expert.
    let expertCounts: Table<UInt32>
    /// The row of the result memory that entry `token * topK + k` reads; -1 is none: no expert, a lost rank, or, with
    /// `Reduction.sender`, a rank whose row an earlier entry reads.
    let position: Table<Int32>
    /// Entries whose expert is on a rank that is lost.
    private(set) var dropped = 0
    private(set) var tokenCount = 0

    private let last: Table<Int32>
    private let next: Table<Int>
    private let owners: Table<UInt16>
    private let topK: Int
    private let onePerRank: Bool

    init(_ shape: ExpertConfiguration) {
        let entries = shape.maximumTokens * shape.topK
        rows = Table(repeating: 0, count: shape.ranks)
        results = Table(repeating: 0, count: shape.ranks)
        start = Table(repeating: 0, count: shape.ranks)
        tokens = Table(repeating: 0, count: shape.maximumTokens * min(shape.topK, shape.ranks))
        expertCounts = Table(repeating: 0, count: shape.experts)
        position = Table(repeating: -1, count: entries)
        last = Table(repeating: -1, count: shape.ranks)
        next = Table(repeating: 0, count: shape.ranks)
        let placement = shape.placement
        owners = Table(count: shape.experts) { UInt16(placement.owner(of: $0)) }
        topK = shape.topK
        onePerRank = shape.reduction == .sender
    }

    /// The rank of an expert.
    @inline(__always) func owner(_ expert: Int32) -> Int { Int(owners[Int(expert)]) }

    /// Counts the rows of `count` tokens, and lists them. Returns false when an entry is not an expert.
    /// - Complexity: O(count * topK + ranks + experts).
    mutating func route(_ experts: UnsafePointer<Int32>, count: Int, isLive: (Int) -> Bool) -> Bool {
        for rank in 0..<rows.count {
            (rows[rank], results[rank], last[rank]) = (0, 0, isLive(rank) ? -1 : -2)
        }
        for expert in 0..<expertCounts.count { expertCounts[expert] = 0 }
        (dropped, tokenCount) = (0, count)
        for token in 0..<count {
            for entry in token * topK..<(token + 1) * topK {
                let expert = experts[entry]
                guard expert >= 0 else { continue }
                guard expert < expertCounts.count else { return false }
                let rank = owner(expert)
                if last[rank] == -2 {
                    dropped += 1
                    continue
                }
                expertCounts[Int(expert)] += 1
                results[rank] += 1
                if last[rank] != Int32(token) {
                    last[rank] = Int32(token)
                    rows[rank] += 1
                }
            }
        }
        var total = 0
        for rank in 0..<rows.count {
            start[rank] = total
            next[rank] = total
            total += rows[rank]
            if onePerRank { results[rank] = rows[rank] }
            if last[rank] != -2 { last[rank] = -1 }
        }
        list(experts)
        return true
    }

    /// Writes down the rows in the order of ranks.
    private func list(_ experts: UnsafePointer<Int32>) {
        for token in 0..<tokenCount {
            for entry in token * topK..<(token + 1) * topK {
                let expert = experts[entry]
                guard expert >= 0 else { continue }
                let rank = owner(expert)
                guard last[rank] != -2, last[rank] != Int32(token) else { continue }
                last[rank] = Int32(token)
                tokens[next[rank]] = UInt32(token)
                next[rank] += 1
            }
        }
    }

    /// Says for each entry which row of the result memory it reads; `base` is where each rank's results begin.
    func assignResults(_ experts: UnsafePointer<Int32>, base: borrowing Table<Int>) {
        for rank in 0..<rows.count {
            next[rank] = base[rank]
            if last[rank] != -2 { last[rank] = -1 }
        }
        for token in 0..<tokenCount {
            for entry in token * topK..<(token + 1) * topK {
                position[entry] = -1
                let expert = experts[entry]
                guard expert >= 0 else { continue }
                let rank = owner(expert)
                if last[rank] == -2 || onePerRank && last[rank] == Int32(token) { continue }
                last[rank] = Int32(token)
                position[entry] = Int32(next[rank])
                next[rank] += 1
            }
        }
    }
}
