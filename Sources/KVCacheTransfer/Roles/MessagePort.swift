internal import TransferEngine

/// Protocol messages over an engine. Belongs to a role's `SerialQueue`.
final class MessagePort: @unchecked Sendable {
    // SAFETY: `joiners`, `outbox` and `isFlushing` are touched by closures of `queue` only.
    private let engine: TransferEngine
    private let queue: SerialQueue
    private let versions: ClosedRange<UInt8>
    private var joiners: [EngineID: Fragments] = [:]
    private var nextNumber: UInt32 = 0
    private var outbox: [Fragment] = []
    private var isFlushing = false

    private struct Fragment {
        var bytes: [UInt8]
        var peer: Peer
        var onFailure: @Sendable (KVError) -> Void
    }

    /// Peers whose unfinished messages are kept.
    private static let joinerLimit = 4096

    init(_ engine: TransferEngine, _ queue: SerialQueue, _ versions: ClosedRange<UInt8> = KVMessage.versions)
    {
        self.engine = engine
        self.versions = versions
        self.queue = queue
    }

    /// What has come.
    enum Arrival {
        case message(KVMessage)
        /// A hello of a version that is not known here.
        case stranger(session: UInt64, EngineAddress, KVError)
    }

    /// Takes over the engine's receive pool. What is no message of the protocol is dropped.
    func open(
        _ handler: @escaping @Sendable (Arrival, EngineID) -> Void
    ) throws(TransferError) {
        // SAFETY: the bytes are copied before the call returns.
        try unsafe engine.receive { [weak self] bytes, sender in
            let fragment = unsafe Array(bytes)
            self?.queue.run { [weak self] in self?.take(fragment, sender, handler) }
        }
    }

    private func take(
        _ fragment: [UInt8], _ sender: EngineID,
        _ handler: @Sendable (Arrival, EngineID) -> Void
    ) {
        if joiners.count >= Self.joinerLimit, joiners[sender] == nil { joiners = [:] }
        guard let bytes = joiners[sender, default: Fragments()].join(fragment) else { return }
        do throws(KVError) { handler(.message(try KVMessage(decoding: bytes, versions)), sender) } catch {
            guard error.code == .unsupportedVersion, let stranger = KVMessage.stranger(bytes, versions) else {
                return
            }
            handler(.stranger(session: stranger.session, stranger.address, error), sender)
        }
    }

    /// Forgets a peer that is gone.
    func forget(_ sender: EngineID) { joiners[sender] = nil }

    /// Sends a message. `onFailure` is called, in the queue, when the peer did not get it.
    func send(_ message: KVMessage, to peer: Peer, onFailure: @escaping @Sendable (KVError) -> Void) {
        nextNumber &+= 1
        for bytes in Fragments.cut(message.encoded(), number: nextNumber) {
            outbox.append(Fragment(bytes: bytes, peer: peer, onFailure: onFailure))
        }
        flush()
    }

    /// Sends what the engine had no room for before.
    func flush() {
        // Whoever is told of a failure may send something, which the call that tells him then sends, too.
        guard !isFlushing else { return }
        isFlushing = true
        var sent = 0
        defer {
            outbox.removeFirst(sent)
            isFlushing = false
        }
        while sent < outbox.count {
            let fragment = outbox[sent]
            let queue = queue
            do throws(TransferError) {
                try engine.send(fragment.bytes, to: fragment.peer) { result in
                    guard case .failure(let error) = result else { return }
                    queue.run { fragment.onFailure(KVError(error)) }
                }
            } catch {
                if error.code == .backPressure { return }
                fragment.onFailure(KVError(error))
            }
            sent += 1
        }
    }
}
