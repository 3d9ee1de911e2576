public import Synchronization

/// A bounded queue of 32-bit numbers for any number of producers and consumers. No lock, no allocation.
///
/// The bounded queue with one sequence number a cell that Dmitry Vyukov published: a producer claims a cell by
/// advancing `tail`, and hands it over by storing the cell's sequence number.
public struct IndexQueue: ~Copyable, @unchecked Sendable {
    // SAFETY: the cells are reached only through the protocol below; `capacity` and `cells` never change.
    @usableFromInline struct Cell: ~Copyable {
        @usableFromInline let sequence: Atomic<UInt64>
        @usableFromInline var value: UInt32 = 0
        @usableFromInline init(_ index: Int) { sequence = Atomic(UInt64(index)) }
    }

    @usableFromInline let cells: Table<Cell>
    @usableFromInline let mask: UInt64
    @usableFromInline let head: Atomic<UInt64>
    // Keeps producers and consumers on different cache lines.
    private let padding = InlineArray<7, UInt64>(repeating: 0)
    @usableFromInline let tail: Atomic<UInt64>

    /// `capacity` is a power of two.
    public init(capacity: Int) {
        precondition(capacity > 1 && capacity & (capacity - 1) == 0, "the capacity is a power of two")
        cells = Table(count: capacity) { Cell($0) }
        mask = UInt64(capacity - 1)
        head = Atomic(0)
        tail = Atomic(0)
    }

    /// Appends, or returns false when the queue is full.
    @inlinable public func push(_ value: UInt32) -> Bool {
        var position = tail.load(ordering: .relaxed)
        while true {
            let cell = Int(position & mask)
            let sequence = cells[cell].sequence.load(ordering: .acquiring)  // pairs with the store in pop
            if sequence == position {
                let (won, now) = tail.weakCompareExchange(
                    expected: position, desired: position &+ 1, ordering: .relaxed)
                if won {
                    cells[cell].value = value
                    // pairs with the load in pop
                    cells[cell].sequence.store(position &+ 1, ordering: .releasing)
                    return true
                }
                position = now
            } else if sequence < position {
                return false
            } else {
                position = tail.load(ordering: .relaxed)
            }
        }
    }

    /// Takes the oldest, or returns nil when there is none.
    @inlinable public func pop() -> UInt32? {
        var position = head.load(ordering: .relaxed)
        while true {
            let cell = Int(position & mask)
            let sequence = cells[cell].sequence.load(ordering: .acquiring)  // pairs with the store in push
            if sequence == position &+ 1 {
                let (won, now) = head.weakCompareExchange(
                    expected: position, desired: position &+ 1, ordering: .relaxed)
                if won {
                    let value = cells[cell].value
                    // pairs with the load in push
                    cells[cell].sequence.store(position &+ mask &+ 1, ordering: .releasing)
                    return value
                }
                position = now
            } else if sequence < position &+ 1 {
                return nil
            } else {
                position = head.load(ordering: .relaxed)
            }
        }
    }

    /// False only when nothing has been pushed that was not taken; may be true a moment too long.
    @inlinable public var mayHaveItems: Bool {
        head.load(ordering: .relaxed) != tail.load(ordering: .relaxed)
    }
}
