internal import Glibc
public import TransferEngine

// From tokens to rows in the memory of other ranks.
extension ExpertExchange {
    /// Begins a step: counts where tokens go and sends the first rows to every rank.
    ///
    /// Waits only for earlier writes from the same memory.
    /// - Parameters:
    ///   - index: The micro-batch; its last step has ended.
    ///   - tokens: What to send. Nobody changes it until `combineReceive` has returned.
    /// - Throws: `invalidArgument` for tokens that cannot be; `limitReached` when too much memory is in quarantine since ranks
    ///   were lost: then make a new exchange.
    /// - Complexity: O(tokens * topK * hidden) bytes are copied.
    public func dispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError) {
        _ = try wait { () throws(TransferError) -> Bool? in try tryDispatchSend(index, tokens) ? true : nil }
    }

    /// Begins a step unless earlier writes from the same memory have not ended; then returns false.
    public func tryDispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError) -> Bool {
        let batch = try batch(index, .idle)
        guard try isQuiet(batch) else { return false }
        try begin(batch, tokens)
        batch.phase = .receiving
        pump(batch)
        return true
    }

    /// Whether nothing reads the memory that a step sends from.
    private func isQuiet(_ batch: MicroBatch) throws(TransferError) -> Bool {
        guard hasSettled(batch), !batch.receipts.areDue else { return false }
        guard batch.receipts.isUnproven else { return true }
        // A lost rank cannot prove that it does not read any more. Memory that is registered anew is not what it could read.
        for other in batches where !hasSettled(other) || other.receipts.areDue { return false }
        send = try engine.revoke(send)
        for other in batches { other.receipts.forgive() }
        return true
    }

    /// Whether all writes of the micro-batch to ranks that live have ended.
    private func hasSettled(_ batch: MicroBatch) -> Bool {
        for rank in 0..<configuration.ranks where peers[rank].isLive {
            let link = batch.links[rank]
            guard settle(link.rowsWrite, rank), settle(link.dispatchWrite, rank),
                settle(link.chunkWrite, rank),
                settle(link.grantWrite, rank), settle(link.resultPages, rank), settle(link.resultWrite, rank)
            else { return false }
        }
        return true
    }

    func check(_ tokens: TokenBatch) throws(TransferError) {
        guard 0...configuration.maximumTokens ~= tokens.count else {
            throw TransferError(
                .invalidArgument,
                "\(tokens.count) tokens; the exchange was made for \(configuration.maximumTokens)")
        }
        guard tokens.stride >= format.rowBytes,
            configuration.scaleBlock == nil || tokens.scales != nil || tokens.count == 0
        else {
            throw TransferError(
                .invalidArgument, "tokens that overlap, or without the scales they should have")
        }
    }

    private func begin(_ batch: MicroBatch, _ tokens: TokenBatch) throws(TransferError) {
        try check(tokens)
        guard batch.routing.route(tokens.experts, count: tokens.count, isLive: { peers[$0].isLive }) else {
            throw TransferError(
                .invalidArgument, "an entry of a token's list is not one of \(configuration.experts) experts")
        }
        batch.results.restart()
        for rank in 0..<configuration.ranks {
            let count = batch.routing.results[rank]
            guard count > 0 else {
                batch.resultBase[rank] = 0
                continue
            }
            guard let place = batch.results.take(count * configuration.resultBytes) else {
                throw TransferError(
                    .limitReached,
                    "the memory for results is in quarantine since ranks were lost; make a new exchange")
            }
            batch.resultBase[rank] = place / configuration.resultBytes
        }
        batch.routing.assignResults(tokens.experts, base: batch.resultBase)
        batch.batch = tokens
        batch.step &+= 1
        batch.waitStart = 0
        batch.isPlanned = false
        batch.ownIsInPlace = false
        batch.dispatchUsed = 0
        batch.room.restart()
        for rank in 0..<configuration.ranks { beginLink(batch, rank) }
    }

    /// One of several replicas sends a token: to rank `r` the one whose number is `r` modulo their count.
    func carries(_ source: Int, to target: Int) -> Bool {
        source % configuration.replicas == target % configuration.replicas
    }

    private func beginLink(_ batch: MicroBatch, _ rank: Int) {
        var link = Link()
        link.sendOffset = batch.dispatchUsed
        link.rows = carries(configuration.rank, to: rank) ? batch.routing.rows[rank] : 0
        let first = firstRows(link.rows, rank)
        batch.dispatchUsed +=
            format.headerBytes + format.block(first).byteCount
            + format.block(link.rows - first).byteCount
        batch.links[rank] = link
    }

    /// Rows that need no permission. A rank's own are not moved at all.
    func firstRows(_ rows: Int, _ rank: Int) -> Int {
        rank == configuration.rank ? rows : min(rows, plan.privateRows)
    }

    // MARK: Posting

    /// Posts whatever can be posted now.
    func pump(_ batch: MicroBatch) {
        guard batch.phase != .idle else { return }
        for turn in 1...configuration.ranks {
            // Beginning with the next rank, so that not all write to rank 0 first.
            let rank = (configuration.rank + turn) % configuration.ranks
            guard peers[rank].isLive else { continue }
            do throws(TransferError) {
                if !batch.links[rank].isFirstSent { try postFirst(batch, rank) }
                if rank == configuration.rank { continue }
                if !batch.links[rank].isGrantPosted { try postGrant(batch, rank) }
                if batch.links[rank].isFirstSent, batch.links[rank].sentRows < batch.links[rank].rows {
                    try postChunk(batch, rank)
                }
            } catch {
                if error.code != .backPressure { lose(rank, error) }
            }
        }
    }

    private func postFirst(_ batch: MicroBatch, _ rank: Int) throws(TransferError) {
        let link = batch.links[rank]
        let rows = firstRows(link.rows, rank)
        let start = link.sendOffset + format.headerBytes
        if !link.isPacked {
            packHeader(batch, rank)
            pack(batch, rank, 0..<rows, at: start)
            batch.links[rank].isPacked = true
        }
        if rank == configuration.rank {
            batch.links[rank].isFirstSent = true
            return
        }
        let slot = batch.index * plan.receiveBytes + plan.slotsOffset + configuration.rank * plan.slotBytes
        guard try writeRows(batch, rank, 0..<rows, to: slot + format.headerBytes) else { return }
        batch.links[rank].dispatchWrite = try write(
            batch, rank, link.sendOffset, format.headerBytes + packedBytes(batch, rank, rows), slot, .dispatch
        )
        batch.links[rank].sentRows = rows
        batch.links[rank].isFirstSent = true
        batch.links[rank].rowsWrite = nil
        statistics.dispatchWrites += 1
    }

    /// Sends the next rows where the target says, if it has said so.
    private func postChunk(_ batch: MicroBatch, _ rank: Int) throws(TransferError) {
        let first = batch.links[rank].sentRows
        if batch.links[rank].chunkRows == 0 {
            if let write = batch.links[rank].chunkWrite, try !hasEnded(write, rank) { return }
            guard takes(.grant, from: rank, batch) else { return }
            let grant = Grant(batch.receiveBase + rank * Grant.byteCount)
            guard grant.rows >= 1, grant.rows <= UInt64(batch.links[rank].rows - first),
                grant.offset < UInt64(plan.roomBytes), grant.offset % 64 == 0
            else { throw malformed(rank, "a grant") }
            batch.links[rank].chunkRows = Int(grant.rows)
            batch.links[rank].chunkOffset = Int(grant.offset)
            batch.links[rank].isPacked = false
        }
        let rows = first..<first + batch.links[rank].chunkRows
        let start =
            batch.links[rank].sendOffset + format.headerBytes
            + format.block(firstRows(batch.links[rank].rows, rank)).byteCount
        if !batch.links[rank].isPacked {
            pack(batch, rank, rows, at: start)
            batch.links[rank].isPacked = true
        }
        let target = batch.index * plan.receiveBytes + plan.roomOffset + batch.links[rank].chunkOffset
        guard try writeRows(batch, rank, rows, to: target) else { return }
        batch.links[rank].chunkWrite = try write(
            batch, rank, start, packedBytes(batch, rank, rows.count), target, .chunk)
        batch.links[rank].sentRows = rows.upperBound
        batch.links[rank].chunkRows = 0
        batch.links[rank].rowsWrite = nil
        statistics.chunkWrites += 1
    }

    private func write(
        _ batch: MicroBatch, _ rank: Int, _ offset: Int, _ byteCount: Int, _ target: Int, _ kind: Kind
    ) throws(TransferError) -> Transfer? {
        guard let remote = peers[rank].remote else { return nil }
        let transfer = try engine.write(
            from: send, sourceOffset: batch.index * plan.sendBytes + offset, byteCount: byteCount, to: remote,
            targetOffset: target,
            immediate: immediate(peers[rank].firstImmediate, batch, kind, from: configuration.rank),
            timeout: configuration.deadline)
        statistics.bytes += byteCount
        return transfer
    }

    // MARK: Packing

    /// Whether rows go to the rank straight from the caller's memory.
    private func isDirect(_ batch: MicroBatch, _ rank: Int) -> Bool {
        peers[rank].isDirect && batch.batch?.region != nil
    }

    /// Bytes of a block that lie in the dispatch memory.
    private func packedBytes(_ batch: MicroBatch, _ rank: Int, _ rows: Int) -> Int {
        if rows == 0 { return 0 }
        let block = format.block(rows)
        return isDirect(batch, rank) ? block.rows : block.rows + rows * format.rowBytes
    }

    private func packHeader(_ batch: MicroBatch, _ rank: Int) {
        let memory = batch.sendBase + batch.links[rank].sendOffset
        Header(
            step: batch.step, rows: batch.links[rank].rows, resultBase: batch.resultBase[rank],
            tokens: batch.routing.tokenCount
        ).store(memory)
        let experts = placement.experts(of: rank)
        let isCarried = batch.links[rank].rows > 0
        for expert in experts {
            let count = isCarried ? batch.routing.expertCounts[expert] : 0
            memory.storeBytes(
                of: count.littleEndian, toByteOffset: Header.byteCount + (expert - experts.lowerBound) * 4,
                as: UInt32.self)
        }
    }

    /// Writes down what is known of rows, their scales and, unless they are written straight from where they lie, the rows.
    private func pack(_ batch: MicroBatch, _ rank: Int, _ rows: Range<Int>, at offset: Int) {
        guard let tokens = batch.batch, !rows.isEmpty else { return }
        let block = format.block(rows.count)
        let memory = batch.sendBase + offset
        let list = batch.routing.tokens.address(of: batch.routing.start[rank]) + rows.lowerBound
        let experts = placement.experts(of: rank)
        for row in 0..<rows.count {
            packMeta(tokens, Int(list[row]), experts, memory + row * format.metaBytes)
        }
        if rank == configuration.rank { return }
        if let scales = tokens.scales, format.scaleBytes > 0 {
            Kernels.gather(
                scales, stride: format.scaleBytes, list, count: rows.count, rowBytes: format.scaleBytes,
                to: memory + block.scales)
        }
        if !isDirect(batch, rank) {
            Kernels.gather(
                tokens.tokens, stride: tokens.stride, list, count: rows.count, rowBytes: format.rowBytes,
                to: memory + block.rows)
        }
    }

    private func packMeta(
        _ tokens: TokenBatch, _ token: Int, _ experts: Range<Int>, _ memory: UnsafeMutableRawPointer
    ) {
        let topK = configuration.topK
        let first = Int32(experts.lowerBound)
        let count = UInt32(experts.count)
        let weights = memory.assumingMemoryBound(to: Float.self)
        let local = (memory + topK * 4).assumingMemoryBound(to: UInt16.self)
        for entry in 0..<topK {
            let number = UInt32(bitPattern: tokens.experts[token * topK + entry] &- first)
            weights[entry] = tokens.weights[token * topK + entry]
            local[entry] = number < count ? UInt16(truncatingIfNeeded: number) : RowFormat.noExpert
        }
    }

    /// Writes the rows of a block straight from where they lie, where that is how it is done. Returns false while the write has
    /// not ended: what announces the rows must not overtake them.
    private func writeRows(
        _ batch: MicroBatch, _ rank: Int, _ rows: Range<Int>, to block: Int
    ) throws(TransferError) -> Bool {
        guard isDirect(batch, rank), !rows.isEmpty, let tokens = batch.batch, let region = tokens.region,
            let remote = peers[rank].remote
        else { return true }
        if batch.links[rank].rowsWrite == nil {
            let list = batch.routing.tokens.address(of: batch.routing.start[rank]) + rows.lowerBound
            let from = Pages(
                UnsafeBufferPointer(start: list, count: rows.count), stride: tokens.stride,
                offset: tokens.tokens - UnsafeRawPointer(region.baseAddress))
            let to = Pages(
                UnsafeBufferPointer(rebasing: UnsafeBufferPointer(iota.memory)[0..<rows.count]),
                stride: format.rowBytes,
                offset: block + format.block(rows.count).rows)
            batch.links[rank].rowsWrite = try engine.write(
                pageBytes: format.rowBytes, from: region, pages: from, to: remote, pages: to,
                timeout: configuration.deadline)
            statistics.directWrites += 1
            statistics.bytes += rows.count * format.rowBytes
        }
        guard let write = batch.links[rank].rowsWrite else { return true }
        return try hasEnded(write, rank)
    }

    /// Whether a write has ended well.
    /// - Throws: why it failed.
    func hasEnded(_ write: Transfer, _ rank: Int) throws(TransferError) -> Bool {
        if engine.isPending(write) { return false }
        if case .failed(let error) = engine.status(of: write) { throw error }
        return true
    }

    /// Whether a write has ended; one that failed is the end of its rank.
    func settle(_ write: Transfer?, _ rank: Int) -> Bool {
        guard let write else { return true }
        do throws(TransferError) { return try hasEnded(write, rank) } catch {
            lose(rank, error)
            return true
        }
    }

    func malformed(_ rank: Int, _ what: String) -> TransferError {
        TransferError(
            .malformedDescriptor,
            "\(what) of rank \(rank) that no exchange of this shape makes; do all ranks call in the same order?"
        )
    }
}
