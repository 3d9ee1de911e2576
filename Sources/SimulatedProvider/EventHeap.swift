import TransferCore

/// Something that happens at a virtual moment.
struct Event {
    /// What happens.
    enum Action {
        /// The first byte of a packet reaches the target's NIC. `tail` is when its last byte does; `isJudged`
        /// tells a packet that the fault rule has let through already.
        case arrive(Segment, tail: UInt64, isJudged: Bool)
        /// The packet has been taken in by the target's NIC.
        case deliver(Segment)
        /// The sender's NIC learns how its request ended.
        case complete(Flight)
        /// The transmit side of a NIC is free.
        case transmit(SimulatedPort)
        /// A copy of a message reaches the NIC `target`.
        case echo(MessageBytes, sender: EngineID, target: UInt64)
        /// There may be room again for messages that were pushed back.
        case unpark(SimulatedPort)
    }

    /// When, in virtual nanoseconds.
    var time: UInt64
    /// The order of planning, which decides among events of the same moment.
    var sequence: UInt64
    /// What.
    var action: Action
}

/// The events to come, the next one first: a binary heap. What moves in it are times, and places of the rest.
struct EventHeap {
    private struct Entry {
        var time: UInt64
        var sequence: UInt64
        var place: Int

        func precedes(_ other: Entry) -> Bool {
            time < other.time || time == other.time && sequence < other.sequence
        }
    }

    private var entries: [Entry] = []
    private var actions: [Event.Action?] = []
    private var free: [Int] = []

    /// When the next event is due.
    var nextTime: UInt64? { entries.first?.time }

    /// Adds an event.
    /// - Complexity: O(log n).
    mutating func push(_ event: Event) {
        let place = free.popLast() ?? actions.count
        if place == actions.count { actions.append(event.action) } else { actions[place] = event.action }
        let entry = Entry(time: event.time, sequence: event.sequence, place: place)
        var child = entries.count
        entries.append(entry)
        while child > 0 {
            let parent = (child - 1) / 2
            guard entry.precedes(entries[parent]) else { break }
            entries[child] = entries[parent]
            child = parent
        }
        entries[child] = entry
    }

    /// Takes the next event.
    /// - Complexity: O(log n).
    mutating func pop() -> Event? {
        guard let next = entries.first, let last = entries.popLast() else { return nil }
        if !entries.isEmpty { sink(last) }
        guard let action = actions[next.place].take() else { return nil }
        free.append(next.place)
        return Event(time: next.time, sequence: next.sequence, action: action)
    }

    /// Puts an entry in the place of the first, and lets it sink to where it belongs.
    private mutating func sink(_ entry: Entry) {
        var parent = 0
        while true {
            var child = 2 * parent + 1
            guard child < entries.count else { break }
            if child + 1 < entries.count, entries[child + 1].precedes(entries[child]) { child += 1 }
            guard entries[child].precedes(entry) else { break }
            entries[parent] = entries[child]
            parent = child
        }
        entries[parent] = entry
    }
}

/// A fingerprint of a run, 64 bits: one multiplication for each word. Not protection against anybody.
struct TraceHash {
    /// The hash of everything added so far.
    private(set) var value: UInt64 = 0xCBF2_9CE4_8422_2325

    /// Adds a word.
    mutating func add(_ word: UInt64) {
        value = (value ^ word) &* 0x9E37_79B9_7F4A_7C15
        value ^= value >> 32
    }
}
