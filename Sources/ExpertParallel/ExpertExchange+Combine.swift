internal import CPlatform
internal import Glibc
public import TransferEngine

// From experts' results back to sums.
extension ExpertExchange {
    /// Sends the results of a pass back to where its tokens came from.
    ///
    /// - Parameter index: The micro-batch whose `outputs` have been written.
    /// - Throws: `invalidArgument` when no pass is at hand.
    /// - Complexity: O(rows * hidden).
    public func combineSend(_ index: Int) throws(TransferError) {
        _ = try wait { () throws(TransferError) -> Bool? in try tryCombineSend(index) ? true : nil }
    }

    /// Goes on sending the results of a pass; true when all are on their way.
    public func tryCombineSend(_ index: Int) throws(TransferError) -> Bool {
        let batch = try batch(index, .computing, .sending)
        pump(batch)
        if batch.phase == .computing {
            // The memory that results are sent from is free when those of the pass before are gone.
            for rank in 0..<configuration.ranks where peers[rank].isLive {
                guard settle(batch.links[rank].resultWrite, rank) else { return false }
            }
            batch.phase = .sending
            batch.sendTurn = 1
            batch.sendRow = 0
            batch.sendCopy = 0
            batch.combineUsed = plan.turnBytes
        }
        while batch.sendTurn <= configuration.ranks {
            let rank = (configuration.rank + batch.sendTurn) % configuration.ranks
            do throws(TransferError) {
                if peers[rank].isLive, !batch.links[rank].isResultSent {
                    guard try sendResults(batch, rank) else { return false }
                }
            } catch {
                if error.code == .backPressure { return false }
                lose(rank, error)
            }
            batch.sendTurn += 1
            batch.sendRow = 0
            batch.sendCopy = 0
        }
        endPass(batch)
        return true
    }

    /// On to the next pass, or to the sums.
    private func endPass(_ batch: MicroBatch) {
        batch.waitStart = 0
        var isRoundOver = true
        for rank in 0..<configuration.ranks {
            batch.links[rank].passRows = 0
            batch.links[rank].passFirst = batch.links[rank].placedRows
            if batch.links[rank].placedRows < batch.links[rank].grantedRows { isRoundOver = false }
        }
        // What was said stays true when the rank that had more was lost meanwhile: then the next pass is empty.
        batch.phase = batch.isLast ? .combining : .receiving
        batch.isEager = false
        if !batch.isLast, isRoundOver { grantRoom(batch) }
    }

    // MARK: Sending

    /// The rank whose rows the results for `rank` belong to: itself, or the replica that sent its tokens here.
    private func carrier(_ rank: Int) -> Int {
        let replicas = configuration.replicas
        return rank / replicas * replicas + configuration.rank % replicas
    }

    /// Sends what the pass has for a rank. Returns false when a write has to end first.
    private func sendResults(_ batch: MicroBatch, _ rank: Int) throws(TransferError) -> Bool {
        let source = carrier(rank)
        let isFinal = batch.links[source].placedRows == batch.links[source].rowsFrom
        if configuration.level.isBetween {
            try sendOn(batch, rank)
        } else if rank == configuration.rank, source == rank, batch.isLast, batch.links[rank].passFirst == 0 {
            // No other pass overwrites them.
            batch.ownIsInPlace = true
            batch.links[rank].returned += batch.links[rank].passRows
        } else if configuration.reduction == .sender {
            guard try sendSums(batch, rank, source, isFinal) else { return false }
        } else {
            guard try sendEach(batch, rank, source, isFinal) else { return false }
        }
        batch.links[rank].isResultSent = isFinal
        return true
    }

    /// Where the next results for a rank go, in that rank's memory.
    private func resultOffset(_ batch: MicroBatch, _ rank: Int) -> Int {
        let row = batch.links[rank].theirBase + batch.links[rank].returned
        return plan.resultsOffset + row * configuration.resultBytes
    }

    /// The sums of a node, from where they are: those for a rank are behind each other, in the order of its rows.
    private func sendOn(_ batch: MicroBatch, _ rank: Int) throws(TransferError) {
        let link = batch.links[rank]
        let rows = link.copyEnd - link.copyStart
        let first = rows > 0 ? Int(batch.grouped[link.copyStart]) : 0
        let offset = plan.outputsOffset + first * configuration.resultBytes
        let byteCount = rows * configuration.resultBytes
        if rank == configuration.rank {
            memcpy(batch.receiveBase + resultOffset(batch, rank), batch.sendBase + offset, byteCount)
        } else {
            try writeResults(batch, rank, offset - plan.combineOffset, byteCount, isFinal: true)
        }
        batch.links[rank].returned += rows
    }

    /// Every result by itself.
    private func sendEach(
        _ batch: MicroBatch, _ rank: Int, _ source: Int, _ isFinal: Bool
    ) throws(TransferError) -> Bool {
        let link = batch.links[source]
        let count = link.copyEnd - link.copyStart
        let rowBytes = configuration.resultBytes
        let outputs = batch.sendBase + plan.outputsOffset
        let list = count > 0 ? UnsafePointer(batch.grouped.address(of: link.copyStart)) : nil
        if rank == configuration.rank {
            if let list {
                Kernels.gather(
                    outputs, stride: rowBytes, list, count: count, rowBytes: rowBytes,
                    to: batch.receiveBase + resultOffset(batch, rank))
            }
        } else if peers[rank].isDirect {
            if let list, try !writePages(batch, rank, list, count) { return false }
            if isFinal { try writeResults(batch, rank, 0, 0, isFinal: true) }
            batch.links[rank].resultPages = nil
        } else {
            if let list {
                Kernels.gather(
                    outputs, stride: rowBytes, list, count: count, rowBytes: rowBytes,
                    to: batch.sendBase + plan.combineOffset + batch.combineUsed)
            }
            try writeResults(batch, rank, batch.combineUsed, count * rowBytes, isFinal: isFinal)
            batch.combineUsed += count * rowBytes
        }
        batch.links[rank].returned += count
        return true
    }

    /// Writes results straight from where the experts put them. Returns false while that has not ended: what announces them
    /// must not overtake them.
    private func writePages(
        _ batch: MicroBatch, _ rank: Int, _ list: UnsafePointer<UInt32>, _ count: Int
    ) throws(TransferError) -> Bool {
        guard let remote = peers[rank].remote else { return true }
        if batch.links[rank].resultPages == nil {
            let rowBytes = configuration.resultBytes
            let pages = UnsafeBufferPointer(rebasing: UnsafeBufferPointer(iota.memory)[0..<count])
            batch.links[rank].resultPages = try engine.write(
                pageBytes: rowBytes, from: send,
                pages: Pages(
                    UnsafeBufferPointer(start: list, count: count), stride: rowBytes,
                    offset: batch.index * plan.sendBytes + plan.outputsOffset),
                to: remote,
                pages: Pages(
                    pages, stride: rowBytes,
                    offset: batch.index * plan.receiveBytes + resultOffset(batch, rank)),
                timeout: configuration.deadline)
            statistics.directWrites += 1
            statistics.bytes += count * rowBytes
        }
        guard let write = batch.links[rank].resultPages else { return true }
        return try hasEnded(write, rank)
    }

    /// One row for each token: the sum of its results on this rank.
    private func sendSums(
        _ batch: MicroBatch, _ rank: Int, _ source: Int, _ isFinal: Bool
    ) throws(TransferError) -> Bool {
        let rowBytes = configuration.resultBytes
        let rows = batch.links[source].passRows
        if rank == configuration.rank {
            sum(batch, source, rows, into: batch.receiveBase + resultOffset(batch, rank))
            batch.links[rank].returned += rows
            return true
        }
        guard peers[rank].isDirect else {
            (batch.sendRow, batch.sendCopy) = (0, 0)
            sum(batch, source, rows, into: batch.sendBase + plan.combineOffset + batch.combineUsed)
            try writeResults(batch, rank, batch.combineUsed, rows * rowBytes, isFinal: isFinal)
            batch.combineUsed += rows * rowBytes
            batch.links[rank].returned += rows
            return true
        }
        // In parts that stay in the cache between the sum and the copy.
        repeat {
            let turn = batch.turn
            let count = min(MemoryPlan.turnRows, rows - batch.sendRow)
            let isEnd = batch.sendRow + count == rows
            for write in 0..<MemoryPlan.turns where write == turn || isEnd {
                if let write = batch.turns[write], try !hasEnded(write, rank) { return false }
            }
            let mark = (batch.sendRow, batch.sendCopy)
            let place = turn * MemoryPlan.turnRows * rowBytes
            sum(batch, source, count, into: batch.sendBase + plan.combineOffset + place)
            do throws(TransferError) {
                try writeResults(batch, rank, place, count * rowBytes, isFinal: isFinal && isEnd)
            } catch {
                (batch.sendRow, batch.sendCopy) = mark
                throw error
            }
            batch.turns[turn] = batch.links[rank].resultWrite
            batch.turn = (turn + 1) % MemoryPlan.turns
            batch.links[rank].returned += count
        } while batch.sendRow < rows
        return true
    }

    /// Adds up the results of the next `count` rows of a source.
    private func sum(
        _ batch: MicroBatch, _ source: Int, _ count: Int, into target: UnsafeMutableRawPointer
    ) {
        for number in 0..<count {
            let row = batch.links[source].passFirst + batch.sendRow
            let terms = terms(batch, source, row, &batch.sendCopy)
            Kernels.weightedSum(
                terms, configuration.combineElement, into: target + number * configuration.resultBytes,
                .float32, count: configuration.hidden)
            batch.sendRow += 1
        }
    }

    /// The results for one row of a source and their weights; `copy` goes on to the next row's first.
    @inline(__always)
    private func terms(_ batch: MicroBatch, _ source: Int, _ row: Int, _ copy: inout Int) -> te_terms {
        let outputs = batch.sendBase + plan.outputsOffset
        let outputBytes = configuration.hidden * configuration.combineElement.byteCount
        let experts = localList(batch, source, row)
        let weights = UnsafeRawPointer(meta(batch, source, row)).assumingMemoryBound(to: Float.self)
        var count = 0
        for entry in 0..<configuration.topK where experts[entry] < localExperts.count {
            let place = Int(batch.grouped[batch.links[source].copyStart + copy])
            batch.rows[count] = UnsafeRawPointer(outputs + place * outputBytes)
            batch.weights[count] = weights[entry]
            count += 1
            copy += 1
        }
        return te_terms(
            rows: batch.rows.address(of: 0), weights: batch.weights.address(of: 0), count: count, parts: nil,
            part_count: 0, before: 0)
    }

    /// Writes results that lie in the combine memory; the last ones of a step are counted.
    private func writeResults(
        _ batch: MicroBatch, _ rank: Int, _ offset: Int, _ byteCount: Int, isFinal: Bool
    ) throws(TransferError) {
        guard let remote = peers[rank].remote, byteCount > 0 || isFinal else { return }
        if isFinal, let earlier = batch.links[rank].resultWrite, try !hasEnded(earlier, rank) {
            throw TransferError(.backPressure, "earlier results have to be there first")
        }
        batch.links[rank].resultWrite = try engine.write(
            from: send, sourceOffset: batch.index * plan.sendBytes + plan.combineOffset + offset,
            byteCount: byteCount, to: remote,
            targetOffset: batch.index * plan.receiveBytes + resultOffset(batch, rank),
            immediate: isFinal
                ? immediate(peers[rank].firstImmediate, batch, .result, from: configuration.rank) : nil,
            timeout: configuration.deadline)
        statistics.resultWrites += 1
        statistics.bytes += byteCount
    }

    // MARK: Receiving

    /// Waits for the results of this rank's tokens, and adds them up.
    ///
    /// - Parameters:
    ///   - index: The micro-batch; the results of its last pass have been sent.
    ///   - sums: One row of `hidden` values of `combineElement` for each token, in their order; zero for a token without
    ///     experts.
    ///   - stride: Bytes from one row to the next; nil is no gap.
    /// - Returns: Which ranks are missing, and how many entries of the tokens' lists did therefore not contribute.
    /// - Throws: `invalidArgument` when a pass is left.
    /// - Complexity: O(tokens * topK * hidden).
    public func combineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int? = nil
    ) throws(TransferError) -> StepResult {
        try wait { () throws(TransferError) -> StepResult? in
            try tryCombineReceive(index, into: sums, stride: stride)
        }
    }

    /// Adds up the results of this rank's tokens if all are there, nil otherwise.
    public func tryCombineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int? = nil
    ) throws(TransferError) -> StepResult? {
        let batch = try batch(index, .combining)
        pump(batch)
        var isComplete = true
        for rank in 0..<configuration.ranks where !batch.links[rank].hasResults && peers[rank].isLive {
            if rank == configuration.rank || takes(.result, from: rank, batch) {
                batch.links[rank].hasResults = true
            } else {
                isComplete = false
            }
        }
        guard isComplete else {
            attend(batch) { !batch.links[$0].hasResults }
            return nil
        }
        var result = StepResult()
        addUp(batch, sums, stride ?? configuration.hidden * configuration.sumElement.byteCount)
        for rank in 0..<configuration.ranks where !batch.links[rank].hasResults {
            result.missingRanks.append(rank)
        }
        if !result.missingRanks.isEmpty { result.droppedEntries = droppedEntries(batch) }
        batch.phase = .idle
        batch.waitStart = 0
        batch.batch = nil
        return result
    }

    private func addUp(_ batch: MicroBatch, _ sums: UnsafeMutableRawPointer, _ stride: Int) {
        guard let tokens = batch.batch else { return }
        var own = (row: 0, copy: 0)
        for token in 0..<tokens.count {
            let target = sums + token * stride
            if configuration.reduction == .receiver {
                addResults(batch, tokens, token, &own.copy, into: target)
            } else {
                addSums(batch, tokens, token, &own, into: target)
            }
        }
    }

    /// The row of the result memory that an entry reads; nil when there is none, or its rank was lost.
    @inline(__always)
    private func result(_ batch: MicroBatch, _ owner: Int, _ entry: Int) -> UnsafeRawPointer? {
        let position = Int(batch.routing.position[entry])
        guard position >= 0, batch.links[owner].hasResults else { return nil }
        return UnsafeRawPointer(
            batch.receiveBase + plan.resultsOffset + position * configuration.resultBytes)
    }

    /// Adds up the results for a token; `ownCopy` of this rank's own have been read.
    private func addResults(
        _ batch: MicroBatch, _ tokens: TokenBatch, _ token: Int, _ ownCopy: inout Int,
        into target: UnsafeMutableRawPointer
    ) {
        let first = token * configuration.topK
        var count = 0
        for entry in first..<first + configuration.topK where tokens.experts[entry] >= 0 {
            let owner = batch.routing.owner(tokens.experts[entry])
            if owner == configuration.rank, batch.ownIsInPlace {
                let place = Int(batch.grouped[batch.links[owner].copyStart + ownCopy])
                batch.rows[count] = UnsafeRawPointer(
                    batch.sendBase + plan.outputsOffset + place * configuration.resultBytes)
                ownCopy += 1
            } else if let result = result(batch, owner, entry) {
                batch.rows[count] = result
            } else {
                continue
            }
            batch.weights[count] = tokens.weights[entry]
            count += 1
        }
        Kernels.weightedSum(
            te_terms(
                rows: batch.rows.address(of: 0), weights: batch.weights.address(of: 0), count: count,
                parts: nil, part_count: 0, before: 0),
            configuration.combineElement, into: target, configuration.sumElement, count: configuration.hidden)
    }

    /// Adds up the ranks' sums for a token. This rank's own is made here when it was not before: it need not be written down.
    private func addSums(
        _ batch: MicroBatch, _ tokens: TokenBatch, _ token: Int, _ own: inout (row: Int, copy: Int),
        into target: UnsafeMutableRawPointer
    ) {
        let first = token * configuration.topK
        var count = 0
        var before: Int?
        for entry in first..<first + configuration.topK where tokens.experts[entry] >= 0 {
            let owner = batch.routing.owner(tokens.experts[entry])
            guard let result = result(batch, owner, entry) else { continue }
            if owner == configuration.rank, batch.ownIsInPlace {
                before = count
            } else {
                batch.parts[count] = result
                count += 1
            }
        }
        guard let before else {
            for part in 0..<count { batch.weights[part] = 1 }
            let terms = te_terms(
                rows: UnsafePointer(batch.parts.address(of: 0)), weights: batch.weights.address(of: 0),
                count: count, parts: nil, part_count: 0, before: 0)
            Kernels.weightedSum(
                terms, .float32, into: target, configuration.sumElement, count: configuration.hidden)
            return
        }
        var terms = terms(batch, configuration.rank, own.row, &own.copy)
        own.row += 1
        terms.parts = UnsafePointer(batch.parts.address(of: 0))
        terms.part_count = count
        terms.before = before
        Kernels.weightedSum(
            terms, configuration.combineElement, into: target, configuration.sumElement,
            count: configuration.hidden)
    }

    private func droppedEntries(_ batch: MicroBatch) -> Int {
        guard let tokens = batch.batch else { return 0 }
        return (0..<tokens.count * configuration.topK).count { entry in
            let expert = tokens.experts[entry]
            return expert >= 0 && !batch.links[batch.routing.owner(expert)].hasResults
        }
    }
}
