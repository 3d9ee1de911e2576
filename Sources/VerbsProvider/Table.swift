/// A fixed number of elements at fixed places, bounds-checked.
///
/// Plain memory: no reference counting, no exclusivity checks. Its owner frees it.
@safe struct Table<Element> {
    private let base: UnsafeMutablePointer<Element>
    let count: Int

    /// `count` copies of `element`. `count` is above 0.
    init(_ count: Int, repeating element: Element) {
        self.count = count
        unsafe base = .allocate(capacity: count)
        unsafe base.initialize(repeating: element, count: count)
    }

    /// An empty table, which takes no memory.
    init() {
        count = 0
        // SAFETY: never used: every access is checked against the count.
        unsafe base = UnsafeMutablePointer(bitPattern: MemoryLayout<Element>.alignment).unsafelyUnwrapped
    }

    func deallocate() { if count > 0 { unsafe base.deallocate() } }

    subscript(index: Int) -> Element {
        @inline(__always) _read {
            precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
            yield unsafe base[index]
        }
        @inline(__always) nonmutating _modify {
            precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
            yield unsafe &base[index]
        }
    }

    /// The address of an element, for C.
    func address(_ index: Int) -> UnsafeMutablePointer<Element> {
        precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
        return unsafe base + index
    }
}

/// Numbers that are free, the last returned first. All are free at first.
struct FreeList {
    private let next: Table<Int32>
    private var first: Int32 = 0
    private(set) var count: Int

    init(_ count: Int) {
        self.count = count
        next = Table(count, repeating: -1)
        for index in 0..<count { next[index] = index + 1 < count ? Int32(index + 1) : -1 }
        if count == 0 { first = -1 }
    }

    func deallocate() { next.deallocate() }

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

/// Finds a connection by the number of one of its queue pairs.
struct QueuePairIndex {
    /// Which of a connection's queue pairs.
    enum Kind: Int { case write, message }

    private static let buckets = 16384
    private let heads = Table<Int32>(buckets, repeating: -1)
    private let numbers = Table<UInt32>(2 * Tuning.connections, repeating: 0)
    private let next = Table<Int32>(2 * Tuning.connections, repeating: -1)

    func deallocate() {
        heads.deallocate()
        numbers.deallocate()
        next.deallocate()
    }

    func insert(_ number: UInt32, connection: Int, _ kind: Kind) {
        let entry = 2 * connection + kind.rawValue
        let bucket = Int(number) & (Self.buckets - 1)
        numbers[entry] = number
        next[entry] = heads[bucket]
        heads[bucket] = Int32(entry)
    }

    func remove(_ number: UInt32, connection: Int, _ kind: Kind) {
        let entry = Int32(2 * connection + kind.rawValue)
        let bucket = Int(number) & (Self.buckets - 1)
        if heads[bucket] == entry {
            heads[bucket] = next[Int(entry)]
            return
        }
        var position = heads[bucket]
        while position >= 0 {
            if next[Int(position)] == entry {
                next[Int(position)] = next[Int(entry)]
                return
            }
            position = next[Int(position)]
        }
    }

    /// The connection, or nil for a number that is not in use.
    @inline(__always) func find(_ number: UInt32) -> Int? {
        var position = heads[Int(number) & (Self.buckets - 1)]
        while position >= 0 {
            if numbers[Int(position)] == number { return Int(position) >> 1 }
            position = next[Int(position)]
        }
        return nil
    }
}
