import TransferCore

/// A request between `post` and its completion.
final class Flight {
    /// What is being carried.
    enum Body {
        /// Bytes to be copied from the source's memory when they land.
        case write(Write)
        /// Bytes that were copied when the message was sent.
        case message(MessageBytes)
    }

    /// The fields of a one-sided write, copied at `post` because the request is valid only there.
    @safe struct Write {
        /// First byte of the source.
        var source: UnsafeRawPointer
        /// The source's registration.
        var localKey: UInt64
        /// The target's registration on its NIC.
        var remoteKey: UInt64
        /// The target's place in its engine's page.
        var index: UInt32
        /// The target's generation.
        var generation: UInt32
        /// The number that only holders of the descriptor know.
        var secret: UInt64
        /// First byte within the target.
        var offset: UInt64
        /// What to count.
        var immediate: UInt32
        /// How much to count.
        var eighths: UInt32
    }

    /// The NIC that sends.
    let source: SimulatedPort
    /// The id of the NIC that receives; looked up on arrival, since it may be gone by then.
    let target: UInt64
    /// The traffic that it is a part of.
    let lane: SimulatedPort.Lane
    /// The caller's.
    let context: UInt64
    /// Bytes in all.
    let length: Int
    /// What names the request when it fails; the connection and the number in it are given when it is launched.
    let tag: RequestTag
    var connection: UInt64 = 0
    var ordinal: UInt64 = 0
    /// Whether the sender has been told already, because its NIC gave up the connection.
    var isSevered = false
    /// Whether something went wrong after that.
    private var isBroken = false
    /// The bytes that were on the wire at that moment: the sender's memory is its own again.
    private(set) var captured: MessageBytes?
    /// What is being carried.
    let body: Body
    /// Whether its first packet has been sent.
    var hasBegun = false
    /// Packets that have neither landed nor been given up.
    var openSegments = 0
    /// The first thing that went wrong.
    private(set) var status = WorkStatus.success
    /// More about it, one of `SimulatedDetail`.
    private(set) var detail = SimulatedDetail.none
    /// How much later than usual the sender learns the end: a NIC that gets no answer tries for a while.
    private(set) var penaltyNanoseconds: UInt64 = 0

    /// A write.
    init(_ request: WorkRequest, from source: SimulatedPort) {
        let key = unsafe request.target.pointee
        self.source = source
        target = UInt64(key.peer)
        lane = source.lane(to: target)
        context = request.context
        length = request.length
        tag = request.tag
        body = .write(
            unsafe Write(
                source: request.source, localKey: request.localKey, remoteKey: key.key, index: key.index,
                generation: key.generation, secret: key.secret, offset: request.targetOffset,
                immediate: request.immediate, eighths: request.eighths))
    }

    /// A message; copies `payload`.
    init(
        message payload: UnsafeRawBufferPointer, to target: UInt64, context: UInt64,
        from source: SimulatedPort
    ) {
        self.source = source
        self.target = target
        lane = source.lane(to: target)
        self.context = context
        length = payload.count
        tag = RequestTag(rawValue: 0)
        body = .message(unsafe MessageBytes(copying: payload))
    }

    /// Notes what went wrong, unless something did before. Traps on `success`, which would lose data in
    /// silence.
    func fail(_ status: WorkStatus, detail: Int32 = SimulatedDetail.none, penaltyNanoseconds: UInt64 = 0) {
        precondition(status != .success, "a failure needs a status that is not success")
        if isSevered { isBroken = true }
        self.penaltyNanoseconds = max(self.penaltyNanoseconds, penaltyNanoseconds)
        guard self.status == .success else { return }
        self.status = status
        self.detail = detail
    }

    /// Whether its packets still land: nothing has gone wrong with them, whatever the sender has been told.
    var isOnItsWay: Bool { isSevered ? !isBroken : status == .success }

    /// Lets go of the sender's memory.
    func sever(isWhole: Bool) {
        isSevered = true
        isBroken = !isWhole
        if case .write(let write) = body, length > 0 {
            captured = unsafe MessageBytes(copying: source.moved(write, length: length))
        }
    }

    /// What the sender is told about a failed request.
    var delivery: Delivery {
        guard case .write = body, status == .peerLost || status == .providerFailed else { return .unknown }
        return .unsettled(connection: connection, ordinal: ordinal)
    }

    /// The first bytes of a message.
    var head: UInt64 {
        guard case .message(let message) = body, message.count >= 8 else { return 0 }
        return UInt64(littleEndian: unsafe message.bytes.loadUnaligned(as: UInt64.self))
    }

    /// What fault rules are told that its packets are.
    var packetKind: SimulatedPacket.Kind {
        if case .write = body { .data } else { .message }
    }

    /// The number that the flight counts under, and how much; 0 and 0 for a message.
    var count: (immediate: UInt32, eighths: UInt32) {
        if case .write(let write) = body { (write.immediate, write.eighths) } else { (0, 0) }
    }
}

/// A part of a flight that travels as one packet.
struct Segment {
    /// The request.
    let flight: Flight
    /// Its bytes, counted from the start of the request.
    let range: Range<Int>
}

/// A message's payload: at a fixed address, because `poll` lends it out.
@safe final class MessageBytes {
    // Allocated in `init`, freed in `deinit`.
    private let storage: UnsafeMutableRawBufferPointer

    /// Copies `payload`.
    init(copying payload: UnsafeRawBufferPointer) {
        unsafe storage = .allocate(byteCount: payload.count, alignment: 16)
        unsafe storage.copyMemory(from: payload)
    }

    deinit { unsafe storage.deallocate() }

    /// How many bytes there are.
    var count: Int { unsafe storage.count }

    /// The bytes, valid while this object lives.
    var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(storage) }
}
