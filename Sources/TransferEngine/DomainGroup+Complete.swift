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
    func context(of slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) -> UInt64 {
        slot.pointee.status.load(ordering: .relaxed) & 0xFFFF_FFFF_0000_0000 | UInt64(index)
    }

    /// A provider is through with requests of a slot.
    func complete(_ completion: Completion, _ domain: Int) {
        let index = UInt32(truncatingIfNeeded: completion.context)
        precondition(index < Limits.transfers, "a provider returned a context that it was not given")
        let slot = slots + Int(index)
        slot.pointee.inFlight -= Int(completion.count)
        slot.pointee.completed += Int(completion.count)
        slot.pointee.lastProgress = hot.pointee.now
        precondition(slot.pointee.inFlight >= 0, "a provider completed a request twice")
        if completion.status != .success { fail(slot, completion.status, completion.detail, domain) }
        guard slot.pointee.inFlight == 0 else { return }
        if slot.pointee.isAbandoned {
            recycle(slot, index)
        } else if !slot.pointee.isPosting {
            advance(slot, index)
        }
    }

    /// Notes the first failure of a slot; nothing more of it is posted.
    func fail(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ status: WorkStatus, _ detail: Int32, _ domain: Int
    ) {
        guard slot.pointee.failure == .success else { return }
        slot.pointee.failure = status
        slot.pointee.failureDetail = detail
        slot.pointee.failureDomain = UInt8(domain)
        if slot.pointee.isPosting, slot.pointee.kind == .paged { slot.pointee.pageCount = 0 }
        slot.pointee.isPosting = false
        // A slot that was pushed back would be ended a second time from there.
        ready.pointee.remove(UInt32(slot - slots))
    }

    /// The operation is over. A callback is called in the same round but not from here, so that a callback that submits
    /// does not run inside another one.
    func end(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        if slot.pointee.callback == nil, slot.pointee.failure == .success {
            settle(slot, index)
        } else {
            finished.pointee.append(index)
        }
    }

    /// Publishes the result, gives the slot back, then calls back.
    func settle(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        let failed = slot.pointee.failure != .success
        let result: Result<Void, TransferError> = failed ? .failure(error(of: slot)) : .success(())
        conclude(slot, index, result)
        recycle(slot, index)
    }

    /// Tells everybody how the transfer ended. The slot stays taken.
    private func conclude(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32, _ result: Result<Void, TransferError>
    ) {
        let old = slot.pointee.status.load(ordering: .relaxed)
        let transfer = Transfer(index: index, generation: UInt32(old >> 32))
        if case .failure(let error) = result { outcomes.withLock { $0.remember(error, of: transfer) } }
        let callback = slot.pointee.callback
        slot.pointee.callback = nil
        // pairs with the load in TransferEngine.status(of:)
        let seen = slot.pointee.status.exchange((old >> 32 &+ 1) << 32, ordering: .acquiringAndReleasing)
        if seen & TransferSlot.waited != 0 {
            let waiters = outcomes.withLock { $0.waiters.removeValue(forKey: transfer) ?? [] }
            for waiter in waiters { waiter(result) }
        }
        callback?(result)
    }

    private func recycle(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        slot.pointee.isAbandoned = false
        free.push(index)
    }

    // MARK: Deadlines

    /// Looks at the clock and ends what has taken too long. O(slots in use).
    func checkDeadlines() {
        hot.pointee.now = clock.nowNanoseconds
        for index in 0..<hot.pointee.usedSlots {
            let slot = slots + index
            let isPending = slot.pointee.status.load(ordering: .acquiring) & TransferSlot.pending != 0
            if isPending, slot.pointee.deadline <= hot.pointee.now { abandon(slot, UInt32(index)) }
        }
    }

    /// The earliest deadline, or `.max`. O(slots in use).
    var nextDeadline: UInt64 {
        var earliest = UInt64.max
        for index in 0..<hot.pointee.usedSlots
        where slots[index].status.load(ordering: .relaxed) & TransferSlot.pending != 0 {
            earliest = min(earliest, slots[index].deadline)
        }
        return earliest
    }

    /// Tells the caller that the deadline passed. While requests are in flight the slot stays taken, so that a late
    /// completion finds its own slot.
    private func abandon(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        slot.pointee.deadline = .max
        let wait = (0..<hot.pointee.waitCount).first { waits[$0] == index }
        if let wait {
            hot.pointee.waitCount -= 1
            waits[wait] = waits[hot.pointee.waitCount]
        }
        ready.pointee.remove(index)
        if finished.pointee.contains(index) { return }
        let report = stallReport(slot)
        slot.pointee.isPosting = false
        slot.pointee.isSilentStage = false
        conclude(slot, index, .failure(report))
        if slot.pointee.inFlight == 0 { recycle(slot, index) } else { slot.pointee.isAbandoned = true }
    }

    // MARK: Messages for people

    private func error(of slot: UnsafeMutablePointer<TransferSlot>) -> TransferError {
        let domain = domainNames[Int(slot.pointee.failureDomain)]
        let operation = "\(slot.pointee.kind) by \(engineName) over \(domain)"
        switch slot.pointee.failure {
        case .staleRegion:
            return TransferError(
                .staleRegion, "\(operation): the peer has deregistered the region; attach its new one")
        case .accessDenied:
            return TransferError(.accessDenied, "\(operation): the peer does not accept the region's key")
        case .outOfRange:
            return TransferError(.outOfRange, "\(operation): the bytes lie outside the peer's region")
        case .peerLost:
            return TransferError(
                .peerLost, "\(operation): the peer has ended (error \(slot.pointee.failureDetail))")
        case .success, .again, .providerFailed:
            return TransferError(
                .providerFailed, "\(operation): the provider reports error \(slot.pointee.failureDetail)")
        }
    }

    /// Contract, promise 6: what, who, how far, since when, and why probably.
    private func stallReport(_ slot: UnsafeMutablePointer<TransferSlot>) -> TransferError {
        let now = hot.pointee.now
        let milliseconds = { (since: UInt64) in (now - min(now, since)) / 1_000_000 }
        let age = milliseconds(slot.pointee.submitted)
        if slot.pointee.kind == .count || slot.pointee.inFlight == 0 && slot.pointee.expectedEighths > 0 {
            let counted = page.eighths(of: slot.pointee.immediate)
            return TransferError(
                .stalled,
                "\(slot.pointee.kind) of \(engineName): immediate \(slot.pointee.immediate) was counted \(counted / 8) of "
                    + "\(slot.pointee.expectedEighths / 8) times after \(age) ms; a sender has not sent, or sent to another engine"
            )
        }
        let rails = attachments[Int(slot.pointee.attachment)].rails
        let names = rails.map { domainNames[$0.local] }.joined(separator: ", ")
        let cause =
            slot.pointee.inFlight > 0
            ? "the peer does not make progress or cannot be reached" : "the NICs take no more requests"
        return TransferError(
            .stalled,
            "\(slot.pointee.kind) by \(engineName) over \(names): \(slot.pointee.completed) requests done, "
                + "\(slot.pointee.inFlight) in flight after \(age) ms, last progress \(milliseconds(slot.pointee.lastProgress)) "
                + "ms ago; \(cause)")
    }
}
