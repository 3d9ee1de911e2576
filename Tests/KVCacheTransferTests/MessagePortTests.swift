import Synchronization
import Testing

@testable import KVCacheTransfer
@testable import TransferEngine

/// Messages of the protocol over an engine that takes none.
@Suite struct MessagePortTests {
    /// Whoever is told that a message did not go may send another one at once: each is told once, and in order.
    @Test func aFailureMayBeAnswered() throws {
        let (mine, theirs) = (
            try TransferEngine(Configuration(progress: .manual)),
            try TransferEngine(Configuration(progress: .manual))
        )
        let peer = try mine.connect(to: theirs.address)
        let queue = SerialQueue()
        let port = MessagePort(mine, queue)
        mine.close()
        let told = Mutex<[Int]>([])
        queue.run {
            for number in 0..<3 {
                port.send(.goodbye(session: UInt64(number)), to: peer) { _ in
                    told.withLock { $0.append(number) }
                    port.send(.goodbye(session: 10), to: peer) { _ in told.withLock { $0.append(10 + number) }
                    }
                }
            }
        }
        #expect(told.withLock { $0 } == [0, 10, 1, 11, 2, 12])
        theirs.close()
    }
}
