public import CTransferEngine
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// Runs `body` with the endpoint of a handle. Some of it waits, so that none is for callbacks.
private func callEndpoint(_ bits: UInt64, _ body: (WeightsEndpoint) throws(Failure) -> Void) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        let known = try weightsEndpoints.find(bits)
        try known.door.alone(known.box) { () throws(Failure) in
            // It may have been closed since it was found.
            _ = try weightsEndpoints.find(bits)
            try body(known)
        }
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

/// Runs `body`, which any thread may do at any time, with the endpoint of a handle.
private func readEndpoint(
    _ bits: UInt64, _ body: (WeightsEndpoint) throws(Failure) -> Int
) -> Int32 {
    do throws(Failure) {
        let known = try weightsEndpoints.find(bits)
        try known.box.refuseChildren()
        return Int32(try body(known))
    } catch {
        return error.report()
    }
}

@c @implementation
public func te_weights_open(
    _ handle: te_engine, _ plan: te_weights_plan, _ endpoint: UnsafeMutablePointer<te_weights_endpoint>?
) -> Int32 {
    call(handle, .engine, waits: true) { box, _ throws(Failure) in
        let endpoint = try place(endpoint, "endpoint")
        let plan = try weightsPlans.find(plan)
        try plan.refuseUnproven()
        try registry.withLock { _ throws(Failure) in try box.takeMessages() }
        do throws(Failure) {
            endpoint.pointee = weightsEndpoints.add(try WeightsEndpoint(box, plan))
        } catch {
            box.giveBackMessages()
            throw error
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_weights_follow(
    _ endpoint: te_weights_endpoint, _ address: UnsafeRawPointer?, _ length: UInt64
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let bytes = Array(try list(address?.assumingMemoryBound(to: UInt8.self), length, "address"))
        known.follow(try engine { () throws(TransferError) in try EngineAddress(decoding: bytes) })
    }
}

@c @implementation
public func te_weights_poll(_ endpoint: te_weights_endpoint, _ busy: UnsafeMutablePointer<Int32>?) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let wasBusy = known.poll()
        busy?.pointee = wasBusy ? 1 : 0
    }
}

@c @implementation
public func te_weights_wait(
    _ endpoint: te_weights_endpoint, _ what: UInt32, _ version: UInt64, _ timeout: Int64
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.wait(what, version, timeout) }
}

@c @implementation
public func te_weights_status(
    _ endpoint: te_weights_endpoint, _ state: UnsafeMutablePointer<te_weights_state>?
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let given = try readSized(state, "state", as: te_weights_state.self)
        let place = try place(state, "state")
        place.pointee = known.state
        place.pointee.size = given.size
    }
}

@c @implementation
public func te_weights_describe(
    _ endpoint: te_weights_endpoint, _ text: UnsafeMutablePointer<CChar>?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let controller = try known.controller
        let lines = ([controller.state] + controller.log).joined(separator: "\n")
        try write(Array(lines.utf8), text, capacity, length)
    }
}

@c @implementation
public func te_weights_close(_ endpoint: te_weights_endpoint) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        try known.close()
        weightsEndpoints.remove(endpoint)
    }
}

// MARK: Trainers

@c @implementation
public func te_weights_train(_ endpoint: te_weights_endpoint, _ rank: UInt32) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.train(rank) }
}

@c @implementation
public func te_weights_memory(
    _ endpoint: te_weights_endpoint, _ address: UnsafeMutablePointer<UnsafeMutableRawPointer?>?,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let (address, length) = (try place(address, "address"), try place(length, "length"))
        let memory = try known.trainer.memory
        address.pointee = memory.baseAddress
        length.pointee = UInt64(memory.byteCount)
    }
}

@c @implementation
public func te_weights_fill(
    _ endpoint: te_weights_endpoint, _ name: UnsafePointer<CChar>?, _ whole: UnsafeRawPointer?,
    _ length: UInt64
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        guard let name = string(name) else { throw Failure.isNull("name") }
        let bytes = try list(whole?.assumingMemoryBound(to: UInt8.self), length, "whole")
        try known.fill(name, UnsafeRawBufferPointer(bytes))
    }
}

@c @implementation
public func te_weights_publish(_ endpoint: te_weights_endpoint, _ version: UInt64) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.publish(version) }
}

@c @implementation
public func te_weights_withdraw(_ endpoint: te_weights_endpoint) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.withdraw() }
}

// MARK: Receivers

@c @implementation
public func te_weights_serve(_ endpoint: te_weights_endpoint, _ rank: UInt32) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.serve(rank) }
}

@c @implementation
public func te_weights_version(
    _ endpoint: te_weights_endpoint, _ version: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    readEndpoint(endpoint) { known throws(Failure) in
        try place(version, "version").pointee = try known.receiver.activeVersion ?? 0
        return TE_OK
    }
}

@c @implementation
public func te_weights_read_begin(
    _ endpoint: te_weights_endpoint, _ reading: UnsafeMutablePointer<te_weights_reading>?
) -> Int32 {
    readEndpoint(endpoint) { known throws(Failure) in
        _ = try readSized(reading, "reading", as: te_weights_reading.self)
        let place = try place(reading, "reading")
        guard let (number, reading) = try known.beginReading() else { return TE_PENDING }
        place.pointee.number = number
        place.pointee.version = reading.version
        place.pointee.weights = reading.weights.baseAddress
        place.pointee.length = UInt64(reading.weights.count)
        return TE_OK
    }
}

@c @implementation
public func te_weights_read_end(_ endpoint: te_weights_endpoint, _ number: UInt64) -> Int32 {
    readEndpoint(endpoint) { known throws(Failure) in
        try known.endReading(number)
        return TE_OK
    }
}

// MARK: Who leads

@c @implementation
public func te_weights_lead(
    _ endpoint: te_weights_endpoint, _ options: UnsafePointer<te_weights_options>?
) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in
        let c =
            options == nil
            ? te_weights_options() : try readSized(options, "options", as: te_weights_options.self)
        try known.lead(max(1, c.term), try WeightController.Options(c))
    }
}

@c @implementation
public func te_weights_update(_ endpoint: te_weights_endpoint, _ version: UInt64) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.update(version) }
}

@c @implementation
public func te_weights_outcome(
    _ endpoint: te_weights_endpoint, _ version: UInt64, _ leftOut: UnsafeMutablePointer<UInt32>?,
    _ capacity: UInt64, _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    report(endpoint, leftOut, capacity, count) { known throws(Failure) in try known.outcome(version) }
}

@c @implementation
public func te_weights_rollback(_ endpoint: te_weights_endpoint, _ version: UInt64) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.rollback(version) }
}

@c @implementation
public func te_weights_rollback_outcome(
    _ endpoint: te_weights_endpoint, _ leftOut: UnsafeMutablePointer<UInt32>?, _ capacity: UInt64,
    _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    report(endpoint, leftOut, capacity, count) { known throws(Failure) in try known.rollbackOutcome() }
}

@c @implementation
public func te_weights_cancel(_ endpoint: te_weights_endpoint) -> Int32 {
    callEndpoint(endpoint) { known throws(Failure) in try known.controller.cancel() }
}

/// Says what an outcome is.
private func report(
    _ endpoint: te_weights_endpoint, _ leftOut: UnsafeMutablePointer<UInt32>?, _ capacity: UInt64,
    _ count: UnsafeMutablePointer<UInt64>?,
    _ outcome: (WeightsEndpoint) throws(Failure) -> WeightController.Outcome?
) -> Int32 {
    var isPending = false
    let status = callEndpoint(endpoint) { known throws(Failure) in
        _ = try place(count, "count")
        switch try outcome(known) {
        case nil: isPending = true
        case .committed(let ranks): try write(ranks: ranks, leftOut, capacity, count)
        case .failed(let reason): throw Failure(reason)
        }
    }
    return isPending ? Int32(TE_PENDING) : status
}
