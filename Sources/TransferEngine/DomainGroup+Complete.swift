internal import Synchronization
internal import TransferCore

/// Those who wait outside the progress thread, and the ends of transfers that went wrong.
struct Outcomes {
    /// By `Transfer` (index and generation).
    var waiters: [Transfer: [@Sendable (Result<Void, TransferError>) -> Void]] = [:]
    private var failures: [Transfer: TransferError] = [:]
    private var order: [Transfer] = []
    private var doubtful: Set<Transfer> = []

    /// Why a transfer failed; nil when it did not, or when `Limits.rememberedFailures` others failed since.
    func failure(of transfer: Transfer) -> TransferError? { failures[transfer] }

    /// Whether something of a failed transfer may still land.
    func isDoubtful(_ transfer: Transfer) -> Bool { doubtful.contains(transfer) }

    /// Notes that something of a failed transfer may still land.
    mutating func doubt(_ transfer: Transfer) { if failures[transfer] != nil { doubtful.insert(transfer) } }

    mutating func remember(_ error: TransferError, of transfer: Transfer) {
        if order.count == Limits.rememberedFailures {
            let oldest = order.removeFirst()
            failures[oldest] = nil
            doubtful.remove(oldest)
        }
        failures[transfer] = error
        order.append(transfer)
    }
}

// From completions to the end of a transfer.
extension DomainGroup {
    /// What requests carry: the slot, and its generation so that a completion cannot hit a later user of the slot.
    @inline(__always)
    func context(_ index: UInt32) -> UInt64 {
        statuses[index].load(ordering: .relaxed) & 0xFFFF_FFFF_0000_0000 | UInt64(index)
    }

    /// A provider is through with requests of a slot.
    func complete(_ completion: Completion, _ domain: Int) {
        let index = UInt32(truncatingIfNeeded: completion.context)
        precondition(index < Limits.transfers, "a provider returned a context that it was not given")
        complete(&slots[index], index, completion, domain)
    }

    private func complete(
        _ slot: inout TransferSlot, _ index: UInt32, _ completion: Completion, _ domain: Int
    ) {
        if hot.value.traffic.isMixed { noteEnd(&slot, Int(completion.count), of: slot.inFlight) }
        slot.inFlight -= Int(completion.count)
        slot.completed += Int(completion.count)
        slot.lastProgress = hot.value.now
        precondition(slot.inFlight >= 0, "a provider completed a request twice")
        traceCompletion(completion, slot.inFlight, domain)
        tally(completion, domain)
        if completion.status != .success, !recover(&slot, completion, domain) {
            fail(&slot, completion.status, completion.detail, domain, peer: completion.peer)
        }
        guard slot.inFlight == 0 else { return }
        if slot.isAbandoned {
            if slot.unsettled.isEmpty { recycle(&slot, index) }
        } else if !slot.isPosting, !slot.isReady {
            proceed(&slot, index)
        } else if slot.failure != .success {
            // It ends here, not where it waits for its NIC to take more.
            unready(&slot, index)
            advance(&slot, index)
        }
    }

    /// Takes a slot out of those that are pumped.
    func unready(_ slot: inout TransferSlot, _ index: UInt32) {
        guard slot.isReady else { return }
        slot.isReady = false
        hot.value.ready.remove(index)
    }

    /// Notes the first failure of a slot; nothing more of it is posted.
    func fail(
        _ slot: inout TransferSlot, _ status: WorkStatus, _ detail: Int32, _ domain: Int, peer: Int = -1
    ) {
        guard slot.failure == .success else { return }
        slot.failure = status
        slot.failureDetail = detail
        slot.failureDomain = UInt8(domain)
        slot.isDoubtful = status == .peerLost || status == .providerFailed || !slot.unsettled.isEmpty
        slot.failurePeer = peer
        if status == .peerLost { traceEvent(.peerLost, nic: domain, UInt64(UInt32(bitPattern: detail)), 0) }
        if slot.isPosting { slot.pages.forget() }
        slot.isPosting = false
        slot.redo = []
        slot.unsettled = []
    }

    /// The operation is over. A callback is called in the same round but not from here, so that a callback that submits
    /// does not run inside another one.
    func end(_ slot: inout TransferSlot, _ index: UInt32) {
        if slot.callback == nil, slot.failure == .success {
            settle(&slot, index)
        } else {
            hot.value.finished.append(index)
        }
    }

    /// Publishes the result, gives the slot back, then calls back.
    func settle(_ slot: inout TransferSlot, _ index: UInt32) {
        let failed = slot.failure != .success
        let result: Result<Void, TransferError> = failed ? .failure(error(of: &slot)) : .success(())
        conclude(&slot, index, result)
        recycle(&slot, index)
    }

    /// Tells everybody how the transfer ended. The slot stays taken.
    private func conclude(
        _ slot: inout TransferSlot, _ index: UInt32, _ result: Result<Void, TransferError>
    ) {
        let old = statuses[index].load(ordering: .relaxed)
        let transfer = Transfer(index: index, generation: UInt32(old >> 32))
        traceEnd(slot, index, result)
        tally(slot, result)
        if case .failure(let error) = result { outcomes.withLock { $0.remember(error, of: transfer) } }
        let callback = slot.callback
        slot.callback = nil
        // pairs with the load in TransferEngine.status(of:)
        let seen = statuses[index].exchange((old >> 32 &+ 1) << 32, ordering: .acquiringAndReleasing)
        if seen & SlotStatus.waited != 0 {
            let waiters = outcomes.withLock { $0.waiters.removeValue(forKey: transfer) ?? [] }
            for waiter in waiters { waiter(result) }
        }
        callback?(result)
    }

    /// Ends everything when nobody makes progress any more and the NICs are closed: what had ended as it had, all else with
    /// `error`. O(slots in use).
    func failPending(_ error: TransferError) {
        while let index = submissions.pop() {
            slots[index].isStarted = true
            hot.value.usedSlots = max(hot.value.usedSlots, Int(index) + 1)
        }
        while !hot.value.finished.isEmpty { runCallbacks() }
        hot.value.waitCount = 0
        for index in 0..<UInt32(hot.value.usedSlots) {
            if isPending(index) { conclude(&slots[index], index, .failure(error)) }
            giveReceipts(&slots[index], .unproven(error.message))
        }
    }

    func recycle(_ slot: inout TransferSlot, _ index: UInt32) {
        if slot.isDoubtful { outcomes.withLock { $0.doubt(lastTransfer(index)) } }
        slot.isAbandoned = false
        if !slot.receipts.isEmpty {
            giveReceipts(&slot, slot.isDoubtful ? .unproven("some of its requests failed") : .quiescent)
        }
        free.push(index)
    }

    // MARK: Deadlines

    /// Looks at the clock and ends what has taken too long. O(slots in use).
    func checkDeadlines() {
        hot.value.now = clock.nowNanoseconds
        if hot.value.now >= hot.value.nextTend { tend() }
        if !hot.value.expiring.isEmpty { expireAttachments() }
        for index in 0..<hot.value.usedSlots {
            // pairs with the store in submit
            let isPending = statuses[index].load(ordering: .acquiring) & SlotStatus.pending != 0
            // One that is still in `submissions` has its turn first: it would be started after its end.
            guard isPending, slots[index].isStarted else { continue }
            if slots[index].deadline <= hot.value.now { abandon(&slots[index], UInt32(index)) }
        }
    }

    /// The earliest deadline, or `.max`. O(slots in use).
    var nextDeadline: UInt64 {
        var earliest = UInt64.max
        earliest = min(earliest, tendDue)
        for domain in 0..<domains.count { earliest = min(earliest, domains[domain].fabric.pollDue) }
        for entry in hot.value.expiring { earliest = min(earliest, entry.at) }
        for index in 0..<hot.value.usedSlots
        where statuses[index].load(ordering: .acquiring) & SlotStatus.pending != 0 {  // pairs with submit
            earliest = min(earliest, slots[index].deadline)
        }
        return earliest
    }

    /// Tells the caller that the deadline passed. While requests are in flight the slot stays taken, so that a late
    /// completion finds its own slot.
    private func abandon(_ slot: inout TransferSlot, _ index: UInt32) {
        if hot.value.finished.contains(index) { return }
        giveUp(&slot, index, withHistory(stallReport(&slot), slot, index))
    }

    /// Ends a transfer with an error at once, whatever is in flight.
    func giveUp(_ slot: inout TransferSlot, _ index: UInt32, _ error: TransferError) {
        slot.deadline = .max
        let wait = (0..<hot.value.waitCount).first { waits[$0] == index }
        if let wait {
            hot.value.waitCount -= 1
            waits[wait] = waits[hot.value.waitCount]
        }
        unready(&slot, index)
        slot.isPosting = false
        slot.isSilentStage = false
        slot.redo = []
        conclude(&slot, index, .failure(error))
        if slot.inFlight == 0, slot.unsettled.isEmpty {
            recycle(&slot, index)
        } else {
            slot.isAbandoned = true
            slot.abandoned = lastTransfer(index)
            if slot.receipts.isEmpty { slot.receiptDue = hot.value.now &+ 8 * liveness.patience }
        }
    }

    /// The transfer that a slot was used for last, after its end has been published.
    private func lastTransfer(_ index: UInt32) -> Transfer {
        Transfer(index: index, generation: UInt32(statuses[index].load(ordering: .relaxed) >> 32) &- 1)
    }

    // MARK: Messages for people

    private func error(of slot: inout TransferSlot) -> TransferError {
        if let reason = slot.reason { return reason }
        let domain = Int(slot.failureDomain)
        let operation = "\(slot.kind) by \(engineName) over \(domainNames[domain])"
        let words = domains[domain].fabric.describe(
            slot.failure, detail: slot.failureDetail, peer: failedPeer(&slot, domain))
        let (code, otherwise) = slot.failure.inWords(detail: slot.failureDetail)
        return TransferError(code, "\(operation): \(words ?? otherwise)")
    }

    /// Whose request failed, in the table of the domain; nil when it may have been one of several peers.
    private func failedPeer(_ slot: inout TransferSlot, _ domain: Int) -> Int? {
        if slot.failurePeer >= 0 { return slot.failurePeer }
        let isSingle = slot.kind != .scatter && slot.kind != .barrier
        guard isSingle || slot.targetCount == 1 else { return nil }
        return peer(attachments[isSingle ? slot.attachment : slot.targets[0].attachment], domain)
    }

    private func peer(_ attachment: borrowing Attachment, _ domain: Int) -> Int? {
        for rail in 0..<attachment.rails.count where attachment.rails[rail].local == domain {
            return attachment.keys[rail].peer
        }
        return nil
    }

    /// Contract, promise 6: what, who, how far, since when, and why probably.
    private func stallReport(_ slot: inout TransferSlot) -> TransferError {
        let now = hot.value.now
        let milliseconds = { (since: UInt64) in (now - min(now, since)) / 1_000_000 }
        let age = milliseconds(slot.submitted)
        if slot.kind == .count || slot.inFlight == 0 && slot.expectedEighths > 0 {
            let counted = page.eighths(of: slot.immediate)
            return TransferError(
                .stalled,
                "\(slot.kind) of \(engineName): immediate \(slot.immediate) was counted \(counted / 8) of "
                    + "\(slot.expectedEighths / 8) times after \(age) ms; a sender has not sent, or sent to another engine"
            )
        }
        let used = (0..<attachments[slot.attachment].rails.count).map {
            domainNames[attachments[slot.attachment].rails[$0].local]
        }
        let names = used.joined(separator: ", ")
        let cause =
            slot.inFlight > 0
            ? "the peer does not make progress or cannot be reached" : "the NICs take no more requests"
        return TransferError(
            .stalled,
            "\(slot.kind) by \(engineName) over \(names): \(slot.completed) requests done, "
                + "\(slot.inFlight) in flight after \(age) ms, last progress \(milliseconds(slot.lastProgress)) "
                + "ms ago; \(cause)")
    }
}

extension WorkStatus {
    /// For programs, and for people where the provider has nothing better to say.
    fileprivate func inWords(detail: Int32) -> (code: TransferError.Code, words: String) {
        switch self {
        case .staleRegion: (.staleRegion, "the peer has deregistered the region; attach its new one")
        case .accessDenied: (.accessDenied, "the peer does not accept the region's key; attach its new one")
        case .outOfRange: (.outOfRange, "the bytes lie outside the peer's region")
        case .peerLost:
            (.peerLost, "the peer has ended (error \(detail)); attach to it again once it is back")
        case .success, .again, .targetBusy, .providerFailed:
            (.providerFailed, "the provider reports error \(detail)")
        }
    }
}
