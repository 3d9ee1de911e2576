internal import Synchronization
public import TransferEngine

/// One process of a weight update: an engine, and the roles that it has - trainer, receiver, controller, or several.
///
/// Whoever makes a role keeps it: a role that is gone takes no further part.
///
/// Nothing here has a thread or a clock: whoever owns the endpoint calls `poll` often, from one thread, with the time
/// of its own clock.
/// So the same code runs on a thread over real NICs and in a simulation.
public final class WeightEndpoint {
    /// The engine that carries everything. Its receive pool belongs to the endpoint.
    public let engine: TransferEngine
    // Roles hold their endpoint: it must not hold them, or nothing of either would ever be given back.
    weak var trainer: WeightTrainer?
    weak var receiver: WeightReceiver?
    weak var controller: WeightController?
    /// The highest term of a controller that has been heard.
    var term: UInt32 = 0
    /// Nanoseconds, of the last `poll`.
    private(set) var now: UInt64 = 0
    /// For tests: messages that this process never gets.
    var isLost: ((WeightMessage) -> Bool)?
    private let mailbox = Mailbox()
    private var peers: [EngineID: Peer] = [:]
    private var nextJoin: UInt64 = 0

    /// How often members say that they are there.
    static let joinInterval: UInt64 = 200_000_000

    final class Mailbox: Sendable {
        let messages = Mutex<[WeightMessage]>([])
        let failures = Mutex<[String]>([])
    }

    /// - Throws: what the engine says when its receive pool cannot be opened.
    public init(_ engine: TransferEngine) throws(TransferError) {
        self.engine = engine
        let mailbox = mailbox
        try unsafe engine.receive { bytes, _ in
            guard let message = unsafe WeightMessage(decoding: Array(bytes)) else { return }
            mailbox.messages.withLock { $0.append(message) }
        }
    }

    /// Does what is to be done now. Returns whether anything was.
    /// - Parameter nanoseconds: The time, of any clock that does not go back.
    @discardableResult public func poll(at nanoseconds: UInt64) -> Bool {
        now = nanoseconds
        let messages = mailbox.messages.withLock { messages in
            defer { messages = [] }
            return messages
        }
        for message in messages where isLost?(message) != true { dispatch(message) }
        if now >= nextJoin {
            nextJoin = now + Self.joinInterval
            trainer?.join()
            receiver?.join()
        }
        var isBusy = !messages.isEmpty
        if let trainer, trainer.poll() { isBusy = true }
        if let receiver, receiver.poll() { isBusy = true }
        if let controller, controller.poll() { isBusy = true }
        return isBusy
    }

    /// Ends the roles, as a process that goes does for the others: what a trainer has under way is cancelled, and memory is given
    /// back, so that nobody reads or writes it any more. No reading may be under way. The engine can be used for something else
    /// then, once it has another receiver of messages.
    /// - Returns: Whether all is quiet: until then poll and ask again.
    public func close() -> Bool {
        controller?.close()
        controller = nil
        receiver?.close()
        receiver = nil
        guard trainer?.close() ?? true else { return false }
        trainer = nil
        return true
    }

    private func dispatch(_ message: WeightMessage) {
        switch message.kind {
        case .join, .opened, .trained, .prepared, .committed: controller?.handle(message)
        case .pull: trainer?.handle(message)
        case .peer, .target, .start, .finished, .open, .verify, .commit, .recall, .rollback,
            .abort:
            guard message.term >= term else { return }
            term = message.term
            if message.kind == .abort || message.isTrainer { trainer?.handle(message) }
            if message.kind == .abort || !message.isTrainer { receiver?.handle(message) }
        }
    }

    func peer(_ address: EngineAddress) throws(TransferError) -> Peer {
        if let peer = peers[address.landing.engine] { return peer }
        let peer = try engine.connect(to: address)
        peers[peer.engine] = peer
        return peer
    }

    /// Sends a message; one that is lost is repeated by whoever waits for its answer.
    func send(_ message: WeightMessage, to address: EngineAddress, onFailure: (@Sendable () -> Void)? = nil) {
        if address.landing.engine == engine.id {
            mailbox.messages.withLock { $0.append(message) }
            return
        }
        do throws(TransferError) {
            let peer = try peer(address)
            guard let onFailure else {
                _ = try engine.send(message.encoded(), to: peer)
                return
            }
            _ = try engine.send(message.encoded(), to: peer) { result in
                if case .failure = result { onFailure() }
            }
        } catch { onFailure?() }
    }
}
