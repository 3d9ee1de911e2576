import TransferCore

/// The state of one NIC, shared by the network that moves its packets and the domain that the engine holds.
///
/// A port knows neither of the two, so that nothing keeps anything alive in a circle: domain and network hold
/// the port, and the domain holds the network.
final class SimulatedPort {
    /// What `poll` will hand over.
    enum Ready {
        /// The end of one request.
        case completion(Completion)
        /// A message and the engine that sent it.
        case message(MessageBytes, sender: EngineID)

        /// Whether this is one more success of the context that `previous` reports.
        func extends(_ previous: Completion) -> Bool {
            guard case .completion(let next) = self, next.status == .success else { return false }
            return previous.count > 0 && previous.status == .success && previous.context == next.context
        }
    }

    /// The traffic to one target.
    final class Lane {
        /// Packets that wait for their turn; those before `first` have been sent.
        var queue: [Segment] = []
        var first = 0
        /// When the last byte of the latest packet arrives.
        var tail: UInt64 = 0
        /// When the latest acknowledgement is back.
        var acknowledged: UInt64 = 0
        /// The connection that is used now, 0 before the first request, and how many it has carried.
        var connection: UInt64 = 0
        var launched: UInt64 = 0
        /// Requests that have not been reported.
        var open: [UInt64: Flight] = [:]

        /// Forgets all requests, which know the lane.
        func clear() {
            queue = []
            first = 0
            open = [:]
        }
    }

    /// What has come over one connection.
    struct Incoming {
        /// The first request that has not been counted, and those above it that have.
        var base: UInt64 = 0
        var counted: Set<UInt64> = []
        /// Whether nothing lands any more.
        var isClosed = false

        mutating func note(_ ordinal: UInt64) {
            if ordinal == base { base += 1 } else { counted.insert(ordinal) }
            while !counted.isEmpty, counted.remove(base) != nil { base += 1 }
        }
    }

    /// Messages that a port holds for `poll`.
    static let inboxLimit = Limits.messageBacklog

    /// Unique in the network, never used again.
    let id: UInt64
    /// What the NIC is like.
    let nic: SimulatedNIC
    /// Where its writes are admitted and counted.
    let page: TargetPage
    /// The owner.
    let engine: EngineID
    /// What is moved of a write; nil is all of it.
    let sample: SimulatedSample?
    /// False after `close`: nothing touches the owner's memory any more.
    var isOpen = true
    /// Whether a `transmit` event is on its way.
    var isTransmitting = false
    /// Targets with packets in their queues, in the order of their turns.
    private var turns: [Lane] = []
    /// When the receive side has taken in all that has arrived.
    var receiveFree: UInt64 = 0
    /// Requests and messages posted whose completions have not been polled.
    var outstanding = 0
    /// Registrations by local key.
    var localKeys: [UInt64: LocalRegion] = [:]
    /// Registrations by remote key.
    var remoteKeys: [UInt64: LocalRegion] = [:]
    /// Traffic by target.
    private var lanes: [UInt64: Lane] = [:]
    /// What has come, by connection.
    var incoming: [UInt64: Incoming] = [:]
    /// Messages that found the inbox full, the oldest first. Their senders wait.
    var parked: [Flight] = []
    /// Whether an `unpark` event is on its way.
    var isUnparking = false

    private var ready: [Ready] = []
    private var messagesReady = 0
    private var lent: [MessageBytes] = []

    /// Describes a port.
    init(id: UInt64, nic: SimulatedNIC, page: TargetPage, engine: EngineID, sample: SimulatedSample?) {
        self.id = id
        self.nic = nic
        self.page = page
        self.engine = engine
        self.sample = sample
    }

    /// Whether one more message fits.
    var hasRoom: Bool { messagesReady < Self.inboxLimit }

    /// The traffic to a target, which may be the first.
    func lane(to target: UInt64) -> Lane {
        if let lane = lanes[target] { return lane }
        let lane = Lane()
        lanes[target] = lane
        return lane
    }

    /// Queues a packet for its target.
    func enqueue(_ segment: Segment) {
        let lane = segment.flight.lane
        if lane.queue.isEmpty { turns.append(lane) }
        lane.queue.append(segment)
    }

    /// Takes the next packet, from each target's queue in turn, as NICs serve their queue pairs.
    func dequeue() -> Segment? {
        guard !turns.isEmpty else { return nil }
        let lane = turns.removeFirst()
        let segment = lane.queue[lane.first]
        lane.first += 1
        if lane.first == lane.queue.count {
            lane.queue.removeAll(keepingCapacity: true)
            lane.first = 0
        } else {
            turns.append(lane)
            if lane.first == 1024 {
                lane.queue.removeFirst(1024)
                lane.first = 0
            }
        }
        return segment
    }

    /// Puts something out for `poll`.
    func publish(_ item: Ready) {
        if case .message = item { messagesReady += 1 }
        ready.append(item)
    }

    /// Hands over what was published, the oldest first. Neighbouring successes of one context become one
    /// completion.
    func take(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        lent.removeAll(keepingCapacity: true)
        var filled = 0
        var taken = 0
        for item in ready {
            if filled > 0, unsafe item.extends(completions[filled - 1]) {
                unsafe completions[filled - 1].count += 1
            } else if filled < completions.count {
                unsafe completions[filled] = lend(item)
                filled += 1
            } else {
                break
            }
            taken += 1
            if case .completion = item { outstanding -= 1 }
        }
        ready.removeFirst(taken)
        return filled
    }

    private func lend(_ item: Ready) -> Completion {
        switch item {
        case .completion(let completion):
            return completion
        case .message(let message, let sender):
            lent.append(message)
            messagesReady -= 1
            return unsafe Completion(message: message.bytes, from: sender.rawValue)
        }
    }

    /// Whether the local key names a live registration that contains these bytes.
    func owns(_ source: UnsafeRawPointer, length: Int, localKey: UInt64) -> Bool {
        guard let region = localKeys[localKey] else { return false }
        let offset = UInt(bitPattern: source) &- UInt(bitPattern: unsafe region.base)
        return offset <= UInt(region.length) && length <= region.length - Int(offset)
    }

    /// The bytes of a write that are moved. Its source has been found to be registered when it was posted.
    func moved(_ write: Flight.Write, length: Int) -> UnsafeRawBufferPointer {
        guard let sample, let region = localKeys[write.localKey] else {
            return unsafe UnsafeRawBufferPointer(start: write.source, count: length)
        }
        return unsafe UnsafeRawBufferPointer(
            start: region.base + sample.place(of: write.source - UnsafeRawPointer(region.base)),
            count: min(length, sample.byteCount))
    }

    /// Gives a request its place in the connection to its target.
    func admit(_ flight: Flight, newConnection: () -> UInt64) {
        guard case .write = flight.body else { return }
        let lane = flight.lane
        if lane.connection == 0 { lane.connection = newConnection() }
        flight.connection = lane.connection
        flight.ordinal = lane.launched
        lane.open[lane.launched] = flight
        lane.launched += 1
    }

    /// Notes that a request has been counted, or that nobody will ask about it.
    func note(_ flight: Flight) {
        guard flight.connection != 0 else { return }
        incoming[flight.connection, default: .init()].note(flight.ordinal)
    }

    /// Puts the end of a request out for `poll`, once.
    func report(_ flight: Flight) {
        guard !flight.isSevered else { return }
        if flight.lane.connection == flight.connection { flight.lane.open[flight.ordinal] = nil }
        var completion = Completion(
            context: flight.context, count: 1, status: flight.status, detail: flight.detail)
        if flight.status != .success {
            completion.tag = flight.tag
            completion.delivery = flight.delivery
            completion.peer = Int(flight.target)
        }
        publish(.completion(completion))
    }

    /// Gives up what is under way to a target. What is on the wire may still land; what is not will not be sent.
    func sever(_ target: UInt64) {
        guard let lane = lanes[target] else { return }
        let open = lane.open.sorted { $0.key < $1.key }.map(\.value)
        lane.open = [:]
        // Messages have a connection of their own.
        lane.queue = lane.queue[lane.first...].filter { $0.flight.connection == 0 }
        lane.first = 0
        lane.connection = 0
        lane.launched = 0
        if lane.queue.isEmpty { turns.removeAll { $0 === lane } }
        for flight in open {
            let isWhole = flight.status == .success
            flight.fail(.peerLost)
            report(flight)
            flight.sever(isWhole: isWhole)
        }
    }

    /// Forgets everything.
    func shut() {
        isOpen = false
        localKeys = [:]
        remoteKeys = [:]
        for lane in lanes.values { lane.clear() }
        lanes = [:]
        incoming = [:]
        turns = []
        parked = []
        ready = []
        lent = []
        messagesReady = 0
    }
}
