/// A range of bytes that is handed out in pieces, around what is in quarantine.
///
/// A rank that is lost may be slow instead of dead, so what it was allowed to write to is not given to others any more.
struct Arena {
    /// Bytes that a lost rank may still write to, in order.
    private(set) var quarantine: [Range<Int>] = []
    /// What is free: the pieces between, each from where it has been handed out so far.
    private var holes: [Range<Int>]
    private let byteCount: Int

    init(byteCount: Int) {
        self.byteCount = byteCount
        holes = [0..<byteCount]
    }

    /// Everything that was handed out is free again.
    mutating func restart() {
        for number in holes.indices {
            let begin = number == 0 ? 0 : quarantine[number - 1].upperBound
            holes[number] = begin..<holes[number].upperBound
        }
    }

    /// Hands out from the first hole in which `fit` finds room: it is given the bytes that are free there in a row, and
    /// returns how many of them it takes; 0 is none. Nil when there is no such hole.
    mutating func take(_ fit: (_ free: Int) -> Int) -> Int? {
        for number in holes.indices {
            let hole = holes[number]
            let taken = hole.isEmpty ? 0 : fit(hole.count)
            if taken > 0 {
                holes[number] = hole.lowerBound + taken..<hole.upperBound
                return hole.lowerBound
            }
        }
        return nil
    }

    /// Hands out exactly `count` bytes.
    mutating func take(_ count: Int) -> Int? { take { $0 >= count ? count : 0 } }

    /// Keeps a range back for good; it overlaps none that was kept back before. Everything else is free.
    mutating func keepBack(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        quarantine.append(range)
        quarantine.sort { $0.lowerBound < $1.lowerBound }
        let ends = quarantine.map(\.lowerBound) + [byteCount]
        holes = ends.enumerated().map { number, end in
            (number == 0 ? 0 : quarantine[number - 1].upperBound)..<end
        }
    }
}
