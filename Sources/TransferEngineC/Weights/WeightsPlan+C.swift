public import CTransferEngine
internal import TransferEngine
internal import WeightTransfer

/// Runs `body` with the plan of a handle. Some of it takes seconds, so that none is for callbacks.
private func callPlan(_ bits: UInt64, _ body: (WeightsPlan) throws(Failure) -> Void) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        try body(try weightsPlans.find(bits))
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

/// Runs `body`, which makes a plan.
private func makePlan(
    _ plan: UnsafeMutablePointer<te_weights_plan>?, _ body: () throws(Failure) -> Plan
) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        let place = try place(plan, "plan")
        place.pointee = weightsPlans.add(WeightsPlan(try body()))
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

@c @implementation
public func te_weights_plan_make(
    _ layouts: UnsafePointer<te_weights_layouts>?, _ plan: UnsafeMutablePointer<te_weights_plan>?
) -> Int32 {
    makePlan(plan) { () throws(Failure) in
        let c = try readSized(layouts, "layouts", as: te_weights_layouts.self)
        guard let model = string(c.model) else { throw Failure.isNull("layouts.model") }
        guard let trainers = string(c.trainers) else { throw Failure.isNull("layouts.trainers") }
        guard let inference = string(c.inference) else { throw Failure.isNull("layouts.inference") }
        var options = Planner.Options()
        switch Int(c.policy) {
        case TE_WEIGHTS_DIRECT: options.policy = .direct
        case TE_WEIGHTS_FULL_TENSOR: options.policy = .fullTensor
        default: throw Failure(TE_EINVALID, "layouts.policy is \(c.policy); direct or full tensor")
        }
        guard c.watermark_bytes <= 1 << 40, c.task_bytes <= 1 << 40 else {
            throw Failure(TE_EINVALID, "layouts: a watermark and tasks of at most 1 TiB")
        }
        if c.watermark_bytes > 0 { options.watermarkBytes = Int(c.watermark_bytes) }
        if c.task_bytes > 0 { options.taskBytes = Int(c.task_bytes) }
        return try engine { () throws(TransferError) in
            try Planner.plan(model, from: trainers, to: inference, options: options)
        }
    }
}

@c @implementation
public func te_weights_plan_decode(
    _ bytes: UnsafeRawPointer?, _ length: UInt64, _ plan: UnsafeMutablePointer<te_weights_plan>?
) -> Int32 {
    makePlan(plan) { () throws(Failure) in
        let bytes = Array(try list(bytes?.assumingMemoryBound(to: UInt8.self), length, "bytes"))
        let plan = try engine { () throws(TransferError) in try Plan(decoding: bytes) }
        if let finding = plan.malformations().first { throw Failure(TE_EMALFORMED, "the plan: \(finding)") }
        return plan
    }
}

@c @implementation
public func te_weights_plan_encode(
    _ plan: te_weights_plan, _ buffer: UnsafeMutableRawPointer?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in try write(known.plan.encoded(), buffer, capacity, length) }
}

@c @implementation
public func te_weights_plan_lint(
    _ plan: te_weights_plan, _ text: UnsafeMutablePointer<CChar>?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?, _ findings: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in
        let found = known.findings
        findings?.pointee = UInt32(found.count)
        let lines = found.map { "\($0)\n" }.joined()
        try write(Array(lines.utf8), text, capacity, length)
    }
}

@c @implementation
public func te_weights_plan_summary(
    _ plan: te_weights_plan, _ text: UnsafeMutablePointer<CChar>?, _ capacity: UInt64,
    _ length: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in
        try write(Array(known.plan.summary.description.utf8), text, capacity, length)
    }
}

@c @implementation
public func te_weights_plan_ranks(
    _ plan: te_weights_plan, _ trainers: UnsafeMutablePointer<UInt32>?,
    _ receivers: UnsafeMutablePointer<UInt32>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in
        trainers?.pointee = UInt32(known.plan.trainers.worldSize)
        receivers?.pointee = UInt32(known.plan.inference.worldSize)
    }
}

@c @implementation
public func te_weights_plan_shards(
    _ plan: te_weights_plan, _ rank: UInt32, _ shards: UnsafeMutablePointer<te_weights_shard>?,
    _ capacity: UInt64, _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in
        try write(shards, capacity, count, "shards", try known.shards(of: rank))
    }
}

@c @implementation
public func te_weights_plan_targets(
    _ plan: te_weights_plan, _ rank: UInt32, _ targets: UnsafeMutablePointer<te_weights_target>?,
    _ capacity: UInt64, _ count: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callPlan(plan) { known throws(Failure) in
        try write(targets, capacity, count, "targets", try known.targets(of: rank))
    }
}

@c @implementation
public func te_weights_plan_release(_ plan: te_weights_plan) -> Int32 {
    callPlan(plan) { _ throws(Failure) in weightsPlans.remove(plan) }
}
