/// Temporary memory: the lowest place that is free is taken first, so that what has just been used, and is still in
/// the processor's cache, is used again.
struct StagingSpace {
    /// Bytes.
    let capacity: Int
    /// What is taken, by place; few at a time.
    private var blocks: [(begin: Int, end: Int)] = []

    init(capacity: Int) { self.capacity = capacity / Staging.alignment * Staging.alignment }

    var isEmpty: Bool { blocks.isEmpty }

    /// Takes neighbouring bytes; nil when there are not so many now.
    /// - Complexity: O(blocks taken).
    mutating func take(_ bytes: Int) -> Int? {
        let bytes = max(Staging.rounded(bytes), Staging.alignment)
        var place = 0
        for (index, block) in blocks.enumerated() {
            if place + bytes <= block.begin {
                blocks.insert((place, place + bytes), at: index)
                return place
            }
            place = block.end
        }
        guard place + bytes <= capacity else { return nil }
        blocks.append((place, place + bytes))
        return place
    }

    /// Gives back what begins at `place`.
    mutating func giveBack(_ place: Int) { blocks.removeAll { $0.begin == place } }
}
