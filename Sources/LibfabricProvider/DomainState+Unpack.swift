import CLibfabric
import Glibc
import TransferCore

extension DomainState {
    // MARK: Frames

    /// Looks at a frame's header. Nothing in it is trusted: what does not fit is dropped.
    mutating func arrive(_ number: Int32, length: Int) {
        let bytes = UnsafeRawPointer(buffer(number))
        guard length >= FrameHeader.byteCount, length <= frameBytes else { return recycle(number) }
        let header = bytes.loadUnaligned(as: FrameHeader.self)
        let start = Int(header.start)
        guard header.magic == FrameHeader.magic, Int(header.length) == length, header.receiver == engine,
            start >= FrameHeader.byteCount, start <= length, start & 7 == 0
        else { return recycle(number) }
        let index = sender(of: header, bytes)
        guard index >= 0 else { return recycle(number) }
        let peer = peers + Int(index)
        peer.pointee.remoteIndex = header.from
        noteRing(header, bytes, of: index)
        if peer.pointee.isWriter { countWrites(of: index) }

        let isAck = header.flags & FrameHeader.Flag.ack != 0
        if isAck { noteFailures(header, bytes, from: index) }
        noteAck(header, from: index)
        let isOrdered = !isAck || header.flags & (FrameHeader.Flag.ping | FrameHeader.Flag.ask) != 0
        if isOrdered { noteOrdered(header, from: index) }
        if Int32(bitPattern: header.epoch &- peer.pointee.inEpoch) < 0 {
            // It has to start over, and hears so from the epoch that is acknowledged.
            peer.pointee.owesAck = true
            list(index)
        }
        if header.flags & FrameHeader.Flag.ping != 0 { answerPing(header, from: index) }
        if header.flags & FrameHeader.Flag.ask != 0 {
            peer.pointee.owesAck = true
            if isGap(header, from: index) { peer.pointee.owesGap = true }
            list(index)
        }
        if isAck { return recycle(number) }

        let slot = slots + Int(number)
        slot.pointee.peer = index
        slot.pointee.epoch = header.epoch
        slot.pointee.sequence = header.sequence
        guard header.epoch == peer.pointee.inEpoch, header.sequence == peer.pointee.arrived else {
            if header.epoch == peer.pointee.inEpoch, header.sequence &- peer.pointee.arrived < Tuning.window,
                !isEarly(header.sequence, from: index)
            {
                slot.pointee.next = firstEarly
                firstEarly = number
            } else {
                recycle(number)
            }
            return
        }
        guard accept(number) else { return }
        while firstEarly >= 0, let next = takeEarly(peer.pointee.arrived, from: index) {
            guard accept(next) else { return }
        }
    }

    /// Counts the writes that have come, in the order in which each peer has posted them; how many.
    @inline(__always) mutating func countWrites() -> Int {
        var count = 0
        for position in 0..<writerCount { count += countWrites(of: writers[position]) }
        return count
    }

    /// Counts the writes of a peer up to the first that is not there. None is counted whose sender is told that it is lost: one
    /// of an epoch that has ended, or behind a gap.
    @inline(__always) @discardableResult mutating func countWrites(of index: Int32) -> Int {
        let peer = peers + Int(index)
        let ring = rings + Int(index) * Int(CountedWrite.sequences)
        var count = 0
        while true {
            let place = ring + Int(peer.pointee.countedArrivals % CountedWrite.sequences)
            let write = CountedWrite(rawValue: place.pointee)
            guard write.isThere else { break }
            place.pointee = 0
            guard write.isOf(epoch: peer.pointee.inEpoch), !peer.pointee.owesGap else { break }
            peer.pointee.countedArrivals &+= 1
            count += 1
            if write.asks { peer.pointee.owesAck = true }
            guard write.hasImmediate else { continue }
            let wire = WireImmediate(rawValue: UInt32(truncatingIfNeeded: write.rawValue))
            page.add(eighths: wire.eighths, to: wire.immediate)
        }
        guard count > 0 else { return 0 }
        peer.pointee.isStreaming = handles.reverse != nil
        peer.pointee.streamedAt = polls
        list(index)
        return count
    }

    /// Whether writes are missing that were posted before an ordered frame, over the same connection.
    private func isGap(_ header: FrameHeader, from index: Int32) -> Bool {
        let peer = peers + Int(index)
        return header.epoch == peer.pointee.inEpoch
            && Int32(bitPattern: header.writes &- peer.pointee.countedArrivals) > 0
    }

    /// A peer says where our ring is, and may want to know where its own is.
    private mutating func noteRing(_ header: FrameHeader, _ bytes: UnsafeRawPointer, of index: Int32) {
        let peer = peers + Int(index)
        if header.flags & FrameHeader.Flag.ring != 0,
            Int(header.start) >= FrameHeader.byteCount + FrameHeader.helloBytes
        {
            let place = bytes + FrameHeader.byteCount + 8 + Limits.addressBytes
            peer.pointee.ring =
                place.loadUnaligned(as: UInt64.self) &+ UInt64(header.from) &* UInt64(CountedWrite.ringBytes)
            peer.pointee.ringKey = place.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
            peer.pointee.hasRing = true
        }
        guard header.flags & FrameHeader.Flag.wantsRing != 0 else { return }
        peer.pointee.owesRing = true
        guard !peer.pointee.isWriter else { return }
        peer.pointee.isWriter = true
        writers[writerCount] = index
        writerCount += 1
    }

    /// Queues the peer's next frame to be carried out. False when writes before it have been lost with a connection: then
    /// it is dropped, and the peer hears of it.
    private mutating func accept(_ number: Int32) -> Bool {
        let slot = slots + Int(number)
        let peer = peers + Int(slot.pointee.peer)
        let header = UnsafeRawPointer(buffer(number)).loadUnaligned(as: FrameHeader.self)
        if isGap(header, from: slot.pointee.peer) {
            peer.pointee.owesGap = true
            list(slot.pointee.peer)
            recycle(number)
            return false
        }
        peer.pointee.arrived &+= 1
        slot.pointee.next = -1
        if lastArrived >= 0 { slots[Int(lastArrived)].next = number } else { firstArrived = number }
        lastArrived = number
        return true
    }

    private func isEarly(_ sequence: UInt32, from index: Int32) -> Bool {
        var number = firstEarly
        while number >= 0 {
            if slots[Int(number)].peer == index && slots[Int(number)].sequence == sequence { return true }
            number = slots[Int(number)].next
        }
        return false
    }

    /// Takes a frame out of those that came too early; nil when it is not there.
    private mutating func takeEarly(_ sequence: UInt32, from index: Int32) -> Int32? {
        var previous: Int32 = -1
        var number = firstEarly
        while number >= 0 {
            let slot = slots + Int(number)
            if slot.pointee.peer == index && slot.pointee.sequence == sequence {
                if previous >= 0 {
                    slots[Int(previous)].next = slot.pointee.next
                } else {
                    firstEarly = slot.pointee.next
                }
                return number
            }
            previous = number
            number = slot.pointee.next
        }
        return nil
    }

    /// The peer starts over: what it sent before is counted no more, and what has been counted is kept for its question.
    mutating func startEpoch(_ epoch: UInt32, of index: Int32) {
        saveLedger(of: index)
        let peer = peers + Int(index)
        var number = firstEarly
        firstEarly = -1
        while number >= 0 {
            let next = slots[Int(number)].next
            if slots[Int(number)].peer == index {
                recycle(number)
            } else {
                slots[Int(number)].next = firstEarly
                firstEarly = number
            }
            number = next
        }
        peer.pointee.inEpoch = epoch
        peer.pointee.countedArrivals = 0
        peer.pointee.countedTold = 0
        peer.pointee.owesGap = false
        peer.pointee.arrived = 0
        peer.pointee.processed = 0
        peer.pointee.acknowledged = 0
        peer.pointee.failuresSent = 0
        peer.pointee.failureBytes = 0
        peer.pointee.missedAtPing = 0
    }

    /// Acknowledges at once. A frame that is missing at two pings in a row was lost with a connection.
    private mutating func answerPing(_ header: FrameHeader, from index: Int32) {
        let peer = peers + Int(index)
        peer.pointee.owesAck = true
        list(index)
        guard header.epoch == peer.pointee.inEpoch else { return }
        if isGap(header, from: index) { peer.pointee.owesGap = true }
        guard header.sequence != peer.pointee.arrived else {
            peer.pointee.missedAtPing = 0
            return
        }
        if peer.pointee.missedAtPing == peer.pointee.arrived &+ 1 { peer.pointee.owesGap = true }
        peer.pointee.missedAtPing = peer.pointee.arrived &+ 1
    }

    /// Who sent a frame, or -1.
    private mutating func sender(of header: FrameHeader, _ bytes: UnsafeRawPointer) -> Int32 {
        if header.to < UInt32(peerCount), peers[Int(header.to)].engine == header.sender {
            return Int32(header.to)
        }
        guard header.flags & FrameHeader.Flag.hello != 0,
            Int(header.start) >= FrameHeader.byteCount + FrameHeader.helloBytes
        else { return -1 }
        let length = (bytes + FrameHeader.byteCount).loadUnaligned(as: UInt64.self)
        // Only libfabric's shm, the one without frames of writes, has names of different lengths.
        let isRight =
            length == UInt64(ownAddressLength) || frameLimit == 0 && length <= UInt64(Limits.addressBytes)
        guard length > 0, isRight else { return -1 }
        return findPeer(
            engine: header.sender, address: bytes + FrameHeader.byteCount + 8, length: Int(length)
        ).index
    }

    /// Remembers which records of our frames the peer refused; the acknowledgement that follows reports them.
    private mutating func noteFailures(_ header: FrameHeader, _ bytes: UnsafeRawPointer, from index: Int32) {
        guard header.ackEpoch == peers[Int(index)].epoch else { return }
        var offset = Int(header.start)
        if offset < Int(header.length) { peers[Int(index)].failuresSeen &+= 1 }
        while offset + FrameFailure.byteCount <= Int(header.length) {
            let failure = (bytes + offset).loadUnaligned(as: FrameFailure.self)
            offset += FrameFailure.byteCount
            var number = peers[Int(index)].firstInFlight
            while number >= 0 && sendFrames[Int(number)].sequence != failure.sequence {
                number = sendFrames[Int(number)].next
            }
            if number >= 0 { sendFrames[Int(number)].fail(failure) }
        }
    }

    /// Ends the frames that the peer has carried out.
    private mutating func noteAck(_ header: FrameHeader, from index: Int32) {
        let peer = peers + Int(index)
        if frames, Int32(bitPattern: header.ackEpoch &- peer.pointee.epoch) > 0 {
            // It counts nothing more of ours in this epoch: it has closed its endpoint, or was asked to settle.
            return lose(index, status: .peerLost, detail: ECONNRESET, next: header.ackEpoch)
        }
        guard header.ackEpoch == peer.pointee.epoch else { return }
        if !peer.pointee.provesReverse { peer.pointee.provesSince = 0 }
        let writes = header.writesAck &- peer.pointee.countedAcked
        if writes > 0 && writes <= peer.pointee.countedWrites &- peer.pointee.countedAcked {
            endWrites(of: peer, Int(writes), .success, 0)
            peer.pointee.countedAcked = header.writesAck
            if peer.pointee.isUnasked { list(index) }
            peer.pointee.waitsSince = 0
            peer.pointee.refusedSince = 0
        }
        if Int32(bitPattern: header.ack &- peer.pointee.ackSeen) >= 0 {
            peer.pointee.ackSeen = header.ack
            peer.pointee.failuresExpected = header.failures
        }
        if Int32(bitPattern: peer.pointee.failuresSeen &- peer.pointee.failuresExpected) >= 0 {
            let oldest = peer.pointee.nextSequence &- peer.pointee.inFlight
            let count = peer.pointee.ackSeen &- oldest
            if count > 0 && count <= peer.pointee.inFlight {
                for _ in 0..<count {
                    let frame = takeOldest(of: peer)
                    report(frame)
                }
                peer.pointee.waitsSince = 0
            }
        }
        if header.flags & FrameHeader.Flag.gap != 0 {
            lose(index, status: .peerLost, detail: ECONNRESET)
        }
    }

    /// Carries out the records of the frames that came, while there is room for messages and failures.
    mutating func unpackArrived() {
        while firstArrived >= 0 {
            let number = firstArrived
            guard unpack(number) else { return }
            let slot = slots + Int(number)
            firstArrived = slot.pointee.next
            if firstArrived < 0 { lastArrived = -1 }
            let peer = peers + Int(slot.pointee.peer)
            if slot.pointee.epoch == peer.pointee.inEpoch {
                peer.pointee.processed &+= 1
                list(slot.pointee.peer)
            }
            if arrivedHasMessage {
                slot.pointee.next = held
                held = number
            } else {
                recycle(number)
            }
            arrivedOffset = 0
            arrivedRecord = 0
            arrivedHasMessage = false
        }
    }

    /// Carries out records from where the last call stopped; true when the frame is done.
    private mutating func unpack(_ number: Int32) -> Bool {
        let bytes = UnsafeRawPointer(buffer(number))
        let length = Int(bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
        // Its sender has been told, or will be, that what is left of it was not counted.
        guard slots[Int(number)].epoch == peers[Int(slots[Int(number)].peer)].inEpoch else { return true }
        if arrivedOffset == 0 {
            arrivedOffset = Int(bytes.loadUnaligned(fromByteOffset: 6, as: UInt16.self))
        }
        while arrivedOffset + FrameRecord.byteCount <= length {
            let record = (bytes + arrivedOffset).loadUnaligned(as: FrameRecord.self)
            let stride = FrameRecord.stride(length: Int(record.length))
            let index = slots[Int(number)].peer
            var status = WorkStatus.success
            if stride > length - arrivedOffset {
                // A damaged frame: there is no next record to find.
                status = .providerFailed
                guard noteFailure(.providerFailed, records: .max, of: number, from: index) else {
                    return false
                }
                arrivedOffset = length
                return true
            }
            let payload = UnsafeRawBufferPointer(
                start: bytes + arrivedOffset + FrameRecord.byteCount, count: Int(record.length))
            if record.kind == FrameRecord.Kind.write {
                status = record.apply(payload, to: page)
            } else if record.kind == FrameRecord.Kind.message {
                guard hasRoom else { return false }
                output[outputCount] = Completion(message: payload, from: peers[Int(index)].engine)
                outputCount += 1
                arrivedHasMessage = true
            } else if record.kind != FrameRecord.Kind.padding {
                status = .providerFailed
            }
            if status != .success {
                guard noteFailure(status, records: 1, of: number, from: index) else { return false }
            }
            arrivedOffset += stride
            arrivedRecord += 1
        }
        return true
    }

    /// Puts a failure into the acknowledgement that is being filled for the peer; false when none is free
    /// now.
    private mutating func noteFailure(
        _ status: WorkStatus, records: UInt32, of number: Int32, from index: Int32
    ) -> Bool {
        let peer = peers + Int(index)
        guard slots[Int(number)].epoch == peer.pointee.inEpoch else { return true }
        list(index)
        let sequence = peer.pointee.processed
        let failure = FrameFailure(
            sequence: sequence, first: arrivedRecord, count: records, status: UInt32(status.rawValue))
        ledgers.refuse(index, failure)
        let first = FrameHeader.byteCount + FrameHeader.helloBytes
        if peer.pointee.failureAck >= 0 && peer.pointee.failureBytes > 0 {
            let place = ackBytes(peer.pointee.failureAck) + first + peer.pointee.failureBytes
            let last = (place - FrameFailure.byteCount).assumingMemoryBound(to: FrameFailure.self)
            if last.pointee.sequence == sequence, last.pointee.status == UInt32(status.rawValue),
                records == 1,
                last.pointee.first &+ last.pointee.count == arrivedRecord
            {
                last.pointee.count += 1
                return true
            }
            if first + peer.pointee.failureBytes + FrameFailure.byteCount > Tuning.ackBytes {
                guard sendAck(to: index, flags: 0) else { return false }
            }
        }
        if peer.pointee.failureAck < 0 && !openAck(of: index) { return false }
        (ackBytes(peer.pointee.failureAck) + first + peer.pointee.failureBytes)
            .storeBytes(of: failure, as: FrameFailure.self)
        peer.pointee.failureBytes += FrameFailure.byteCount
        return true
    }
}
