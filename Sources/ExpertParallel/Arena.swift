/// A range of bytes that is handed out from its beginning, in one order, around what is in quarantine.
///
/// A rank that is lost may be slow instead of dead, so what it was allowed to write to is not given to others any more.
struct Arena {
    /// Bytes that a lost rank may still write to, in order.
    private(set) var quarantine: [Range<Int>] = []
    private var next = 0
    private let byteCount: Int

    init(byteCount: Int) { self.byteCount = byteCount }

    /// Everything that was handed out is free again.
    mutating func restart() { next = 0 }

    /// Hands out the next range in which `fit` finds room: it is given the bytes that are free in a row, and returns how many of
    /// them it takes; 0 is none. Nil when there is no such range.
    mutating func take(_ fit: (_ free: Int) -> Int) -> Int? {
        for number in 0...quarantine.count {
            let hole = number < quarantine.count ? quarantine[number] : byteCount..<byteCount
            if next < hole.lowerBound {
                let taken = fit(hole.lowerBound - next)
                if taken > 0 {
                    defer { next += taken }
                    return next
                }
            }
            next = max(next, hole.upperBound)
        }
        return nil
    }

    /// Hands out exactly `count` bytes.
    mutating func take(_ count: Int) -> Int? { take { $0 >= count ? count : 0 } }

    /// Keeps a range back for good.
    mutating func keepBack(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        quarantine.append(range)
        quarantine.sort { $0.lowerBound < $1.lowerBound }
    }
}
