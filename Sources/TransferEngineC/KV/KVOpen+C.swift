public import CTransferEngine
internal import KVCacheTransfer
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_kv_prefiller_open(
    _ config: UnsafePointer<te_kv_config>?, _ layout: UnsafePointer<te_kv_layout>?,
    _ ranks: UnsafePointer<te_kv_rank>?, _ rankCount: UInt64,
    _ prefiller: UnsafeMutablePointer<te_kv_prefiller>?
) -> Int32 {
    open(.prefiller, config, layout, ranks, rankCount, prefiller) { setup, objects throws(KVError) in
        .prefiller(
            try KVPrefiller(setup.configuration, layout: setup.layout, ranks: setup.ranks) {
                objects.offer($0)
            })
    }
}

@c @implementation
public func te_kv_decoder_open(
    _ config: UnsafePointer<te_kv_config>?, _ layout: UnsafePointer<te_kv_layout>?,
    _ ranks: UnsafePointer<te_kv_rank>?, _ rankCount: UInt64, _ decoder: UnsafeMutablePointer<te_kv_decoder>?
) -> Int32 {
    open(.decoder, config, layout, ranks, rankCount, decoder) { setup, _ throws(KVError) in
        .decoder(try KVDecoder(setup.configuration, layout: setup.layout, ranks: setup.ranks))
    }
}

private func open(
    _ kind: KVHandle.Kind, _ config: UnsafePointer<te_kv_config>?, _ layout: UnsafePointer<te_kv_layout>?,
    _ ranks: UnsafePointer<te_kv_rank>?, _ rankCount: UInt64, _ result: UnsafeMutablePointer<UInt64>?,
    _ make: (KVSetup, KVObjects) throws(KVError) -> KVRole.Side
) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        let result = try place(result, kind == .decoder ? "decoder" : "prefiller")
        let number = try kvRoles.withLock { roles throws(Failure) in try roles.nextNumber() }
        let setup = try KVSetup(config, layout, ranks, rankCount)
        do throws(Failure) {
            let objects = KVObjects(role: number)
            let side = try kv { () throws(KVError) in try make(setup, objects) }
            guard let role = KVRole(side, objects, setup) else {
                throw Failure(TE_ELIMIT, "no thread for the role; raise the limit of threads")
            }
            kvRoles.withLock { $0.add(role) }
        } catch {
            setup.giveBack(setup.ranks.map(\.regions), revoking: false)
            throw error
        }
        result.pointee = KVHandle(kind: kind, role: number, number: 0).bits
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

@c @implementation
public func te_kv_poll(
    _ role: te_kv_role, _ events: UnsafeMutablePointer<te_kv_event>?, _ capacity: UInt64, _ timeout: Int64,
    _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callRole(role, .prefiller, .decoder, waits: timeout != 0) { role, _ throws(Failure) in
        let count = try place(count, "count")
        guard capacity > 0 else { throw Failure(TE_EINVALID, "capacity is 0") }
        let events = try place(events, "events")
        let deadline = timeout == 0 ? 0 : role.setup.deadline(timeout)
        while true {
            let taken = role.objects.mailbox.take(events, Int(min(capacity, 1 << 20)))
            let left = taken > 0 || timeout == 0 ? 0 : role.setup.nanoseconds(until: deadline)
            if left == 0 {
                count.pointee = UInt64(taken)
                return Int32(TE_OK)
            }
            // pairs with the store in te_kv_close
            if role.isClosing.load(ordering: .acquiring) { throw Failure.closedMeanwhile }
            role.objects.mailbox.sleep(left)
        }
    }
}

@c @implementation
public func te_kv_fd(_ role: te_kv_role, _ fd: UnsafeMutablePointer<Int32>?) -> Int32 {
    callRole(role, .prefiller, .decoder) { role, _ throws(Failure) in
        try place(fd, "fd").pointee = try role.objects.mailbox.openFile()
        return Int32(TE_OK)
    }
}
