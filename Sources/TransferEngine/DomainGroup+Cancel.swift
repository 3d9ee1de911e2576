internal import Synchronization
internal import TransferCore

extension DomainGroup {
    /// See `TransferEngine.cancel`.
    func cancel(
        _ transfer: Transfer, _ nanoseconds: UInt64, _ onReceipt: @escaping @Sendable (CancelReceipt) -> Void
    ) {
        guard transfer.index < Limits.transfers else { return onReceipt(.quiescent) }
        hot.value.now = clock.nowNanoseconds
        // One that nobody has started would be started after its end.
        while let index = submissions.pop() { start(&slots[index], index) }
        cancel(&slots[transfer.index], transfer, nanoseconds, onReceipt)
    }

    private func cancel(
        _ slot: inout TransferSlot, _ transfer: Transfer, _ nanoseconds: UInt64,
        _ onReceipt: @escaping @Sendable (CancelReceipt) -> Void
    ) {
        let status = statuses[transfer.index].load(ordering: .relaxed)
        let isPending = UInt32(status >> 32) == transfer.generation && status & SlotStatus.pending != 0
        let isAbandoned = slot.isAbandoned && slot.abandoned == transfer
        guard isAbandoned || isPending && !hot.value.finished.contains(transfer.index) else {
            let isDoubtful = outcomes.withLock { $0.isDoubtful(transfer) }
            return onReceipt(
                isDoubtful
                    ? .unproven("it had failed before, and what became of its requests is not known")
                    : .quiescent)
        }
        slot.receipts.append(onReceipt)
        slot.receiptDue = hot.value.now &+ nanoseconds
        slot.severDue = hot.value.now &+ nanoseconds / 4 * 3
        hot.value.nextTend = 0
        if isPending {
            giveUp(
                &slot, transfer.index,
                TransferError(.cancelled, "\(slot.kind) by \(engineName) was cancelled by its caller"))
        }
    }

    /// Tells everybody who waits for the end of a cancelled transfer.
    func giveReceipts(_ slot: inout TransferSlot, _ receipt: CancelReceipt) {
        let receipts = slot.receipts
        slot.receipts = []
        for receive in receipts { receive(receipt) }
    }

    /// Breaks the connections of a cancelled transfer that does not end by itself, and gives the proof up when its time has come.
    func tendReceipts(_ slot: inout TransferSlot, _ index: UInt32, _ now: UInt64) {
        if now >= slot.severDue {
            slot.severDue = .max
            forEachLink(of: &slot) { link in
                guard link.peer.hasOther(than: link) || !self.isUsedByOthers(link, than: index) else {
                    return
                }
                self.sever(link)
            }
        }
        guard now >= slot.receiptDue else { return }
        slot.receiptDue = now &+ 8 * liveness.patience
        let reason =
            slot.inFlight > 0
            ? "\(slot.inFlight) requests are in flight and their NICs do not give them back"
            : "the receiver has not said what became of \(slot.unsettled.count) requests"
        giveReceipts(&slot, .unproven(reason))
        dropUnsettled(&slot, index)
    }

    /// Waits no longer for a receiver's word about a transfer whose caller has been told.
    func dropUnsettled(_ slot: inout TransferSlot, _ index: UInt32) {
        guard slot.isAbandoned, !slot.unsettled.isEmpty else { return }
        slot.unsettled = []
        slot.isDoubtful = true
        if slot.inFlight == 0 { recycle(&slot, index) }
    }

    /// Whether other transfers have requests in flight to the link's peer, which would fail with its only link.
    private func isUsedByOthers(_ link: Link, than index: UInt32) -> Bool {
        (0..<UInt32(hot.value.usedSlots)).contains {
            $0 != index && slots[$0].inFlight > 0 && involves(&slots[$0], link.peer)
        }
    }

    private func forEachLink(of slot: inout TransferSlot, _ body: (Link) -> Void) {
        for target in 0..<(slot.isWide ? slot.targetCount : 1) {
            let index = slot.isWide ? slot.targets[target].attachment : slot.attachment
            for rail in 0..<attachments[index].rails.count {
                if let link = links.all[Int(attachments[index].links[rail])] { body(link) }
            }
        }
    }
}
