internal import Synchronization

/// Runs closures one after the other, on the threads that bring them: whoever finds the queue idle runs what is in it.
///
/// What the closures touch needs no lock of its own. A closure may add closures; they run later, so that callbacks which come
/// from inside of a call find the state as it was left.
final class SerialQueue: Sendable {
    private struct State {
        var waiting: [@Sendable () -> Void] = []
        var isRunning = false
    }

    private let state = Mutex(State())

    /// Runs `body`, now or after what runs at the moment.
    func run(_ body: @escaping @Sendable () -> Void) {
        let isFirst = state.withLock { state in
            state.waiting.append(body)
            defer { state.isRunning = true }
            return !state.isRunning
        }
        guard isFirst else { return }
        while true {
            let bodies = state.withLock { state in
                let bodies = state.waiting
                state.waiting.removeAll(keepingCapacity: true)
                if bodies.isEmpty { state.isRunning = false }
                return bodies
            }
            if bodies.isEmpty { return }
            for body in bodies { body() }
        }
    }
}
