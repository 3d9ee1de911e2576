public import CTransferEngine
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_remote_attach(
    _ handle: te_engine, _ descriptor: UnsafeRawPointer?, _ length: UInt64, _ traffic: UInt32,
    _ remote: UnsafeMutablePointer<te_remote>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let remote = try place(remote, "remote")
        let bytes = try bytes(descriptor, length, "descriptor")
        let trafficClass: TrafficClass
        switch te_traffic(traffic) {
        case TE_TRAFFIC_NORMAL: trafficClass = .normal
        case TE_TRAFFIC_URGENT: trafficClass = .urgent
        case TE_TRAFFIC_BULK: trafficClass = .bulk
        default: throw Failure(TE_EINVALID, "traffic is \(traffic), which is none of te_traffic")
        }
        let attached = try engine { () throws(TransferError) in
            try box.engine.attach(decoding: bytes, as: trafficClass)
        }
        let serial = registry.withLock { $0.nextSerial() }
        let index = try box.objects.withLock { objects throws(Failure) in
            let index = try objects.remotes.add(attached, serial: serial)
            objects.attachments[attached, default: 0] += 1
            return index
        }
        remote.pointee = Handle(.remote, slot: box.slot, index: index, serial: serial).bits
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_remote_detach(_ remote: te_remote) -> Int32 {
    call(remote, .remote) { box, handle throws(Failure) in
        let last = try box.objects.withLock { objects throws(Failure) in
            let memory = try objects.remote(remote)
            let isLast = try objects.release(memory, of: box.engine)
            objects.remotes.remove(handle)
            return isLast ? memory : nil
        }
        if let last { try engine { () throws(TransferError) in try box.engine.detach(last) } }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_remote_info(
    _ remote: te_remote, _ byteCount: UnsafeMutablePointer<UInt64>?, _ engineID: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    call(remote, .remote) { box, _ throws(Failure) in
        let found = try box.objects.withLock { objects throws(Failure) in try objects.remote(remote) }
        byteCount?.pointee = UInt64(found.byteCount)
        engineID?.pointee = found.engine.rawValue
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_peer_connect(
    _ handle: te_engine, _ address: UnsafeRawPointer?, _ length: UInt64,
    _ peer: UnsafeMutablePointer<te_peer>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let peer = try place(peer, "peer")
        let bytes = try bytes(address, length, "address")
        let connected = try engine { () throws(TransferError) in
            try box.engine.connect(to: EngineAddress(decoding: bytes))
        }
        let serial = registry.withLock { $0.nextSerial() }
        let index = try box.objects.withLock { objects throws(Failure) in
            let index = try objects.peers.add(connected, serial: serial)
            objects.attachments[connected.landing, default: 0] += 1
            return index
        }
        peer.pointee = Handle(.peer, slot: box.slot, index: index, serial: serial).bits
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_peer_disconnect(_ peer: te_peer) -> Int32 {
    call(peer, .peer) { box, handle throws(Failure) in
        let last = try box.objects.withLock { objects throws(Failure) in
            let landing = try objects.peer(peer).landing
            let isLast = try objects.release(landing, of: box.engine)
            objects.peers.remove(handle)
            return isLast ? landing : nil
        }
        if let last { try engine { () throws(TransferError) in try box.engine.detach(last) } }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_peer_info(
    _ peer: te_peer, _ engineID: UnsafeMutablePointer<UInt64>?, _ name: UnsafeMutablePointer<CChar>?,
    _ capacity: UInt64
) -> Int32 {
    call(peer, .peer) { box, _ throws(Failure) in
        let found = try box.objects.withLock { objects throws(Failure) in try objects.peer(peer) }
        engineID?.pointee = found.engine.rawValue
        if let name, capacity > 0 {
            let bytes = Array(found.name.utf8).prefix(Int(clamping: capacity - 1))
            for (place, byte) in bytes.enumerated() { name[place] = CChar(bitPattern: byte) }
            name[bytes.count] = 0
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_group_create(
    _ handle: te_engine, _ members: UnsafePointer<UInt64>?, _ count: UInt64,
    _ group: UnsafeMutablePointer<te_group>?
) -> Int32 {
    call(handle, .engine) { box, _ throws(Failure) in
        let group = try place(group, "group")
        let members = try list(members, count, "members")
        guard members.count <= Limits.targets else {
            throw Failure(TE_ELIMIT, "a group of \(members.count) members; at most \(Limits.targets)")
        }
        let serial = registry.withLock { $0.nextSerial() }
        let index = try box.objects.withLock { objects throws(Failure) in
            var targets: [RemoteMemory] = []
            for member in members { targets.append(try objects.target(member)) }
            let made = try engine { () throws(TransferError) in try PeerGroup(targets) }
            return try objects.groups.add(made, serial: serial)
        }
        group.pointee = Handle(.group, slot: box.slot, index: index, serial: serial).bits
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_group_destroy(_ group: te_group) -> Int32 {
    call(group, .group) { box, handle throws(Failure) in
        try box.objects.withLock { objects throws(Failure) in
            _ = try objects.group(group)
            objects.groups.remove(handle)
        }
        return Int32(TE_OK)
    }
}

extension Objects {
    /// Ends one handle's use of an attachment. Returns whether it was the last one.
    fileprivate mutating func release(_ memory: RemoteMemory, of engine: TransferEngine) throws(Failure)
        -> Bool
    {
        let handles = attachments[memory] ?? 1
        guard handles == 1 else {
            attachments[memory] = handles - 1
            return false
        }
        try refuseUse(of: memory, by: engine)
        attachments[memory] = nil
        return true
    }

    /// Where a remote or a peer is written to.
    func target(_ bits: UInt64) throws(Failure) -> RemoteMemory {
        if Handle(bits, .peer) != nil { return try peer(bits).landing }
        return try remote(bits)
    }
}

func bytes(_ pointer: UnsafeRawPointer?, _ length: UInt64, _ name: StaticString)
    throws(Failure) -> [UInt8]
{
    guard length <= 65536 else { throw Failure(TE_EMALFORMED, "\(name) of \(length) bytes; none is so long") }
    return Array(try list(pointer?.assumingMemoryBound(to: UInt8.self), length, name))
}
