/// Which numbers of one sender have come: each is taken once.
///
/// Messages overtake each other, over several NICs and on unordered fabrics, so numbers come in any order. A number that lies
/// `width` or more below the largest one is refused, since nothing is remembered of it: a sender has fewer on their way.
struct ReplayWindow {
    /// Numbers that are remembered: more than a sender's transfers and control messages in flight.
    static let width: UInt64 = 8192

    private var largest: UInt64 = 0
    /// Bit `number % width`, for numbers in `largest - width + 1 ... largest`.
    private var bits = [UInt64](repeating: 0, count: Int(width / 64))

    /// Takes a number. Numbers begin with 1.
    /// - Returns: false when it has come before, or is too old to know.
    /// - Complexity: O(1), and O(new - largest) for a jump.
    mutating func take(_ number: UInt64) -> Bool {
        guard number > 0, number.addingReportingOverflow(Self.width).overflow == false else { return false }
        if number > largest {
            if number - largest >= Self.width {
                for index in bits.indices { bits[index] = 0 }
            } else {
                for skipped in largest + 1..<number { clear(skipped) }
            }
            largest = number
            set(number)
            return true
        }
        guard largest - number < Self.width, !isSet(number) else { return false }
        set(number)
        return true
    }

    private func place(_ number: UInt64) -> (word: Int, bit: UInt64) {
        let index = number % Self.width
        return (Int(index / 64), 1 << (index % 64))
    }

    private func isSet(_ number: UInt64) -> Bool { bits[place(number).word] & place(number).bit != 0 }
    private mutating func set(_ number: UInt64) { bits[place(number).word] |= place(number).bit }
    private mutating func clear(_ number: UInt64) { bits[place(number).word] &= ~place(number).bit }
}
