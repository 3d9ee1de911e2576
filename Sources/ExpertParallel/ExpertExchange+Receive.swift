public import TransferEngine

// From rows in our memory to tokens in the order of our experts.
extension ExpertExchange {
    /// Waits for the tokens of the next pass and puts them in the order of this rank's experts.
    ///
    /// Within an expert they are in the order of (rank, token, entry), whatever arrived when.
    /// - Returns: The tokens; valid until `combineSend`. With `isLast` unset another pass follows after that.
    /// - Throws: `invalidArgument` when the step has not been begun.
    /// - Complexity: O(rows * hidden).
    public func dispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens {
        try wait { () throws(TransferError) -> ReceivedTokens? in try tryDispatchReceive(index) }
    }

    /// The tokens of the next pass if all are there, nil otherwise.
    public func tryDispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens? {
        let batch = try batch(index, .receiving)
        pump(batch)
        guard headersAreHere(batch) else { return nil }
        if !batch.isPlanned {
            for rank in 0..<configuration.ranks {
                batch.links[rank].grantedRows = firstRows(batch.links[rank].rowsFrom, rank)
            }
            grantRoom(batch)
            batch.isEager = layOutByHeaders(batch)
            batch.isPlanned = true
            batch.waitStart = 0
        }
        guard rowsAreHere(batch) else { return nil }
        if !batch.isEager {
            layOutByRows(batch)
            for rank in 0..<configuration.ranks {
                do throws(TransferError) { try place(batch, rank) } catch {
                    lose(rank, error)
                    return nil
                }
            }
        }
        batch.waitStart = 0
        batch.phase = .computing
        statistics.passes += 1
        return received(batch)
    }

    private func received(_ batch: MicroBatch) -> ReceivedTokens {
        Kernels.finishStreaming()
        zeroPadding(batch)
        batch.isLast = (0..<configuration.ranks).allSatisfy {
            batch.links[$0].placedRows == batch.links[$0].rowsFrom
        }
        return ReceivedTokens(
            rowCount: batch.rowCount, tokens: batch.groupedTokens,
            scales: format.scaleBytes > 0 ? batch.groupedScales : nil,
            outputs: batch.sendBase + plan.outputsOffset,
            counts: UnsafeBufferPointer(batch.expertCounts.memory),
            offsets: UnsafeBufferPointer(batch.expertOffsets.memory),
            isLast: batch.isLast)
    }

    // MARK: What is to come

    /// Reads the headers that have arrived; true when no rank's is missing any more.
    private func headersAreHere(_ batch: MicroBatch) -> Bool {
        var isComplete = true
        for rank in 0..<configuration.ranks where !batch.links[rank].hasHeader && peers[rank].isLive {
            if rank == configuration.rank {
                batch.links[rank].rowsFrom = batch.links[rank].rows
                batch.links[rank].theirBase = batch.resultBase[rank]
                batch.links[rank].hasHeader = true
            } else if takes(.dispatch, from: rank, batch) {
                readHeader(batch, rank)
            } else {
                isComplete = false
            }
        }
        if !isComplete { attend(batch) { !batch.links[$0].hasHeader } }
        return isComplete
    }

    private func readHeader(_ batch: MicroBatch, _ rank: Int) {
        let header = Header(slot(batch, rank))
        guard header.step == batch.step, header.rows <= UInt32(configuration.maximumTokens),
            header.resultBase <= UInt32(configuration.resultCapacity)
        else { return lose(rank, malformed(rank, "a header")) }
        batch.links[rank].rowsFrom = Int(header.rows)
        batch.links[rank].theirBase = Int(header.resultBase)
        batch.links[rank].hasHeader = true
    }

    private func slot(_ batch: MicroBatch, _ rank: Int) -> UnsafeMutableRawPointer {
        batch.receiveBase + plan.slotsOffset + rank * plan.slotBytes
    }

    /// Divides the room among those who have more rows, in the order of ranks.
    func grantRoom(_ batch: MicroBatch) {
        batch.room.restart()
        for rank in 0..<configuration.ranks where rank != configuration.rank && peers[rank].isLive {
            let left = batch.links[rank].rowsFrom - batch.links[rank].grantedRows
            guard left > 0 else { continue }
            var rows = 0
            let place = batch.room.take { free in
                rows = format.rows(in: free, limit: left)
                return rows > 0 ? format.block(rows).byteCount : 0
            }
            guard let place else { break }
            batch.links[rank].roomOffset = place
            batch.links[rank].chunkFirst = batch.links[rank].grantedRows
            batch.links[rank].grantedRows += rows
            batch.links[rank].isChunkDue = true
            batch.links[rank].isGrantPosted = false
        }
        pump(batch)
    }

    func postGrant(_ batch: MicroBatch, _ rank: Int) throws(TransferError) {
        let link = batch.links[rank]
        if let write = link.grantWrite, try !hasEnded(write, rank) { return }
        guard let remote = peers[rank].remote else { return }
        let offset = plan.grantsOffset + rank * Grant.byteCount
        Grant(offset: link.roomOffset, rows: link.grantedRows - link.chunkFirst).store(
            batch.sendBase + offset)
        batch.links[rank].grantWrite = try engine.write(
            from: send, sourceOffset: batch.index * plan.sendBytes + offset, byteCount: Grant.byteCount,
            to: remote, targetOffset: batch.index * plan.receiveBytes + configuration.rank * Grant.byteCount,
            immediate: immediate(peers[rank].firstImmediate, batch, .grant, from: configuration.rank),
            timeout: configuration.deadline)
        batch.links[rank].isGrantPosted = true
        statistics.grantWrites += 1
    }

    /// Looks for rows that have arrived, and places those that may be placed; true when none is missing any more.
    private func rowsAreHere(_ batch: MicroBatch) -> Bool {
        var isComplete = true
        for rank in 0..<configuration.ranks where batch.links[rank].hasHeader {
            if batch.links[rank].isChunkDue, takes(.chunk, from: rank, batch) {
                batch.links[rank].isChunkDue = false
            }
            if batch.links[rank].isChunkDue { isComplete = false }
            if batch.isEager {
                do throws(TransferError) { try place(batch, rank) } catch { lose(rank, error) }
            }
        }
        if !isComplete { attend(batch) { batch.links[$0].isChunkDue } }
        return isComplete && batch.isPlanned
    }

    // MARK: The order of rows

    private func headerCounts(_ batch: MicroBatch, _ rank: Int) -> UnsafeRawPointer {
        rank == configuration.rank
            ? UnsafeRawPointer(batch.sendBase + batch.links[rank].sendOffset + Header.byteCount)
            : UnsafeRawPointer(slot(batch, rank) + Header.byteCount)
    }

    /// Gives every row its place by the counts of the headers. False when that is more than fits, or comes in several rounds.
    private func layOutByHeaders(_ batch: MicroBatch) -> Bool {
        var copies = 0
        for rank in 0..<configuration.ranks {
            guard batch.links[rank].grantedRows == batch.links[rank].rowsFrom else { return false }
            let counts = headerCounts(batch, rank)
            for expert in 0..<localExperts.count {
                let count =
                    batch.links[rank].rowsFrom == 0
                    ? 0 : UInt32(littleEndian: counts.load(fromByteOffset: expert * 4, as: UInt32.self))
                guard count <= UInt32(configuration.maximumTokens * configuration.topK) else { return false }
                batch.counts[rank * localExperts.count + expert] = count
                copies += Int(count)
            }
            batch.links[rank].passFirst = 0
            batch.links[rank].passRows = batch.links[rank].rowsFrom
        }
        guard copies <= plan.outputRows else { return false }
        return layOut(batch)
    }

    /// Takes as many of the rows that are here as fit, in their order, and gives them places.
    private func layOutByRows(_ batch: MicroBatch) {
        for index in 0..<batch.counts.count { batch.counts[index] = 0 }
        for expert in 0..<localExperts.count { batch.expertCounts[expert] = 0 }
        var isFull = false
        var total = 0
        for rank in 0..<configuration.ranks {
            let first = batch.links[rank].placedRows
            batch.links[rank].passFirst = first
            var row = first
            while !isFull, row < batch.links[rank].grantedRows {
                isFull = !count(batch, rank, row, &total)
                if !isFull { row += 1 }
            }
            batch.links[rank].passRows = row - first
        }
        let fits = layOut(batch)
        precondition(fits, "a pass is as long as its output")
    }

    /// Counts the copies of one row if they fit into the output.
    private func count(_ batch: MicroBatch, _ rank: Int, _ row: Int, _ total: inout Int) -> Bool {
        let experts = localList(batch, rank, row)
        var needed = 0
        for entry in 0..<configuration.topK where experts[entry] < localExperts.count {
            let expert = Int(experts[entry])
            if Int(batch.expertCounts[expert]) % configuration.padding == 0 {
                needed += configuration.padding
            }
            batch.expertCounts[expert] += 1
        }
        if total + needed <= plan.outputRows {
            total += needed
            for entry in 0..<configuration.topK where experts[entry] < localExperts.count {
                batch.counts[rank * localExperts.count + Int(experts[entry])] += 1
            }
            return true
        }
        for entry in 0..<configuration.topK where experts[entry] < localExperts.count {
            batch.expertCounts[Int(experts[entry])] -= 1
        }
        return false
    }

    /// From counts to places: experts behind each other, each padded; within one the ranks in their order.
    private func layOut(_ batch: MicroBatch) -> Bool {
        let experts = localExperts.count
        var next = 0
        for expert in 0..<experts {
            batch.expertOffsets[expert] = UInt32(next)
            var place = next
            for rank in 0..<configuration.ranks {
                batch.cursors[rank * experts + expert] = UInt32(truncatingIfNeeded: place)
                place += Int(batch.counts[rank * experts + expert])
            }
            batch.expertCounts[expert] = UInt32(truncatingIfNeeded: place - next)
            next += RowFormat.up(place - next, configuration.padding)
        }
        batch.rowCount = next
        var copy = 0
        for rank in 0..<configuration.ranks {
            batch.links[rank].copyStart = copy
            batch.links[rank].copyEnd = copy
            for expert in 0..<experts { copy += Int(batch.counts[rank * experts + expert]) }
        }
        return next <= plan.outputRows
    }

    // MARK: Rows

    /// The row's list of local experts, behind its weights.
    @inline(__always)
    func localList(_ batch: MicroBatch, _ rank: Int, _ row: Int) -> UnsafePointer<UInt16> {
        UnsafeRawPointer(meta(batch, rank, row) + configuration.topK * 4).assumingMemoryBound(to: UInt16.self)
    }

    /// What is known of a row.
    @inline(__always)
    func meta(_ batch: MicroBatch, _ rank: Int, _ row: Int) -> UnsafeMutableRawPointer {
        let (block, first) = block(batch, rank, row)
        return block + (row - first) * format.metaBytes
    }

    /// The block in which a row lies, and the first row of that.
    @inline(__always)
    private func block(_ batch: MicroBatch, _ rank: Int, _ row: Int) -> (UnsafeMutableRawPointer, Int) {
        if rank == configuration.rank {
            return (batch.sendBase + batch.links[rank].sendOffset + format.headerBytes, 0)
        }
        if row < firstRows(batch.links[rank].rowsFrom, rank) {
            return (slot(batch, rank) + format.headerBytes, 0)
        }
        return (
            batch.receiveBase + plan.roomOffset + batch.links[rank].roomOffset, batch.links[rank].chunkFirst
        )
    }

    /// Rows of the block in which `row` lies.
    private func blockRows(_ batch: MicroBatch, _ rank: Int, _ row: Int) -> Int {
        let first = firstRows(batch.links[rank].rowsFrom, rank)
        return row < first ? first : batch.links[rank].grantedRows - batch.links[rank].chunkFirst
    }

    /// Copies the rows of a rank that are here and belong to the pass to their places.
    private func place(_ batch: MicroBatch, _ rank: Int) throws(TransferError) {
        let end = batch.links[rank].passFirst + batch.links[rank].passRows
        let here = batch.links[rank].isChunkDue ? min(end, batch.links[rank].chunkFirst) : end
        var row = batch.links[rank].placedRows
        guard row < here else { return }
        // Longer than a core's caches, and out of them before the experts read them: past the cache.
        let streams = batch.rowCount * format.rowBytes > 2 << 20
        while row < here {
            let (block, first) = block(batch, rank, row)
            let layout = format.block(blockRows(batch, rank, row))
            let experts = localList(batch, rank, row)
            var bytes = UnsafeRawPointer(block + layout.rows + (row - first) * format.rowBytes)
            var scales = UnsafeRawPointer(block + layout.scales + (row - first) * format.scaleBytes)
            if rank == configuration.rank, let tokens = batch.batch {
                let token = Int(batch.routing.tokens[batch.routing.start[rank] + row])
                bytes = tokens.tokens + token * tokens.stride
                if let own = tokens.scales { scales = UnsafeRawPointer(own) + token * format.scaleBytes }
            }
            for entry in 0..<configuration.topK where experts[entry] != RowFormat.noExpert {
                try placeCopy(batch, rank, Int(experts[entry]), bytes, scales, streams)
            }
            // Between nodes a row is one copy, and the room is for that.
            let copies = batch.links[rank].copyEnd - batch.links[rank].copyStart
            if configuration.level.isBetween, copies != row - batch.links[rank].passFirst + 1 {
                throw malformed(rank, "a row")
            }
            row += 1
        }
        batch.links[rank].placedRows = row
    }

    @inline(__always)
    private func placeCopy(
        _ batch: MicroBatch, _ rank: Int, _ expert: Int, _ row: UnsafeRawPointer, _ scales: UnsafeRawPointer,
        _ streams: Bool
    ) throws(TransferError) {
        // A peer's word is not taken for it: experts that we do not have, or more copies than it announced.
        let cell = rank * localExperts.count + expert
        guard expert < localExperts.count, batch.counts[cell] > 0 else { throw malformed(rank, "a row") }
        batch.counts[cell] -= 1
        let place = Int(batch.cursors[cell])
        batch.cursors[cell] += 1
        Kernels.copyRow(
            row, to: batch.groupedTokens + place * format.rowBytes, format.rowBytes, streams: streams)
        if format.scaleBytes > 0 {
            Kernels.copyRow(
                scales, to: UnsafeMutableRawPointer(batch.groupedScales) + place * format.scaleBytes,
                format.scaleBytes, streams: false)
        }
        batch.grouped[batch.links[rank].copyEnd] = UInt32(place)
        batch.links[rank].copyEnd += 1
    }

    private func zeroPadding(_ batch: MicroBatch) {
        guard configuration.padding > 1 else { return }
        for expert in 0..<localExperts.count {
            let begin = Int(batch.expertOffsets[expert] + batch.expertCounts[expert])
            let end = expert + 1 < localExperts.count ? Int(batch.expertOffsets[expert + 1]) : batch.rowCount
            (batch.groupedTokens + begin * format.rowBytes).initializeMemory(
                as: UInt8.self, repeating: 0, count: (end - begin) * format.rowBytes)
        }
    }
}
