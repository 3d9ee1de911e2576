public import Synchronization

/// A free list of table indices: last in, first out, so that the warmest entry is used next. No lock, no allocation.
///
/// A Treiber stack; the upper half of the head counts changes, so that a head that went away and came back is noticed.
public struct IndexStack: ~Copyable, @unchecked Sendable {
    // SAFETY: `links[i]` is written only by the owner of index i, before it publishes i through `head`.
    @usableFromInline let links: Table<Atomic<UInt32>>
    @usableFromInline let head: Atomic<UInt64>

    /// Holds the indices `0..<capacity`; index 0 comes out first.
    public init(capacity: Int) {
        precondition(capacity > 0 && capacity < Int(UInt32.max))
        links = Table(count: capacity) { Atomic($0 + 1 < capacity ? UInt32($0 + 1) : .max) }
        head = Atomic(0)
    }

    /// Takes an index, or returns nil when all are out.
    @inlinable public func pop() -> UInt32? {
        var old = head.load(ordering: .acquiring)  // pairs with the exchange in push
        while true {
            let index = UInt32(truncatingIfNeeded: old)
            if index == .max { return nil }
            let next = links[index].load(ordering: .relaxed)
            let (won, now) = head.weakCompareExchange(
                expected: old, desired: (old >> 32 &+ 1) << 32 | UInt64(next),
                // pairs with the exchange in push
                successOrdering: .acquiring, failureOrdering: .acquiring)
            if won { return index }
            old = now
        }
    }

    /// Gives an index back. It must have come from `pop`.
    @inlinable public func push(_ index: UInt32) {
        var old = head.load(ordering: .relaxed)
        while true {
            links[index].store(UInt32(truncatingIfNeeded: old), ordering: .relaxed)
            let (won, now) = head.weakCompareExchange(
                expected: old, desired: (old >> 32 &+ 1) << 32 | UInt64(index),
                successOrdering: .releasing, failureOrdering: .relaxed)  // pairs with the load in pop
            if won { return }
            old = now
        }
    }
}
