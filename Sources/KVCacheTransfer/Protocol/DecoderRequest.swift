/// A request as the decoder sees it: an explicit state machine without a thread, a clock or a network.
///
/// It decides one thing: when the pages may be used again. They are written by somebody else, so after anything but the full
/// count they are free only once nothing can land any more: the prefiller says so, or the decoder has revoked its regions.
struct DecoderRequest: Hashable, Sendable {
    enum State: Hashable, Sendable {
        /// The prefiller has been asked; writes arrive.
        case waiting
        /// All writes have been counted: the pages are the application's.
        case ready
        /// The application has been told why; the prefiller's receipt is missing.
        case cancelling
        /// The receipt cannot be had. Only a late receipt or a revocation frees the pages.
        case quarantined
        /// Nothing lands any more, and the pages are free.
        case freed
    }

    enum Event: Hashable, Sendable {
        /// All writes of all ranks have been counted.
        case counted
        /// The application does not want it any more, or waits no longer.
        case cancel(KVError)
        /// The prefiller has ended it.
        case receipt(isQuiet: Bool, KVError)
        /// The prefiller is lost, or the receipt has not come in time.
        case lost(KVError)
        /// The regions have been revoked: nobody can write any more.
        case revoked

        /// Whether the pages may be free after it.
        var mayFreePages: Bool {
            switch self {
            case .receipt, .revoked: true
            case .counted, .cancel, .lost: false
            }
        }
    }

    enum Action: Hashable, Sendable {
        /// The application may begin.
        case deliver
        /// The application is told that it will not get the cache.
        case fail(KVError)
        /// Ask the prefiller to stop.
        case sendCancel
        /// What arrives from now on is counted nowhere.
        case closeLease
        /// The immediates may be handed out again.
        case freeLease
        /// The pages may be used again.
        case freePages
    }

    private(set) var state = State.waiting

    /// Whether the pages are nobody's but the writers'.
    var holdsPages: Bool { state != .ready && state != .freed }

    /// What to do, in this order.
    mutating func handle(_ event: Event) -> [Action] {
        switch (state, event) {
        case (.waiting, .counted):
            state = .ready
            return [.closeLease, .freeLease, .deliver]
        case (.waiting, .cancel(let reason)):
            state = .cancelling
            return [.closeLease, .sendCancel, .fail(reason)]
        case (.waiting, .receipt(true, let reason)):
            state = .freed
            return [.closeLease, .freeLease, .fail(reason), .freePages]
        case (.waiting, .receipt(false, let reason)), (.waiting, .lost(let reason)):
            state = .quarantined
            return [.closeLease, .fail(reason)]
        case (.cancelling, .receipt(false, _)), (.cancelling, .lost):
            state = .quarantined
            return []
        case (.cancelling, .receipt(true, _)), (.quarantined, .receipt(true, _)), (.cancelling, .revoked),
            (.quarantined, .revoked):
            state = .freed
            return [.freeLease, .freePages]
        case (.waiting, .revoked):
            state = .freed
            return [
                .closeLease, .freeLease,
                .fail(KVError(.transferFailed, "the decoder revoked its regions; ask again")), .freePages,
            ]
        case (.ready, _), (.freed, _), (.cancelling, .counted), (.cancelling, .cancel), (.quarantined, _):
            return []
        }
    }
}
