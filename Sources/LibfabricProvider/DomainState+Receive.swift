import CLibfabric
import CPlatform
import Glibc
import TransferCore

extension DomainState {
    // MARK: Poll

    /// Makes progress; see `FabricDomain.poll`.
    mutating func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        guard let base = completions.baseAddress, completions.count > 0 else { return 0 }
        output = base
        outputCount = 0
        outputCapacity = completions.count
        posted = 0
        releaseHeld()
        if isDown { reopen() }
        if unposted >= 0 { postReceives() }

        var events = isDown ? 0 : take(from: handles.completions)
        if let queue = handles.reverseCompletions, reverseInFlight > 0 || polls & Tuning.reversePolls == 0 {
            events += take(from: queue)
        }
        events += countWrites()
        if firstReport >= 0 { handOutReports() }
        if firstEnded >= 0 { handOutWrites() }
        if firstArrived >= 0 { unpackArrived() }
        if firstUncounted >= 0 { countFinishedWrites() }
        if unposted >= 0 { postReceives() }
        if events == 0 {
            calm &+= 1
        } else {
            calm = 0
            mayHaveNewConnections = isTCP
        }
        if listedCount > 0 { service(isIdle: events == 0 && firstArrived < 0) }
        polls &+= 1
        if polls & 1023 == 0 {
            if framesInFlight + countedInFlight > 0 { watchSilence() }
            if mayHaveNewConnections { keepConnectionsAlive() }
        }
        return outputCount
    }

    /// Handles what is in a queue, while there is room; how much it was.
    @inline(__always) private mutating func take(from queue: UnsafeMutablePointer<fid_cq>) -> Int {
        var events = 0
        while hasRoom {
            let wanted = min(Self.entryCount, outputCapacity - outputCount)
            let count = fi_cq_read(queue, entries, wanted)
            if count > 0 {
                for index in 0..<count { handle(entries + index) }
                events += count
                if count < wanted || events >= Self.entryCount { break }
            } else if count == -FI_EAVAIL {
                handleError(in: queue)
                events += 1
            } else {
                break
            }
        }
        return events
    }

    /// Asks peers that have owed an acknowledgement for long whether they live. A dead one ends in an error,
    /// or refuses.
    private mutating func watchSilence() {
        let now = te_monotonic_nanoseconds()
        for index in 0..<peerCount where peers[index].inFlight > 0 || peers[index].firstCounted >= 0 {
            if peers[index].waitsSince == 0 { peers[index].waitsSince = now }
            guard now - peers[index].waitsSince > Tuning.pingAfter else { continue }
            peers[index].waitsSince = now
            _ = sendAck(to: Int32(index), flags: FrameHeader.Flag.ping)
        }
    }

    private func slotNumber(_ context: UnsafeMutableRawPointer?) -> Int32 {
        guard let context else { return -1 }
        let distance = context - UnsafeMutableRawPointer(slots)
        let stride = MemoryLayout<OperationSlot>.stride
        guard distance >= 0, distance < Int(Self.slotCount) * stride, distance % stride == 0 else {
            return -1
        }
        return Int32(distance / stride)
    }

    @inline(__always) private mutating func handle(_ entry: UnsafeMutablePointer<fi_cq_data_entry>) {
        let flags = entry.pointee.flags
        if flags & FI_REMOTE_CQ_DATA != 0 && flags & FI_RECV == 0 {
            let wire = WireImmediate(rawValue: UInt32(truncatingIfNeeded: entry.pointee.data))
            page.add(eighths: wire.eighths, to: wire.immediate)
            return
        }
        let number = slotNumber(entry.pointee.op_context)
        if number < 0 { return }
        clearEndpoint(slots + Int(number))
        if number < Self.firstFrame {
            finishWrite(number)
        } else if number < Self.firstAck {
            finishSend(number - Self.firstFrame)
        } else if number < Self.firstReceive {
            freeAckBuffer(number - Self.firstAck)
        } else {
            arrive(number, length: entry.pointee.len)
        }
    }

    private mutating func finishWrite(_ number: Int32) {
        let slot = slots + Int(number)
        writesInFlight -= 1
        let peer = peers + Int(slot.pointee.peer)
        peer.pointee.writes -= 1
        peer.pointee.isLost = false
        if slot.pointee.isCounted {
            if slot.pointee.isReported { pushWrite(number) }
            return
        }
        if slot.pointee.eighths == 0 {
            emit(Completion(context: slot.pointee.context, count: 1))
            pushWrite(number)
            return
        }
        slot.pointee.next = -1
        if lastUncounted >= 0 { slots[Int(lastUncounted)].next = number } else { firstUncounted = number }
        lastUncounted = number
    }

    mutating func finishSend(_ number: Int32) {
        let frame = sendFrames + Int(number)
        frame.pointee.isPosted = false
        if frame.pointee.isReported { freeSendFrame(number) }
    }

    /// Takes one failed operation from a queue.
    private mutating func handleError(in queue: UnsafeMutablePointer<fid_cq>) {
        errorEntry.initialize(to: te_fi_error_entry())
        let entry = UnsafeMutableRawPointer(errorEntry).assumingMemoryBound(to: fi_cq_err_entry.self)
        guard fi_cq_readerr(queue, entry, 0) > 0 else { return }
        let status = FabricError.status(of: entry.pointee.err)
        let detail = entry.pointee.prov_errno != 0 ? entry.pointee.prov_errno : entry.pointee.err
        let number = slotNumber(entry.pointee.op_context)
        if number < 0 { return }
        let slot = slots + Int(number)
        let index = slot.pointee.peer
        let isReverse = slot.pointee.isReverse
        clearEndpoint(slot)
        if number < Self.firstFrame {
            writesInFlight -= 1
            peers[Int(index)].writes -= 1
            if slot.pointee.isCounted {
                // It ends together with all that came after the connection broke.
                if slot.pointee.isReported {
                    pushWrite(number)
                } else if slot.pointee.epoch == peers[Int(index)].epoch {
                    lose(index, status: status, detail: detail)
                }
                return
            }
            pushWrite(number)
            emit(Completion(context: slot.pointee.context, count: 1, status: status, detail: detail))
            // A broken connection does not report frames that it had taken already.
            if status == .peerLost { lose(index, status: status, detail: detail) }
        } else if number < Self.firstReceive {
            if isReverse && !peers[Int(index)].usesReverse {
                closeReverse(to: index)
            } else if slot.pointee.epoch == peers[Int(index)].epoch {
                lose(index, status: status, detail: detail)
            }
            if number < Self.firstAck {
                finishSend(number - Self.firstFrame)
            } else {
                freeAckBuffer(number - Self.firstAck)
            }
        } else {
            slot.pointee.next = unposted
            unposted = number
        }
    }

    /// The second connection broke, with nothing but acknowledgements on it: the first one carries them, until the peer sends
    /// another large write.
    private mutating func closeReverse(to index: Int32) {
        let peer = peers + Int(index)
        peer.pointee.isStreaming = false
        peer.pointee.isReverseOpen = false
        peer.pointee.owesAck = true
        list(index)
    }

    // MARK: Receive buffers

    func buffer(_ number: Int32) -> UnsafeMutableRawPointer {
        arena + Tuning.sendFrames * frameBytes + Tuning.ackFrames * Tuning.ackBytes
            + Int(number - Self.firstReceive) * frameBytes
    }

    /// Posts the buffers that are free.
    mutating func postReceives() {
        if isDown { return }
        while unposted >= 0 {
            let number = unposted
            let slot = slots + Int(number)
            let result = fi_recv(
                handles.endpoint, buffer(number), frameBytes, arenaDescriptor, te_fi_address_unspecified, slot
            )
            if result != 0 { return }
            slot.pointee.isPosted = true
            unposted = slot.pointee.next
        }
    }

    /// The engine has read the messages of the last poll.
    private mutating func releaseHeld() {
        while held >= 0 {
            let number = held
            held = slots[Int(number)].next
            slots[Int(number)].next = unposted
            unposted = number
        }
    }

    mutating func recycle(_ number: Int32) {
        slots[Int(number)].next = unposted
        unposted = number
    }

    // MARK: Sleep

    /// Sends what is left and says whether the domain may sleep.
    mutating func prepareToSleep() -> Bool {
        if isDown { return firstReport < 0 && firstEnded < 0 && firstArrived < 0 }
        guard handles.waitDescriptor >= 0 else { return false }
        if listedCount > 0 { service(isIdle: true, force: true) }
        if mayHaveNewConnections { keepConnectionsAlive() }
        // What stays waits for credit and is woken by an acknowledgement, unless the transport refused it.
        guard isQuiet else { return false }
        for position in 0..<listedCount {
            let peer = peers + Int(listed[position])
            if peer.pointee.refusedSince != 0 || peer.pointee.provesSince != 0 { return false }
        }
        // libfabric may have made progress to find out.
        return handles.tryWait() && countWrites() == 0
    }
}
