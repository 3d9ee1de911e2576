import CLibfabric
import CPlatform
import Glibc
import TransferCore

// A connection that broke (docs/adr/0009): what was on its way is reported as unsettled, and the receiver is asked what it has
// counted. It may only answer once nothing of that epoch can land any more. A frame of the next epoch proves it: either it
// came over the same connection, behind all that was sent before, or over a new one, which libfabric accepts only after it
// has closed the old one. When no such frame comes, because the path is dead, the receiver closes its endpoint and opens it
// again at the same address: registrations belong to the domain and stay.
extension DomainState {
    // MARK: Sending side

    /// What the peer calls what was sent to it in this epoch, once that has ended; see `FabricConnection`.
    func connection(to peer: UnsafeMutablePointer<Peer>, isWrites: Bool) -> FabricConnection {
        FabricConnection(
            nic: identity, epoch: peer.pointee.epoch, isWrites: isWrites,
            // A record may count a write whose data is under way.
            needsFence: isWrites || peer.pointee.firstCounted >= 0, isReverse: peer.pointee.usesReverse)
    }

    /// Breaks the connection to a peer: what is on its way ends as unsettled.
    mutating func sever(_ index: Int32) {
        let peer = peers + Int(index)
        guard peer.pointee.inFlight > 0 || peer.pointee.firstCounted >= 0 || peer.pointee.open >= 0 else {
            return
        }
        lose(index, status: .peerLost, detail: ECONNABORTED)
    }

    /// Sends the next epoch's first frame to a peer that is to prove that the last one is over.
    mutating func proveEnd(to index: Int32) {
        let peer = peers + Int(index)
        let now = te_monotonic_nanoseconds()
        guard now - peer.pointee.provesSince < Tuning.patience else {
            peer.pointee.provesSince = 0
            return
        }
        let epoch = peer.pointee.epoch
        // Not with every poll: each question takes a buffer of a peer that does not look.
        if now - peer.pointee.greetedAt > Tuning.greetAgainAfter,
            sendAck(to: index, flags: FrameHeader.Flag.ask, over: false)
        {
            peer.pointee.greetedAt = now
        }
        if peer.pointee.provesReverse, peer.pointee.epoch == epoch, now >= peer.pointee.provesReverseAt,
            sendAck(to: index, flags: FrameHeader.Flag.ask, over: true)
        {
            peer.pointee.provesReverse = false
        }
        // What is refused begins another epoch, and has to be asked about again: not at once either.
        if peer.pointee.epoch != epoch {
            peer.pointee.greetedAt = now
            peer.pointee.provesReverseAt = now + Tuning.greetAgainAfter
        }
    }

    // MARK: Receiving side

    /// Notes a frame that came behind everything that its sender sent before over the same endpoint.
    mutating func noteOrdered(_ header: FrameHeader, from index: Int32) {
        if Int32(bitPattern: header.epoch &- peers[Int(index)].inEpoch) > 0 {
            startEpoch(header.epoch, of: index)
        }
        let peer = peers + Int(index)
        let isReverse = header.flags & FrameHeader.Flag.reverse != 0
        let proven = isReverse ? peer.pointee.provenReverse : peer.pointee.proven
        guard Int32(bitPattern: header.epoch &- proven) > 0 else { return }
        if isReverse { peer.pointee.provenReverse = header.epoch } else { peer.pointee.proven = header.epoch }
        peer.pointee.settlesSince = 0
    }

    /// Closes what a peer sent in an epoch and says what of it has been counted; see `FabricDomain.settle`.
    mutating func settle(_ connection: FabricConnection, from engine: UInt64) -> DeliveryLedger? {
        guard frames else { return nil }
        let found = (0..<peerCount).filter {
            peers[$0].engine == engine && Self.identity(of: address(of: $0)) == connection.nic
        }
        guard let place = found.first else { return ledgers.closeUnmet(connection, of: engine) }
        // Two NICs of one engine that look the same: nobody can say which is meant.
        guard found.count == 1 else { return nil }
        let index = Int32(place)
        let peer = peers + place
        let ahead = connection.ahead(of: peer.pointee.inEpoch)
        let epoch = peer.pointee.inEpoch &+ UInt32(bitPattern: ahead)
        if ahead >= 0 { startEpoch(epoch &+ 1, of: index) }
        let ledger = ledgers.ledger(of: index, epoch, isWrites: connection.isWrites)
        guard connection.needsFence else { return ledger }
        func isFenced() -> Bool {
            let proven = connection.isReverse ? peer.pointee.provenReverse : peer.pointee.proven
            return Int32(bitPattern: proven &- epoch) > 0
        }
        if !isFenced() {
            let now = te_monotonic_nanoseconds()
            if peer.pointee.settlesSince == 0 { peer.pointee.settlesSince = now }
            guard now - peer.pointee.settlesSince >= settlePatience else { return nil }
            renew()
        }
        guard isFenced() else { return nil }
        peer.pointee.settlesSince = 0
        return ledger
    }

    /// Keeps what has been counted in a peer's epoch that ends.
    mutating func saveLedger(of index: Int32) {
        let peer = peers + Int(index)
        var frames = UInt64(peer.pointee.processed) << FabricConnection.recordBits
        if firstArrived >= 0, arrivedOffset > 0, slots[Int(firstArrived)].peer == index,
            slots[Int(firstArrived)].epoch == peer.pointee.inEpoch
        {
            frames += UInt64(arrivedRecord)
        }
        ledgers.save(
            index, epoch: peer.pointee.inEpoch, frames: frames, writes: UInt64(peer.pointee.countedArrivals))
    }

    /// The address of a peer, as it was inserted.
    private func address(of place: Int) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(
            start: peerAddresses + place * Limits.addressBytes, count: peers[place].addressLength)
    }

    /// A number that tells NICs of one engine apart, known to both sides.
    static func identity(of address: UnsafeRawBufferPointer) -> UInt32 {
        address.reduce(2_166_136_261) { ($0 ^ UInt32($1)) &* 16_777_619 }
    }

    // MARK: The endpoint

    /// Closes the endpoint, so that nothing lands that was sent to it, and opens it again at the same address. What is under way
    /// from here ends as unsettled. Peers hear that they have to start over.
    mutating func renew() {
        for index in 0..<Int32(peerCount) {
            let peer = peers + Int(index)
            startEpoch(peer.pointee.inEpoch &+ 1, of: index)
            let isBusy = peer.pointee.inFlight > 0 || peer.pointee.firstCounted >= 0
            if isBusy || peer.pointee.open >= 0 { lose(index, status: .peerLost, detail: ENETRESET) }
        }
        isDown = true
        // Whatever libfabric does not close keeps this NIC out.
        guard handles.closeEndpoints() else { return }
        renewals += 1
        takeBack()
        for index in 0..<Int32(peerCount) {
            peers[Int(index)].proven = peers[Int(index)].inEpoch
            peers[Int(index)].provenReverse = peers[Int(index)].inEpoch
        }
        reopen()
    }

    /// Opens the endpoint that `renew` has closed, or notes when to try again: its address may be gone.
    mutating func reopen() {
        let now = te_monotonic_nanoseconds()
        guard now >= reopensAt else { return }
        reopensAt = now + Tuning.reopenAfter
        let address = UnsafeRawBufferPointer(start: ownAddress, count: ownAddressLength)
        guard handles.openEndpoints(at: address) == 0 else { return }
        isDown = false
        mayHaveNewConnections = isTCP
        reopensAt = 0
        postReceives()
        for index in 0..<Int32(peerCount)
        where peers[Int(index)].imports > 0 || peers[Int(index)].remoteIndex != .max {
            peers[Int(index)].owesAck = true
            list(index)
        }
    }

    /// Takes back everything that the closed endpoint had.
    private mutating func takeBack() {
        for number in 0..<Self.slotCount where slots[Int(number)].isPosted {
            let slot = slots + Int(number)
            slot.pointee.isPosted = false
            slot.pointee.isReverse = false
            if number < Self.firstFrame {
                if slot.pointee.isReported { pushWrite(number) }
            } else if number < Self.firstAck {
                finishSend(number - Self.firstFrame)
            } else if number < Self.firstReceive {
                freeAckBuffer(number - Self.firstAck)
            } else {
                recycle(number)
            }
        }
        writesInFlight = 0
        reverseInFlight = 0
        for index in 0..<peerCount { peers[index].writes = 0 }
    }
}
