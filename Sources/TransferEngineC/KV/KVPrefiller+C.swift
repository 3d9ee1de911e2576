public import CTransferEngine
internal import KVCacheTransfer
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_kv_job_read(
    _ job: te_kv_job, _ info: UnsafeMutablePointer<te_kv_job_info>?, _ input: UnsafeMutableRawPointer?,
    _ capacity: UInt64
) -> Int32 {
    callRole(job, .job) { role, handle throws(Failure) in
        let target = try place(info, "info")
        var out = try readSized(UnsafePointer(target), "info", as: te_kv_job_info.self)
        guard let known = role.objects.state.withLock({ $0.jobs[handle.number]?.job }) else {
            throw Failure.badRoleHandle(job, .job)
        }
        out.has_tail = known.tailBytes == nil ? 0 : 1
        out.cached = UInt64(known.span.cached)
        out.end = UInt64(known.span.end)
        out.tail_bytes = UInt64(known.tailBytes ?? 0)
        let (seconds, attoseconds) = known.timeout.components
        out.timeout_ns = seconds * 1_000_000_000 + attoseconds / 1_000_000_000
        withUnsafeMutableBytes(of: &out.decoder) { fill($0, known.decoder) }
        out.input_bytes = UInt64(known.input.count)
        target.pointee = out
        if known.input.isEmpty { return Int32(TE_OK) }
        var length: UInt64 = 0
        try write(known.input, input, capacity, &length)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_accept(
    _ job: te_kv_job, _ tables: UnsafePointer<te_kv_table>?, _ tableCount: UInt64, _ tag: UInt64
) -> Int32 {
    callRole(job, .job) { role, handle throws(Failure) in
        let tables = try pageTables(tables, tableCount)
        let prefiller = try role.prefiller(job)
        let id = try role.objects.state.withLock { state throws(Failure) in
            guard let known = state.jobs[handle.number] else {
                throw Failure.badRoleHandle(job, .job)
            }
            guard !known.isAccepted else { throw Failure(TE_EINVALID, "the job has been accepted before") }
            state.jobs[handle.number]?.isAccepted = true
            state.jobs[handle.number]?.tag = tag
            return known.job.id
        }
        prefiller.accept(id, sources: tables) { [objects = role.objects] event in
            objects.happened(event, to: handle.number, tag: tag)
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_extend(_ job: te_kv_job, _ tables: UnsafePointer<te_kv_table>?, _ tableCount: UInt64)
    -> Int32
{
    callRole(job, .job) { role, handle throws(Failure) in
        let tables = try pageTables(tables, tableCount)
        let prefiller = try role.prefiller(job)
        guard let known = try role.job(job, handle) else { return Int32(TE_OK) }
        guard known.isAccepted else { throw Failure(TE_EINVALID, "accept the job first") }
        prefiller.extend(known.job.id, sources: tables)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_abort(_ job: te_kv_job, _ reason: UnsafePointer<CChar>?) -> Int32 {
    callRole(job, .job) { role, handle throws(Failure) in
        guard let reason = string(reason) else { throw Failure.isNull("reason") }
        let prefiller = try role.prefiller(job)
        guard let known = try role.job(job, handle) else { return Int32(TE_OK) }
        if !known.isAccepted { role.objects.state.withLock { $0.jobs[handle.number] = nil } }
        prefiller.abort(known.job.id, KVError(known.code, String(reason.prefix(200))))
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_forward(
    _ prefiller: te_kv_prefiller, _ stage: UInt32, _ chunks: UnsafePointer<te_kv_chunk>?, _ count: UInt64
) -> Int32 {
    callRole(prefiller, .prefiller) { role, _ throws(Failure) in
        try role.check(stage)
        guard count <= UInt64(KVLimits.requests) else { throw Failure(TE_ELIMIT, "\(count) chunks") }
        var planned: [KVChunk] = []
        for chunk in try list(chunks, count, "chunks") {
            guard chunk.begin <= chunk.end, chunk.end <= UInt64(KVLimits.tokens) else {
                throw Failure(TE_EINVALID, "a chunk of tokens \(chunk.begin) to \(chunk.end)")
            }
            guard let handle = KVHandle(chunk.job, [.job]), handle.role == role.objects.role else {
                throw Failure.badRoleHandle(chunk.job, .job)
            }
            guard let known = try role.job(chunk.job, handle) else { continue }
            planned.append(KVChunk(job: known.job.id, tokens: Int(chunk.begin)..<Int(chunk.end)))
        }
        try role.prefiller(prefiller).begin(forward: planned, stage: Int(stage))
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_computed(_ prefiller: te_kv_prefiller, _ stage: UInt32, _ layers: UInt64) -> Int32 {
    callRole(prefiller, .prefiller) { role, _ throws(Failure) in
        try role.check(stage)
        try role.prefiller(prefiller).computed(layers: layers, stage: Int(stage))
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_watch(_ prefiller: te_kv_prefiller, _ rank: UInt32, _ region: te_region, _ offset: UInt64)
    -> Int32
{
    callRole(prefiller, .prefiller) { role, _ throws(Failure) in
        let known = try role.prefiller(prefiller)
        guard Int(rank) < role.setup.ranks.count else {
            throw Failure(TE_EINVALID, "rank \(rank) of \(role.setup.ranks.count)")
        }
        let box = role.setup.box(Int(rank))
        guard let handle = Handle(region, .region), handle.slot == box.slot else {
            throw Failure.badHandle(region, .region)
        }
        let offset = try integer(offset, "offset")
        let memory = try box.objects.withLock { objects throws(Failure) in
            let memory = try objects.region(region)
            objects.regions[handle]?.readers += 1
            return memory
        }
        do throws(KVError) {
            let watcher = try known.watch(rank: Int(rank), memory, at: offset)
            role.watchers.withLock { $0.append((box, watcher, handle)) }
        } catch {
            box.objects.withLock { $0.regions[handle]?.readers -= 1 }
            throw Failure(error)
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_write_tail(_ job: te_kv_job, _ rank: UInt32, _ region: UInt32, _ offset: UInt64) -> Int32 {
    callRole(job, .job) { role, handle throws(Failure) in
        let prefiller = try role.prefiller(job)
        let offset = try integer(offset, "offset")
        guard let known = try role.job(job, handle) else { return Int32(TE_OK) }
        guard known.job.tailBytes != nil else { throw Failure(TE_EINVALID, "the job has no tail") }
        prefiller.writeTail(known.job.id, rank: Int(rank), region: Int(region), offset: offset)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_drain(_ prefiller: te_kv_prefiller) -> Int32 {
    callRole(prefiller, .prefiller) { role, _ throws(Failure) in
        try role.prefiller(prefiller).drain()
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_load(
    _ prefiller: te_kv_prefiller, _ jobs: UnsafeMutablePointer<UInt64>?,
    _ tokens: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callRole(prefiller, .prefiller) { role, _ throws(Failure) in
        let answer = Answer<(Int, Int)>()
        try role.prefiller(prefiller).status { answer.set(($0, $1)) }
        guard let (jobCount, tokenCount) = answer.value else {
            throw Failure(TE_ETIMEDOUT, "the prefiller is busy for too long")
        }
        jobs?.pointee = UInt64(clamping: jobCount)
        tokens?.pointee = UInt64(clamping: tokenCount)
        return Int32(TE_OK)
    }
}

extension KVRole {
    fileprivate func check(_ stage: UInt32) throws(Failure) {
        guard Int(stage) < setup.layout.stages.count else {
            throw Failure(TE_EINVALID, "stage \(stage) of \(setup.layout.stages.count)")
        }
    }

    /// A job; nil when it has ended.
    fileprivate func job(_ bits: UInt64, _ handle: KVHandle) throws(Failure) -> KVObjects.Job? {
        try objects.state.withLock { state throws(Failure) in
            guard handle.number <= state.last else { throw Failure.badRoleHandle(bits, .job) }
            return state.jobs[handle.number]
        }
    }
}
