import TransferCore

/// The way of a request: `launch` cuts it into packets, which queue for their target; `transmit` sends them, one from each
/// queue in turn; each arrives and is delivered; when the last one has been, the immediate is counted and an
/// acknowledgement goes back.
extension SimulatedNetwork {
    /// Cuts fall on multiples of this many bytes.
    private static let granule = 4096
    /// A packet has at most this many granules...
    private static let granulesPerSegment = 16
    /// ...or this part of the write, so that a write of any length makes about twice as many packets and no
    /// more.
    private static let segmentsPerWrite = 32
    /// How long after room was made a sender that was pushed back tries again.
    private static let retryNanoseconds: UInt64 = 1_000

    /// Starts a request.
    func launch(_ flight: Flight) {
        let source = flight.source
        source.outstanding += 1
        source.admit(flight) { newConnection() }
        let ranges = cuts(of: flight)
        flight.openSegments = ranges.count
        for range in ranges { source.enqueue(Segment(flight: flight, range: range)) }
        guard !source.isTransmitting else { return }
        source.isTransmitting = true
        schedule(.transmit(source), at: nowNanoseconds)
    }

    /// Sends the packet whose turn it is.
    func transmit(_ port: SimulatedPort) {
        guard port.isOpen, let segment = port.dequeue() else {
            port.isTransmitting = false
            return
        }
        let flight = segment.flight
        var begin = nowNanoseconds
        if !flight.hasBegun {
            flight.hasBegun = true
            begin += port.nic.requestOverheadNanoseconds
        }
        let cost = port.nic.serialisationNanoseconds(segment.range.count)
        var head = begin + drawDelay(port.nic)
        if !port.nic.reorder {
            head = max(head, flight.lane.tail)
            flight.lane.tail = head + cost
        }
        schedule(.arrive(segment, tail: head + cost, isJudged: false), at: head)
        schedule(.transmit(port), at: begin + cost)
    }

    /// The packets of a request in the order in which they are sent; at least one.
    private func cuts(of flight: Flight) -> [Range<Int>] {
        let nic = flight.source.nic
        let length = flight.length
        guard case .write = flight.body, nic.cutsWrites, length > Self.granule else { return [0..<length] }
        let longest = max(Self.granulesPerSegment, length / Self.granule / Self.segmentsPerWrite)
        var ranges: [Range<Int>] = []
        var begin = 0
        while begin < length {
            let end = min(length, begin + (1 + Int(draw(below: UInt64(longest)))) * Self.granule)
            ranges.append(begin..<end)
            begin = end
        }
        guard nic.reorder else { return ranges }
        for last in stride(from: ranges.count - 1, to: 0, by: -1) {
            ranges.swapAt(last, Int(draw(below: UInt64(last + 1))))
        }
        return ranges
    }

    /// A packet's first byte is there: asks the fault rule, and queues the packet at the receive side.
    ///
    /// The receive side starts with the first byte and is done when it had the time for all bytes and the
    /// last one has come. Only the former is charged to it, so that packets from slow NICs share a fast one.
    func arrive(_ segment: Segment, tail: UInt64, isJudged: Bool) {
        let flight = segment.flight
        guard flight.source.isOpen else { return }  // a closed NIC sends nothing and its memory may be gone
        switch isJudged ? .deliver : verdict(on: flight, segment.range, kind: flight.packetKind) {
        case .deliver: break
        case .delay(let nanoseconds):
            let later = nowNanoseconds + nanoseconds
            return schedule(.arrive(segment, tail: tail + nanoseconds, isJudged: true), at: later)
        case .duplicate(let nanoseconds):
            guard case .message(let message) = flight.body else { break }
            schedule(
                .echo(message, sender: flight.source.engine, target: flight.target),
                at: tail + nanoseconds)
        case .fail(let status):
            flight.fail(status, penaltyNanoseconds: flight.source.nic.retryTimeoutNanoseconds)
            return close(segment)
        }
        guard let target = openTarget(of: flight) else { return close(segment) }
        let cost = target.nic.serialisationNanoseconds(segment.range.count)
        target.receiveFree = max(target.receiveFree, nowNanoseconds) + cost
        schedule(.deliver(segment), at: max(target.receiveFree, tail))
    }

    /// A packet is complete: copies it to where it belongs.
    func deliver(_ segment: Segment) {
        let flight = segment.flight
        guard flight.source.isOpen else { return }
        guard let target = openTarget(of: flight) else { return close(segment) }
        switch flight.body {
        case .write(let write):
            if target.incoming[flight.connection]?.isClosed == true { flight.fail(.peerLost) }
            if flight.isOnItsWay { land(segment, of: write, at: target) }
        case .message(let message):
            guard target.parked.isEmpty, target.hasRoom else { return target.parked.append(flight) }
            target.publish(.message(message, sender: flight.source.engine))
            onReady(target.engine)
        }
        close(segment)
    }

    private func land(_ segment: Segment, of write: Flight.Write, at target: SimulatedPort) {
        let flight = segment.flight
        let length = flight.length
        if length > 0, flight.captured == nil,
            unsafe !flight.source.owns(write.source, length: length, localKey: write.localKey)
        {
            return flight.fail(.accessDenied, detail: SimulatedDetail.badLocalKey)
        }
        // The whole write is admitted or nothing of it, as a NIC does that reads the length in the first
        // packet.
        switch unsafe target.page.admit(
            index: write.index, generation: write.generation, secret: write.secret, offset: write.offset,
            length: UInt64(length))
        {
        case .failure(let status): flight.fail(status)
        case .success(let address):
            guard let region = target.remoteKeys[write.remoteKey], region.index == write.index,
                region.generation == write.generation
            else { return flight.fail(.accessDenied, detail: SimulatedDetail.badRemoteKey) }
            // Both sides are registered and have just been checked, or the bytes are a copy.
            let source = unsafe flight.captured?.bytes ?? flight.source.moved(write, length: length)
            let range = segment.range.clamped(to: 0..<source.count)
            guard let first = source.baseAddress, !range.isEmpty else { return }
            let place = unsafe sample.map { unsafe region.base + $0.place(of: Int(write.offset)) } ?? address
            unsafe (place + range.lowerBound).copyMemory(
                from: first + range.lowerBound, byteCount: range.count)
            if let byte = faults.damagedByte(of: range.count, nowNanoseconds: nowNanoseconds) {
                unsafe (place + range.lowerBound + byte).assumingMemoryBound(to: UInt8.self).pointee ^= 4
            }
        }
    }

    /// Ends one packet. With the last one the write is counted, if all of it is there, and the sender is
    /// told.
    private func close(_ segment: Segment) {
        let flight = segment.flight
        flight.openSegments -= 1
        guard flight.openSegments == 0 else { return }
        let count = flight.count
        if flight.isOnItsWay, let target = ports[flight.target] {
            if count.eighths > 0 {
                target.page.add(eighths: count.eighths, to: count.immediate)
                onReady(target.engine)
            }
            target.note(flight)
        } else if flight.delivery == .unknown {
            ports[flight.target]?.note(flight)  // the sender knows, and will not ask
        }
        if !flight.isSevered { acknowledge(flight) }
    }

    private func acknowledge(_ flight: Flight) {
        let source = flight.source
        var time = nowNanoseconds + drawDelay(source.nic)
        // A failure has no packet: the sender's own NIC reports it.
        let hasPacket = flight.status == .success
        switch hasPacket ? verdict(on: flight, 0..<0, kind: .acknowledgement) : .deliver {
        case .deliver, .duplicate: break
        case .delay(let nanoseconds): time += nanoseconds
        case .fail(let status): flight.fail(status, penaltyNanoseconds: source.nic.retryTimeoutNanoseconds)
        }
        time += flight.penaltyNanoseconds
        if !source.nic.reorder {
            time = max(time, flight.lane.acknowledged)
            flight.lane.acknowledged = time
        }
        schedule(.complete(flight), at: time)
    }

    /// Puts the end of a request out for the sender's `poll`.
    func complete(_ flight: Flight) {
        guard flight.source.isOpen else { return }
        flight.source.report(flight)
        onReady(flight.source.engine)
    }

    /// A copy of a message arrives; one that finds no room is nobody's loss.
    func echo(_ message: MessageBytes, from sender: EngineID, to id: UInt64) {
        guard let target = ports[id], target.parked.isEmpty, target.hasRoom else { return }
        target.publish(.message(message, sender: sender))
        onReady(target.engine)
    }

    /// Called when a target's messages have been taken: lets those that were pushed back try again.
    func roomMade(at port: SimulatedPort) {
        guard !port.parked.isEmpty, !port.isUnparking, port.hasRoom else { return }
        port.isUnparking = true
        schedule(.unpark(port), at: nowNanoseconds + Self.retryNanoseconds)
    }

    /// Delivers messages that were pushed back, the oldest first, as many as there is room for.
    func unpark(_ port: SimulatedPort) {
        port.isUnparking = false
        var moved = 0
        for flight in port.parked {
            guard port.hasRoom, case .message(let message) = flight.body else { break }
            moved += 1
            guard flight.source.isOpen else { continue }
            port.publish(.message(message, sender: flight.source.engine))
            close(Segment(flight: flight, range: 0..<flight.length))
        }
        port.parked.removeFirst(moved)
        onReady(port.engine)
    }

    /// Unhooks a NIC. Messages that it had pushed back end as lost, since nobody will take them.
    func remove(_ port: SimulatedPort) {
        ports[port.id] = nil
        let pushedBack = port.parked
        port.shut()
        for flight in pushedBack where flight.source.isOpen {
            flight.fail(.peerLost, penaltyNanoseconds: flight.source.nic.retryTimeoutNanoseconds)
            close(Segment(flight: flight, range: 0..<flight.length))
        }
    }

    private func openTarget(of flight: Flight) -> SimulatedPort? {
        if let target = ports[flight.target] { return target }
        flight.fail(.peerLost, penaltyNanoseconds: flight.source.nic.retryTimeoutNanoseconds)
        return nil
    }

    private func verdict(
        on flight: Flight, _ range: Range<Int>, kind: SimulatedPacket.Kind
    ) -> SimulatedVerdict {
        let count = flight.count
        return faults.verdict(
            for: SimulatedPacket(
                kind: kind, nowNanoseconds: nowNanoseconds, source: flight.source.id, target: flight.target,
                offset: range.lowerBound, length: range.count, requestLength: flight.length,
                immediate: count.immediate, eighths: count.eighths,
                head: kind == .message ? flight.head : 0))
    }
}
