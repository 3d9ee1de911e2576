import CLibfabric
import CPlatform
import Glibc
import TransferCore

/// Everything that the data path of a domain touches: plain memory at fixed places, used by one thread at a
/// time.
///
/// It is a struct behind one pointer, and its parts are pointers, so that the loops need neither reference
/// counting nor exclusivity checks, and nothing grows.
struct DomainState {
    var handles: FabricHandles
    let page: TargetPage
    let engine: UInt64

    // Settings.
    let frames: Bool
    let isHardware: Bool
    let isTCP: Bool
    let threshold: Int
    let frameBytes: Int
    let writeFlags: UInt64
    /// Whether receivers acknowledge writes in the headers of their frames, many at once, where FI_DELIVERY_COMPLETE costs a
    /// packet each. Takes a transport that keeps writes and sends in order, and 64 bits with a write.
    let countsWrites: Bool
    let postsPerPoll: Int
    let transmitSlots: Int
    let maximumWriteBytes: UInt64
    /// Writes up to this many bytes travel as records in frames; -1 is none.
    let frameLimit: Int

    /// Our address, for hellos.
    let ownAddress: UnsafeMutableRawPointer
    let ownAddressLength: Int
    /// What tells this NIC apart from the engine's others.
    let identity: UInt32
    /// What was counted of connections that are over.
    var ledgers = EpochLedgers()
    /// Whether the endpoint is closed, because its address cannot be had; when to try again; how often it was opened again.
    var isDown = false
    var reopensAt: UInt64 = 0
    var renewals = 0
    /// See `Tuning.settlePatience`.
    var settlePatience = Tuning.settlePatience

    // Memory: slots are numbered writes, frames, acknowledgements, receives.
    let slots: UnsafeMutablePointer<OperationSlot>
    let sendFrames: UnsafeMutablePointer<SendFrame>
    let peers: UnsafeMutablePointer<Peer>
    /// Addresses of the peers, `Limits.addressBytes` each.
    let peerAddresses: UnsafeMutableRawPointer
    let listed: UnsafeMutablePointer<Int32>
    let entries: UnsafeMutablePointer<fi_cq_data_entry>
    let errorEntry: UnsafeMutablePointer<te_fi_error_entry>
    /// The ends of counted writes on their way, by slot.
    let ends: UnsafeMutablePointer<UInt64>
    /// Where the peers' counted writes end: `CountedWrite.ringBytes` for each; how peers address it, and whose are in use.
    let rings: UnsafeMutablePointer<UInt64>
    var ringRegion: UnsafeMutablePointer<fid_mr>?
    var ringBase: UInt64 = 0
    var ringKey: UInt64 = 0
    let writers: UnsafeMutablePointer<Int32>
    var writerCount = 0
    let template: UnsafeMutablePointer<WriteTemplate>
    let arena: UnsafeMutableRawPointer
    let arenaBytes: Int
    let lists: UnsafeMutableRawPointer
    let listBytes: Int
    var arenaRegion: UnsafeMutablePointer<fid_mr>?
    var arenaDescriptor: UnsafeMutableRawPointer?

    // Free lists and queues through `next`, -1 when empty.
    var freeWrite: Int32 = -1
    var freeFrame: Int32 = -1
    var freeAck: Int32 = -1
    /// Acknowledged frames whose completions have not all been handed out.
    var firstReport: Int32 = -1
    var lastReport: Int32 = -1
    /// Acknowledged or failed counted writes that have not been handed out.
    var firstEnded: Int32 = -1
    var lastEnded: Int32 = -1
    /// Finished writes whose count has not been put into a frame.
    var firstUncounted: Int32 = -1
    var lastUncounted: Int32 = -1
    /// Receive buffers that hold frames, in order of arrival.
    var firstArrived: Int32 = -1
    var lastArrived: Int32 = -1
    /// Receive buffers with frames that overtook one before them.
    var firstEarly: Int32 = -1
    var arrivedOffset = 0
    var arrivedRecord: UInt32 = 0
    var arrivedHasMessage = false
    /// Receive buffers whose messages the engine is reading, and those to be posted.
    var held: Int32 = -1
    var unposted: Int32 = -1

    var peerCount = 0
    var listedCount = 0
    var posted = 0
    var writesInFlight = 0
    var framesInFlight = 0
    var countedInFlight = 0
    /// What the reverse endpoint has not completed.
    var reverseInFlight = 0
    var polls: UInt32 = 0
    /// Whether there may be connections of which the kernel does not yet find out that nobody is at their end: libfabric makes
    /// them when something is sent, again after one has broken, and does not say so. And when to look for them.
    var mayHaveNewConnections: Bool
    var keepsAliveAt: UInt64 = 0
    /// Polls in a row that found nothing.
    var calm: UInt32 = 0

    // The caller's buffer during a poll.
    var output: UnsafeMutablePointer<Completion>
    var outputCount = 0
    var outputCapacity = 0

    static let firstFrame = Int32(Tuning.writes)
    static let firstAck = firstFrame + Int32(Tuning.sendFrames)
    static let firstReceive = firstAck + Int32(Tuning.ackFrames)
    static let slotCount = firstReceive + Int32(Tuning.receiveFrames)
    static let entryCount = Limits.completionsPerPoll
    /// Only the rings of peers that write are ever touched.
    static let ringsBytes = Tuning.peers * CountedWrite.ringBytes

    // MARK: Output

    var hasRoom: Bool { outputCount < outputCapacity }

    /// Adds a completion; one that ended like the one before is counted there.
    @inline(__always) mutating func emit(_ completion: Completion) {
        if outputCount > 0 {
            let last = output + (outputCount - 1)
            if last.pointee.context == completion.context, last.pointee.count > 0, completion.count > 0,
                last.pointee.status == completion.status, last.pointee.detail == completion.detail
            {
                last.pointee.count += completion.count
                return
            }
        }
        output[outputCount] = completion
        outputCount += 1
    }

    // MARK: Peers that need a look

    /// Makes sure that `service` looks at a peer.
    @inline(__always) mutating func list(_ peer: Int32) {
        if peers[Int(peer)].isListed { return }
        peers[Int(peer)].isListed = true
        listed[listedCount] = peer
        listedCount += 1
    }

    /// Sends what is due: frames that need not wait, and acknowledgements.
    ///
    /// `isIdle` says that there was nothing else to do, `force` that nothing may be left behind.
    mutating func service(isIdle: Bool, force: Bool = false) {
        var kept = 0
        for position in 0..<listedCount {
            let index = listed[position]
            let peer = peers + Int(index)
            if peer.pointee.open >= 0, sendFrames[Int(peer.pointee.open)].recordCount > 0,
                force || freeFrame < 0 || peer.pointee.inFlight < Tuning.aggregation
            {
                _ = sendOpenFrame(of: index)
            }
            let owed = peer.pointee.processed &- peer.pointee.acknowledged
            let owesWrites = peer.pointee.countedTold != peer.pointee.countedArrivals
            if peer.pointee.owesAck || peer.pointee.owesGap || owed >= Tuning.window / 2
                || ((isIdle || force) && (owed > 0 || peer.pointee.failureAck >= 0))
                || (owesWrites && (force || calm >= Tuning.calmPolls))
            {
                _ = sendAck(to: index, flags: 0)
            }
            if peer.pointee.provesSince != 0 { proveEnd(to: index) }
            let isUnasked = peer.pointee.isUnasked
            if isUnasked, force || polls &- peer.pointee.countedAt >= Tuning.askPolls { ask(index) }
            let isDone =
                peer.pointee.open < 0 && peer.pointee.processed == peer.pointee.acknowledged
                && peer.pointee.failureAck < 0 && !peer.pointee.owesAck && !peer.pointee.owesGap
                && peer.pointee.countedTold == peer.pointee.countedArrivals && !isUnasked
                && peer.pointee.provesSince == 0
            if isDone {
                peer.pointee.isListed = false
            } else {
                listed[kept] = index
                kept += 1
            }
        }
        listedCount = kept
    }

    // MARK: The peer table

    /// The entry of an address and engine, made when there is none; -1 with an error number when that fails.
    mutating func findPeer(engine: UInt64, address: UnsafeRawPointer, length: Int) -> (
        index: Int32, error: Int32
    ) {
        for index in 0..<peerCount
        where peers[index].engine == engine && peers[index].addressLength == length
            && memcmp(peerAddresses + index * Limits.addressBytes, address, length) == 0
        {
            return (Int32(index), 0)
        }
        var place = peerCount
        if place == Tuning.peers {
            place = (0..<peerCount).first { isForgettable($0) } ?? -1
            guard place >= 0 else { return (-1, ENOSPC) }
            _ = fi_av_remove(handles.addresses, &peers[place].address, 1, 0)
            ledgers.forget(Int32(place))
        }
        // Providers may read a whole socket address however long the name is.
        let stored = peerAddresses + place * Limits.addressBytes
        stored.initializeMemory(as: UInt8.self, repeating: 0, count: Limits.addressBytes)
        stored.copyMemory(from: address, byteCount: length)
        var resolved = te_fi_address_unspecified
        let inserted = fi_av_insert(handles.addresses, stored, 1, &resolved, 0, nil)
        guard inserted == 1 else { return (-1, inserted < 0 ? -inserted : EINVAL) }
        // What its predecessor has written is nothing of it.
        let wasWriter = place < peerCount && peers[place].isWriter
        if wasWriter {
            (rings + place * Int(CountedWrite.sequences)).update(
                repeating: 0, count: Int(CountedWrite.sequences))
        }
        peers[place] = Peer()
        peers[place].isWriter = wasWriter
        peers[place].engine = engine
        peers[place].address = resolved
        peers[place].addressLength = length
        let known = UnsafeRawBufferPointer(start: stored, count: length)
        peers[place].inEpoch = ledgers.firstEpoch(of: engine, nic: Self.identity(of: known))
        if place == peerCount { peerCount += 1 }
        return (Int32(place), 0)
    }

    private func isForgettable(_ index: Int) -> Bool {
        let peer = peers + index
        return peer.pointee.isLost && peer.pointee.imports == 0 && peer.pointee.writes == 0
            && peer.pointee.open < 0 && !peer.pointee.isListed && firstArrived < 0 && firstEarly < 0
            && firstEnded < 0
    }

    /// Gives up what is on its way to a peer: all of it ends with `status`, unsettled, and the next frame starts over, in the
    /// epoch `next` or a later one.
    mutating func lose(_ index: Int32, status: WorkStatus, detail: Int32, next: UInt32? = nil) {
        let peer = peers + Int(index)
        let lost = connection(to: peer, isWrites: false)
        if frames, peer.pointee.firstInFlight >= 0 || peer.pointee.firstCounted >= 0 {
            peer.pointee.provesReverse = peer.pointee.provesReverse || lost.isReverse
            peer.pointee.provesSince = te_monotonic_nanoseconds()
            list(index)
        }
        while peer.pointee.firstInFlight >= 0 {
            let frame = takeOldest(of: peer)
            sendFrames[Int(frame)].failAll(status, detail: detail, connection: lost)
            report(frame)
        }
        if peer.pointee.open >= 0 {
            let frame = peer.pointee.open
            peer.pointee.open = -1
            sendFrames[Int(frame)].failAll(status, detail: detail, connection: nil)
            report(frame)
        }
        endWrites(of: peer, .max, status, detail, connection(to: peer, isWrites: true))
        peer.pointee.isLost = true
        // What it was not told it asks for again, if it lives.
        noteTold(peer)
        peer.pointee.owesAck = false
        peer.pointee.owesGap = false
        peer.pointee.isStreaming = false
        peer.pointee.isReverseOpen = false
        peer.pointee.usesReverse = false
        peer.pointee.epoch &+= 1
        if let next, Int32(bitPattern: next &- peer.pointee.epoch) > 0 { peer.pointee.epoch = next }
        peer.pointee.nextSequence = 0
        peer.pointee.countedWrites = 0
        peer.pointee.countedAcked = 0
        peer.pointee.countedAsked = 0
        peer.pointee.bytesSinceAsked = 0
        peer.pointee.inFlight = 0
        peer.pointee.remoteIndex = .max
        peer.pointee.hasRing = false
        peer.pointee.greetedAt = 0
        peer.pointee.refusedSince = 0
        peer.pointee.waitsSince = 0
        peer.pointee.ackSeen = 0
        peer.pointee.failuresExpected = 0
        peer.pointee.failuresSeen = 0
    }

    /// Whether the next frame or write to a peer leaves from the reverse endpoint.
    ///
    /// They change over when nothing is on its way to the peer: what arrives at two connections is in no order.
    @inline(__always) mutating func usesReverse(_ peer: UnsafeMutablePointer<Peer>) -> Bool {
        let wanted = isStreaming(peer) && peer.pointee.isReverseOpen
        if wanted != peer.pointee.usesReverse, peer.pointee.inFlight == 0, peer.pointee.writes == 0,
            peer.pointee.firstCounted < 0
        {
            peer.pointee.usesReverse = wanted
        }
        return peer.pointee.usesReverse
    }

    /// Whether large writes have come from a peer lately, so that nothing should travel against them.
    @inline(__always) func isStreaming(_ peer: UnsafeMutablePointer<Peer>) -> Bool {
        if peer.pointee.isStreaming, polls &- peer.pointee.streamedAt > Tuning.streamPolls {
            peer.pointee.isStreaming = false
        }
        return peer.pointee.isStreaming
    }

    /// The endpoint that something leaves from.
    @inline(__always) func endpoint(reverse: Bool) -> UnsafeMutablePointer<fid_ep> {
        reverse ? handles.reverse ?? handles.endpoint : handles.endpoint
    }

    /// Notes that libfabric has taken an operation.
    @inline(__always) mutating func noteEndpoint(_ slot: UnsafeMutablePointer<OperationSlot>, reverse: Bool) {
        slot.pointee.isPosted = true
        slot.pointee.isReverse = reverse
        if reverse { reverseInFlight += 1 }
    }

    /// Notes that libfabric is done with one.
    @inline(__always) mutating func clearEndpoint(_ slot: UnsafeMutablePointer<OperationSlot>) {
        if slot.pointee.isReverse { reverseInFlight -= 1 }
        slot.pointee.isReverse = false
        slot.pointee.isPosted = false
    }

    /// Whether the transport has refused work for this peer for so long that it counts as lost.
    mutating func isRefused(_ peer: UnsafeMutablePointer<Peer>) -> Bool {
        let now = te_monotonic_nanoseconds()
        if peer.pointee.refusedSince == 0 { peer.pointee.refusedSince = now }
        return now - peer.pointee.refusedSince > Tuning.patience
    }

    /// Without it a connection stays for ever when the other end dies while the path is cut, or its host loses power, and nothing
    /// is sent to it: a descriptor and its buffers.
    mutating func keepConnectionsAlive() {
        let now = te_monotonic_nanoseconds()
        guard now >= keepsAliveAt else { return }
        keepsAliveAt = now + Tuning.keepAliveInterval
        mayHaveNewConnections = false
        te_keep_alive(ownAddress, ownAddressLength, peerAddresses, Limits.addressBytes, peerCount)
    }

    // MARK: Lists

    @inline(__always) mutating func popWrite() -> Int32 {
        let slot = freeWrite
        if slot >= 0 { freeWrite = slots[Int(slot)].next }
        return slot
    }

    @inline(__always) mutating func pushWrite(_ slot: Int32) {
        slots[Int(slot)].next = freeWrite
        freeWrite = slot
    }

    /// Whether nothing is left that only a poll moves on.
    var isQuiet: Bool {
        firstReport < 0 && firstEnded < 0 && firstUncounted < 0 && firstArrived < 0 && held < 0
            && unposted < 0
    }
}

/// The arguments of a write that libfabric takes by reference. What ends with `CountedWrite` has two parts: libfabric takes
/// the fields of each kind as an array.
struct WriteTemplate {
    var message = fi_msg_rma()
    var source = iovec()
    var endSource = iovec(iov_base: nil, iov_len: 8)
    var descriptor: UnsafeMutableRawPointer?
    var endDescriptor: UnsafeMutableRawPointer?
    var target = fi_rma_iov()
    var endTarget = fi_rma_iov(addr: 0, len: 8, key: 0)
}
