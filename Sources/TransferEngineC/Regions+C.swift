public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_region_allocate(
    _ handle: te_engine, _ byteCount: UInt64, _ access: UInt32, _ nics: UInt32, _ flags: UInt32,
    _ region: UnsafeMutablePointer<te_region>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let region = try place(region, "region")
        let byteCount = try integer(byteCount, "byte_count")
        let access = try accessOf(access)
        guard flags & ~TE_UNPOPULATED == 0 else { throw Failure(TE_EINVALID, "unknown flags \(flags)") }
        let memory = try engine { () throws(TransferError) in
            try box.engine.allocate(
                byteCount: byteCount, access: access, nics: positions(nics),
                isPopulated: flags & TE_UNPOPULATED == 0)
        }
        region.pointee = try add(memory, to: box)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_region_register(
    _ handle: te_engine, _ memory: UnsafeMutableRawPointer?, _ byteCount: UInt64, _ access: UInt32,
    _ nics: UInt32, _ region: UnsafeMutablePointer<te_region>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let region = try place(region, "region")
        guard let memory else { throw Failure.isNull("memory") }
        let range = UnsafeMutableRawBufferPointer(start: memory, count: try integer(byteCount, "byte_count"))
        let access = try accessOf(access)
        let registered = try engine { () throws(TransferError) in
            try box.engine.register(range, access: access, nics: positions(nics))
        }
        region.pointee = try add(registered, to: box)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_region_deregister(_ region: te_region) -> Int32 {
    call(region, .region) { box, handle throws(Failure) in
        let memory = try box.objects.withLock { objects throws(Failure) in
            guard let found = objects.regions[handle] else { throw Failure.badHandle(region, .region) }
            try objects.refuseUse(of: found, by: box.engine)
            objects.regions.remove(handle)
            return found.memory
        }
        try engine { () throws(TransferError) in try box.engine.deregister(memory) }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_region_revoke(_ region: te_region) -> Int32 {
    call(region, .region) { box, handle throws(Failure) in
        // Meanwhile the handle stands for nothing.
        let memory = try box.objects.withLock { objects throws(Failure) in
            guard let found = objects.regions[handle] else { throw Failure.badHandle(region, .region) }
            try objects.refuseUse(of: found, by: box.engine)
            objects.regions.suspend(handle)
            return found.memory
        }
        do throws(TransferError) {
            let renewed = try box.engine.revoke(memory)
            box.objects.withLock { $0.regions.resume(handle, Objects.Region(memory: renewed)) }
        } catch {
            box.objects.withLock { $0.regions.resume(handle, nil) }
            throw Failure(error)
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_region_memory(
    _ region: te_region, _ memory: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ byteCount: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(region, .region) { box, handle throws(Failure) in
        let memory = try place(memory, "memory")
        let byteCount = try place(byteCount, "byte_count")
        // Also of one that is lent: a revocation leaves the memory where it is.
        let found = try box.objects.withLock { objects throws(Failure) in
            guard let found = objects.regions[handle] else { throw Failure.badHandle(region, .region) }
            return found.memory
        }
        memory.pointee = found.baseAddress
        byteCount.pointee = UInt64(found.byteCount)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_region_descriptor(
    _ region: te_region, _ buffer: UnsafeMutableRawPointer?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(region, .region) { box, _ throws(Failure) in
        // While the objects are locked nobody deregisters the region.
        let descriptor = try box.objects.withLock { objects throws(Failure) in
            box.engine.descriptor(of: try objects.region(region))
        }
        try write(descriptor.encoded(), buffer, capacity, length)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_watch(
    _ region: te_region, _ offset: UInt64, _ tag: UInt64, _ watcher: UnsafeMutablePointer<te_watcher>?
) -> Int32 {
    call(region, .region) { box, handle throws(Failure) in
        let result = try place(watcher, "watcher")
        let offset = try integer(offset, "offset")
        let serial = registry.withLock { $0.nextSerial() }
        let memory = try box.objects.withLock { objects throws(Failure) in
            let memory = try objects.region(region)
            objects.regions[handle]?.readers += 1
            return memory
        }
        do throws(Failure) {
            let ticket = Ticket(tag: tag)
            let watcher = try engine { () throws(TransferError) in
                try box.engine.watch(memory, at: offset) { [events = box.events] old, new in
                    events.pushChange(of: ticket.transfer, tag: ticket.tag, old: old, new: new)
                }
            }
            let index = try box.objects.withLock { objects throws(Failure) in
                try objects.watchers.add(Objects.Watch(watcher: watcher, region: handle), serial: serial)
            }
            let bits = Handle(.watcher, slot: box.slot, index: index, serial: serial).bits
            ticket.name(bits)
            result.pointee = bits
            return Int32(TE_OK)
        } catch {
            box.objects.withLock { $0.regions[handle]?.readers -= 1 }
            throw error
        }
    }
}

@c @implementation
public func te_unwatch(_ watcher: te_watcher) -> Int32 {
    call(watcher, .watcher) { box, handle throws(Failure) in
        let watch = try box.objects.withLock { objects throws(Failure) in
            guard let found = objects.watchers[handle] else { throw Failure.badHandle(watcher, .watcher) }
            objects.watchers.remove(handle)
            return found
        }
        defer { box.objects.withLock { $0.regions[watch.region]?.readers -= 1 } }
        try engine { () throws(TransferError) in try box.engine.unwatch(watch.watcher) }
        box.events.dropChanges(of: watcher)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_digest_range(
    _ region: te_region, _ offset: UInt64, _ byteCount: UInt64, _ targetOffset: UInt64,
    _ digest: UnsafeMutablePointer<te_digest>?
) -> Int32 {
    digestOf(region, digest) { box, memory throws(Failure) in
        let (from, count) = (try integer(offset, "offset"), try integer(byteCount, "byte_count"))
        let target = try integer(targetOffset, "target_offset")
        return try engine { () throws(TransferError) in
            try box.engine.digest(of: memory, offset: from, byteCount: count, targetOffset: target)
        }
    }
}

@c @implementation
public func te_digest_paged(
    _ operation: UnsafePointer<te_operation>?, _ digest: UnsafeMutablePointer<te_digest>?
) -> Int32 {
    let c: te_operation
    do throws(Failure) { c = try readSized(operation, "operation", as: te_operation.self) } catch {
        return error.report()
    }
    return digestOf(c.source, digest) { box, memory throws(Failure) in
        let (sources, targets) = try c.pages()
        let pageBytes = try integer(c.byte_count, "byte_count")
        return try engine { () throws(TransferError) in
            try box.engine.digest(of: memory, pageBytes: pageBytes, pages: sources, targetPages: targets)
        }
    }
}

/// Computes a digest of a region, which cannot be deregistered meanwhile.
private func digestOf(
    _ region: te_region, _ digest: UnsafeMutablePointer<te_digest>?,
    _ body: (EngineBox, MemoryRegion) throws(Failure) -> Digest
) -> Int32 {
    call(region, .region) { box, handle throws(Failure) in
        let digest = try place(digest, "digest")
        let memory = try box.objects.withLock { objects throws(Failure) in
            let memory = try objects.region(region)
            objects.regions[handle]?.readers += 1
            return memory
        }
        defer { box.objects.withLock { $0.regions[handle]?.readers -= 1 } }
        let result = try body(box, memory)
        digest.pointee = te_digest(low: result.low, high: result.high)
        return Int32(TE_OK)
    }
}

private func accessOf(_ access: UInt32) throws(Failure) -> Access {
    guard access <= UInt32(TE_REMOTE_WRITE) else { throw Failure(TE_EINVALID, "access is \(access)") }
    return Access(rawValue: UInt8(access))
}

/// The positions of the bits; nil for none, which is all.
private func positions(_ bits: UInt32) -> [Int]? {
    bits == 0 ? nil : (0..<32).filter { bits & 1 << $0 != 0 }
}

private func add(_ memory: MemoryRegion, to box: EngineBox) throws(Failure) -> UInt64 {
    let serial = registry.withLock { $0.nextSerial() }
    do throws(Failure) {
        let index = try box.objects.withLock { objects throws(Failure) in
            try objects.regions.add(Objects.Region(memory: memory), serial: serial)
        }
        return Handle(.region, slot: box.slot, index: index, serial: serial).bits
    } catch {
        try? box.engine.deregister(memory)
        throw error
    }
}
