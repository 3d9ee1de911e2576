internal import CVerbs
internal import Glibc
internal import TransferCore

// The ends of connections. Whatever ends one, each request in flight ends exactly once, and not before the NIC is
// through with it: the queue pairs go to the error state, their requests come back, then the queue pairs are destroyed.
extension DomainState {
    /// How long a queue pair in the error state must have been silent before it is destroyed, since what has arrived may
    /// still be on its way to the completion queue.
    static let quietNanoseconds: UInt64 = 10_000_000

    /// Takes a connection out of use. Its requests will end with `status`, unless the NIC knows better; the next
    /// request to the peer makes a new one. `isTold` says that the peer knows.
    mutating func breakConnection(
        _ number: Int, _ status: WorkStatus, _ detail: Int32, isTold: Bool = false
    ) {
        switch connections[number].state {
        case .calling, .bound, .ready: break
        case .free, .draining: return
        }
        if !isTold { sendAbout(number, .goodbye) }
        if connections[number].state == .ready { statistics.broken += 1 }
        connections[number].state = .draining
        connections[number].deadline = now &+ options.drainTimeout.nanoseconds
        connections[number].drainedSince = 0
        let peer = connections[number].peer
        if peers[peer].connection == number { peers[peer].connection = -1 }
        // A device that is gone refuses this; the deadline ends the requests then.
        _ = setState(IBV_QPS_ERR, of: connections[number].writes)
        _ = setState(IBV_QPS_ERR, of: connections[number].messages)
        connections[number].cause = status
        connections[number].causeDetail = detail
        watch(number)
        if isGone { finish(number) }
    }

    /// Breaks the connection to a peer, if there is one.
    mutating func sever(_ peer: Int) {
        guard peer >= 0, peer < peerCount, peers[peer].connection >= 0 else { return }
        breakConnection(peers[peer].connection, .peerLost, -ECONNABORTED)
    }

    /// Closes the connection that a peer's request failed on, and says what of it has been counted; nil until the NIC is through
    /// with it.
    mutating func settle(_ identity: UInt64, of engine: UInt64) -> DeliveryLedger? {
        for number in 0..<connections.count
        where connections[number].state != .free && connections[number].remoteIdentity == identity
            && peers[connections[number].peer].engine == engine
        {
            if unsafe connections[number].writes.qp != nil {
                breakConnection(number, .peerLost, -ECONNRESET)
                return nil
            }
        }
        return closed.counted(identity, of: engine).map { DeliveryLedger(base: $0) }
    }

    /// Ends a connection that was never used.
    mutating func abandon(_ number: Int) {
        breakConnection(number, .peerLost, -peers[connections[number].peer].failure, isTold: true)
        finish(number)
    }

    /// Destroys a connection once its requests are back, or once they had their time.
    mutating func serviceDraining(_ number: Int, _ now: UInt64, isQuiet: Bool) {
        let isDrained = connections[number].writes.isDrained && connections[number].messages.isDrained
        if isDrained, isQuiet, connections[number].drainedSince == 0 {
            connections[number].drainedSince = now
        }
        let since = connections[number].drainedSince
        let isSilent = isDrained && isQuiet && since > 0 && now &- since >= Self.quietNanoseconds
        if isSilent || now >= connections[number].deadline { finish(number) }
    }

    /// Destroys the queue pairs of a connection, after which nothing of it can happen, ends what has not ended, and
    /// gives the place back as soon as all has been handed out.
    private mutating func finish(_ number: Int) {
        guard connections[number].state == .draining else { return }
        if unsafe connections[number].writes.qp != nil {
            destroyQueues(number)
            closed.note(
                ClosedConnections.Entry(
                    engine: peers[connections[number].peer].engine,
                    identity: connections[number].remoteIdentity, counted: connections[number].received))
            unsharedImmediates += Int(connections[number].grantedImmediates)
            unsharedMessages += Int(connections[number].grantedMessages)
            let (cause, detail) = (connections[number].cause, connections[number].causeDetail)
            let ended = (connections[number].writes.ended, connections[number].messages.ended)
            connections[number].writes.failRest(from: ended.0, cause, detail)
            connections[number].messages.failRest(from: ended.1, cause, detail)
            let left = connections[number].writes.posted &- ended.0
            requestsInFlight -= Int(left)
            connections[number].writes.ended = connections[number].writes.posted
            endMessages(number, upTo: connections[number].messages.posted)
        }
        release(number)
    }

    /// Gives a finished connection's place back when everything has been handed out; `serviceTimers` comes again
    /// otherwise.
    private mutating func release(_ number: Int) {
        let isReported =
            connections[number].writes.reported == connections[number].writes.posted
            && connections[number].messages.reported == connections[number].messages.posted
        guard isReported, !connections[number].isListed, !connections[number].owesCredit else { return }
        let isWatched = connections[number].isWatched
        connections[number].reset()
        connections[number].isWatched = isWatched
        freeConnections.give(number)
    }

    /// Destroys the queue pairs of a connection, as far as there are any.
    mutating func destroyQueues(_ number: Int) {
        if let qp = unsafe connections[number].writes.qp {
            numbers.remove(connections[number].writes.number, connection: number, .write)
            _ = unsafe handles.api.pointee.destroy_qp(qp)
            unsafe connections[number].writes.qp = nil
            unsafe connections[number].writes.calls = nil
        }
        if let qp = unsafe connections[number].messages.qp {
            numbers.remove(connections[number].messages.number, connection: number, .message)
            _ = unsafe handles.api.pointee.destroy_qp(qp)
            unsafe connections[number].messages.qp = nil
            unsafe connections[number].messages.calls = nil
        }
    }

    // MARK: Asynchronous events

    /// Reads what the device has to say, without waiting for it.
    mutating func takeEvents() {
        var event = unsafe ibv_async_event()
        while !isGone, unsafe handles.api.pointee.get_async_event(handles.context, &event) == 0 {
            let kind = unsafe event.event_type
            var broken: Int?
            switch kind {
            case IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR:
                broken = unsafe event.element.qp.flatMap { numbers.find(unsafe $0.pointee.qp_num) }
                statistics.fatalEvents += 1
            case IBV_EVENT_PORT_ERR, IBV_EVENT_PORT_ACTIVE:
                statistics.portEvents += 1
                statistics.isPortUp = kind == IBV_EVENT_PORT_ACTIVE
            case IBV_EVENT_SRQ_LIMIT_REACHED:
                statistics.lowReceives += 1
                refillImmediates(all: true)
                refillMessages()
                armLimit()
            default: break
            }
            // An object cannot be destroyed before its events have been acknowledged.
            unsafe handles.api.pointee.ack_async_event(&event)
            if let broken { breakConnection(broken, .peerLost, VerbsError.detail(event: kind)) }
            if kind == IBV_EVENT_DEVICE_FATAL || kind == IBV_EVENT_CQ_ERR { loseDevice() }
        }
    }

    /// The device reports nothing any more: everything in flight ends here.
    private mutating func loseDevice() {
        statistics.fatalEvents += 1
        isGone = true
        for number in 0..<connections.count {
            switch connections[number].state {
            case .free: continue
            case .draining: finish(number)
            case .calling, .bound, .ready: breakConnection(number, .providerFailed, -ENODEV, isTold: true)
            }
        }
    }

    // MARK: Close

    /// Tells the peers, waits a moment for that to leave, and closes everything.
    mutating func close() {
        unsafe output = nil
        outputCapacity = 0
        for number in 0..<connections.count {
            switch connections[number].state {
            case .bound, .ready:
                waitForDatagrams(toLeave: 1)
                sendAbout(number, .goodbye)
            case .free, .calling, .draining: break
            }
        }
        waitForDatagrams(toLeave: Tuning.datagramSends)
        for number in 0..<connections.count { destroyQueues(number) }
        for buffer in 0..<Tuning.datagramSends {
            if let handle = unsafe datagramHandles[buffer] {
                _ = unsafe handles.api.pointee.destroy_ah(handle)
            }
        }
        for index in 0..<peerCount {
            if let handle = unsafe peers[index].handle { _ = unsafe handles.api.pointee.destroy_ah(handle) }
        }
        drainChannel()
        handles.close()
        memory.unmap()
    }

    /// Waits a moment until so many buffers for datagrams are free. What else has come is dropped: the domain closes.
    private mutating func waitForDatagrams(toLeave free: Int) {
        let end = now &+ Tuning.farewell
        while freeDatagrams.count < free, !isGone, now < end {
            let count = unsafe Int(ibv_poll_cq(handles.cq, Int32(entries.count), entries.address(of: 0)))
            for index in 0..<max(0, count) {
                let id = WorkID(rawValue: entries[index].wr_id)
                if id.kind == .datagramSend { finishDatagram(id.buffer) }
            }
        }
    }
}
