public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_submit(
    _ engine: te_engine, _ operations: UnsafePointer<te_operation>?, _ count: UInt64,
    _ transfers: UnsafeMutablePointer<te_transfer>?, _ accepted: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        accepted?.pointee = 0
        guard operations != nil || count == 0 else { throw Failure.isNull("operations") }
        guard count <= UInt64(Int32.max) else { throw Failure(TE_EOUTOFRANGE, "\(count) operations") }
        try box.objects.withLock { objects throws(Failure) in
            var next = UnsafeRawPointer(operations)
            for index in 0..<Int(count) {
                do throws(Failure) {
                    let operation = try readSized(next, "operation", as: te_operation.self)
                    let transfer = try objects.submit(operation, to: box)
                    transfers?[index] = Handle(transfer, of: box).bits
                    next = next.map { $0 + Int(operation.size) }
                } catch {
                    objects.statistics.refused += 1
                    throw error
                }
                accepted?.pointee = UInt64(index + 1)
            }
        }
        return Int32(TE_OK)
    }
}

// SAFETY: plain data; its pointers are the caller's, who lends them for the call.
extension te_operation: @unchecked @retroactive Sendable {}

extension Objects {
    /// Submits one operation. The objects stay locked, so that nothing that it uses is released before it is noted.
    fileprivate mutating func submit(_ c: te_operation, to box: EngineBox) throws(Failure) -> Transfer {
        guard c.flags & ~TE_NOTIFY == 0 else { throw Failure(TE_EINVALID, "operation.flags is \(c.flags)") }
        let ticket = c.flags & TE_NOTIFY != 0 ? Ticket(tag: c.tag) : nil
        if ticket != nil { try box.events.reserve() }
        do throws(Failure) {
            let transfer = try start(c, box, Self.callback(c, ticket, box.events))
            ticket?.name(Handle(transfer, of: box).bits)
            statistics.submitted += 1
            return transfer
        } catch {
            if ticket != nil { box.events.release() }
            throw error
        }
    }

    /// What the engine calls at the end; nil when nobody wants to know.
    private static func callback(
        _ c: te_operation, _ ticket: Ticket?, _ events: EventQueue
    ) -> TransferCallback? {
        if c.callback == nil, ticket == nil { return nil }
        let context = UnsafeMutableRawPointer.Sent(pointer: c.context)
        return { [callback = c.callback] result in
            if let callback {
                if case .failure(let error) = result { _ = Failure(error).report() }
                tei_call(callback, context.pointer, result.status)
            }
            if let ticket {
                events.push(
                    te_event(
                        kind: UInt32(TE_EVENT_TRANSFER), status: result.status, tag: ticket.tag, object: 0,
                        old_value: 0, new_value: 0), ticket)
            }
        }
    }

    private mutating func start(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        switch Int(c.kind) {
        case TE_WRITE: try write(c, box, onEnd)
        case TE_PAGED: try paged(c, box, onEnd)
        case TE_SCATTER: try scatter(c, box, onEnd)
        case TE_IMMEDIATE: try sendImmediate(c, box, onEnd)
        case TE_BARRIER: try barrier(c, box, onEnd)
        case TE_SEND: try sendMessage(c, box, onEnd)
        case TE_EXPECT: try expect(c, box, onEnd)
        default: throw Failure(TE_EINVALID, "operation.kind is \(c.kind)")
        }
    }

    private mutating func write(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let (source, target) = (try region(c.source), try remote(c.target))
        let (from, to) = (
            try integer(c.source_offset, "source_offset"), try integer(c.target_offset, "target_offset")
        )
        let byteCount = try integer(c.byte_count, "byte_count")
        let immediate = try c.optionalImmediate()
        let transfer = try engine { () throws(TransferError) in
            try box.engine.write(
                from: source, sourceOffset: from, byteCount: byteCount, to: target, targetOffset: to,
                immediate: immediate, timeout: duration(c.timeout_ns), onEnd: onEnd)
        }
        statistics.bytes &+= c.byte_count
        note(transfer, Use(generation: transfer.generation, source: source, target: target))
        return transfer
    }

    private mutating func paged(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let (source, target) = (try region(c.source), try remote(c.target))
        let (sources, targets) = try c.pages()
        let pageBytes = try integer(c.byte_count, "byte_count")
        let immediate = try c.optionalImmediate()
        let transfer = try engine { () throws(TransferError) in
            try box.engine.write(
                pageBytes: pageBytes, from: source, pages: sources, to: target, pages: targets,
                immediate: immediate, timeout: duration(c.timeout_ns), onEnd: onEnd)
        }
        statistics.bytes &+= c.byte_count &* c.count
        statistics.pages &+= c.count
        note(transfer, Use(generation: transfer.generation, source: source, target: target))
        return transfer
    }

    private mutating func scatter(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let (source, group) = (try region(c.source), try group(c.target))
        let slices = try c.scatterSlices()
        let immediate = try c.optionalImmediate()
        let transfer = try engine { () throws(TransferError) in
            try box.engine.scatter(
                from: source, slices, to: group, immediate: immediate, timeout: duration(c.timeout_ns),
                onEnd: onEnd)
        }
        for slice in slices { statistics.bytes &+= UInt64(slice.byteCount) }
        note(transfer, Use(generation: transfer.generation, source: source, group: group))
        return transfer
    }

    private mutating func sendImmediate(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let target = try target(c.target)
        let immediate = try c.requiredImmediate()
        let transfer = try engine { () throws(TransferError) in
            try box.engine.send(
                immediate: immediate, to: target, timeout: duration(c.timeout_ns), onEnd: onEnd)
        }
        note(transfer, Use(generation: transfer.generation, target: target))
        return transfer
    }

    private mutating func barrier(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let group = try group(c.target)
        let immediate = try c.requiredImmediate()
        let transfer = try engine { () throws(TransferError) in
            try box.engine.barrier(
                group, immediate: immediate, timeout: duration(c.timeout_ns), onEnd: onEnd)
        }
        note(transfer, Use(generation: transfer.generation, group: group))
        return transfer
    }

    private mutating func sendMessage(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let peer = try peer(c.target)
        let payload = try list(c.payload?.assumingMemoryBound(to: UInt8.self), c.byte_count, "payload")
        let transfer = try engine { () throws(TransferError) in
            try box.engine.send(
                UnsafeRawBufferPointer(payload), to: peer, timeout: duration(c.timeout_ns), onEnd: onEnd)
        }
        statistics.bytes &+= c.byte_count
        note(transfer, Use(generation: transfer.generation, target: peer.landing))
        return transfer
    }

    private mutating func expect(
        _ c: te_operation, _ box: EngineBox, _ onEnd: TransferCallback?
    ) throws(Failure) -> Transfer {
        let immediate = try c.requiredImmediate()
        let count = try integer(c.count, "count")
        var senders: [Peer] = []
        for sender in try list(c.senders, c.sender_count, "senders") { senders.append(try peer(sender)) }
        let transfer = try engine { () throws(TransferError) in
            try box.engine.expect(
                immediate, count: count, from: senders, timeout: duration(c.timeout_ns), onReached: onEnd)
        }
        note(transfer, Use(generation: transfer.generation))
        return transfer
    }
}

func immediateOf(_ value: UInt32) throws(Failure) -> Immediate {
    guard let immediate = Immediate(exactly: value) else {
        throw Failure(TE_EINVALID, "immediate \(value) is not below 2^30")
    }
    return immediate
}

extension te_operation {
    /// Nil for `TE_NO_IMMEDIATE`.
    func optionalImmediate() throws(Failure) -> Immediate? {
        immediate == TE_NO_IMMEDIATE ? nil : try immediateOf(immediate)
    }

    func requiredImmediate() throws(Failure) -> Immediate {
        guard immediate != TE_NO_IMMEDIATE else {
            throw Failure(TE_EINVALID, "this kind of operation needs an immediate")
        }
        return try immediateOf(immediate)
    }

    /// Both page lists, for as long as the caller lends them.
    func pages() throws(Failure) -> (source: Pages, target: Pages) {
        let sources = try list(source_pages, count, "source_pages")
        let targets = try list(target_pages, count, "target_pages")
        return (
            Pages(
                sources, stride: try integer(source_stride, "source_stride"),
                offset: try integer(source_offset, "source_offset")),
            Pages(
                targets, stride: try integer(target_stride, "target_stride"),
                offset: try integer(target_offset, "target_offset"))
        )
    }

    fileprivate func scatterSlices() throws(Failure) -> [ScatterSlice] {
        var result: [ScatterSlice] = []
        guard count <= UInt64(Limits.targets) else {
            throw Failure(TE_ELIMIT, "\(count) slices; at most \(Limits.targets)")
        }
        for slice in try list(slices, count, "slices") {
            result.append(
                ScatterSlice(
                    sourceOffset: try integer(slice.source_offset, "source_offset"),
                    byteCount: try integer(slice.byte_count, "byte_count"),
                    targetOffset: try integer(slice.target_offset, "target_offset")))
        }
        return result
    }
}
