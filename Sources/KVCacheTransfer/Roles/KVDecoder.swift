internal import Synchronization
public import TransferEngine

/// A prefiller that a decoder works with.
public struct KVPeer: Hashable, Sendable {
    let number: UInt64
}

/// A request of a decoder.
public struct KVRequestID: Hashable, Sendable {
    let number: UInt64
}

/// What a decoder wants from a prefiller.
public struct KVRequest: Sendable {
    /// The tokens; those that are cached are not transferred.
    public var span: TokenSpan
    /// The pages to be written, for each group: the application's own, which nobody else uses until the request has ended.
    public var tables: [PageTable]
    /// Where the last hidden state or the logits go; nil is nowhere.
    public var tail: KVMessage.Tail?
    /// What the prefiller's model needs: token ids and parameters, in a form of the application's.
    public var input: [UInt8]
    /// How long it may take until all has arrived.
    public var timeout: Duration
    /// Whether each layer is announced as soon as it has arrived.
    public var isLayerwise: Bool

    /// Describes a request.
    public init(
        span: TokenSpan, tables: [PageTable], tail: KVMessage.Tail? = nil, input: [UInt8],
        timeout: Duration = .seconds(30), isLayerwise: Bool = false
    ) {
        self.span = span
        self.tables = tables
        self.tail = tail
        self.input = input
        self.timeout = timeout
        self.isLayerwise = isLayerwise
    }
}

/// What becomes of a request. Either `ready`, or `failed` and later `pagesFree`.
public enum KVRequestEvent: Hashable, Sendable {
    /// A layer has arrived on all ranks that hold it. Only for requests that are layerwise.
    case layer(Int)
    /// All has arrived. The pages are the application's.
    case ready
    /// It will not arrive, for this reason. The pages may still be written to.
    case failed(KVError)
    /// Nothing can be written into the pages any more.
    case pagesFree
}

/// The decoder's side: asks prefillers to write the cache of requests into its pages, and knows when it is there, or when the
/// pages may be used again.
///
/// Has no thread: what it does it does on the threads that call it and on those of its engines. `tick` has to be called
/// several times a heartbeat, which `run` does. All methods may be called from any thread, and none of them waits. Handlers
/// are called one at a time and must not wait either.
///
/// ```swift
/// let decoder = try KVDecoder(KVConfiguration(name: "decoder-0"), layout: layout, ranks: ranks)
/// let prefiller = try decoder.connect(to: address)
/// decoder.request(request, from: prefiller) { event in ... }
/// try await decoder.run()
/// ```
public final class KVDecoder: @unchecked Sendable {
    // SAFETY: all that is `var` is touched by closures of `queue` only, which run one at a time.
    let configuration: KVConfiguration
    let layout: KVLayout
    let queue = SerialQueue()
    let port: MessagePort
    var ranks: [KVRank]
    var random: any RandomNumberGenerator & Sendable
    var links: [UInt64: DecoderLink] = [:]
    /// The link of each session, also of sessions that are over and owe receipts.
    var sessions: [UInt64: UInt64] = [:]
    var requests: [UInt64: DecoderEntry] = [:]
    /// The number of each request by its session and the number in it.
    var numbers: [SessionRequest: UInt64] = [:]
    var now: UInt64 = 0
    /// Whether `tick` has been called.
    var hasClock = false
    /// Since when there are pages in quarantine.
    var quarantinedSince: UInt64?
    /// Why the decoder can take no requests any more: a region could not be registered again.
    var failure: KVError?
    private let nextNumber = Atomic<UInt64>(1)
    private let isStopped = Atomic<Bool>(false)

    struct SessionRequest: Hashable, Sendable {
        var session: UInt64
        var request: UInt64
    }

    /// Opens a decoder on its ranks. Messages come and go over the engine of rank 0, whose receive pool it takes.
    /// - Throws: `KVError.Code.invalidLayout`.
    public convenience init(
        _ configuration: KVConfiguration, layout: KVLayout, ranks: [KVRank]
    ) throws(KVError) {
        try self.init(configuration, layout: layout, ranks: ranks, random: SystemRandomNumberGenerator())
    }

    /// Opens a decoder with the caller's randomness: for simulators.
    public init(
        _ configuration: KVConfiguration, layout: KVLayout, ranks: [KVRank],
        random: any RandomNumberGenerator & Sendable
    ) throws(KVError) {
        try validate(ranks, layout)
        self.configuration = configuration
        self.layout = layout
        self.ranks = ranks
        self.random = random
        port = MessagePort(ranks[0].engine, queue, configuration.versions)
        do throws(TransferError) {
            try port.open { [weak self] message, sender in self?.receive(message, sender) }
        } catch { throw KVError(error) }
    }

    private func number() -> UInt64 { nextNumber.add(1, ordering: .relaxed).oldValue }

    /// Begins to work with a prefiller. Requests to it may be made at once. One that was lost is reached again by connecting
    /// anew.
    /// - Throws: `KVError.Code.transferFailed` when its engine cannot be reached.
    public func connect(to address: EngineAddress) throws(KVError) -> KVPeer {
        let peer: Peer
        do throws(TransferError) { peer = try ranks[0].engine.connect(to: address) } catch {
            throw KVError(error)
        }
        let link = number()
        queue.run { [self] in
            links[link] = DecoderLink(peer: peer)
            greet(link)
        }
        return KVPeer(number: link)
    }

    /// Ends the work with a prefiller: what it has of ours is cancelled. Does not wait.
    public func disconnect(_ peer: KVPeer) {
        queue.run { [self] in
            guard let link = links[peer.number] else { return }
            let reason = KVError(.cancelled, "the decoder left \(link.peer.name)")
            for number in requests.keys.sorted() where requests[number]?.link == peer.number {
                apply(.cancel(reason), to: number)
            }
            send(.goodbye(session: link.session), to: peer.number)
            links[peer.number]?.state = .lost(reason)
            links[peer.number]?.isLeft = true
        }
    }

    /// Asks a prefiller for the cache of a request. Everything else comes through `handler`.
    @discardableResult
    public func request(
        _ request: KVRequest, from peer: KVPeer, handler: @escaping @Sendable (KVRequestEvent) -> Void
    ) -> KVRequestID {
        let number = number()
        queue.run { [self] in begin(number, request, peer.number, handler) }
        return KVRequestID(number: number)
    }

    /// Ends a request before its time. One that has ended is left alone, however often.
    public func cancel(_ request: KVRequestID) {
        queue.run { [self] in
            apply(
                .cancel(KVError(.cancelled, "cancelled by its decoder, \(configuration.name)")),
                to: request.number)
        }
    }

    /// Calls `body` with the regions of each rank as they are now: after a revocation they are new ones.
    public func regions(_ body: @escaping @Sendable ([[MemoryRegion]]) -> Void) {
        queue.run { [self] in body(ranks.map(\.regions)) }
    }

    /// Looks at the time: heartbeats, deadlines, quarantine. Several times a heartbeat.
    /// - Parameter nowNanoseconds: Of a clock that never goes back.
    public func tick(nowNanoseconds: UInt64) {
        queue.run { [self] in look(max(now, nowNanoseconds)) }
    }

    /// Calls `tick` until the task is cancelled or `stop` is called.
    public func run() async throws {
        let start = ContinuousClock.now
        while !isStopped.load(ordering: .relaxed) {
            tick(nowNanoseconds: (ContinuousClock.now - start).nanoseconds)
            try await Task.sleep(for: configuration.heartbeat / 8)
        }
    }

    /// Lets `run` return. Requests are not waited for.
    public func stop() { isStopped.store(true, ordering: .relaxed) }

    /// Calls `body` with what prefillers have told of themselves: tokens that wait, and whether they drain or are lost.
    public func status(of peer: KVPeer, _ body: @escaping @Sendable (KVWorker, KVError?) -> Void) {
        queue.run { [self] in
            guard let link = links[peer.number] else { return }
            var reason: KVError?
            if case .lost(let error) = link.state { reason = error }
            body(KVWorker(name: link.peer.name, load: link.load, isDraining: link.isDraining), reason)
        }
    }
}
