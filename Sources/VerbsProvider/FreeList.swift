internal import TransferCore

/// Numbers that are free, the last returned first. All are free at first.
struct FreeList: ~Copyable {
    private let next: Table<Int32>
    private var first: Int32 = 0
    private(set) var count: Int

    init(_ count: Int) {
        self.count = count
        next = Table(count: count) { $0 + 1 < count ? Int32($0 + 1) : -1 }
        if count == 0 { first = -1 }
    }

    @inline(__always) mutating func take() -> Int? {
        guard first >= 0 else { return nil }
        let index = Int(first)
        first = next[index]
        count -= 1
        return index
    }

    @inline(__always) mutating func give(_ index: Int) {
        next[index] = first
        first = Int32(index)
        count += 1
    }
}
