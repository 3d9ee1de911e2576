public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_engine_open(
    _ config: UnsafePointer<te_config>?, _ handle: UnsafeMutablePointer<te_engine>?
) -> Int32 {
    do throws(Failure) {
        let handle = try place(handle, "engine")
        let config = try readSized(config, "config", as: te_config.self)
        let configuration = try Configuration(config)
        let (slot, epoch) = try registry.withLock { registry throws(Failure) in try registry.reserve() }
        let box: EngineBox
        do throws(Failure) {
            box = try open(configuration, config, slot, epoch)
        } catch {
            registry.withLock { $0.settle(slot, nil) }
            throw error
        }
        registry.withLock { $0.settle(slot, box) }
        handle.pointee = box.handle
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

private func open(
    _ configuration: Configuration, _ config: te_config, _ slot: Int, _ epoch: Int
) throws(Failure) -> EngineBox {
    let events = EventQueue(
        capacity: config.event_capacity == 0 ? 16384 : Int(config.event_capacity),
        messageCapacity: config.message_capacity == 0 ? 1024 : Int(config.message_capacity))
    let opened = try engine { () throws(TransferError) in try TransferEngine(configuration) }
    do throws(TransferError) {
        try opened.receive(while: { events.hasRoomForMessages }) { bytes, sender in
            events.push(message: Array(bytes), from: sender.rawValue)
        }
    } catch {
        opened.close()
        throw Failure(error)
    }
    let (seconds, attoseconds) = configuration.timeout.components
    return EngineBox(
        opened, events, slot: slot, epoch: epoch, serial: registry.withLock { $0.nextSerial() },
        timeoutNanoseconds: UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000))
}

@c @implementation
public func te_engine_id(_ engine: te_engine, _ id: UnsafeMutablePointer<UInt64>?) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        try place(id, "id").pointee = box.engine.id.rawValue
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_engine_address(
    _ engine: te_engine, _ buffer: UnsafeMutableRawPointer?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        try write(box.engine.address.encoded(), buffer, capacity, length)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_engine_progress(_ engine: te_engine, _ happened: UnsafeMutablePointer<Int32>?) -> Int32 {
    call(engine, .engine, waits: true) { box, _ throws(Failure) in
        guard box.isManual else {
            throw Failure(
                TE_EINVALID, "the engine has a thread that makes progress; open it with TE_PROGRESS_MANUAL")
        }
        let didSomething = box.engine.progress()
        happened?.pointee = didSomething ? 1 : 0
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_engine_fd(_ engine: te_engine, _ fd: UnsafeMutablePointer<Int32>?) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        try place(fd, "fd").pointee = try box.openFile()
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_engine_write_trace(_ handle: te_engine, _ path: UnsafePointer<CChar>?) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        guard let path = string(path) else { throw Failure.isNull("path") }
        try engine { () throws(TransferError) in try box.engine.writeTrace(to: path) }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_engine_statistics(
    _ engine: te_engine, _ statistics: UnsafeMutablePointer<te_statistics>?
) -> Int32 {
    call(engine, .engine) { box, _ throws(Failure) in
        let target = try place(statistics, "statistics")
        var out = try readSized(UnsafePointer(target), "statistics", as: te_statistics.self)
        box.objects.withLock { objects in
            out.pending_transfers = UInt32(objects.pending(box.engine).count)
            out.submitted = objects.statistics.submitted
            out.refused = objects.statistics.refused
            out.bytes = objects.statistics.bytes
            out.pages = objects.statistics.pages
            out.regions = UInt32(objects.regions.count)
            out.remotes = UInt32(objects.remotes.count)
            out.peers = UInt32(objects.peers.count)
            out.groups = UInt32(objects.groups.count)
            out.watchers = UInt32(objects.watchers.count)
        }
        let events = box.events.statistics
        out.events = events.events
        out.waiting_events = UInt64(events.waiting)
        out.messages = events.messages
        out.waiting_messages = UInt64(events.waitingMessages)
        target.pointee = out
        return Int32(TE_OK)
    }
}
