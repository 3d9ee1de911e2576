internal import CPlatform
public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_transfer_status(_ transfer: te_transfer) -> Int32 {
    call(transfer, .transfer) { box, handle throws(Failure) in try box.status(handle.transfer) }
}

@c @implementation
public func te_wait(
    _ transfers: UnsafePointer<te_transfer>?, _ count: UInt64, _ timeout: Int64,
    _ statuses: UnsafeMutablePointer<Int32>?
) -> Int32 {
    if count == 0 { return Int32(TE_OK) }
    guard let transfers else { return Failure.isNull("transfers").report() }
    return call(transfers[0], .transfer, waits: timeout != 0) { box, _ throws(Failure) in
        let handles = try list(transfers, count, "transfers")
        for bits in handles {
            guard let handle = Handle(bits, .transfer), handle.slot == box.slot, handle.epoch == box.epoch
            else { throw Failure.badHandle(bits, .transfer) }
        }
        let deadline = box.deadline(timeout)
        var first: Failure?
        for (index, bits) in handles.enumerated() {
            guard let transfer = Handle(bits, .transfer)?.transfer else { continue }
            let hasEnded = try box.wait(for: transfer, until: deadline)
            let status = box.failure(of: transfer)
            statuses?[index] = hasEnded ? status?.code ?? Int32(TE_OK) : Int32(TE_PENDING)
            first = first ?? (hasEnded ? status : Failure(TE_ETIMEDOUT, "transfers have not ended in time"))
        }
        if let first { throw first }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_notify(_ transfer: te_transfer, _ tag: UInt64) -> Int32 {
    call(transfer, .transfer) { box, handle throws(Failure) in
        try box.events.reserve()
        box.engine.whenEnded(handle.transfer) { [events = box.events] result in
            events.push(
                te_event(
                    kind: UInt32(TE_EVENT_TRANSFER), status: result.status, tag: tag, object: transfer,
                    old_value: 0, new_value: 0))
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_cancel(_ transfer: te_transfer, _ timeout: Int64) -> Int32 {
    call(transfer, .transfer, waits: true) { box, handle throws(Failure) in
        let receipt = Receipt()
        // The proof is given up by itself after `timeout`; the engine looks at the clock a little later.
        try box.cancel(handle.transfer, timeout) { receipt.set($0) }
        let deadline = box.deadline(timeout) &+ 1_000_000_000
        try box.wait(until: deadline, receipt.gate) { receipt.gate.isOpen }
        switch receipt.value {
        case .quiescent: return Int32(TE_OK)
        case .unproven(let reason): throw Failure(TE_EUNPROVEN, reason)
        case nil: throw Failure(TE_EUNPROVEN, "the engine has not answered in time")
        }
    }
}

@c @implementation
public func te_cancel_notify(_ transfer: te_transfer, _ timeout: Int64, _ tag: UInt64) -> Int32 {
    call(transfer, .transfer) { box, handle throws(Failure) in
        try box.events.reserve()
        do throws(Failure) {
            try box.cancel(handle.transfer, timeout) { [events = box.events] receipt in
                let status = receipt == .quiescent ? TE_OK : TE_EUNPROVEN
                events.push(
                    te_event(
                        kind: UInt32(TE_EVENT_RECEIPT), status: Int32(status), tag: tag, object: transfer,
                        old_value: 0, new_value: 0))
            }
        } catch {
            box.events.release()
            throw error
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_poll(
    _ engine: te_engine, _ events: UnsafeMutablePointer<te_event>?, _ capacity: UInt64, _ timeout: Int64,
    _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(engine, .engine, waits: timeout != 0) { box, _ throws(Failure) in
        let count = try place(count, "count")
        guard capacity > 0 else { throw Failure(TE_EINVALID, "capacity is 0") }
        let events = try place(events, "events")
        let room = Int(min(capacity, 1 << 20))
        let mayProgress = box.isManual && tei_callback_depth() == 0
        let deadline = timeout == 0 ? 0 : box.deadline(timeout)
        while true {
            if mayProgress { box.engine.progress() }
            let taken = box.events.take(events, room)
            let now = taken > 0 || timeout == 0 ? UInt64.max : te_monotonic_nanoseconds()
            if taken > 0 || now >= deadline {
                if mayProgress { box.engine.rest() }
                count.pointee = UInt64(taken)
                return Int32(TE_OK)
            }
            // pairs with the exchange in te_engine_close
            if box.isClosing.load(ordering: .acquiring) { throw Failure.closedMeanwhile }
            if !box.isManual { box.events.sleep(until: deadline, now: now) }
        }
    }
}

/// Somebody sleeps until this opens, once.
final class Gate: Sendable {
    private let word = Atomic<UInt32>(0)

    var isOpen: Bool { word.load(ordering: .acquiring) != 0 }  // pairs with the store in open()

    func open() {
        word.store(1, ordering: .releasing)  // pairs with the load in isOpen
        withUnsafePointer(to: word) { te_futex_wake($0) }
    }

    /// At most a millisecond.
    func sleep(_ nanoseconds: UInt64) {
        withUnsafePointer(to: word) { te_futex_wait($0, 0, min(nanoseconds, 1_000_000)) }
    }
}

/// What `cancel` says, for a thread that waits.
private final class Receipt: Sendable {
    let gate = Gate()
    private let stored = Mutex<CancelReceipt?>(nil)

    func set(_ receipt: CancelReceipt) {
        stored.withLock { $0 = receipt }
        gate.open()
    }

    var value: CancelReceipt? { stored.withLock { $0 } }
}

extension EngineBox {
    private static let spins = 2000

    fileprivate func status(_ transfer: Transfer) throws(Failure) -> Int32 {
        if engine.isPending(transfer) { return Int32(TE_PENDING) }
        if let failure = failure(of: transfer) { throw failure }
        return Int32(TE_OK)
    }

    /// Why a transfer failed; nil when it did not, or has not ended.
    fileprivate func failure(of transfer: Transfer) -> Failure? {
        guard case .failed(let error) = engine.status(of: transfer) else { return nil }
        return Failure(error)
    }

    fileprivate func cancel(
        _ transfer: Transfer, _ timeout: Int64, _ onReceipt: @escaping @Sendable (CancelReceipt) -> Void
    ) throws(Failure) {
        do throws(TransferError) {
            try engine.cancel(
                transfer, timeout: timeout < 0 ? nil : .nanoseconds(timeout), onReceipt: onReceipt)
        } catch {
            throw Failure(error)
        }
    }

    /// Whether the transfer has ended by then.
    fileprivate func wait(for transfer: Transfer, until deadline: UInt64) throws(Failure) -> Bool {
        if !engine.isPending(transfer) { return true }
        if deadline <= te_monotonic_nanoseconds() {
            if isManual, tei_callback_depth() == 0 { engine.progress() }
            return !engine.isPending(transfer)
        }
        if isManual {
            try wait(until: deadline, nil) { !engine.isPending(transfer) }
        } else {
            var spins = 0
            while engine.isPending(transfer), spins < Self.spins {
                te_cpu_relax()
                spins += 1
            }
            guard engine.isPending(transfer) else { return true }
            let gate = Gate()
            engine.whenEnded(transfer) { _ in gate.open() }
            try wait(until: deadline, gate) { !engine.isPending(transfer) }
        }
        return !engine.isPending(transfer)
    }

    /// Makes progress, or sleeps at a gate, until `isOver` or the deadline.
    fileprivate func wait(until deadline: UInt64, _ gate: Gate?, _ isOver: () -> Bool) throws(Failure) {
        while !isOver() {
            let now = te_monotonic_nanoseconds()
            if now >= deadline { return }
            // pairs with the exchange in te_engine_close
            if isClosing.load(ordering: .acquiring) { throw Failure.closedMeanwhile }
            if isManual { engine.progress() } else { gate?.sleep(deadline - now) }
        }
    }
}

extension Failure {
    static var closedMeanwhile: Failure { Failure(TE_ECLOSED, "the engine was closed meanwhile") }
}
