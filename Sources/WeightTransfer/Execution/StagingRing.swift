/// Temporary memory that is taken in order and given back in any order: a ring, so that it never fragments.
struct StagingRing {
    /// Bytes.
    let capacity: Int
    private var blocks: [(begin: Int, end: Int, isFree: Bool)] = []
    private var first = 0

    init(capacity: Int) { self.capacity = capacity / Staging.alignment * Staging.alignment }

    var isEmpty: Bool { first == blocks.count }

    /// Bytes between the oldest block and the newest, what lies between them included.
    var used: Int {
        guard !isEmpty else { return 0 }
        let (begin, end) = (blocks[first].begin, blocks[blocks.count - 1].end)
        return end > begin ? end - begin : capacity - begin + end
    }

    /// Takes neighbouring bytes; nil when there are not so many now.
    mutating func take(_ bytes: Int) -> Int? {
        let bytes = max(Staging.rounded(bytes), Staging.alignment)
        guard bytes <= capacity else { return nil }
        var place = 0
        if !isEmpty {
            let (begin, end) = (blocks[first].begin, blocks[blocks.count - 1].end)
            if end > begin {
                if end + bytes <= capacity {
                    place = end
                } else if bytes <= begin {
                    place = 0
                } else {
                    return nil
                }
            } else {
                guard end + bytes <= begin else { return nil }
                place = end
            }
        }
        blocks.append((place, place + bytes, false))
        return place
    }

    /// Gives back what begins at `place`.
    mutating func giveBack(_ place: Int) {
        guard let index = blocks[first...].firstIndex(where: { $0.begin == place && !$0.isFree }) else {
            return
        }
        blocks[index].isFree = true
        while first < blocks.count, blocks[first].isFree { first += 1 }
        if first == blocks.count || first > 256 {
            blocks.removeFirst(first)
            first = 0
        }
    }
}
