internal import CPlatform
internal import Synchronization
public import TransferCore

/// The three views of one end: a flag to poll, an `await`, and the callback given at submission; and a wait that blocks.
extension TransferEngine {
    /// How far a transfer is.
    public enum Status: Hashable, Sendable {
        case pending
        /// The source may be reused, and nothing of the transfer can touch remote memory any more.
        case complete
        case failed(TransferError)
    }

    /// Looks at a transfer, without waiting. O(1), two loads while it is pending.
    public func status(of transfer: Transfer) -> Status {
        if isPending(transfer) { return .pending }
        if transfer == .complete { return .complete }
        if let error = group.outcomes.withLock({ $0.failure(of: transfer) }) { return .failed(error) }
        return .complete
    }

    /// Whether a transfer has not ended yet: the cheapest flag.
    @inline(__always) public func isPending(_ transfer: Transfer) -> Bool {
        guard transfer.index < Limits.transfers else { return false }
        // pairs with conclude
        let status = group.statuses[transfer.index].load(ordering: .acquiring)
        return UInt32(status >> 32) == transfer.generation && status & SlotStatus.pending != 0
    }

    /// Suspends until the transfer has ended. Its own deadline bounds the wait.
    ///
    /// Resuming from the progress thread costs some 15 microseconds: await coarse events, poll fine ones. With manual progress
    /// somebody else must call `progress()` meanwhile.
    /// - Throws: why the transfer failed.
    public func result(of transfer: Transfer) async throws(TransferError) {
        // Every slot ends, and its waiters are called once.
        let result = await unsafe withUnsafeContinuation {
            (continuation: UnsafeContinuation<Result<Void, TransferError>, Never>) in
            whenEnded(transfer) { unsafe continuation.resume(returning: $0) }
        }
        try result.get()
    }

    /// Blocks until the transfer has ended. Its own deadline bounds the wait. Not for callbacks.
    /// - Throws: why the transfer failed.
    public func wait(for transfer: Transfer) throws(TransferError) {
        if isManual {
            while isPending(transfer) { progress() }
        } else {
            precondition(!isProgressThread, "a callback must not wait")
            var spins = 0
            while isPending(transfer), spins < 2000 {
                te_cpu_relax()
                spins += 1
            }
            if isPending(transfer) {
                let gate = Gate()
                whenEnded(transfer) { _ in gate.open() }
                gate.wait()
            }
        }
        if case .failed(let error) = status(of: transfer) { throw error }
    }

    /// Calls `body` when the transfer has ended, at once if it has, otherwise on the progress thread or, when the engine is
    /// closed before, on the thread that closes it.
    package func whenEnded(
        _ transfer: Transfer, _ body: @escaping @Sendable (Result<Void, TransferError>) -> Void
    ) {
        let isWaiting = group.outcomes.withLock { outcomes in
            guard isPending(transfer) else { return false }
            // The mark and the waiter appear together for whoever ends the transfer: it takes this lock if it sees the mark.
            let old = UInt64(transfer.generation) << 32 | SlotStatus.pending
            // pairs with the exchange in conclude
            let (marked, now) = group.statuses[transfer.index].compareExchange(
                expected: old, desired: old | SlotStatus.waited, ordering: .acquiringAndReleasing)
            guard marked || now == old | SlotStatus.waited else { return false }
            outcomes.waiters[transfer, default: []].append(body)
            return true
        }
        guard !isWaiting else { return }
        switch status(of: transfer) {
        case .failed(let error): body(.failure(error))
        case .complete, .pending: body(.success(()))
        }
    }
}

/// Counters: what has arrived.
extension TransferEngine {
    /// How often `immediate` has been counted and not been consumed. Data that was counted is visible after this call.
    ///
    /// The cheapest way to wait is to call this in a loop (with manual progress, between calls of `progress()`).
    @inline(__always) public func count(of immediate: Immediate) -> Int {
        Int(page.eighths(of: immediate.value) >> 3)
    }

    /// Takes `count` away from the counter if it has got that far. One consumer at a time for each immediate.
    @inline(__always) public func consume(_ immediate: Immediate, count: Int) -> Bool {
        page.consume(eighths: Int64(count) << 3, from: immediate.value)
    }

    /// Waits until `immediate` has been counted `count` times, and takes them away, so that the immediate can be used for the
    /// next round. Arrivals before this call count. The wait is a `Transfer`: poll it, await it, or give a callback.
    ///
    /// When several waits use one immediate at a time, each takes its own share, in no particular order.
    /// - Parameters:
    ///   - immediate: What is counted.
    ///   - count: How often.
    ///   - senders: Peers that are expected to send: when one of them is lost the wait fails with its name (see `Liveness`).
    ///   - timeout: How long the wait may take; nil is the engine's default.
    ///   - onReached: Called once.
    /// - Throws: `invalidArgument` for a negative count; `backPressure` as for a transfer.
    @discardableResult
    public func expect(
        _ immediate: Immediate, count: Int, from senders: [Peer] = [], timeout: Duration? = nil,
        onReached: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        guard count >= 0, count <= Int(Int64.max >> 4) else {
            throw TransferError(.invalidArgument, "a wait for \(count) arrivals")
        }
        return try submit(.count, immediate, timeout, onReached) { slot in
            slot.expectedEighths = Int64(count) * Int64(Eighths.whole)
            if !senders.isEmpty { slot.senders = senders.map(\.engine) }
        }
    }

    /// Calls `callback` whenever the 64-bit word at `offset` of a region has changed: a producer - another thread, another
    /// process, a GPU kernel - increments it. A sleeping adaptive engine looks again after a tenth of the
    /// time that has passed since the last change, 1 to 25 milliseconds.
    public func watch(
        _ region: MemoryRegion, at offset: Int, _ callback: @escaping WatchCallback
    ) throws(TransferError) -> Watcher {
        try check(region, offset, 8)
        guard offset % 8 == 0 else {
            throw TransferError(.invalidArgument, "a watched word is aligned to 8 bytes")
        }
        let number = control.withLock { control in
            control.nextWatcher += 1
            return control.nextWatcher
        }
        return try perform { group throws(TransferError) in
            guard group.hot.value.watchers.count < Limits.watchers else {
                throw TransferError(.limitReached, "\(Limits.watchers) words are watched; unwatch some")
            }
            group.hot.value.watchers.append(
                unsafe WatcherEntry(number: number, word: region.baseAddress + offset, callback: callback))
            return Watcher(number: number)
        }
    }

    /// Ends a watcher; its callback is not called any more when this returns. Unknown watchers are ignored.
    public func unwatch(_ watcher: Watcher) throws(TransferError) {
        try perform { group throws(TransferError) in
            group.hot.value.watchers.removeAll { $0.number == watcher.number }
        }
    }
}
