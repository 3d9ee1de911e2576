import CLibfabric
import CPlatform
import Glibc
import TransferCore

extension DomainState {
    // MARK: Post

    /// Starts requests; see `FabricDomain.post`.
    mutating func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        guard let base = requests.baseAddress else {
            return PostResult(accepted: 0, isComplete: false, status: .success)
        }
        if isDown {
            return PostResult(accepted: 0, isComplete: false, status: .peerLost, detail: ENETDOWN)
        }
        var accepted = 0
        var outcome = (status: WorkStatus.success, detail: Int32(0))
        while accepted < requests.count {
            let request = base + accepted
            if request.pointee.length <= frameLimit {
                outcome = pack(request)
            } else {
                outcome = write(request, isLast: accepted + 1 == requests.count)
            }
            if outcome.status != .success { break }
            accepted += 1
        }
        if listedCount > 0 { service(isIdle: false) }
        return PostResult(
            accepted: accepted, isComplete: false, status: outcome.status, detail: outcome.detail)
    }

    /// Starts a message; see `FabricDomain.send`.
    mutating func send(_ payload: UnsafeRawBufferPointer, to index: Int32, context: UInt64) -> PostResult {
        guard payload.count <= Limits.packetBytes else {
            return PostResult(accepted: 0, isComplete: false, status: .outOfRange, detail: EMSGSIZE)
        }
        if isDown {
            return PostResult(accepted: 0, isComplete: false, status: .peerLost, detail: ENETDOWN)
        }
        let frame = openFrame(to: index, room: FrameRecord.stride(length: payload.count))
        guard frame >= 0 else { return PostResult(accepted: 0, isComplete: false, status: .again) }
        append(
            FrameRecord(messageOf: payload.count, from: engine), payload.baseAddress, to: frame, context,
            SendFrame.noTag)
        service(isIdle: false)
        return PostResult(accepted: 1, isComplete: false, status: .success)
    }

    /// One operation of the NIC.
    private mutating func write(
        _ request: UnsafePointer<WorkRequest>, isLast: Bool
    ) -> (status: WorkStatus, detail: Int32) {
        guard posted < postsPerPoll else { return (.again, 0) }
        let eighths = request.pointee.eighths
        // The wire has two bits for the share of a count. Other shares follow as a record behind the data.
        let isShare = eighths & (eighths &- 1) == 0 && eighths <= Eighths.whole
        guard isShare || frames else { return (.providerFailed, EINVAL) }
        let target = request.pointee.target
        let number = Int32(truncatingIfNeeded: target.pointee.peer)
        let peer = peers + target.pointee.peer
        let isCounted = countsWrites
        // What cannot be counted cannot be settled either: it waits until the peer has said where.
        if isCounted && !peer.pointee.hasRing { return greet(number) }
        if isCounted && !hasRoomForCounted(to: number, withRecord: !isShare) { return (.again, 0) }
        let index = popWrite()
        guard index >= 0 else { return (.again, 0) }
        let slot = slots + Int(index)
        slot.pointee.context = request.pointee.context
        slot.pointee.tag = request.pointee.tag
        slot.pointee.peer = number
        slot.pointee.epoch = peer.pointee.epoch
        slot.pointee.isCounted = isCounted
        slot.pointee.hasRecord = isCounted && !isShare
        slot.pointee.eighths = isShare || isCounted ? 0 : eighths
        if !isShare, !isCounted {
            slot.pointee.target = target
            slot.pointee.offset = request.pointee.targetOffset
            slot.pointee.immediate = request.pointee.immediate
        }
        fillTemplate(request, target)
        template.pointee.message.addr = peer.pointee.address
        template.pointee.message.context = UnsafeMutableRawPointer(slot)
        var flags = writeFlags
        var tag = CountedWrite(rawValue: 0)
        if isCounted {
            tag = peer.pointee.nextCounted(request, eighths: isShare ? eighths : 0)
            addEnd(tag, of: index, to: peer)
            flags = FI_COMPLETION
        } else if isShare && eighths > 0 {
            template.pointee.message.data = UInt64(
                WireImmediate(request.pointee.immediate, eighths: eighths).rawValue)
            flags |= FI_REMOTE_CQ_DATA
        }
        // More may be promised only when the next one cannot be refused.
        if isHardware && !isLast && posted + 1 < postsPerPoll && writesInFlight + 1 < transmitSlots / 2
            && freeWrite >= 0
        {
            flags |= FI_MORE
        }
        let reverse = usesReverse(peer)
        let result = fi_writemsg(endpoint(reverse: reverse), &template.pointee.message, flags)
        if result == 0 {
            noteEndpoint(slot, reverse: reverse)
            posted += 1
            writesInFlight += 1
            peer.pointee.writes += 1
            peer.pointee.refusedSince = 0
            if isCounted { enqueue(index, request, number, asks: tag.asks) }
            return (.success, 0)
        }
        pushWrite(index)
        let error = Int32(truncatingIfNeeded: -result)
        guard error == FI_EAGAIN else { return (FabricError.status(of: error), error) }
        if peer.pointee.writes == 0 && isRefused(peer) {
            lose(Int32(truncatingIfNeeded: target.pointee.peer), status: .peerLost, detail: ETIMEDOUT)
            return (.peerLost, ETIMEDOUT)
        }
        return (.again, 0)
    }

    /// Asks a peer for our ring, so that writes to it can be counted.
    private mutating func greet(_ number: Int32) -> (status: WorkStatus, detail: Int32) {
        let now = te_monotonic_nanoseconds()
        guard now - peers[Int(number)].greetedAt > Tuning.greetAgainAfter else { return (.targetBusy, 0) }
        let epoch = peers[Int(number)].epoch
        if sendAck(to: number, flags: FrameHeader.Flag.ask | FrameHeader.Flag.wantsRing) {
            peers[Int(number)].greetedAt = now
        } else if peers[Int(number)].epoch != epoch {
            return (.peerLost, ETIMEDOUT)
        }
        return (.targetBusy, 0)
    }

    /// Makes the write template into a request; address, context, data and flags are the caller's.
    @inline(__always) private func fillTemplate(
        _ request: UnsafePointer<WorkRequest>, _ target: UnsafePointer<ImportedKey>
    ) {
        template.pointee.source.iov_base = UnsafeMutableRawPointer(mutating: request.pointee.source)
        template.pointee.source.iov_len = request.pointee.length
        template.pointee.descriptor = UnsafeMutableRawPointer(bitPattern: UInt(request.pointee.localKey))
        template.pointee.target.addr = target.pointee.base &+ request.pointee.targetOffset
        template.pointee.target.len = request.pointee.length
        template.pointee.target.key = target.pointee.key
        template.pointee.message.iov_count = request.pointee.length > 0 ? 1 : 0
        template.pointee.message.rma_iov_count = 1
        if request.pointee.length == 0, let arenaDescriptor {
            // rxm over verbs (1.17) follows the first descriptor even of a write that has none.
            template.pointee.source.iov_base = UnsafeMutableRawPointer(arena)
            template.pointee.descriptor = arenaDescriptor
            template.pointee.message.iov_count = 1
        }
    }

    /// Adds to the write in the template what the receiver counts it by.
    @inline(__always) private func addEnd(
        _ end: CountedWrite, of index: Int32, to peer: UnsafeMutablePointer<Peer>
    ) {
        let source = ends + Int(index)
        source.pointee = end.rawValue
        let place = UInt64(peer.pointee.countedWrites % CountedWrite.sequences)
        template.pointee.endSource.iov_base = UnsafeMutableRawPointer(source)
        template.pointee.endTarget.addr = peer.pointee.ring &+ place * 8
        template.pointee.endTarget.key = peer.pointee.ringKey
        template.pointee.message.iov_count = 2
        template.pointee.message.rma_iov_count = 2
    }

    /// Whether a peer may have one more counted write on its way.
    private mutating func hasRoomForCounted(to number: Int32, withRecord: Bool) -> Bool {
        let peer = peers + Int(number)
        guard peer.pointee.countedWrites &- peer.pointee.countedAcked < Tuning.countedWrites else {
            return false
        }
        return !withRecord || openFrame(to: number, room: FrameRecord.byteCount) >= 0
    }

    /// Queues a counted write behind those that the peer has not acknowledged. One that is more or less than a share is
    /// counted, and reported, by a record behind it.
    @inline(__always) private mutating func enqueue(
        _ index: Int32, _ request: UnsafePointer<WorkRequest>, _ number: Int32, asks: Bool
    ) {
        let slot = slots + Int(index)
        let peer = peers + Int(number)
        list(number)
        slot.pointee.isReported = false
        slot.pointee.sequence = peer.pointee.countedWrites
        slot.pointee.next = -1
        if peer.pointee.firstCounted < 0 {
            peer.pointee.firstCounted = index
            peer.pointee.waitsSince = 0
        } else {
            slots[Int(peer.pointee.lastCounted)].next = index
        }
        peer.pointee.lastCounted = index
        countedInFlight += 1
        peer.pointee.countedWrites &+= 1
        peer.pointee.countedAt = polls
        slot.pointee.length = request.pointee.length
        peer.pointee.countedBytes += request.pointee.length
        peer.pointee.bytesSinceAsked += request.pointee.length
        if asks {
            peer.pointee.countedAsked = peer.pointee.countedWrites
            peer.pointee.bytesSinceAsked = 0
        }
        if slot.pointee.hasRecord {
            var record = FrameRecord(request.pointee, from: engine)
            record.length = 0
            append(record, nil, to: peer.pointee.open, request.pointee.context, request.pointee.tag)
        }
    }

    /// Ends the oldest `count` counted writes to a peer. `lost` says of which they are some, when they are.
    mutating func endWrites(
        of peer: UnsafeMutablePointer<Peer>, _ count: Int, _ status: WorkStatus, _ detail: Int32,
        _ lost: FabricConnection? = nil
    ) {
        var left = count
        while left > 0 && peer.pointee.firstCounted >= 0 {
            left -= 1
            let index = peer.pointee.firstCounted
            let slot = slots + Int(index)
            peer.pointee.firstCounted = slot.pointee.next
            peer.pointee.countedBytes -= slot.pointee.length
            slot.pointee.status = status
            slot.pointee.detail = detail
            slot.pointee.connection = lost?.rawValue ?? 0
            slot.pointee.next = -1
            if lastEnded >= 0 { slots[Int(lastEnded)].next = index } else { firstEnded = index }
            lastEnded = index
            countedInFlight -= 1
        }
        if peer.pointee.firstCounted < 0 { peer.pointee.lastCounted = -1 }
    }

    /// Hands out completions of counted writes while there is room.
    mutating func handOutWrites() {
        while firstEnded >= 0 && hasRoom {
            let index = firstEnded
            let slot = slots + Int(index)
            firstEnded = slot.pointee.next
            if firstEnded < 0 { lastEnded = -1 }
            if !slot.pointee.hasRecord {
                var completion = Completion(
                    context: slot.pointee.context, count: 1, status: slot.pointee.status,
                    detail: slot.pointee.detail)
                if slot.pointee.status == .success {
                    emit(completion)
                } else {
                    completion.tag = slot.pointee.tag
                    completion.delivery = .unsettled(
                        connection: slot.pointee.connection, ordinal: UInt64(slot.pointee.sequence))
                    emitLost(completion, of: slot.pointee.peer)
                }
            }
            slot.pointee.isReported = true
            if !slot.pointee.isPosted { pushWrite(index) }
        }
    }

    /// Adds a completion that says what became of a request; those are not joined.
    private mutating func emitLost(_ completion: Completion, of peer: Int32) {
        output[outputCount] = completion
        output[outputCount].peer = Int(peer)
        outputCount += 1
    }

    // MARK: Frames

    /// Puts a small write into the peer's frame.
    @inline(__always) private mutating func pack(
        _ request: UnsafePointer<WorkRequest>
    ) -> (status: WorkStatus, detail: Int32) {
        let index = Int32(truncatingIfNeeded: request.pointee.target.pointee.peer)
        let frame = openFrame(to: index, room: FrameRecord.stride(length: request.pointee.length))
        guard frame >= 0 else { return (.again, 0) }
        append(
            FrameRecord(request.pointee, from: engine), request.pointee.source, to: frame,
            request.pointee.context, request.pointee.tag)
        return (.success, 0)
    }

    /// Adds one record to a frame that has room for it.
    @inline(__always) private mutating func append(
        _ record: FrameRecord, _ payload: UnsafeRawPointer?, to frame: Int32, _ context: UInt64,
        _ tag: RequestTag
    ) {
        let open = sendFrames + Int(frame)
        let place = open.pointee.bytes + open.pointee.used
        place.storeBytes(of: record, as: FrameRecord.self)
        let length = Int(record.length)
        if length > 0, let payload {
            (place + FrameRecord.byteCount).copyMemory(from: payload, byteCount: length)
        }
        open.pointee.used += FrameRecord.stride(length: length)
        open.pointee.note(context, tag)
    }

    /// The frame that is being filled for a peer, with `room` bytes left; -1 when there is none now.
    @inline(__always) private mutating func openFrame(to index: Int32, room: Int) -> Int32 {
        let peer = peers + Int(index)
        let current = peer.pointee.open
        if current >= 0 {
            let frame = sendFrames + Int(current)
            if frame.pointee.used + room <= frameBytes && frame.pointee.recordCount < Tuning.recordsPerFrame {
                return current
            }
            guard sendOpenFrame(of: index) else { return -1 }
        }
        let fresh = freeFrame
        guard fresh >= 0 else { return -1 }
        freeFrame = sendFrames[Int(fresh)].next
        let needsHello = peer.pointee.remoteIndex == .max
        sendFrames[Int(fresh)].reset(
            start: FrameHeader.byteCount + (needsHello ? FrameHeader.helloBytes : 0))
        if needsHello { writeHello(at: sendFrames[Int(fresh)].bytes + FrameHeader.byteCount) }
        // Whether a hello is there is read from the header when the frame is sent.
        sendFrames[Int(fresh)].bytes.storeBytes(
            of: needsHello ? FrameHeader.Flag.hello : 0, toByteOffset: 4, as: UInt16.self)
        peer.pointee.open = fresh
        slots[Int(Self.firstFrame + fresh)].peer = index
        list(index)
        return fresh
    }

    private func writeHello(at place: UnsafeMutableRawPointer) {
        place.storeBytes(of: UInt64(ownAddressLength), as: UInt64.self)
        (place + 8).copyMemory(from: ownAddress, byteCount: Limits.addressBytes)
        place.storeBytes(of: ringBase, toByteOffset: 8 + Limits.addressBytes, as: UInt64.self)
        place.storeBytes(of: ringKey, toByteOffset: 16 + Limits.addressBytes, as: UInt64.self)
    }

    /// Sends the peer's frame; false when it has to wait.
    mutating func sendOpenFrame(of index: Int32) -> Bool {
        let peer = peers + Int(index)
        guard peer.pointee.inFlight < Tuning.window, !isDown else { return false }
        // Failures travel before the acknowledgement that covers them.
        if peer.pointee.failureAck >= 0 && !sendAck(to: index, flags: 0) { return false }
        let number = peer.pointee.open
        let frame = sendFrames + Int(number)
        let hello = frame.pointee.bytes.load(fromByteOffset: 4, as: UInt16.self) & FrameHeader.Flag.hello
        let start = FrameHeader.byteCount + (hello != 0 ? FrameHeader.helloBytes : 0)
        let reverse = usesReverse(peer)
        writeHeader(
            at: frame.pointee.bytes, for: index, flags: hello | (reverse ? FrameHeader.Flag.reverse : 0),
            start: start, length: frame.pointee.used)
        let slot = slots + Int(Self.firstFrame + number)
        slot.pointee.peer = index
        slot.pointee.epoch = peer.pointee.epoch
        let result = fi_send(
            endpoint(reverse: reverse), frame.pointee.bytes, frame.pointee.used, arenaDescriptor,
            peer.pointee.address, slot)
        guard result == 0 else {
            refuse(index, Int32(truncatingIfNeeded: -result))
            return false
        }
        noteEndpoint(slot, reverse: reverse)
        peer.pointee.refusedSince = 0
        peer.pointee.isLost = false
        noteTold(peer)
        frame.pointee.sequence = peer.pointee.nextSequence
        frame.pointee.isPosted = true
        frame.pointee.next = -1
        peer.pointee.nextSequence &+= 1
        if peer.pointee.inFlight == 0 { peer.pointee.waitsSince = 0 }
        peer.pointee.inFlight += 1
        framesInFlight += 1
        if peer.pointee.lastInFlight >= 0 {
            sendFrames[Int(peer.pointee.lastInFlight)].next = number
        } else {
            peer.pointee.firstInFlight = number
        }
        peer.pointee.lastInFlight = number
        peer.pointee.open = -1
        return true
    }

    /// What a refused send means for the peer.
    private mutating func refuse(_ index: Int32, _ error: Int32) {
        if error == FI_EAGAIN {
            if isRefused(peers + Int(index)) { lose(index, status: .peerLost, detail: ETIMEDOUT) }
        } else {
            lose(index, status: FabricError.status(of: error), detail: error)
        }
    }

    private func writeHeader(
        at place: UnsafeMutableRawPointer, for index: Int32, flags: UInt16, start: Int, length: Int
    ) {
        let peer = peers + Int(index)
        let header = FrameHeader(
            flags: flags, start: UInt16(start), length: UInt32(length), to: peer.pointee.remoteIndex,
            from: UInt32(index), epoch: peer.pointee.epoch, sequence: peer.pointee.nextSequence,
            ackEpoch: peer.pointee.inEpoch, ack: peer.pointee.processed,
            failures: peer.pointee.failuresSent, sender: engine, receiver: peer.pointee.engine,
            writes: peer.pointee.countedWrites, writesAck: peer.pointee.countedArrivals)
        place.storeBytes(of: header, as: FrameHeader.self)
    }

    // MARK: Acknowledgements

    /// Sends an acknowledgement with the failures collected so far; false when it has to wait.
    ///
    /// `over` says that it leaves from the reverse endpoint, or not; nil is where it belongs.
    mutating func sendAck(to index: Int32, flags extra: UInt16, over: Bool? = nil) -> Bool {
        guard !isDown else { return false }
        let peer = peers + Int(index)
        let isFresh = peer.pointee.failureAck < 0
        if isFresh && !openAck(of: index) { return false }
        let number = peer.pointee.failureAck
        let bytes = ackBytes(number)
        var flags = FrameHeader.Flag.ack | extra
        if peer.pointee.owesGap { flags |= FrameHeader.Flag.gap }
        if peer.pointee.owesRing { flags |= FrameHeader.Flag.ring }
        if peer.pointee.remoteIndex == .max || peer.pointee.owesRing {
            flags |= FrameHeader.Flag.hello
            writeHello(at: bytes + FrameHeader.byteCount)
        }
        // Failures have been written behind the room for a hello.
        let hasTail = flags & FrameHeader.Flag.hello != 0 || peer.pointee.failureBytes > 0
        let start = FrameHeader.byteCount + (hasTail ? FrameHeader.helloBytes : 0)
        let length = start + peer.pointee.failureBytes
        let isReport = peer.pointee.failureBytes > 0
        if isReport { peer.pointee.failuresSent &+= 1 }
        let asks = extra & (FrameHeader.Flag.ping | FrameHeader.Flag.ask) != 0
        // Only what is in order says where it comes from: the rest may take another way at the last moment.
        let way = asks ? over ?? usesReverse(peer) : over
        if way == true { flags |= FrameHeader.Flag.reverse }
        writeHeader(at: bytes, for: index, flags: flags, start: start, length: length)
        let slot = slots + Int(Self.firstAck + number)
        slot.pointee.peer = index
        slot.pointee.epoch = peer.pointee.epoch
        let result = transmitAck(slot, bytes, length, over: way)
        guard result == 0 else {
            if isFresh { closeAck(of: index) }
            if isReport { peer.pointee.failuresSent &-= 1 }
            refuse(index, Int32(truncatingIfNeeded: -result))
            return false
        }
        peer.pointee.refusedSince = 0
        peer.pointee.failureAck = -1
        peer.pointee.failureBytes = 0
        noteTold(peer)
        peer.pointee.owesAck = false
        peer.pointee.owesRing = false
        if flags & FrameHeader.Flag.gap != 0 { peer.pointee.owesGap = false }
        return true
    }

    /// Asks a peer to acknowledge the writes so far: no more follow at once, of which one could ask.
    mutating func ask(_ number: Int32) {
        guard sendAck(to: number, flags: FrameHeader.Flag.ask) else { return }
        peers[Int(number)].countedAsked = peers[Int(number)].countedWrites
        peers[Int(number)].bytesSinceAsked = 0
    }

    /// Gives libfabric an acknowledgement. It may overtake anything; a question stays behind the writes it is about, and so
    /// has its way.
    private mutating func transmitAck(
        _ slot: UnsafeMutablePointer<OperationSlot>, _ bytes: UnsafeMutableRawPointer, _ length: Int,
        over way: Bool?
    ) -> Int {
        let peer = peers + Int(slot.pointee.peer)
        func send(_ reverse: Bool) -> Int {
            fi_send(
                endpoint(reverse: reverse), bytes, length, arenaDescriptor, peer.pointee.address, slot)
        }
        let isOrdered = way != nil || !isStreaming(peer)
        let prefersReverse = way ?? (isOrdered ? usesReverse(peer) : true)
        var result = send(prefersReverse)
        if result == 0 {
            noteEndpoint(slot, reverse: prefersReverse)
            if prefersReverse { peer.pointee.isReverseOpen = true }
        } else if prefersReverse && !isOrdered {
            // Until there is a second connection, and while it is full, the first must do.
            result = send(false)
        }
        return result
    }

    /// The header of what was just sent has told the peer what has come from it.
    @inline(__always) func noteTold(_ peer: UnsafeMutablePointer<Peer>) {
        peer.pointee.acknowledged = peer.pointee.processed
        peer.pointee.countedTold = peer.pointee.countedArrivals
    }

    /// Gives the peer a buffer for an acknowledgement.
    mutating func openAck(of index: Int32) -> Bool {
        let number = freeAck
        guard number >= 0 else { return false }
        freeAck = slots[Int(Self.firstAck + number)].next
        peers[Int(index)].failureAck = number
        peers[Int(index)].failureBytes = 0
        return true
    }

    private mutating func closeAck(of index: Int32) {
        freeAckBuffer(peers[Int(index)].failureAck)
        peers[Int(index)].failureAck = -1
    }

    /// Takes back the buffer of an acknowledgement.
    mutating func freeAckBuffer(_ number: Int32) {
        slots[Int(Self.firstAck + number)].next = freeAck
        freeAck = number
    }

    /// The buffer of an acknowledgement.
    func ackBytes(_ number: Int32) -> UnsafeMutableRawPointer {
        arena + Tuning.sendFrames * frameBytes + Int(number) * Tuning.ackBytes
    }

    // MARK: The end of frames

    /// Takes the oldest frame from those on their way to a peer.
    mutating func takeOldest(of peer: UnsafeMutablePointer<Peer>) -> Int32 {
        let number = peer.pointee.firstInFlight
        peer.pointee.firstInFlight = sendFrames[Int(number)].next
        if peer.pointee.firstInFlight < 0 { peer.pointee.lastInFlight = -1 }
        peer.pointee.inFlight -= 1
        framesInFlight -= 1
        return number
    }

    /// Queues a frame so that its completions are handed out.
    mutating func report(_ number: Int32) {
        sendFrames[Int(number)].next = -1
        if lastReport >= 0 { sendFrames[Int(lastReport)].next = number } else { firstReport = number }
        lastReport = number
    }

    /// Hands out completions of acknowledged frames while there is room.
    mutating func handOutReports() {
        while firstReport >= 0 {
            let number = firstReport
            let frame = sendFrames + Int(number)
            if frame.pointee.isLost {
                let peer = slots[Int(Self.firstFrame + number)].peer
                while hasRoom, let completion = frame.pointee.takeLost() { emitLost(completion, of: peer) }
            }
            while hasRoom, let completion = frame.pointee.takeReport() { emit(completion) }
            guard frame.pointee.reportedRuns == frame.pointee.runCount else { return }
            firstReport = frame.pointee.next
            if firstReport < 0 { lastReport = -1 }
            frame.pointee.isReported = true
            if !frame.pointee.isPosted { freeSendFrame(number) }
        }
    }

    /// Takes back a frame that libfabric and the reports are done with.
    mutating func freeSendFrame(_ number: Int32) {
        sendFrames[Int(number)].next = freeFrame
        freeFrame = number
    }

    /// Puts the counts of finished writes into frames, for shares that an immediate cannot say.
    mutating func countFinishedWrites() {
        while firstUncounted >= 0 {
            let index = firstUncounted
            let slot = slots + Int(index)
            guard let target = slot.pointee.target else { return }
            let frame = openFrame(to: slot.pointee.peer, room: FrameRecord.byteCount)
            guard frame >= 0 else { return }
            let request = WorkRequest(
                context: slot.pointee.context, source: UnsafeRawPointer(slot), length: 0, localKey: 0,
                target: target, targetOffset: slot.pointee.offset, immediate: slot.pointee.immediate,
                eighths: slot.pointee.eighths)
            append(FrameRecord(request, from: engine), nil, to: frame, slot.pointee.context, SendFrame.noTag)
            firstUncounted = slot.pointee.next
            if firstUncounted < 0 { lastUncounted = -1 }
            pushWrite(index)
        }
    }
}
