internal import CVerbs
internal import TransferCore

// Receives: immediates consume receives without memory, messages consume buffers. Each peer is granted a share of both and
// hears of what was taken only after the NIC has been given as many new ones, so neither runs dry while the shares
// last. With more peers than shares the NIC asks senders to wait (receiver not ready), and they repeat.
extension DomainState {
    // MARK: What arrives

    /// Counts an immediate. All its data is there: it came in the order of its queue pair.
    @inline(__always) mutating func takeImmediate(_ entry: UnsafeMutablePointer<ibv_wc>, _ isGood: Bool) {
        missingImmediates += 1
        guard isGood, unsafe entry.pointee.wc_flags & IBV_WC_WITH_IMM.rawValue != 0 else {
            // The receive of a queue pair that broke, or a message sent to the wrong queue pair.
            return
        }
        let wire = WireImmediate(rawValue: UInt32(bigEndian: unsafe entry.pointee.imm_data))
        page.add(eighths: wire.eighths, to: wire.immediate)
        guard let number = numbers.find(unsafe entry.pointee.qp_num) else { return }
        // Whoever sends has seen that we can receive.
        if connections[number].state == .bound { becomeReady(number) }
        connections[number].immediatesReceived &+= 1
        connections[number].received &+= 1
        if connections[number].isCreditDue { owe(number) }
    }

    /// Hands out a message; its buffer is the engine's until the next poll.
    mutating func takeMessage(_ buffer: Int, _ entry: UnsafeMutablePointer<ibv_wc>, _ isGood: Bool) {
        guard buffer < held.count else {
            statistics.strayCompletions += 1
            return
        }
        let number = isGood ? numbers.find(unsafe entry.pointee.qp_num) : nil
        held[heldCount] = Int32(buffer)
        heldConnections[heldCount] = Int32(number ?? -1)
        heldGenerations[heldCount] = number.map { connections[$0].generation } ?? 0
        heldCount += 1
        let length = Int(unsafe entry.pointee.byte_len)
        guard let number, unsafe entry.pointee.opcode == IBV_WC_RECV, length <= Limits.packetBytes,
            let output = unsafe output
        else { return }
        if connections[number].state == .bound { becomeReady(number) }
        let bytes = unsafe UnsafeRawBufferPointer(start: memory.messageReceive(buffer), count: length)
        unsafe (output + outputCount).initialize(
            to: Completion(message: bytes, from: peers[connections[number].peer].engine))
        outputCount += 1
    }

    /// The engine has read the messages of the last poll.
    mutating func releaseMessages() {
        for position in 0..<heldCount {
            unpostedMessages[unpostedCount] = held[position]
            unpostedCount += 1
            let number = Int(heldConnections[position])
            guard number >= 0, connections[number].state == .ready,
                connections[number].generation == heldGenerations[position]
            else { continue }
            connections[number].messagesReceived &+= 1
            if connections[number].isCreditDue { owe(number) }
        }
        heldCount = 0
    }

    // MARK: New receives

    /// Gives the NIC receives for immediates, in batches; `all` gives the rest too.
    mutating func refillImmediates(all: Bool) {
        while unsafe missingImmediates >= (all ? 1 : receives.count) {
            let count = unsafe min(receives.count, missingImmediates)
            let last = unsafe receives.address(of: count - 1)
            let next = unsafe last.pointee.next
            unsafe last.pointee.next = nil
            let error = unsafe ibv_post_srq_recv(
                handles.immediateReceives, receives.address(of: 0), rejectedReceive.address(of: 0))
            unsafe last.pointee.next = next
            // What the NIC did not take is tried again at the next poll.
            guard error == 0 else { return }
            missingImmediates -= count
        }
    }

    mutating func refillMessages() {
        while unpostedCount > 0 {
            let buffer = Int(unpostedMessages[unpostedCount - 1])
            unsafe receive[0].wr_id = WorkID(.messageReceive, buffer: buffer).rawValue
            unsafe receivePart[0] = ibv_sge(
                addr: UInt64(UInt(bitPattern: memory.messageReceive(buffer))),
                length: UInt32(Limits.packetBytes), lkey: handles.buffers?.pointee.lkey ?? 0)
            let error = unsafe ibv_post_srq_recv(
                handles.messageReceives, receive.address(of: 0), rejectedReceive.address(of: 0))
            guard error == 0 else { return }
            unpostedCount -= 1
        }
    }

    /// Asks to be told when the receives run low.
    func armLimit() {
        unsafe arm(unsafe handles.immediateReceives, handles.sizes.immediateReceives)
        unsafe arm(unsafe handles.messageReceives, handles.sizes.messageReceives)
    }

    private func arm(_ srq: UnsafeMutablePointer<ibv_srq>?, _ count: Int) {
        guard let srq = unsafe srq else { return }
        var attributes = ibv_srq_attr()
        attributes.srq_limit = UInt32(count / 16)
        // A device that cannot tell is as good: the refill does not wait for the event.
        _ = unsafe handles.api.pointee.modify_srq(srq, &attributes, Int32(bitPattern: IBV_SRQ_LIMIT.rawValue))
    }
}
