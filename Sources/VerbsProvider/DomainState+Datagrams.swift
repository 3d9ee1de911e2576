internal import CVerbs
internal import TransferCore

// Datagrams of the handshake: what is sent may be lost, so nobody waits for it.
extension DomainState {
    /// Sends what the peer has to know of a connection, and plans the next time.
    mutating func sendHello(_ number: Int, _ now: UInt64) {
        let pause = connections[number].pause
        // Two sides that began together must not repeat together for ever.
        connections[number].nextHello = now &+ pause &+ UInt64.random(in: 0...pause / 4)
        connections[number].pause = min(pause * 2, Tuning.longestPause)
        connections[number].hellos += 1
        sendAbout(number, .hello)
    }

    /// Tells the peer something about a connection. One of many may be lost for want of buffers.
    mutating func sendAbout(_ number: Int, _ kind: Hello.Kind) {
        let peer = connections[number].peer
        var hello = Hello()
        hello.kind = kind
        hello.wantsAnswer = connections[number].state != .ready
        hello.targetEngine = peers[peer].engine
        hello.targetEpoch = peers[peer].address.epoch
        hello.attempt = connections[number].attempt
        hello.echo = connections[number].state == .calling ? 0 : connections[number].remoteAttempt
        hello.writeQP = connections[number].writes.number
        hello.writePSN = connections[number].writes.psn
        hello.messageQP = connections[number].messages.number
        hello.messagePSN = connections[number].messages.psn
        hello.creditAddress = unsafe UInt64(UInt(bitPattern: memory.incomingCredit(number)))
        hello.creditKey = unsafe handles.credits?.pointee.rkey ?? 0
        hello.immediateWindow = connections[number].grantedImmediates
        hello.messageWindow = connections[number].grantedMessages
        hello.source = address
        if unsafe peers[peer].handle == nil {
            var path = path(to: peers[peer].address)
            unsafe peers[peer].handle = handles.api.pointee.create_ah(handles.pd, &path)
        }
        guard let handle = unsafe peers[peer].handle else { return }
        if unsafe sendDatagram(hello, handle, peers[peer].address, peer: peer) { peers[peer].datagrams += 1 }
    }

    /// Tells somebody that nobody of that name is here.
    mutating func sendRefusal(_ other: Hello) {
        // Whoever floods us with hellos gets no more than half of the buffers.
        guard freeDatagrams.count > Tuning.datagramSends / 2 else { return }
        var path = path(to: other.source)
        guard let handle = unsafe handles.api.pointee.create_ah(handles.pd, &path) else { return }
        var hello = Hello()
        hello.kind = .refusal
        hello.sourceEngine = other.targetEngine
        hello.targetEngine = other.sourceEngine
        hello.targetEpoch = other.source.epoch
        hello.echo = other.attempt
        hello.source = address
        hello.source.epoch = other.targetEpoch
        if unsafe !sendDatagram(hello, handle, other.source, peer: -1) {
            _ = unsafe handles.api.pointee.destroy_ah(handle)
        }
    }

    private mutating func sendDatagram(
        _ hello: Hello, _ handle: UnsafeMutablePointer<ibv_ah>, _ to: NICAddress, peer: Int
    ) -> Bool {
        guard let buffer = freeDatagrams.take() else { return false }
        let place = unsafe memory.datagramSend(buffer)
        var hello = hello
        if hello.kind != .refusal { hello.sourceEngine = engine }
        // SAFETY: a buffer of the domain, at least as long as a hello; the NIC does not have it.
        var bytes = unsafe MutableRawSpan(_unsafeStart: place, byteCount: Hello.byteCount)
        hello.write(to: &bytes)
        unsafe single[0].opcode = IBV_WR_SEND
        unsafe single[0].wr_id = WorkID(.datagramSend, buffer: buffer).rawValue
        unsafe single[0].send_flags = IBV_SEND_SIGNALED.rawValue
        unsafe single[0].num_sge = 1
        unsafe singlePart[0] = ibv_sge(
            addr: UInt64(UInt(bitPattern: place)), length: UInt32(Hello.byteCount),
            lkey: handles.buffers?.pointee.lkey ?? 0)
        unsafe single[0].wr.ud.ah = handle
        unsafe single[0].wr.ud.remote_qpn = to.datagramQP
        unsafe single[0].wr.ud.remote_qkey = to.datagramKey
        let error = unsafe ibv_post_send(handles.datagrams, single.address(of: 0), rejected.address(of: 0))
        guard error == 0 else {
            freeDatagrams.give(buffer)
            return false
        }
        datagramPeers[buffer] = peer
        unsafe datagramHandles[buffer] = peer < 0 ? handle : nil
        statistics.datagramsSent += 1
        return true
    }

    /// A datagram has left.
    mutating func finishDatagram(_ buffer: Int) {
        guard buffer < Tuning.datagramSends else {
            statistics.strayCompletions += 1
            return
        }
        if let handle = unsafe datagramHandles[buffer] {
            _ = unsafe handles.api.pointee.destroy_ah(handle)
            unsafe datagramHandles[buffer] = nil
        } else if datagramPeers[buffer] >= 0 {
            peers[datagramPeers[buffer]].datagrams -= 1
        }
        freeDatagrams.give(buffer)
    }

    /// A datagram has come, or its receive failed.
    mutating func takeDatagram(_ buffer: Int, length: Int, isGood: Bool) {
        guard buffer < Tuning.datagramReceives else {
            statistics.strayCompletions += 1
            return
        }
        let header = BufferMemory.headerBytes
        if isGood, length == header + Hello.byteCount {
            let place = unsafe memory.datagramReceive(buffer) + header
            unsafe receive(UnsafeRawBufferPointer(start: place, count: Hello.byteCount))
        } else {
            statistics.datagramsIgnored += 1
        }
        postDatagramReceive(buffer)
    }

    mutating func postDatagramReceive(_ buffer: Int) {
        unsafe receive[0].wr_id = WorkID(.datagramReceive, buffer: buffer).rawValue
        unsafe receivePart[0] = ibv_sge(
            addr: UInt64(UInt(bitPattern: memory.datagramReceive(buffer))),
            length: UInt32(BufferMemory.headerBytes + Hello.byteCount),
            lkey: handles.buffers?.pointee.lkey ?? 0)
        _ = unsafe ibv_post_recv(handles.datagrams, receive.address(of: 0), rejectedReceive.address(of: 0))
    }
}
