internal import CVerbs
internal import Glibc
internal import TransferCore

// Connections come to be over unreliable datagrams. Both sides run the same rules, whoever begins; a datagram may be lost,
// late or doubled. A side echoes the peer's attempt once its own queue pairs can receive from that attempt, and uses
// them once it has seen the echo of its own (docs/adr/0003).
extension DomainState {
    // MARK: From the engine

    /// A peer without a usable connection is wanted: starts or awaits the handshake, or says why there is none.
    mutating func beginUse(of peer: Int) -> (Int?, WorkStatus, Int32) {
        if isGone { return (nil, .providerFailed, -ENODEV) }
        if peers[peer].connection < 0 {
            if peers[peer].failedUntil > 0, now < peers[peer].failedUntil {
                return (nil, .peerLost, -peers[peer].failure)
            }
            let error = call(peer)
            guard error == 0 else {
                if error == EAGAIN { return (nil, .targetBusy, 0) }
                refuse(peer, error, now)
                return (nil, .providerFailed, -error)
            }
        }
        let number = peers[peer].connection
        if !connections[number].isWanted {
            // The time before somebody waited, in which perhaps nobody polled, does not count.
            connections[number].isWanted = true
            connections[number].deadline = now &+ options.connectTimeout.nanoseconds
        }
        return (nil, .targetBusy, 0)
    }

    /// Makes a connection and says hello, if there is none. 0 or an error number; EAGAIN when all places are in use for now.
    mutating func call(_ peer: Int) -> Int32 {
        if peers[peer].connection >= 0 { return 0 }
        let now = now
        let (made, error) = makeConnection(to: peer, now)
        guard let made else { return error }
        sendHello(made, now)
        return 0
    }

    private mutating func refuse(_ peer: Int, _ error: Int32, _ now: UInt64) {
        peers[peer].failure = error
        peers[peer].failedUntil = now &+ Tuning.failureHold
        statistics.handshakesFailed += 1
    }

    // MARK: Queue pairs

    /// A connection whose queue pairs exist, in state `calling`.
    private mutating func makeConnection(to peer: Int, _ now: UInt64) -> (Int?, Int32) {
        // A peer that died without a word keeps its shares until somebody looks.
        if unsharedImmediates < handles.sizes.immediateReceives / 2 { probeSilentPeers() }
        guard let number = freeConnections.take() else { return (nil, EAGAIN) }
        let error = createQueues(number)
        guard error == 0 else {
            destroyQueues(number)
            freeConnections.give(number)
            return (nil, error)
        }
        // SAFETY: our own word, which no peer knows before it is told in a hello.
        unsafe memory.incomingCredit(number).storeBytes(of: 0, as: UInt64.self)
        connections[number].peer = peer
        connections[number].state = .calling
        connections[number].attempt = nextAttempt
        nextAttempt &+= 1
        connections[number].deadline = now &+ options.connectTimeout.nanoseconds
        connections[number].pause = Tuning.firstPause
        connections[number].grantedImmediates = UInt32(
            min(
                max(unsharedImmediates / 8, Int(Tuning.leastImmediateWindow)),
                Int(Tuning.immediateWindow)))
        connections[number].grantedMessages = UInt32(
            min(max(unsharedMessages / 8, 1), Int(Tuning.messageWindow)))
        unsharedImmediates -= Int(connections[number].grantedImmediates)
        unsharedMessages -= Int(connections[number].grantedMessages)
        numbers.insert(connections[number].writes.number, connection: number, .write)
        numbers.insert(connections[number].messages.number, connection: number, .message)
        peers[peer].connection = number
        watch(number)
        return (number, 0)
    }

    private mutating func createQueues(_ number: Int) -> Int32 {
        if connections[number].writes.contexts.count == 0 {
            let depth = handles.sizes.requestsPerPeer
            connections[number].writes.contexts = Table(repeating: 0, count: Int(depth))
            connections[number].writes.tags = Table(repeating: RequestTag(rawValue: 0), count: Int(depth))
            connections[number].writes.counts = Table(repeating: false, count: Int(depth))
            connections[number].writes.mask = depth - 1
            connections[number].messages.contexts = Table(repeating: 0, count: Int(Tuning.messageDepth))
            connections[number].messages.mask = Tuning.messageDepth - 1
            connections[number].buffers = Table(repeating: -1, count: Int(Tuning.messageDepth))
        }
        let srqs = unsafe (handles.immediateReceives, handles.messageReceives)
        let connection = unsafe connections.address(of: number)
        var error = unsafe createQueue(
            &connection.pointee.writes, srqs.0, handles.sizes.requestsPerPeer)
        if error == 0 {
            error = unsafe createQueue(&connection.pointee.messages, srqs.1, Tuning.messageDepth)
        }
        return error == 0 ? initialize(number) : error
    }

    private mutating func createQueue(
        _ queue: inout SendQueue, _ srq: UnsafeMutablePointer<ibv_srq>?, _ depth: UInt32
    ) -> Int32 {
        guard let pd = unsafe handles.pd else { return EINVAL }
        var qp = unsafe QueuePairs.create(
            handles.api, pd, handles.cq, srq: srq, depth: depth, inlineBytes: inlineBytes,
            takesCalls: handles.usesCalls)
        if unsafe qp == nil, inlineBytes > 0, errno == EINVAL {
            // Not every device copies so many bytes into a request.
            inlineBytes = 0
            unsafe qp = QueuePairs.create(
                handles.api, pd, handles.cq, srq: srq, depth: depth, inlineBytes: 0,
                takesCalls: handles.usesCalls)
        }
        guard let qp = unsafe qp else { return errno == 0 ? EIO : errno }
        unsafe queue.qp = qp
        if handles.usesCalls { unsafe queue.calls = handles.api.pointee.qp_to_qp_ex(qp) }
        unsafe queue.number = qp.pointee.qp_num
        queue.psn = UInt32.random(in: 0..<1 << 24)
        queue.reset()
        return 0
    }

    /// Moves a queue pair to a state that needs no more attributes. 0 or an error number.
    func setState(_ state: ibv_qp_state, of queue: borrowing SendQueue) -> Int32 {
        guard let qp = unsafe queue.qp else { return EINVAL }
        var attributes = ibv_qp_attr()
        attributes.qp_state = state
        return unsafe handles.modify(qp, &attributes, [IBV_QP_STATE])
    }

    /// Brings both queue pairs to INIT, from any state.
    private func initialize(_ number: Int) -> Int32 {
        let error = initialize(connections[number].writes)
        return error == 0 ? initialize(connections[number].messages) : error
    }

    private func initialize(_ queue: borrowing SendQueue) -> Int32 {
        let error = setState(IBV_QPS_RESET, of: queue)
        guard error == 0, let qp = unsafe queue.qp else { return error }
        var attributes = ibv_qp_attr()
        attributes.qp_state = IBV_QPS_INIT
        attributes.port_num = handles.port.port
        // Both queue pairs are written through: data, and credits.
        attributes.qp_access_flags = IBV_ACCESS_LOCAL_WRITE.rawValue | IBV_ACCESS_REMOTE_WRITE.rawValue
        return unsafe handles.modify(
            qp, &attributes, [IBV_QP_STATE, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_ACCESS_FLAGS])
    }

    /// Brings both queue pairs from INIT to where they can receive from `hello`'s and send to them.
    private mutating func bind(_ number: Int, to hello: Hello) -> Int32 {
        let peer = peers[connections[number].peer].address
        var error = bind(connections[number].writes, to: peer, hello.writeQP, hello.writePSN)
        if error == 0 {
            error = bind(connections[number].messages, to: peer, hello.messageQP, hello.messagePSN)
        }
        guard error == 0 else { return error }
        connections[number].state = .bound
        connections[number].remoteAttempt = hello.attempt
        connections[number].remoteIdentity = Connection.identity(hello.writeQP, hello.writePSN)
        connections[number].immediateWindow = hello.immediateWindow
        connections[number].messageWindow = hello.messageWindow
        connections[number].remoteCreditAddress = hello.creditAddress
        connections[number].remoteCreditKey = hello.creditKey
        return 0
    }

    private func bind(
        _ queue: borrowing SendQueue, to peer: NICAddress, _ remoteNumber: UInt32, _ remotePSN: UInt32
    ) -> Int32 {
        guard let qp = unsafe queue.qp else { return EINVAL }
        var attributes = ibv_qp_attr()
        attributes.qp_state = IBV_QPS_RTR
        attributes.path_mtu = ibv_mtu(rawValue: UInt32(min(address.mtu, peer.mtu)))
        attributes.dest_qp_num = remoteNumber
        attributes.rq_psn = remotePSN
        attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = min(options.receiverNotReadyTimer, 31)
        attributes.ah_attr = path(to: peer)
        let error = unsafe handles.modify(
            qp, &attributes,
            [
                IBV_QP_STATE, IBV_QP_AV, IBV_QP_PATH_MTU, IBV_QP_DEST_QPN, IBV_QP_RQ_PSN,
                IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER,
            ])
        guard error == 0 else { return error }
        attributes.qp_state = IBV_QPS_RTS
        attributes.sq_psn = queue.psn
        attributes.timeout = min(options.timeout, 31)
        attributes.retry_cnt = min(options.retryCount, 7)
        attributes.rnr_retry = min(options.receiverNotReadyRetryCount, 7)
        attributes.max_rd_atomic = 1
        return unsafe handles.modify(
            qp, &attributes,
            [
                IBV_QP_STATE, IBV_QP_SQ_PSN, IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT, IBV_QP_RNR_RETRY,
                IBV_QP_MAX_QP_RD_ATOMIC,
            ])
    }

    /// How packets find an address.
    func path(to other: NICAddress) -> ibv_ah_attr {
        var path = ibv_ah_attr()
        path.port_num = handles.port.port
        path.sl = min(options.serviceLevel, 15)
        guard other.isEthernet else {
            path.dlid = other.lid
            return path
        }
        path.is_global = 1
        path.grh.sgid_index = UInt8(truncatingIfNeeded: handles.port.choice.gid?.index ?? 0)
        path.grh.hop_limit = options.hopLimit
        path.grh.traffic_class = options.trafficClass
        unsafe path.grh.dgid.global.subnet_prefix = other.gid.0.littleEndian
        unsafe path.grh.dgid.global.interface_id = other.gid.1.littleEndian
        return path
    }

    // MARK: Hellos that arrive

    /// Takes a datagram. Whoever is on the network may have sent it: it is checked and never trusted to be in order.
    mutating func receive(_ bytes: UnsafeRawBufferPointer) {
        guard let hello = unsafe Hello(bytes.bytes), hello.source.isEthernet == address.isEthernet else {
            statistics.datagramsIgnored += 1
            return
        }
        guard hello.targetEngine == engine, hello.targetEpoch == address.epoch else {
            // Somebody looks for an engine that was here before us.
            if hello.kind == .hello { sendRefusal(hello) } else { statistics.datagramsIgnored += 1 }
            return
        }
        switch hello.kind {
        case .hello: answer(hello)
        case .goodbye, .refusal: farewell(hello)
        }
    }

    /// The peer's side is gone, or never was.
    private mutating func farewell(_ hello: Hello) {
        let peer = (0..<peerCount).first {
            peers[$0].isUsed && peers[$0].engine == hello.sourceEngine && peers[$0].address == hello.source
        }
        guard let peer, peers[peer].connection >= 0 else { return }
        let number = peers[peer].connection
        let state = connections[number].state
        if hello.kind == .refusal {
            guard state == .calling, connections[number].attempt == hello.echo else { return }
            refuse(peer, ECONNREFUSED, now)
            abandon(number)
        } else if state != .calling, connections[number].remoteAttempt == hello.attempt {
            breakConnection(number, .peerLost, -ECONNRESET, isTold: true)
        }
    }

    private mutating func answer(_ hello: Hello) {
        guard let peer = findPeer(hello.sourceEngine, hello.source), hello.attempt >= peers[peer].heard else {
            statistics.datagramsIgnored += 1
            return
        }
        let isNew = hello.attempt > peers[peer].heard
        peers[peer].heard = hello.attempt
        let now = now
        if isNew { endPredecessors(of: peer) }
        if isNew, peers[peer].connection >= 0, connections[peers[peer].connection].state == .ready {
            // It has started over, so ours leads nowhere.
            breakConnection(peers[peer].connection, .peerLost, -ECONNRESET, isTold: true)
        }
        var fresh = false
        if peers[peer].connection < 0 {
            peers[peer].failedUntil = 0
            let (made, error) = makeConnection(to: peer, now)
            guard made != nil else {
                refuse(peer, error, now)
                return
            }
            fresh = true
        }
        let number = peers[peer].connection
        let isBoundToUs = hello.echo == connections[number].attempt
        switch connections[number].state {
        case .calling:
            // One that is bound to an older attempt of ours has to start over, and will when it hears of this one.
            if hello.echo == 0 || isBoundToUs { bindOrAbandon(number, hello, now) }
        case .bound where hello.attempt > connections[number].remoteAttempt:
            // Nothing has been sent: the same queue pairs can be bound again.
            if hello.echo == 0 || isBoundToUs {
                if initialize(number) == 0 {
                    bindOrAbandon(number, hello, now)
                } else {
                    refuse(peer, EIO, now)
                    abandon(number)
                }
            }
        default: break
        }
        guard peers[peer].connection == number else { return }
        if connections[number].state == .bound, isBoundToUs { becomeReady(number) }
        if fresh || hello.wantsAnswer { sendHello(number, now) }
    }

    private mutating func bindOrAbandon(_ number: Int, _ hello: Hello, _ now: UInt64) {
        let error = bind(number, to: hello)
        guard error != 0 else { return }
        refuse(connections[number].peer, error, now)
        abandon(number)
    }

    mutating func becomeReady(_ number: Int) {
        connections[number].state = .ready
        peers[connections[number].peer].failedUntil = 0
        statistics.connected += 1
    }

    /// Other engines that were reached at the same place have ended, since somebody else is there now.
    private mutating func endPredecessors(of peer: Int) {
        for other in 0..<peerCount
        where other != peer && peers[other].isUsed && peers[other].connection >= 0
            && peers[other].address.epoch != peers[peer].address.epoch
            && peers[other].address.isSamePlace(as: peers[peer].address)
        {
            let number = peers[other].connection
            if connections[number].state == .calling { continue }
            breakConnection(number, .peerLost, -ECONNRESET, isTold: true)
        }
    }

    // MARK: Timers

    /// Repeats hellos, ends handshakes that took too long, and destroys what has drained. `isQuiet` says that the
    /// completion queue was found empty.
    mutating func serviceTimers(isQuiet: Bool) {
        let now = now
        var position = 0
        while position < watchedCount {
            let number = Int(watched[position])
            switch connections[number].state {
            case .calling, .bound:
                // The deadline counts only if we have done our part: perhaps nobody polled for all that time.
                if now >= connections[number].deadline, connections[number].hellos >= Tuning.leastHellos {
                    if connections[number].isWanted { refuse(connections[number].peer, ETIMEDOUT, now) }
                    abandon(number)
                } else if now >= connections[number].nextHello {
                    sendHello(number, now)
                }
            case .draining: serviceDraining(number, now, isQuiet: isQuiet)
            case .free, .ready: break
            }
            switch connections[number].state {
            case .calling, .bound, .draining: position += 1
            case .free, .ready:
                connections[number].isWatched = false
                watchedCount -= 1
                watched[position] = watched[watchedCount]
            }
        }
    }

    /// When `serviceTimers` has something to do next; nil when nothing is waited for.
    func nextTimer() -> UInt64? {
        var next: UInt64?
        for position in 0..<watchedCount {
            let number = Int(watched[position])
            let due =
                connections[number].state == .draining
                ? now &+ Self.quietNanoseconds
                : min(connections[number].nextHello, connections[number].deadline)
            next = min(next ?? .max, due)
        }
        return next
    }
}

extension Duration {
    /// Nanoseconds, saturating; negative durations are 0.
    var nanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 0 }
        let (product, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
        // Half of the clock's range is as good as for ever, and can still be added to.
        return overflow ? .max / 2 : min(.max / 2, product &+ UInt64(attoseconds / 1_000_000_000))
    }
}
