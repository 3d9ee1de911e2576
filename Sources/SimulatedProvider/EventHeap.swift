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

    /// Whether this event comes first.
    func precedes(_ other: Event) -> Bool { (time, sequence) < (other.time, other.sequence) }
}

/// The events to come, the next one first: a binary heap.
struct EventHeap {
    private var events: [Event] = []

    /// When the next event is due.
    var nextTime: UInt64? { events.first?.time }

    /// Adds an event.
    /// - Complexity: O(log n).
    mutating func push(_ event: Event) {
        var child = events.count
        events.append(event)
        while child > 0 {
            let parent = (child - 1) / 2
            guard events[child].precedes(events[parent]) else { return }
            events.swapAt(child, parent)
            child = parent
        }
    }

    /// Takes the next event.
    /// - Complexity: O(log n).
    mutating func pop() -> Event? {
        guard let last = events.popLast() else { return nil }
        guard let first = events.first else { return last }
        events[0] = last
        var parent = 0
        while true {
            var least = parent
            for child in 2 * parent + 1...2 * parent + 2 where child < events.count {
                if events[child].precedes(events[least]) { least = child }
            }
            guard least != parent else { return first }
            events.swapAt(parent, least)
            parent = least
        }
    }
}

/// FNV-1a, 64 bits: a fingerprint of a run, not protection against anybody.
struct TraceHash {
    /// The hash of everything added so far.
    private(set) var value: UInt64 = 0xCBF2_9CE4_8422_2325

    /// Adds the eight bytes of `word`, the lowest first.
    mutating func add(_ word: UInt64) {
        for shift in stride(from: 0, to: 64, by: 8) {
            value = (value ^ (word >> UInt64(shift)) & 0xFF) &* 0x100_0000_01B3
        }
    }
}
