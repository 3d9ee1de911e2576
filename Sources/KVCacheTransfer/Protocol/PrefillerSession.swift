/// What a prefiller remembers of one decoder, so that messages that overtake each other do no harm.
///
/// A cancellation may arrive before its request. It is answered at once with a receipt, and then the request must never be
/// begun: the decoder has already given the pages to somebody else.
struct PrefillerSession: Hashable, Sendable {
    /// Requests below this have ended for the decoder.
    private(set) var oldest: UInt64 = 0
    /// Requests that must not be begun any more, or again.
    private var closed: Set<UInt64> = []
    /// Requests of which a byte might still land.
    private var unproven: Set<UInt64> = []
    /// Requests that have begun and not ended.
    private(set) var active: Set<UInt64> = []

    /// Begins a request. False when it has been cancelled, has begun or has ended before: the message is dropped.
    mutating func begin(_ request: UInt64, oldest: UInt64) -> Bool {
        forget(below: oldest)
        guard request >= self.oldest, !active.contains(request), !closed.contains(request) else {
            return false
        }
        active.insert(request)
        return true
    }

    /// What a cancellation is answered: nil when the request is active, whose end is the answer; else whether it is quiet.
    mutating func cancel(_ request: UInt64) -> Bool? {
        if active.contains(request) { return nil }
        if request >= oldest { closed.insert(request) }
        return !unproven.contains(request)
    }

    /// A request has ended.
    mutating func end(_ request: UInt64, isQuiet: Bool) {
        active.remove(request)
        guard request >= oldest else { return }
        closed.insert(request)
        if !isQuiet { unproven.insert(request) }
    }

    /// Forgets requests that the decoder does not ask about any more.
    mutating func forget(below oldest: UInt64) {
        guard oldest > self.oldest else { return }
        self.oldest = oldest
        closed = closed.filter { $0 >= oldest }
        unproven = unproven.filter { $0 >= oldest }
    }
}
