/// A request as the prefiller sees it: an explicit state machine without a thread, a clock or a network.
///
/// It decides when the source pages may be used again, and what the decoder is told: nothing, if everything was written; else a
/// receipt, once every write that was begun has come to an end.
struct PrefillerRequest: Hashable, Sendable {
    enum State: Hashable, Sendable {
        /// Layers are computed and written.
        case active
        /// Nothing more is written; what is in flight has to end.
        case draining(KVError)
        /// Nothing is in flight.
        case ended
    }

    enum Event: Hashable, Sendable {
        /// A write has been handed to an engine.
        case submitted
        /// A write has ended well.
        case written
        /// A write has failed.
        case failed(KVError)
        /// Everything has been handed to engines, the tail included.
        case submittedAll
        /// The decoder wants it no more, or is gone.
        case stop(KVError)
        /// A write that was to be cancelled has come to an end; or that cannot be proven.
        case receipt(isQuiet: Bool)
    }

    enum Action: Hashable, Sendable {
        /// End all writes that have not ended, and report the receipt of each.
        case cancelWrites
        /// Tell the decoder.
        case sendReceipt(isQuiet: Bool, KVError)
        /// The source pages may be used again; or only after the source has been revoked.
        case release(isQuiet: Bool)
    }

    private(set) var state = State.active
    /// Writes that have begun and not ended.
    private(set) var inFlight = 0
    private var isComplete = false
    private var isQuiet = true

    /// Whether writes may be submitted.
    var isActive: Bool { state == .active }

    /// What to do, in this order.
    mutating func handle(_ event: Event) -> [Action] {
        switch (state, event) {
        case (.active, .submitted):
            inFlight += 1
            return []
        case (.active, .written):
            inFlight -= 1
            return end()
        case (.active, .submittedAll):
            isComplete = true
            return end()
        case (.active, .failed(let reason)), (.active, .stop(let reason)):
            // A write that failed is still in flight as far as anybody knows: its receipt says otherwise.
            state = .draining(reason)
            return inFlight == 0 ? drained(reason) : [.cancelWrites]
        case (.draining(let reason), .receipt(let quiet)):
            inFlight -= 1
            isQuiet = isQuiet && quiet
            return inFlight == 0 ? drained(reason) : []
        case (.draining, _), (.ended, _), (.active, .receipt):
            return []
        }
    }

    private mutating func end() -> [Action] {
        guard isComplete, inFlight == 0 else { return [] }
        state = .ended
        return [.release(isQuiet: true)]
    }

    private mutating func drained(_ reason: KVError) -> [Action] {
        state = .ended
        return [.sendReceipt(isQuiet: isQuiet, reason), .release(isQuiet: isQuiet)]
    }
}
