internal import Synchronization
internal import TransferCore

/// What an engine counts of itself. The progress thread alone raises the numbers, by plain stores; any thread reads them.
struct Counters: ~Copyable {
    struct NIC: ~Copyable {
        /// Work requests that it took, and their bytes.
        let requests = Atomic<UInt64>(0)
        let bytes = Atomic<UInt64>(0)
        /// Short writes that were complete when they were submitted; not among `requests`.
        let writesAtOnce = Atomic<UInt64>(0)
        let bytesAtOnce = Atomic<UInt64>(0)
        /// Of `requests`, those that have ended.
        let completed = Atomic<UInt64>(0)
        let failed = Atomic<UInt64>(0)
        let pushedBack = Atomic<UInt64>(0)
        let takenOver = Atomic<UInt64>(0)
        let linkFailures = Atomic<UInt64>(0)
    }

    struct Operation: ~Copyable {
        let begun = Atomic<UInt64>(0)
        let ended = Atomic<UInt64>(0)
        let failed = Atomic<UInt64>(0)
        let stalled = Atomic<UInt64>(0)
        let bytes = Atomic<UInt64>(0)
        /// From the submission until the NICs had taken all of it, and until the end.
        let posting = Latency()
        let total = Latency()
    }

    /// How many took how long.
    struct Latency: ~Copyable {
        let counts = Table(count: EngineStatistics.Latency.bounds.count + 1) { _ in Atomic<UInt64>(0) }
        let nanoseconds = Atomic<UInt64>(0)

        @inline(__always) func note(_ duration: UInt64) {
            counts[EngineStatistics.Latency.place(of: duration)].raise()
            nanoseconds.raise(by: duration)
        }
    }

    struct Peer: ~Copyable {
        let operations = Atomic<UInt64>(0)
        let bytes = Atomic<UInt64>(0)
        let isLost = Atomic<Bool>(false)
    }

    let nics = Table(count: Limits.nicsPerDevice) { _ in NIC() }
    /// By `TransferSlot.Kind`.
    let operations = Table(count: 6) { _ in Operation() }
}

extension Atomic where Value == UInt64 {
    /// Adds without a locked instruction: there is one writer.
    @inline(__always) func raise(by amount: UInt64 = 1) {
        store(load(ordering: .relaxed) &+ amount, ordering: .relaxed)
    }
}

extension DomainGroup {
    /// An operation begins.
    @inline(__always) func tally(_ slot: borrowing TransferSlot) {
        let kind = Int(slot.kind.rawValue)
        counters.operations[kind].begun.raise()
        switch slot.kind {
        case .count: return
        case .write, .send, .paged:
            let bytes = slot.kind == .paged ? slot.length &* slot.pages.count : slot.length
            counters.operations[kind].bytes.raise(by: UInt64(truncatingIfNeeded: bytes))
            tally(bytes, attachments[slot.attachment].peer)
        case .scatter, .barrier:
            var sum = 0
            for target in 0..<slot.targetCount {
                let bytes = slot.targets[target].length
                sum &+= bytes
                tally(bytes, attachments[slot.targets[target].attachment].peer)
            }
            counters.operations[kind].bytes.raise(by: UInt64(truncatingIfNeeded: sum))
        }
    }

    @inline(__always) private func tally(_ bytes: Int, _ peer: UInt32) {
        links.totals[peer].operations.raise()
        links.totals[peer].bytes.raise(by: UInt64(truncatingIfNeeded: bytes))
    }

    /// A NIC took the first `accepted` requests of the batch from `first` on, or pushed back.
    @inline(__always) func tally(_ result: PostResult, _ domain: Int, from first: Int) {
        var bytes = 0
        for request in first..<(first + result.accepted) { bytes &+= batch[request].length }
        let accepted = UInt64(truncatingIfNeeded: result.accepted)
        counters.nics[domain].requests.raise(by: accepted)
        counters.nics[domain].bytes.raise(by: UInt64(truncatingIfNeeded: bytes))
        if result.isComplete { counters.nics[domain].completed.raise(by: accepted) }
        if result.status == .again || result.status == .targetBusy {
            counters.nics[domain].pushedBack.raise()
        }
    }

    /// A NIC is through with requests.
    @inline(__always) func tally(_ completion: Completion, _ domain: Int) {
        counters.nics[domain].completed.raise(by: UInt64(completion.count))
        if completion.status != .success { counters.nics[domain].failed.raise(by: UInt64(completion.count)) }
    }

    /// A short write was complete at once.
    @inline(__always) func tallyAtOnce(_ bytes: Int, _ domain: Int, _ peer: UInt32) {
        counters.nics[domain].writesAtOnce.raise()
        counters.nics[domain].bytesAtOnce.raise(by: UInt64(truncatingIfNeeded: bytes))
        tally(bytes, peer)
    }

    /// The NICs have taken all of an operation.
    @inline(__always) func tallyPosted(_ slot: borrowing TransferSlot) {
        guard let time = recorder.lastTime else { return }
        counters.operations[Int(slot.kind.rawValue)].posting.note(time &- min(time, slot.submitted))
    }

    /// An operation has ended.
    @inline(__always) func tally(_ slot: borrowing TransferSlot, _ result: Result<Void, TransferError>) {
        let kind = slot.kind
        counters.operations[Int(kind.rawValue)].ended.raise()
        if let time = recorder.lastTime {
            counters.operations[Int(kind.rawValue)].total.note(time &- min(time, slot.submitted))
        }
        guard case .failure(let error) = result else { return }
        counters.operations[Int(kind.rawValue)].failed.raise()
        if error.code == .stalled { counters.operations[Int(kind.rawValue)].stalled.raise() }
    }
}
