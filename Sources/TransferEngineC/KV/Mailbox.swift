internal import CPlatform
internal import CTransferEngine
internal import Synchronization

/// Events of a role that wait for `te_kv_poll`.
///
/// Not bounded by itself: a request has at most its layers and two more, a job three.
final class Mailbox: Sendable {
    struct Event: Sendable {
        var kind: Int
        var tag: UInt64 = 0
        var object: UInt64
        var layer = 0
        var code: UInt32 = 0
        var reason = ""
    }

    private struct State: ~Copyable {
        var events: [Event] = []
        var first = 0
        var file: Int32 = -1

        var count: Int { events.count - first }
    }

    private let state = Mutex(State())
    private let word = Atomic<UInt32>(0)

    func push(_ event: Event) {
        state.withLock { state in
            state.events.append(event)
            if state.count == 1, state.file >= 0 { _ = te_event_signal(state.file) }
        }
        wakeAll()
    }

    func wakeAll() {
        word.add(1, ordering: .sequentiallyConsistent)
        withUnsafePointer(to: word) { te_futex_wake($0) }
    }

    /// Takes at most `room` events. Returns how many.
    func take(_ events: UnsafeMutablePointer<te_kv_event>, _ room: Int) -> Int {
        state.withLock { state in
            let taken = min(room, state.count)
            for index in 0..<taken { events[index] = te_kv_event(state.events[state.first + index]) }
            state.first += taken
            if state.count == 0 {
                state.events.removeAll(keepingCapacity: true)
                state.first = 0
                if taken > 0, state.file >= 0 { _ = te_event_drain(state.file) }
            } else if state.first > 1024 {
                state.events.removeFirst(state.first)
                state.first = 0
            }
            return taken
        }
    }

    /// Sleeps until there may be an event, for at most a millisecond.
    func sleep(_ nanoseconds: UInt64) {
        let seen = word.load(ordering: .sequentiallyConsistent)
        guard state.withLock({ $0.count == 0 }) else { return }
        withUnsafePointer(to: word) { te_futex_wait($0, seen, min(nanoseconds, 1_000_000)) }
    }

    /// The event file, made when it is asked for.
    func openFile() throws(Failure) -> Int32 {
        try state.withLock { state throws(Failure) in
            if state.file < 0 {
                state.file = te_event_new()
                guard state.file >= 0 else {
                    state.file = -1
                    throw Failure(TE_ELIMIT, "no event file; raise the limit of open files")
                }
                if state.count > 0 { _ = te_event_signal(state.file) }
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
}

extension te_kv_event {
    fileprivate init(_ event: Mailbox.Event) {
        self.init()
        kind = UInt32(event.kind)
        code = event.code
        tag = event.tag
        object = event.object
        layer = UInt64(event.layer)
        withUnsafeMutableBytes(of: &reason) { fill($0, event.reason) }
    }
}

/// Writes a text with its NUL, cut at the border of a character where it is too long.
func fill(_ place: UnsafeMutableRawBufferPointer, _ text: String) {
    var length = min(text.utf8.count, place.count - 1)
    let bytes = Array(text.utf8)
    if length < bytes.count {
        while length > 0, bytes[length] & 0xC0 == 0x80 { length -= 1 }
    }
    place.copyBytes(from: bytes.prefix(length))
    place[length] = 0
}
