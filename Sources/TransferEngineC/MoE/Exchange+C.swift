public import CTransferEngine
internal import ExpertParallel
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_moe_open(
    _ handle: te_engine, _ config: UnsafePointer<te_moe_config>?,
    _ exchange: UnsafeMutablePointer<te_moe_exchange>?
) -> Int32 {
    call(handle, .engine, waits: true) { box, _ throws(Failure) in
        let exchange = try place(exchange, "exchange")
        let config = try readSized(config, "config", as: te_moe_config.self, oldest: 80)
        let shape = try ExpertConfiguration(config)
        let opened = try engine { () throws(TransferError) -> any TokenExchange in
            config.nodes == 0
                ? try ExpertExchange(box.engine, shape)
                : try NodeExchange(box.engine, shape, nodes: Int(config.nodes))
        }
        let known = MoEExchange(opened, box)
        exchange.pointee = moeExchanges.add(known)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_moe_address(
    _ exchange: te_moe_exchange, _ buffer: UnsafeMutableRawPointer?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        try write(known.exchange.address, buffer, capacity, length)
    }
}

@c @implementation
public func te_moe_connect(
    _ exchange: te_moe_exchange, _ addresses: UnsafePointer<te_moe_bytes>?, _ count: UInt64
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        var all: [[UInt8]] = []
        for (rank, address) in try list(addresses, count, "addresses").enumerated() {
            let isOwn = rank == known.exchange.configuration.rank
            let bytes = address.bytes?.assumingMemoryBound(to: UInt8.self)
            all.append(isOwn ? [] : Array(try list(bytes, address.length, "address")))
        }
        try engine { () throws(TransferError) in try known.exchange.connect(all) }
    }
}

@c @implementation
public func te_moe_dispatch_send(
    _ exchange: te_moe_exchange, _ batch: UInt32, _ tokens: UnsafePointer<te_moe_tokens>?
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        let shape = known.exchange.configuration
        let c = try readSized(tokens, "tokens", as: te_moe_tokens.self)
        let count = Int(c.count)
        let row = shape.hidden * shape.dispatchElement.byteCount
        let stride = c.stride == 0 ? row : try integer(c.stride, "tokens.stride")
        guard stride >= row else { throw Failure(TE_EINVALID, "tokens.stride is less than a token") }
        var region: MemoryRegion?
        if c.region != 0 {
            guard let handle = Handle(c.region, .region), handle.slot == known.box.slot,
                let memory = known.box.objects.withLock({ $0.regions[handle]?.memory })
            else { throw Failure.badHandle(c.region, .region) }
            region = memory
        }
        // Without tokens nothing is read, but a pointer there has to be.
        let nothing = UnsafeRawPointer(bitPattern: 64).unsafelyUnwrapped
        func pointer<Value>(_ pointer: UnsafePointer<Value>?, _ name: StaticString) throws(Failure)
            -> UnsafePointer<Value>
        {
            if let pointer { return pointer }
            guard count == 0 else { throw Failure.isNull("\(name)") }
            return nothing.assumingMemoryBound(to: Value.self)
        }
        guard c.tokens != nil || count == 0 else { throw Failure.isNull("tokens.tokens") }
        guard (c.scales != nil) == (shape.scaleBlock != nil) || count == 0 else {
            throw Failure(TE_EINVALID, "tokens.scales are given where config.scale_block is, and only there")
        }
        let given = TokenBatch(
            count: count, tokens: c.tokens ?? nothing, stride: stride, region: region, scales: c.scales,
            experts: try pointer(c.experts, "tokens.experts"),
            weights: try pointer(c.weights, "tokens.weights"))
        try engine { () throws(TransferError) in try known.exchange.dispatchSend(Int(batch), given) }
    }
}

@c @implementation
public func te_moe_dispatch_receive(
    _ exchange: te_moe_exchange, _ batch: UInt32, _ received: UnsafeMutablePointer<te_moe_received>?
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        _ = try readSized(received, "received", as: te_moe_received.self)
        let received = try place(received, "received")
        let pass = try engine { () throws(TransferError) in try known.exchange.dispatchReceive(Int(batch)) }
        received.pointee.is_last = pass.isLast ? 1 : 0
        received.pointee.row_count = UInt64(pass.rowCount)
        received.pointee.tokens = pass.tokens
        received.pointee.scales = pass.scales
        received.pointee.outputs = pass.outputs
        received.pointee.expert_count = UInt64(pass.counts.count)
        received.pointee.counts = pass.counts.baseAddress
        received.pointee.offsets = pass.offsets.baseAddress
    }
}

@c @implementation
public func te_moe_combine_send(_ exchange: te_moe_exchange, _ batch: UInt32) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        try engine { () throws(TransferError) in try known.exchange.combineSend(Int(batch)) }
    }
}

@c @implementation
public func te_moe_combine_receive(
    _ exchange: te_moe_exchange, _ batch: UInt32, _ sums: UnsafeMutableRawPointer?, _ stride: UInt64,
    _ result: UnsafeMutablePointer<te_moe_result>?
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        _ = try readSized(result, "result", as: te_moe_result.self)
        let result = try place(result, "result")
        guard let sums else { throw Failure.isNull("sums") }
        let shape = known.exchange.configuration
        let row = shape.hidden * shape.combineElement.byteCount
        let stride = stride == 0 ? row : try integer(stride, "stride")
        guard stride >= row else { throw Failure(TE_EINVALID, "stride is less than a row of sums") }
        let step = try engine { () throws(TransferError) in
            try known.exchange.combineReceive(Int(batch), into: sums, stride: stride)
        }
        result.pointee.missing_ranks = UInt32(step.missingRanks.count)
        result.pointee.dropped_entries = UInt64(step.droppedEntries)
    }
}

@c @implementation
public func te_moe_missing(
    _ exchange: te_moe_exchange, _ ranks: UnsafeMutablePointer<UInt32>?, _ capacity: UInt64,
    _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        try write(ranks: known.exchange.missingRanks, ranks, capacity, count)
    }
}

@c @implementation
public func te_moe_failure(_ exchange: te_moe_exchange, _ rank: UInt32) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        guard rank < known.exchange.configuration.ranks else {
            throw Failure(TE_EINVALID, "rank \(rank) of \(known.exchange.configuration.ranks)")
        }
        if let failure = known.exchange.failure(of: Int(rank)) { throw Failure(failure) }
    }
}

@c @implementation
public func te_moe_close(_ exchange: te_moe_exchange) -> Int32 {
    callExchange(exchange) { known throws(Failure) in
        moeExchanges.remove(exchange)
        try engine { () throws(TransferError) in try known.exchange.close() }
    }
}
