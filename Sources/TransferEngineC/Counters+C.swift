public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_count(_ engine: te_engine, _ immediate: UInt32, _ count: UnsafeMutablePointer<UInt64>?)
    -> Int32
{
    call(engine, .engine) { box, _ throws(Failure) in
        let immediate = try immediateOf(immediate)
        // Negative where a lease has ended.
        try place(count, "count").pointee = UInt64(max(0, box.engine.count(of: immediate)))
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_consume(
    _ engine: te_engine, _ immediate: UInt32, _ count: UInt64, _ taken: UnsafeMutablePointer<Int32>?
) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        let immediate = try immediateOf(immediate)
        let taken = try place(taken, "taken")
        guard count <= UInt64(Int64.max >> 4) else { throw Failure(TE_EOUTOFRANGE, "a count of \(count)") }
        taken.pointee = box.engine.consume(immediate, count: Int(count)) ? 1 : 0
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_lease_begin(_ handle: te_engine, _ count: UInt32, _ lease: UnsafeMutablePointer<te_lease>?)
    -> Int32
{
    call(handle, .engine) { box, _ throws(Failure) in
        let result = try place(lease, "lease")
        let lease = try engine { () throws(TransferError) in try box.engine.lease(Int(count)) }
        box.leases.withLock { $0[lease.epoch] = lease }
        result.pointee = te_lease(first: lease.first.value, count: UInt32(lease.count), epoch: lease.epoch)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_lease_end(_ handle: te_engine, _ lease: UnsafePointer<te_lease>?, _ isQuiet: Int32) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let known = try box.lease(lease)
        try engine { () throws(TransferError) in try box.engine.end(known, isQuiet: isQuiet != 0) }
        if isQuiet != 0 { box.leases.withLock { $0[known.epoch] = nil } }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_lease_reclaim(
    _ handle: te_engine, _ lease: UnsafePointer<te_lease>?, _ late: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let known = try box.lease(lease)
        let arrivals = try engine { () throws(TransferError) in try box.engine.reclaim(known) }
        box.leases.withLock { $0[known.epoch] = nil }
        late?.pointee = UInt64(max(0, arrivals))
        return Int32(TE_OK)
    }
}

extension EngineBox {
    /// The lease that the caller's copy stands for.
    fileprivate func lease(_ pointer: UnsafePointer<te_lease>?) throws(Failure) -> ImmediateLease {
        guard let pointer else { throw Failure.isNull("lease") }
        let c = pointer.pointee
        let known = leases.withLock { $0[c.epoch] }
        guard let known, known.first.value == c.first, known.count == Int(c.count) else {
            throw Failure(TE_EBADHANDLE, "the lease was not handed out by this engine, or has ended")
        }
        return known
    }
}

@c @implementation
public func te_receive(
    _ engine: te_engine, _ messages: UnsafeMutablePointer<te_message>?, _ capacity: UInt64,
    _ buffer: UnsafeMutableRawPointer?, _ bufferBytes: UInt64, _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        let count = try place(count, "count")
        let messages = try place(messages, "messages")
        guard buffer != nil || bufferBytes == 0 else { throw Failure.isNull("buffer") }
        if box.isManual, tei_callback_depth() == 0 { box.engine.progress() }
        let room = UnsafeMutableRawBufferPointer(
            start: buffer, count: buffer == nil ? 0 : try integer(bufferBytes, "buffer_bytes"))
        count.pointee = UInt64(try box.events.receive(messages, Int(min(capacity, 1 << 20)), room))
        return Int32(TE_OK)
    }
}
