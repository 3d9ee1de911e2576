internal import TransferEngine

/// The digests of one layer of a job, or of its tail: the sums over the chunks so far.
struct DigestSum {
    var ranks: [Digest] = []
    /// Computations that have not ended.
    var running = 0
    /// Whether the last chunk is among them.
    var isLast = false
}

// What a decoder compares with what has arrived. A computation counts as a write of its job: while it runs the pages are read.
extension KVPrefiller {
    /// Digests what a chunk writes of a layer.
    func digest(_ job: UInt64, _ layer: Int, _ plan: KVTransferPlan, isLast: Bool) {
        guard let hello = whoWantsDigests(of: job) else { return }
        let (ranks, layout) = (ranks, layout)
        compute(job, layer, isLast) { () throws(TransferError) in
            try plan.digests(layer: layer, tensorRanks: hello.layout.tensorRanks) {
                (write, list) throws(TransferError) in
                let source = ranks[write.sourceRank].placement.plane(
                    layout, rank: write.sourceRank, layer: layer, write.sourcePlane)
                let target = hello.ranks[write.targetRank].placement.plane(
                    hello.layout, rank: write.targetRank, layer: layer, write.targetPlane)
                // SAFETY: the lists outlive the call.
                let result = unsafe list.sources.withUnsafeBufferPointer { sources in
                    unsafe list.targets.withUnsafeBufferPointer { targets -> Result<Digest, TransferError> in
                        do throws(TransferError) {
                            return .success(
                                try ranks[write.sourceRank].engine.digest(
                                    of: ranks[write.sourceRank].regions[source.region],
                                    pageBytes: write.byteCount,
                                    pages: unsafe Pages(
                                        sources, stride: source.stride,
                                        offset: source.offset + write.sourceOffset),
                                    targetPages: unsafe Pages(
                                        targets, stride: target.stride,
                                        offset: target.offset + write.targetOffset)))
                        } catch { return .failure(error) }
                    }
                }
                return try result.get()
            }
        }
    }

    /// Digests the tail.
    func digest(_ job: UInt64, tail: KVMessage.Tail, _ rank: Int, _ region: Int, _ offset: Int) {
        guard whoWantsDigests(of: job) != nil else { return }
        let rank = ranks[rank]
        compute(job, nil, true) { () throws(TransferError) in
            [
                try rank.engine.digest(
                    of: rank.regions[region], offset: offset, byteCount: tail.byteCount,
                    targetOffset: tail.offset)
            ]
        }
    }

    private func whoWantsDigests(of job: UInt64) -> KVMessage.Hello? {
        guard let entry = jobs[job], entry.machine.isActive,
            let hello = sessions[entry.prefill.session]?.hello, hello.wantsDigests
        else { return nil }
        return hello
    }

    private func compute(
        _ job: UInt64, _ layer: Int?, _ isLast: Bool,
        _ body: @escaping @Sendable () throws(TransferError) -> [Digest]
    ) {
        jobs[job]?.digests[layer, default: DigestSum()].running += 1
        if isLast { jobs[job]?.digests[layer]?.isLast = true }
        apply(.submitted, to: job)
        let queue = queue
        configuration.digestExecutor { [weak self] in
            let result = Result<[Digest], TransferError> { () throws(TransferError) in try body() }
            queue.run { [weak self] in self?.digested(job, layer, result) }
        }
    }

    private func digested(_ job: UInt64, _ layer: Int?, _ result: Result<[Digest], TransferError>) {
        guard let entry = jobs[job] else { return }
        guard entry.machine.isActive, var sum = entry.digests[layer] else {
            return apply(.receipt(isQuiet: true), to: job)
        }
        switch result {
        case .failure(let error):
            apply(.failed(KVError(error)), to: job)
            apply(.receipt(isQuiet: true), to: job)
        case .success(let digests):
            sum.running -= 1
            sum.ranks = sum.ranks.isEmpty ? digests : zip(sum.ranks, digests).map { $0 + $1 }
            jobs[job]?.digests[layer] = sum
            if sum.isLast, sum.running == 0 {
                send(
                    .digests(
                        KVMessage.Digests(
                            session: entry.prefill.session, request: entry.prefill.request, layer: layer,
                            ranks: sum.ranks)), to: entry.prefill.session)
            }
            apply(.written, to: job)
            if !pending.isEmpty { pump() }
        }
    }
}
