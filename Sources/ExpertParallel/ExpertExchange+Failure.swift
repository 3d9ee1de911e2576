internal import TransferEngine

// A rank that is lost is left out; nothing that it may still write to is used again.
extension ExpertExchange {
    /// Looks after a wait: asks the engine whether those whom we wait for live, and gives up those who are too late.
    func attend(_ batch: MicroBatch, _ isAwaited: (Int) -> Bool) {
        let now = clock.nowNanoseconds
        if batch.waitStart == 0 { batch.waitStart = max(1, now) }
        let waited = now &- min(now, batch.waitStart)
        guard waited >= Self.probeNanoseconds else { return }
        // Between nodes a rank's results come when its node has them, which may have waited for others: see `Level`.
        let isLate = configuration.level.isBetween && batch.phase == .combining
        let deadline = isLate ? 3 &* deadlineNanoseconds : deadlineNanoseconds
        for rank in 0..<configuration.ranks
        where rank != configuration.rank && peers[rank].isLive && isAwaited(rank) {
            if waited > deadline {
                lose(
                    rank,
                    TransferError(
                        .stalled,
                        "rank \(rank) has kept micro-batch \(batch.index) waiting for \(waited / 1_000_000) ms "
                            + "in step \(batch.step) (\(batch.phase)); it lives, and is slow or in another step"
                    ))
            } else {
                probe(batch, rank)
            }
        }
    }

    private func probe(_ batch: MicroBatch, _ rank: Int) {
        guard let peer = peers[rank].peer else { return }
        if let probe = peers[rank].probe {
            if engine.isPending(probe) { return }
            peers[rank].probe = nil
            if case .failed(let error) = engine.status(of: probe), error.code != .stalled {
                return lose(rank, error)
            }
        }
        peers[rank].probe = try? engine.expect(
            own(.probe, from: rank, batches[0]), count: 1, from: [peer], timeout: configuration.deadline)
    }

    /// Leaves a rank out from now on.
    func lose(_ rank: Int, _ error: TransferError) {
        guard peers[rank].isLive, rank != configuration.rank else { return }
        peers[rank].isLive = false
        peers[rank].failure = error
        for batch in batches where batch.step > 0 { forget(rank, batch) }
    }

    private func forget(_ rank: Int, _ batch: MicroBatch) {
        let link = batch.links[rank]
        for case let write? in [
            link.rowsWrite, link.dispatchWrite, link.chunkWrite, link.grantWrite, link.resultPages,
            link.resultWrite,
        ] { cancel(write, batch) }
        guard batch.phase != .idle else { return }
        if link.isChunkDue {
            let rows = link.grantedRows - link.chunkFirst
            batch.room.keepBack(link.roomOffset..<link.roomOffset + format.block(rows).byteCount)
        }
        if !link.hasResults {
            let first = batch.resultBase[rank] * configuration.resultBytes
            batch.results.keepBack(
                first..<first + batch.routing.results[rank] * configuration.resultBytes)
        }
        // What has been placed is computed and not sent; the rest does not come.
        guard batch.phase == .receiving else {
            batch.links[rank].rowsFrom = link.placedRows
            batch.links[rank].grantedRows = link.placedRows
            return
        }
        restartPass(batch, without: rank)
    }

    /// Places the rows of the pass anew, without those of a rank.
    private func restartPass(_ batch: MicroBatch, without rank: Int) {
        for other in 0..<configuration.ranks {
            batch.links[other].placedRows = batch.links[other].passFirst
        }
        let placed = batch.links[rank].placedRows
        batch.links[rank].rowsFrom = placed
        batch.links[rank].grantedRows = placed
        batch.links[rank].isChunkDue = false
        batch.links[rank].isGrantPosted = true
        batch.links[rank].hasHeader = true
        batch.isEager = false
    }

    /// The next step waits for the receipt, and so do those who wait for our rows: it has to come well before they give us up.
    private func cancel(_ write: Transfer, _ batch: MicroBatch) {
        let receipts = batch.receipts
        receipts.begin()
        do throws(TransferError) {
            try engine.cancel(write, timeout: configuration.deadline / 4) { receipts.end($0) }
        } catch {
            receipts.end(.unproven(error.message))
        }
    }
}
