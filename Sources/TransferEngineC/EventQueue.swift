internal import CPlatform
internal import CTransferEngine
internal import Synchronization

/// A submission that somebody wants to hear of. Its transfer is known only after it was submitted, and may have ended by then.
final class Ticket: Sendable {
    let tag: UInt64
    private let handle = Atomic<UInt64>(0)

    init(tag: UInt64) { self.tag = tag }

    func name(_ handle: UInt64) { self.handle.store(handle, ordering: .relaxed) }

    /// Waits for the submitter, which is about to name it.
    var transfer: UInt64 {
        var handle = handle.load(ordering: .relaxed)
        while handle == 0 {
            te_cpu_relax()
            handle = self.handle.load(ordering: .relaxed)
        }
        return handle
    }
}

/// Events that wait for `te_poll`, and messages that wait for `te_receive`.
///
/// Bounded: events of transfers and receipts are reserved before they can come, there is one event at a time for each watcher,
/// and one that says that there are messages; senders are pushed back while too many messages wait.
final class EventQueue: Sendable {
    private struct Entry {
        var event: te_event
        var ticket: Ticket?
    }

    private struct State: ~Copyable {
        var entries: [Entry] = []
        var first = 0
        /// Events of transfers and receipts that are due or in the queue.
        var reserved = 0
        /// Changes of watched words that have an event in the queue.
        var changes: [UInt64: (old: UInt64, new: UInt64)] = [:]
        var isMessageAnnounced = false
        var messages: [(sender: UInt64, bytes: [UInt8])] = []
        var firstMessage = 0
        var delivered: UInt64 = 0
        var received: UInt64 = 0
        var file: Int32 = -1
        var isSignalled = false

        var count: Int { entries.count - first }
        var messageCount: Int { messages.count - firstMessage }

        mutating func append(_ entry: Entry) {
            entries.append(entry)
            if file >= 0, !isSignalled {
                isSignalled = true
                _ = te_event_signal(file)
            }
        }
    }

    private let state = Mutex(State())
    private let capacity: Int
    private let messageCapacity: Int
    private let waiting = Atomic<Int>(0)
    private let word = Atomic<UInt32>(0)
    private let messageCount = Atomic<Int>(0)

    init(capacity: Int, messageCapacity: Int) {
        self.capacity = capacity
        self.messageCapacity = messageCapacity
    }

    // MARK: Filling

    /// Makes room for an event that is to come.
    func reserve() throws(Failure) {
        let isReserved = state.withLock { state in
            guard state.reserved < capacity else { return false }
            state.reserved += 1
            return true
        }
        guard isReserved else {
            throw Failure(TE_EBACKPRESSURE, "\(capacity) events are due or wait to be polled")
        }
    }

    /// Gives back what was reserved for an event that will not come.
    func release() { state.withLock { $0.reserved -= 1 } }

    func push(_ event: te_event, _ ticket: Ticket? = nil) {
        state.withLock { $0.append(Entry(event: event, ticket: ticket)) }
        wake()
    }

    func pushChange(of watcher: UInt64, tag: UInt64, old: UInt64, new: UInt64) {
        state.withLock { state in
            if state.changes[watcher] != nil {
                state.changes[watcher]?.new = new
                return
            }
            state.changes[watcher] = (old, new)
            state.append(
                Entry(
                    event: te_event(
                        kind: UInt32(TE_EVENT_WATCH), status: 0, tag: tag, object: watcher, old_value: 0,
                        new_value: 0)))
        }
        wake()
    }

    func dropChanges(of watcher: UInt64) { state.withLock { $0.changes[watcher] = nil } }

    /// Whether another message may come.
    var hasRoomForMessages: Bool { messageCount.load(ordering: .relaxed) < messageCapacity }

    func push(message bytes: [UInt8], from sender: UInt64) {
        messageCount.add(1, ordering: .relaxed)
        state.withLock { state in
            state.received += 1
            state.messages.append((sender, bytes))
            guard !state.isMessageAnnounced else { return }
            state.isMessageAnnounced = true
            state.append(
                Entry(
                    event: te_event(
                        kind: UInt32(TE_EVENT_MESSAGE), status: 0, tag: 0, object: 0, old_value: 0,
                        new_value: 0)))
        }
        wake()
    }

    // MARK: Emptying

    /// Takes at most `room` events. Returns how many.
    func take(_ events: UnsafeMutablePointer<te_event>, _ room: Int) -> Int {
        state.withLock { state in
            var taken = 0
            while taken < room, state.count > 0 {
                if let event = Self.next(&state) {
                    events[taken] = event
                    taken += 1
                }
            }
            if state.count == 0 {
                state.entries.removeAll(keepingCapacity: true)
                state.first = 0
                if state.isSignalled {
                    state.isSignalled = false
                    _ = te_event_drain(state.file)
                }
            }
            state.delivered += UInt64(taken)
            return taken
        }
    }

    /// The first event; nil when it has become void.
    private static func next(_ state: inout State) -> te_event? {
        let entry = state.entries[state.first]
        state.entries[state.first].ticket = nil
        state.first += 1
        if state.first > 1024, state.first * 2 > state.entries.count {
            state.entries.removeFirst(state.first)
            state.first = 0
        }
        var event = entry.event
        switch Int(event.kind) {
        case TE_EVENT_WATCH:
            guard let change = state.changes.removeValue(forKey: event.object) else { return nil }
            (event.old_value, event.new_value) = change
        case TE_EVENT_MESSAGE: state.isMessageAnnounced = false
        default:
            state.reserved -= 1
            if let ticket = entry.ticket { event.object = ticket.transfer }
        }
        return event
    }

    /// Sleeps until there may be an event, or `deadline` is near.
    func sleep(until deadline: UInt64, now: UInt64) {
        waiting.add(1, ordering: .sequentiallyConsistent)
        let seen = word.load(ordering: .sequentiallyConsistent)
        if state.withLock({ $0.count == 0 }) {
            // Looks again every millisecond: at `isClosing`, and for a wake-up that was missed.
            withUnsafePointer(to: word) {
                te_futex_wait($0, seen, min(deadline - min(now, deadline), 1_000_000))
            }
        }
        waiting.subtract(1, ordering: .sequentiallyConsistent)
    }

    private func wake() {
        if waiting.load(ordering: .sequentiallyConsistent) > 0 { wakeAll() }
    }

    func wakeAll() {
        word.add(1, ordering: .sequentiallyConsistent)
        withUnsafePointer(to: word) { te_futex_wake($0) }
    }

    /// Takes messages as long as they fit.
    func receive(
        _ messages: UnsafeMutablePointer<te_message>, _ capacity: Int, _ buffer: UnsafeMutableRawBufferPointer
    ) throws(Failure) -> Int {
        try state.withLock { state throws(Failure) in
            var taken = 0
            var used = 0
            while taken < capacity, state.messageCount > 0 {
                let (sender, bytes) = state.messages[state.firstMessage]
                guard bytes.count <= buffer.count - used else { break }
                UnsafeMutableRawBufferPointer(rebasing: buffer[used...]).copyBytes(from: bytes)
                messages[taken] = te_message(
                    sender: sender, offset: UInt64(used), length: UInt64(bytes.count))
                used += bytes.count
                taken += 1
                state.messages[state.firstMessage].bytes = []
                state.firstMessage += 1
            }
            if taken == 0, capacity > 0, state.messageCount > 0 {
                let length = state.messages[state.firstMessage].bytes.count
                throw Failure(
                    TE_EOUTOFRANGE, "a message of \(length) bytes for a buffer of \(buffer.count)")
            }
            if state.messageCount == 0 || state.firstMessage > 256 {
                state.messages.removeFirst(state.firstMessage)
                state.firstMessage = 0
            }
            messageCount.subtract(taken, ordering: .relaxed)
            return taken
        }
    }

    // MARK: The file

    /// The event file, made when it is asked for.
    func openFile() throws(Failure) -> Int32 {
        try state.withLock { state throws(Failure) in
            if state.file < 0 {
                state.file = te_event_new()
                guard state.file >= 0 else {
                    state.file = -1
                    throw Failure(TE_ELIMIT, "no event file; raise the limit of open files")
                }
                if state.count > 0 {
                    state.isSignalled = true
                    _ = te_event_signal(state.file)
                }
            }
            return state.file
        }
    }

    func close() {
        state.withLock { state in
            if state.file >= 0 { te_close(state.file) }
            state.file = -1
        }
    }

    /// Events and messages, taken and waiting.
    var statistics: (events: UInt64, waiting: Int, messages: UInt64, waitingMessages: Int) {
        state.withLock { ($0.delivered, $0.count, $0.received, $0.messageCount) }
    }
}
