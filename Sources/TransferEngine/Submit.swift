internal import CPlatform
internal import Synchronization
internal import TransferCore

extension TransferSlot {
    /// Room for the targets of a scatter or a barrier.
    mutating func reserveTargets(_ count: Int) {
        if targets.count < count { targets = Table(repeating: ScatterTarget(), count: (count + 63) & ~63) }
        targetCount = count
    }

    /// Keeps the bytes of a message.
    mutating func keepMessage(_ payload: UnsafeRawBufferPointer) {
        if message.count == 0 { message = Table(repeating: 0, count: Limits.packetBytes) }
        ControlMessage.mark(message)
        let room = unsafe UnsafeMutableRawBufferPointer(message.memory)[ControlMessage.headerBytes...]
        unsafe UnsafeMutableRawBufferPointer(rebasing: room).copyMemory(from: payload)
        length = ControlMessage.headerBytes + payload.count
    }

    /// Forgets the user before.
    mutating func begin(_ kind: Kind, _ immediate: Immediate?, _ callback: TransferCallback?) {
        self.kind = kind
        self.immediate = immediate?.value ?? 0
        eighths = immediate == nil ? 0 : Eighths.whole
        failure = .success
        isSilentStage = false
        isPosting = false
        isStarted = false
        isReady = false
        isDoubtful = false
        severDue = .max
        if !redo.isEmpty { redo = [] }
        if !unsettled.isEmpty { unsettled = [] }
        if !senders.isEmpty { senders = [] }
        reason = nil
        inFlight = 0
        bytesInFlight = 0
        trafficClass = nil
        completed = 0
        expectedEighths = 0
        pages.forget()
        self.callback = callback
    }
}

extension TransferEngine {
    /// Takes a slot, lets `fill` describe the operation, and starts it here or hands it to the worker.
    @inline(__always)
    func submit(
        _ kind: TransferSlot.Kind, _ immediate: Immediate?, _ timeout: Duration?, _ onEnd: TransferCallback?,
        fill: (inout TransferSlot) -> Void
    ) throws(TransferError) -> Transfer {
        guard !isStopping.load(ordering: .relaxed) else { throw .engineClosed }
        guard let index = group.free.pop() else { throw .tooManyTransfers }
        let generation = UInt32(group.statuses[index].load(ordering: .relaxed) >> 32)
        let now = isProgressThread ? group.recorder.now() : group.clock.nowNanoseconds
        prepare(&group.slots[index], kind, immediate, now, timeout, onEnd, fill)
        let pending = UInt64(generation) << 32 | SlotStatus.pending
        // pairs with the loads of the progress thread
        group.statuses[index].store(pending, ordering: .releasing)
        if isProgressThread {
            group.start(&group.slots[index], index)
            stirIfResting()
        } else {
            let taken = group.submissions.push(index)
            precondition(taken, "the submission queue holds every slot")
            wakeIfSleeping()
            // pairs with the store in close(): it sees what has been pushed, or this sees that it closes
            if isStopping.load(ordering: .sequentiallyConsistent) { failPending() }
        }
        return Transfer(index: index, generation: generation)
    }

    @inline(__always)
    private func prepare(
        _ slot: inout TransferSlot, _ kind: TransferSlot.Kind, _ immediate: Immediate?, _ now: UInt64,
        _ timeout: Duration?, _ onEnd: TransferCallback?, _ fill: (inout TransferSlot) -> Void
    ) {
        slot.begin(kind, immediate, onEnd)
        fill(&slot)
        slot.submitted = now
        slot.deadline = now &+ (timeout?.nanoseconds ?? defaultTimeout)
        if slot.deadline < now { slot.deadline = .max }
        if !isProgressThread { slot.pages.keep() }
    }

    /// Carries out a write below `leastStriped` on one NIC without taking a slot, by posting or filling what is in `batch`.
    /// False when that NIC does not complete it at once or takes nothing now, when others wait, or when there are several
    /// classes: then it goes the ordinary way. `sentBytes` of its `byteCount` are what it sends.
    @inline(__always)
    func doAtOnce(
        source: UInt, _ localIndex: UInt32, _ byteCount: Int, _ attachment: UInt32,
        _ targetOffset: Int, _ immediate: Immediate?, leastStriped: Int, sentBytes: Int,
        start: (borrowing HeldDomain) -> Bool
    ) -> Bool {
        doAtOnce(
            source, localIndex, byteCount, group.attachments[attachment], targetOffset, immediate,
            leastStriped, sentBytes, start)
    }

    @inline(__always)
    private func doAtOnce(
        _ source: UInt, _ localIndex: UInt32, _ byteCount: Int, _ attachment: borrowing Attachment,
        _ targetOffset: Int, _ immediate: Immediate?, _ leastStriped: Int, _ sentBytes: Int,
        _ start: (borrowing HeldDomain) -> Bool
    ) -> Bool {
        guard attachment.completesAtOnce, UInt64(byteCount) <= attachment.maximumWriteBytes,
            byteCount < leastStriped || attachment.rails.count == 1,
            group.hot.value.ready.isEmpty, group.hot.value.downLinks == 0, !group.hot.value.traffic.isMixed
        else { return false }
        group.hot.value.sequence &+= 1
        let sequence = group.hot.value.sequence
        var rail = 0
        while rail + 1 < attachment.rails.count,
            StripePlanner.start(
                ofRail: rail + 1, units: 1, rails: attachment.rails.span, sequence: sequence) == 0
        { rail += 1 }
        let domain = attachment.rails[rail].local
        // `check` has seen that the bytes lie inside a source, whose address is not 0; attached keys do not move.
        group.batch[0] = unsafe WorkRequest(
            context: 0, source: UnsafeRawPointer(bitPattern: source).unsafelyUnwrapped, length: byteCount,
            localKey: group.regions[localIndex].localKeys[domain],
            target: UnsafePointer(attachment.keys.address(of: rail)),
            targetOffset: UInt64(truncatingIfNeeded: targetOffset), immediate: immediate?.value ?? 0,
            eighths: immediate == nil ? 0 : Eighths.whole)
        guard start(group.domains[domain]) else { return false }
        group.recorder.wroteAtOnce(sentBytes)
        group.tallyAtOnce(sentBytes, domain, attachment.peer)
        return true
    }

    // MARK: Validation

    /// The attachment that a write uses: the target's, or a narrower one.
    @inline(__always)
    func attachment(from source: MemoryRegion, to target: RemoteMemory) throws(TransferError) -> UInt32 {
        let index = group.attachment(from: source.index, to: target.index)
        guard index != .max else { throw .noCommonNIC }
        return index
    }

    @inline(__always)
    func check(_ source: MemoryRegion, _ offset: Int, _ byteCount: Int) throws(TransferError) {
        guard group.regions[source.index].generation == source.generation else { throw orClosed(.staleLocal) }
        guard offset >= 0, byteCount >= 0, byteCount <= source.byteCount,
            offset <= source.byteCount - byteCount
        else { throw .outOfRange("source", offset, byteCount, source.byteCount) }
    }

    @inline(__always)
    func check(_ target: RemoteMemory) throws(TransferError) {
        guard group.attachments[target.index].generation == target.generation else {
            throw orClosed(
                group.attachments[target.index].expiredGeneration == target.generation
                    ? .descriptorExpired : .staleAttachment)
        }
    }

    @inline(__always)
    func check(_ target: RemoteMemory, _ offset: Int, _ byteCount: Int) throws(TransferError) {
        try check(target)
        guard group.attachments[target.index].isWritable else {
            throw TransferError(.accessDenied, "the peer registered the region without remote writes")
        }
        guard offset >= 0, byteCount >= 0, byteCount <= target.byteCount,
            offset <= target.byteCount - byteCount
        else { throw .outOfRange("target", offset, byteCount, target.byteCount) }
    }

    /// Why something is not there: in an engine that is being closed, nothing is.
    @inline(never) func orClosed(_ error: TransferError) -> TransferError {
        isStopping.load(ordering: .acquiring) ? .engineClosed : error  // pairs with the store in close()
    }

    /// All pages lie inside the region. Only the largest number matters.
    func check(
        _ pages: Pages, _ pageBytes: Int, _ regionBytes: Int, _ side: String
    ) throws(TransferError) {
        guard pages.stride >= 0, pages.offset >= 0, pageBytes >= 0 else {
            throw TransferError(.invalidArgument, "a negative page size, stride or offset")
        }
        if pages.count == 0 { return }
        let largest = pages.largest
        let (start, overflow) = Int(largest).multipliedReportingOverflow(by: pages.stride)
        let (first, overflow2) = start.addingReportingOverflow(pages.offset)
        guard !overflow, !overflow2, pageBytes <= regionBytes, first <= regionBytes - pageBytes else {
            throw TransferError(
                .outOfRange,
                "\(side) page \(largest) of \(pageBytes) bytes lies outside the region of \(regionBytes) bytes"
            )
        }
    }
}

extension TransferError {
    static let noCommonNIC = TransferError(
        .unreachable,
        "none of the NICs that the source is registered on reaches the target; register it on more")
    static let tooManyTransfers = TransferError(
        .backPressure, "\(Limits.transfers) transfers are in flight; make progress and submit again")

    @inline(never)
    static func outOfRange(_ side: String, _ offset: Int, _ byteCount: Int, _ length: Int) -> TransferError {
        TransferError(
            .outOfRange, "\(byteCount) bytes at \(offset) lie outside the \(side) region of \(length) bytes")
    }
}
