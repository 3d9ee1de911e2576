internal import Synchronization
internal import TransferCore

/// Those who wait outside the progress thread, and the ends of transfers that went wrong.
struct Outcomes {
    /// By `Transfer` (index and generation).
    var waiters: [Transfer: [@Sendable (Result<Void, TransferError>) -> Void]] = [:]
    private var failures: [Transfer: TransferError] = [:]
    private var order: [Transfer] = []

    /// Why a transfer failed; nil when it did not, or when `Limits.rememberedFailures` others failed since.
    func failure(of transfer: Transfer) -> TransferError? { failures[transfer] }

    mutating func remember(_ error: TransferError, of transfer: Transfer) {
        if order.count == Limits.rememberedFailures { failures[order.removeFirst()] = nil }
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
        slot.inFlight -= Int(completion.count)
        slot.completed += Int(completion.count)
        slot.lastProgress = hot.value.now
        precondition(slot.inFlight >= 0, "a provider completed a request twice")
        traceCompletion(completion, slot.inFlight, domain)
        if completion.status != .success {
            // It ends here, not where it waits for its NIC to take more.
            if slot.isPosting { hot.value.ready.remove(index) }
            fail(&slot, completion.status, completion.detail, domain)
        }
        guard slot.inFlight == 0 else { return }
        if slot.isAbandoned {
            recycle(&slot, index)
        } else if !slot.isPosting {
            advance(&slot, index)
        }
    }

    /// Notes the first failure of a slot; nothing more of it is posted.
    func fail(
        _ slot: inout TransferSlot, _ status: WorkStatus, _ detail: Int32, _ domain: Int
    ) {
        guard slot.failure == .success else { return }
        slot.failure = status
        slot.failureDetail = detail
        slot.failureDomain = UInt8(domain)
        if status == .peerLost { traceEvent(.peerLost, nic: domain, UInt64(UInt32(bitPattern: detail)), 0) }
        if slot.isPosting { slot.pages.forget() }
        slot.isPosting = false
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

    private func recycle(_ slot: inout TransferSlot, _ index: UInt32) {
        slot.isAbandoned = false
        free.push(index)
    }

    // MARK: Deadlines

    /// Looks at the clock and ends what has taken too long. O(slots in use).
    func checkDeadlines() {
        hot.value.now = clock.nowNanoseconds
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
        for index in 0..<hot.value.usedSlots
        where statuses[index].load(ordering: .acquiring) & SlotStatus.pending != 0 {  // pairs with submit
            earliest = min(earliest, slots[index].deadline)
        }
        return earliest
    }

    /// Tells the caller that the deadline passed. While requests are in flight the slot stays taken, so that a late
    /// completion finds its own slot.
    private func abandon(_ slot: inout TransferSlot, _ index: UInt32) {
        slot.deadline = .max
        let wait = (0..<hot.value.waitCount).first { waits[$0] == index }
        if let wait {
            hot.value.waitCount -= 1
            waits[wait] = waits[hot.value.waitCount]
        }
        hot.value.ready.remove(index)
        if hot.value.finished.contains(index) { return }
        let report = withHistory(stallReport(&slot), slot, index)
        slot.isPosting = false
        slot.isSilentStage = false
        conclude(&slot, index, .failure(report))
        if slot.inFlight == 0 { recycle(&slot, index) } else { slot.isAbandoned = true }
    }

    // MARK: Messages for people

    private func error(of slot: inout TransferSlot) -> TransferError {
        let domain = domainNames[Int(slot.failureDomain)]
        let operation = "\(slot.kind) by \(engineName) over \(domain)"
        switch slot.failure {
        case .staleRegion:
            return TransferError(
                .staleRegion, "\(operation): the peer has deregistered the region; attach its new one")
        case .accessDenied:
            return TransferError(.accessDenied, "\(operation): the peer does not accept the region's key")
        case .outOfRange:
            return TransferError(.outOfRange, "\(operation): the bytes lie outside the peer's region")
        case .peerLost:
            return TransferError(
                .peerLost, "\(operation): the peer has ended (error \(slot.failureDetail))")
        case .success, .again, .providerFailed:
            return TransferError(
                .providerFailed, "\(operation): the provider reports error \(slot.failureDetail)")
        }
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
