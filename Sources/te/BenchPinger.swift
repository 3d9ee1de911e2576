internal import CPlatform
internal import Synchronization
internal import TransferEngine

/// A ping-pong that lives in callbacks, on the engine's thread.
final class Pinger: @unchecked Sendable {
    // SAFETY: after `start` only the engine's thread touches the fields, until it sets `hasEnded`.
    let hasEnded = Atomic<Bool>(false)
    /// How many batches of round trips there are at least, so that a short measurement has more than a few.
    static let fewestBatches = 10

    private(set) var samples: [Double] = []
    private let side: BenchSide
    private let seconds: Double
    private var rounds = 0
    private var began: UInt64 = 0
    private var end: UInt64 = 0

    init(_ side: BenchSide, seconds: Double) {
        self.side = side
        self.seconds = seconds
        samples.reserveCapacity(1 << 20)
    }

    func start() {
        began = te_monotonic_nanoseconds()
        end = began + UInt64(seconds * 1e9)
        arm()
        // The first ping comes from this thread, by way of the engine's queue.
        try? side.ping()
    }

    private func arm() {
        _ = try? side.engine.expect(BenchSide.pingImmediate, count: 1) { [self] result in
            guard case .success = result else {
                hasEnded.store(true, ordering: .releasing)  // pairs with the load in pingFromCallbacks
                return
            }
            rounds += 1
            if rounds % side.pingBatch == 0 {
                let now = te_monotonic_nanoseconds()
                samples.append(Double(now - began) / Double(2000 * side.pingBatch))
                began = now
                if now > end, samples.count > Self.fewestBatches {
                    hasEnded.store(true, ordering: .releasing)  // pairs with the load in pingFromCallbacks
                    return
                }
            }
            try? side.ping()
            arm()
        }
    }
}
