/// What is to happen at which virtual moment; of one moment in the order in which it was added.
struct Agenda {
    private struct Item {
        var time: UInt64
        var action: () -> Void
    }

    /// The next one last.
    private var items: [Item] = []

    /// When something is due next.
    var nextTime: UInt64? { items.last?.time }

    /// Adds something.
    /// - Complexity: O(what is to happen earlier).
    mutating func add(_ time: UInt64, _ action: @escaping () -> Void) {
        var (low, high) = (0, items.count)
        while low < high {
            let middle = (low + high) / 2
            // What was added before comes first.
            if items[middle].time > time { low = middle + 1 } else { high = middle }
        }
        items.insert(Item(time: time, action: action), at: low)
    }

    /// Takes the next thing that is due.
    mutating func next(_ now: UInt64) -> (() -> Void)? {
        guard let time = nextTime, time <= now else { return nil }
        return items.removeLast().action
    }
}
