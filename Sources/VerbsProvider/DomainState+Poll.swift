internal import CVerbs
internal import Platform
internal import TransferCore

extension DomainState {
    // MARK: Poll

    /// Makes progress; see `FabricDomain.poll`.
    mutating func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        unsafe output = completions.baseAddress
        outputCount = 0
        outputCapacity = completions.count
        if heldCount > 0 { releaseMessages() }
        if listedCount > 0 { report() }
        wasEmpty = false
        while hasRoom {
            // Each entry is at most one message; ended requests that find no room are handed out later.
            let wanted = min(entries.count, outputCapacity - outputCount)
            let count = Int(unsafe ibv_poll_cq(handles.cq, Int32(wanted), entries.address(of: 0)))
            if count > 0 {
                isArmed = false
                for index in 0..<count { unsafe handle(entries.address(of: index)) }
            }
            if count < wanted {
                wasEmpty = true
                break
            }
        }
        if listedCount > 0 { report() }
        if missingImmediates >= Tuning.receiveBatch { refillImmediates(all: false) }
        if unpostedCount > 0 { refillMessages() }
        if owingCount > 0 { returnCredits() }
        if watchedCount > 0 { serviceTimers(isQuiet: wasEmpty) }
        polls &+= 1
        if polls & (Tuning.eventPolls - 1) == 0 { takeEvents() }
        if listedCount > 0 { report() }
        return outputCount
    }

    /// Takes one entry of the completion queue. Of one that failed only the identity and the status mean something.
    @inline(__always) private mutating func handle(_ entry: UnsafeMutablePointer<ibv_wc>) {
        let id = WorkID(rawValue: unsafe entry.pointee.wr_id)
        let isGood = unsafe entry.pointee.status == IBV_WC_SUCCESS
        switch id.kind {
        case .write: unsafe endWrites(id, entry)
        case .immediateReceive: unsafe takeImmediate(entry, isGood)
        case .message: unsafe endMessages(id, entry)
        case .messageReceive: unsafe takeMessage(id.buffer, entry, isGood)
        case .datagramSend: finishDatagram(id.buffer)
        case .datagramReceive:
            takeDatagram(id.buffer, length: Int(unsafe entry.pointee.byte_len), isGood: isGood)
        case nil: statistics.strayCompletions += 1
        }
    }

    /// Whether an entry of a request is of a connection that exists.
    @inline(__always) private func isKnown(_ id: WorkID) -> Bool {
        id.connection < connections.count && connections[id.connection].state != .free
            && connections[id.connection].generation == id.generation
    }

    @inline(__always) private mutating func endWrites(_ id: WorkID, _ entry: UnsafeMutablePointer<ibv_wc>) {
        guard isKnown(id), connections[id.connection].writes.isInFlight(id.sequence) else {
            statistics.strayCompletions += 1
            return
        }
        let status = unsafe entry.pointee.status
        if status != IBV_WC_SUCCESS {
            let detail = unsafe reason(id.connection, status, entry.pointee.vendor_err)
            connections[id.connection].writes.fail(
                from: id.sequence, VerbsError.status(of: status), detail)
            breakConnection(id.connection, .peerLost, detail)
        }
        let ended = id.sequence &+ 1
        requestsInFlight -= Int(ended &- connections[id.connection].writes.ended)
        connections[id.connection].writes.ended = ended
        list(id.connection)
    }

    /// What is told of a request that failed. One that only came back because its connection was broken has that reason.
    private func reason(_ number: Int, _ status: ibv_wc_status, _ vendor: UInt32) -> Int32 {
        let isBroken = connections[number].state == .draining && connections[number].causeDetail != 0
        return status == IBV_WC_WR_FLUSH_ERR && isBroken
            ? connections[number].causeDetail : VerbsError.detail(status, vendor: vendor)
    }

    private mutating func endMessages(_ id: WorkID, _ entry: UnsafeMutablePointer<ibv_wc>) {
        guard isKnown(id), connections[id.connection].messages.isInFlight(id.sequence) else {
            statistics.strayCompletions += 1
            return
        }
        let status = unsafe entry.pointee.status
        if status != IBV_WC_SUCCESS {
            let detail = unsafe reason(id.connection, status, entry.pointee.vendor_err)
            connections[id.connection].messages.fail(
                from: id.sequence, VerbsError.status(of: status), detail)
            breakConnection(id.connection, .peerLost, detail)
        }
        endMessages(id.connection, upTo: id.sequence &+ 1)
    }

    /// Takes back the buffers of messages that have ended.
    mutating func endMessages(_ number: Int, upTo end: UInt32) {
        var sequence = connections[number].messages.ended
        while sequence != end {
            let entry = Int(sequence & connections[number].messages.mask)
            let buffer = connections[number].buffers[entry]
            if buffer == Connection.creditMark {
                connections[number].isReturningCredit = false
                if connections[number].isCreditDue { owe(number) }
            } else if buffer >= 0 {
                freeMessages.give(Int(buffer))
            }
            sequence &+= 1
            requestsInFlight -= 1
        }
        connections[number].messages.ended = end
        list(number)
    }

    // MARK: Report

    /// Hands out requests that have ended, as far as there is room.
    mutating func report() {
        var kept = 0
        let count = listedCount
        for position in 0..<count {
            let number = Int(listed[position])
            if reportWrites(number), reportMessages(number) {
                connections[number].isListed = false
            } else {
                listed[kept] = Int32(number)
                kept += 1
            }
        }
        listedCount = kept
    }

    /// Whether all ended writes of a connection have been handed out.
    private mutating func reportWrites(_ number: Int) -> Bool {
        let connection = unsafe connections.address(of: number)
        var sequence = unsafe connection.pointee.writes.reported
        let end = unsafe connection.pointee.writes.ended
        let mask = unsafe connection.pointee.writes.mask
        while sequence != end {
            guard hasRoom else { break }
            let context = unsafe connection.pointee.writes.contexts[Int(sequence & mask)]
            var stop = end
            var (status, detail) = (WorkStatus.success, Int32(0))
            if unsafe connection.pointee.writes.hasFailed {
                unsafe (status, detail, stop) = outcome(&connection.pointee.writes, sequence)
            }
            if status == .peerLost || status == .providerFailed {
                unsafe emitUnsettled(connection, sequence, status, detail)
                sequence &+= 1
                continue
            }
            let first = sequence
            repeat {
                sequence &+= 1
            } while unsafe sequence != stop
                && connection.pointee.writes.contexts[Int(sequence & mask)] == context
            emit(context, sequence &- first, status, detail)
        }
        unsafe connection.pointee.writes.reported = sequence
        return sequence == end
    }

    /// Hands out a write of which only the peer knows whether it has been counted.
    private mutating func emitUnsettled(
        _ connection: UnsafePointer<Connection>, _ sequence: UInt32, _ status: WorkStatus, _ detail: Int32
    ) {
        guard let output = unsafe output else { return }
        let place = unsafe Int(sequence & connection.pointee.writes.mask)
        var completion = Completion(
            context: unsafe connection.pointee.writes.contexts[place], count: 1, status: status,
            detail: detail)
        completion.tag = unsafe connection.pointee.writes.tags[place]
        completion.peer = unsafe connection.pointee.peer
        completion.delivery = unsafe .unsettled(
            connection: connection.pointee.identity, ordinal: connection.pointee.ordinal(of: sequence))
        unsafe (output + outputCount).initialize(to: completion)
        outputCount += 1
    }

    private mutating func reportMessages(_ number: Int) -> Bool {
        let connection = unsafe connections.address(of: number)
        while unsafe connection.pointee.messages.reported != connection.pointee.messages.ended {
            let sequence = unsafe connection.pointee.messages.reported
            let entry = unsafe Int(sequence & connection.pointee.messages.mask)
            if unsafe connection.pointee.buffers[entry] != Connection.creditMark {
                guard hasRoom else { return false }
                let (status, detail, _) = unsafe outcome(&connection.pointee.messages, sequence)
                emit(unsafe connection.pointee.messages.contexts[entry], 1, status, detail)
            }
            unsafe connection.pointee.messages.reported &+= 1
        }
        return true
    }

    /// How a request ended, and up to which the following ones ended likewise: well before the first that failed; that one
    /// with its own error; the rest because the queue pair was broken.
    private func outcome(_ queue: inout SendQueue, _ sequence: UInt32) -> (WorkStatus, Int32, UInt32) {
        guard queue.hasFailed else { return (.success, 0, queue.ended) }
        let distance = Int32(bitPattern: sequence &- queue.failedFrom)
        if distance < 0 { return (.success, 0, nearer(queue.failedFrom, queue.ended, from: sequence)) }
        if distance == 0 { return (queue.status, queue.detail, sequence &+ 1) }
        return (queue.laterStatus, queue.detail, queue.ended)
    }

    private func nearer(_ left: UInt32, _ right: UInt32, from start: UInt32) -> UInt32 {
        left &- start < right &- start ? left : right
    }

    // MARK: Sleep

    /// Arms the completion channel; true when nothing has come since.
    mutating func prepareToSleep() -> Bool {
        takeEvents()
        if heldCount > 0 || listedCount > 0 || owingCount > 0 { return false }
        if isGone { return true }
        guard isArmed, wasEmpty else {
            drainChannel()
            isArmed = unsafe ibv_req_notify_cq(handles.cq, 0) == 0
            // What came before is found by the poll that follows; the next call sees that it found nothing.
            wasEmpty = false
            return false
        }
        let now = now
        let due = nextTimer().map { max(1, $0 &- min($0, now)) } ?? 0
        handles.waitFile?.wake(afterNanoseconds: due)
        return true
    }

    /// Takes the events of the completion channel, which would wake us again.
    mutating func drainChannel() {
        var cq: UnsafeMutablePointer<ibv_cq>?
        var context: UnsafeMutableRawPointer?
        while unsafe handles.api.pointee.get_cq_event(handles.channel, &cq, &context) == 0 {
            if let cq = unsafe cq { unsafe handles.api.pointee.ack_cq_events(cq, 1) }
        }
    }
}
