internal import TransferEngine

/// Forward passes of one stage, the oldest first.
struct ForwardQueue {
    struct Forward {
        var chunks: [(job: UInt64, tokens: Range<Int>, plan: KVTransferPlan)]
        /// Layers that the stage had finished, in all passes, when this one begins.
        var begin: UInt64
    }

    /// Layers of the stage, and so of each pass.
    let layers: Int
    var waiting: [Forward] = []
    /// Layers that have been finished, in all passes.
    var finished: UInt64 = 0
    /// Where the next pass begins.
    var next: UInt64 = 0
}

/// A paged write for which the engine had no room.
struct PendingWrite {
    var job: UInt64
    var layer: Int
    var plan: KVTransferPlan
    var write: PageWrite
}

// From finished layers to paged writes.
extension KVPrefiller {
    /// Plans what a forward pass computes, before it begins: nothing but writes is left for the moment at which a layer is
    /// done.
    func announce(_ chunks: [KVChunk], _ stage: Int) {
        guard forwards.indices.contains(stage) else { return }
        var planned: [(job: UInt64, tokens: Range<Int>, plan: KVTransferPlan)] = []
        for chunk in chunks {
            guard let entry = jobs[chunk.job.number], entry.machine.isActive,
                let session = sessions[entry.prefill.session]
            else { continue }
            do throws(KVError) {
                guard entry.handler != nil else {
                    throw KVError(
                        .aborted, "a forward pass of a job that was not accepted; call accept before begin")
                }
                let plan = try KVTransferPlan(
                    session.mapping, entry.prefill.span, chunk: chunk.tokens, sources: entry.sources,
                    targets: entry.prefill.tables, salt: chunk.job.number)
                planned.append((chunk.job.number, chunk.tokens, plan))
            } catch {
                apply(.stop(error), to: chunk.job.number)
            }
        }
        forwards[stage].waiting.append(ForwardQueue.Forward(chunks: planned, begin: forwards[stage].next))
        forwards[stage].next += UInt64(forwards[stage].layers)
    }

    /// Layers have been finished; their number may have jumped.
    func finish(_ total: UInt64, _ stage: Int) {
        guard forwards.indices.contains(stage) else { return }
        while forwards[stage].finished < total, let forward = forwards[stage].waiting.first {
            let layer = Int(forwards[stage].finished - forward.begin)
            forwards[stage].finished += 1
            for chunk in forward.chunks {
                let number = layout.stages[stage].lowerBound + layer
                write(chunk.job, number, chunk.plan)
                digest(
                    chunk.job, number, chunk.plan,
                    isLast: chunk.tokens.upperBound >= jobs[chunk.job]?.prefill.span.end ?? .max)
            }
            guard layer + 1 == forwards[stage].layers else { continue }
            forwards[stage].waiting.removeFirst()
            for chunk in forward.chunks
            where chunk.tokens.upperBound >= jobs[chunk.job]?.prefill.span.end ?? .max {
                jobs[chunk.job]?.missingStages -= 1
                completeIfDone(chunk.job)
            }
        }
        // Passes that nobody announced.
        forwards[stage].finished = max(forwards[stage].finished, total)
        forwards[stage].next = max(forwards[stage].next, forwards[stage].finished)
    }

    private func write(_ job: UInt64, _ layer: Int, _ plan: KVTransferPlan) {
        guard jobs[job]?.machine.isActive == true else { return }
        plan.forEachWrite(layer: layer) { write in
            let next = PendingWrite(job: job, layer: layer, plan: plan, write: write)
            let hasRoom = pending.isEmpty && jobs[job]?.machine.inFlight ?? 0 < KVLimits.writesInFlight
            if hasRoom, submit(next) { return }
            pending.append(next)
            jobs[job]?.waiting += 1
        }
    }

    /// Submits what waits for room. A job that has as much in flight as it may have holds up only itself.
    func pump() {
        guard !pending.isEmpty else { return }
        let waiting = pending
        pending = []
        var isFull = false
        for next in waiting {
            guard jobs[next.job]?.machine.isActive == true else { continue }
            if !isFull, jobs[next.job]?.machine.inFlight ?? 0 < KVLimits.writesInFlight {
                if submit(next) {
                    jobs[next.job]?.waiting -= 1
                    completeIfDone(next.job)
                    continue
                }
                isFull = true
            }
            pending.append(next)
        }
        // Those that were stopped meanwhile.
        pending.removeAll { jobs[$0.job]?.machine.isActive != true }
    }

    private func completeIfDone(_ job: UInt64) {
        guard let entry = jobs[job], entry.missingStages == 0, entry.waiting == 0, entry.isTailWritten else {
            return
        }
        apply(.submittedAll, to: job)
    }

    /// Hands a paged write to the engine of its rank. False when there is no room now.
    private func submit(_ next: PendingWrite) -> Bool {
        guard let entry = jobs[next.job], entry.machine.isActive else { return true }
        let (write, list) = (next.write, next.plan.lists[next.write.list])
        guard !list.sources.isEmpty, let session = sessions[entry.prefill.session] else { return true }
        let source = ranks[write.sourceRank].placement.plane(
            layout, rank: write.sourceRank, layer: next.layer, write.sourcePlane)
        let target = session.hello.ranks[write.targetRank].placement.plane(
            session.hello.layout, rank: write.targetRank, layer: next.layer, write.targetPlane)
        let stage = session.hello.layout.stages[write.targetRank / session.hello.layout.tensorRanks]
        let step = entry.prefill.isLayerwise ? next.layer - stage.lowerBound : 0
        return begin(next.job, write.sourceRank) { (engine, onEnd) throws(TransferError) in
            let remote = try attachment(
                entry.prefill.session, write.sourceRank, write.targetRank, target.region)
            // SAFETY: the engine reads the lists before `write` returns.
            let result = unsafe list.sources.withUnsafeBufferPointer { sources in
                unsafe list.targets.withUnsafeBufferPointer { targets -> Result<Transfer, TransferError> in
                    do throws(TransferError) {
                        return .success(
                            try engine.write(
                                pageBytes: write.byteCount,
                                from: ranks[write.sourceRank].regions[source.region],
                                pages: unsafe Pages(
                                    sources, stride: source.stride, offset: source.offset + write.sourceOffset
                                ),
                                to: remote,
                                pages: unsafe Pages(
                                    targets, stride: target.stride, offset: target.offset + write.targetOffset
                                ),
                                immediate: Immediate(
                                    truncatingIfNeeded: entry.prefill.immediates[write.targetRank]
                                        + UInt32(step)),
                                onEnd: onEnd))
                    } catch { return .failure(error) }
                }
            }
            return try result.get()
        }
    }

    private func attachment(
        _ session: UInt64, _ sourceRank: Int, _ targetRank: Int, _ region: Int
    ) throws(TransferError) -> RemoteMemory {
        let key = DecoderSession.Attachment(sourceRank: sourceRank, targetRank: targetRank, region: region)
        guard let known = sessions[session] else { throw TransferError(.closed, "the session is over") }
        if let memory = known.attached[key] { return memory }
        let memory = try ranks[sourceRank].engine.attach(known.hello.ranks[targetRank].regions[region])
        sessions[session]?.attached[key] = memory
        return memory
    }

    /// Begins a write, and lets the job's machine know of its end. False when there is no room now.
    private func begin(
        _ job: UInt64, _ rank: Int,
        _ submit: (TransferEngine, @escaping TransferCallback) throws(TransferError) -> Transfer
    ) -> Bool {
        guard let token = jobs[job]?.nextTransfer else { return true }
        let queue = queue
        do throws(TransferError) {
            let transfer = try submit(ranks[rank].engine) { [weak self] result in
                queue.run { [weak self] in self?.ended(job, token, result) }
            }
            jobs[job]?.nextTransfer += 1
            jobs[job]?.transfers[token] = (rank, transfer)
            apply(.submitted, to: job)
            return true
        } catch {
            if error.code == .backPressure { return false }
            apply(.failed(KVError(error)), to: job)
            return true
        }
    }

    private func ended(_ job: UInt64, _ token: UInt64, _ result: Result<Void, TransferError>) {
        guard let entry = jobs[job], entry.transfers[token] != nil, entry.machine.isActive else { return }
        switch result {
        case .success:
            jobs[job]?.transfers[token] = nil
            apply(.written, to: job)
        case .failure(let error): apply(.failed(KVError(error)), to: job)
        }
        if !pending.isEmpty { pump() }
    }

    /// Writes the tail.
    func tail(_ job: UInt64, _ rank: Int, _ region: Int, _ offset: Int) {
        guard let entry = jobs[job], entry.machine.isActive, let tail = entry.prefill.tail,
            !entry.isTailWritten,
            let session = sessions[entry.prefill.session]
        else { return }
        guard ranks.indices.contains(rank), ranks[rank].regions.indices.contains(region) else {
            return apply(.stop(KVError(.invalidLayout, "rank \(rank) has no region \(region)")), to: job)
        }
        let layout = session.hello.layout
        let steps = entry.prefill.isLayerwise ? layout.stages[tail.rank / layout.tensorRanks].count : 0
        let hasRoom = begin(job, rank) { (engine, onEnd) throws(TransferError) in
            try engine.write(
                from: ranks[rank].regions[region], sourceOffset: offset, byteCount: tail.byteCount,
                to: attachment(entry.prefill.session, rank, tail.rank, tail.region),
                targetOffset: tail.offset,
                immediate: Immediate(truncatingIfNeeded: entry.prefill.immediates[tail.rank] + UInt32(steps)),
                onEnd: onEnd)
        }
        guard hasRoom else {
            return apply(.stop(KVError(.aborted, "no room for the tail; fewer transfers at a time")), to: job)
        }
        jobs[job]?.isTailWritten = true
        digest(job, tail: tail, rank, region, offset)
        completeIfDone(job)
    }
}
