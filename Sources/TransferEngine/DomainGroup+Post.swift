internal import TransferCore

// From a slot to work requests. No allocation, no lock.
extension DomainGroup {
    /// What posting a slot came to.
    private enum Flow { case posted, blocked, failed }

    /// Begins an operation that `submit` filled in.
    func start(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        slot.pointee.lastProgress = hot.pointee.now
        hot.pointee.usedSlots = max(hot.pointee.usedSlots, Int(index) + 1)
        switch slot.pointee.kind {
        case .count:
            awaitCount(slot, index)
        case .send:
            slot.pointee.isPosting = true
            if !sendMessage(slot, index) { ready.pointee.append(index) }
        case .write, .paged, .scatter, .barrier:
            slot.pointee.isPosting = true
            hot.pointee.sequence &+= 1
            slot.pointee.sequence = hot.pointee.sequence
            slot.pointee.isSilentStage = slot.pointee.eighths > 0 && needsSilentStage(slot)
            rewind(slot)
            pump(slot, index)
        }
    }

    /// Puts a slot among those that wait for a counter, or ends it at once.
    func awaitCount(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        if page.consume(eighths: slot.pointee.expectedEighths, from: slot.pointee.immediate) {
            end(slot, index)
        } else {
            waits[hot.pointee.waitCount] = index
            hot.pointee.waitCount += 1
        }
    }

    /// Goes on with the slots that providers pushed back. Returns whether anything moved.
    func pumpReady() -> Bool {
        let before = hot.pointee.posted
        for _ in 0..<ready.pointee.count {
            let index = ready.pointee.removeFirst()
            let slot = slots + Int(index)
            if slot.pointee.kind == .send {
                if !sendMessage(slot, index) { ready.pointee.append(index) }
            } else {
                pump(slot, index)
            }
        }
        return hot.pointee.posted != before
    }

    /// Posts what can be posted; a slot that is pushed back waits in `ready`.
    private func pump(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        guard slot.pointee.isPosting else {
            if slot.pointee.inFlight == 0 { advance(slot, index) }
            return
        }
        let flow = slot.pointee.kind == .paged ? postPages(slot, index) : postTargets(slot, index)
        switch flow {
        case .blocked:
            ready.pointee.append(index)
        case .posted, .failed:
            slot.pointee.isPosting = false
            if slot.pointee.inFlight == 0 { advance(slot, index) }
        }
    }

    /// A stage of the slot is over: begins the next one or ends the transfer.
    func advance(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) {
        if slot.pointee.isSilentStage, slot.pointee.failure == .success {
            slot.pointee.isSilentStage = false
            slot.pointee.isPosting = true
            rewind(slot)
            ready.pointee.append(index)
        } else if slot.pointee.kind == .barrier, slot.pointee.failure == .success {
            slot.pointee.expectedEighths = Int64(slot.pointee.targetCount) * Int64(Eighths.whole)
            awaitCount(slot, index)
        } else {
            end(slot, index)
        }
    }

    private func rewind(_ slot: UnsafeMutablePointer<TransferSlot>) {
        slot.pointee.targetCursor = 0
        slot.pointee.pieceCursor = 0
        slot.pointee.chunkCursor = 0
        guard slot.pointee.kind == .paged else { return }
        let rails = attachments[Int(slot.pointee.attachment)].rails
        for rail in 0..<rails.count {
            slot.pointee.railCursors[rail] = StripePlanner.start(
                ofRail: rail, units: slot.pointee.pageCount, rails: rails.span,
                sequence: slot.pointee.sequence)
        }
    }

    /// Whether a part of the data must be there before the counted requests are posted.
    private func needsSilentStage(_ slot: UnsafeMutablePointer<TransferSlot>) -> Bool {
        if slot.pointee.kind != .scatter, slot.pointee.kind != .barrier {
            return isLong(slot.pointee.length, slot.pointee.attachment)
                || slot.pointee.kind == .write && isWide(slot.pointee.length, slot.pointee.attachment)
        }
        guard let targets = slot.pointee.targets else { return false }
        for target in 0..<slot.pointee.targetCount {
            let length = targets[target].length
            if isLong(length, targets[target].attachment) || isWide(length, targets[target].attachment) {
                return true
            }
        }
        return false
    }

    private func isLong(_ length: Int, _ attachment: UInt32) -> Bool {
        UInt64(length) > attachments[Int(attachment)].maximumWriteBytes
    }

    private func isWide(_ length: Int, _ attachment: UInt32) -> Bool {
        attachments[Int(attachment)].rails.count > 8 && length >= 2 * planner.stripeBytes
    }

    /// Posts `batch[0..<count]` on one domain. `accepted` of them were taken.
    private func post(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ domain: Int, _ count: Int, accepted: inout Int
    ) -> Flow {
        accepted = 0
        while accepted < count {
            let result = domains[domain].post(
                UnsafeBufferPointer(start: batch + accepted, count: count - accepted))
            accepted += result.accepted
            hot.pointee.posted &+= UInt64(result.accepted)
            if result.isComplete {
                slot.pointee.completed += result.accepted
            } else {
                slot.pointee.inFlight += result.accepted
            }
            if result.status == .success, result.accepted > 0 { continue }
            if result.status == .success || result.status == .again { return .blocked }
            fail(slot, result.status, result.detail, domain)
            return .failed
        }
        return .posted
    }

    // MARK: Writes, scatters, barriers

    private func postTargets(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) -> Flow {
        var cursor = Cursor(
            target: slot.pointee.targetCursor, piece: slot.pointee.pieceCursor,
            chunk: slot.pointee.chunkCursor)
        var flow = Flow.posted
        repeat {
            let (count, domain) = fill(slot, index, &cursor)
            if count == 0 { break }
            var accepted = 0
            flow = post(slot, domain, count, accepted: &accepted)
            if accepted < count { cursor = marks[accepted] }
        } while flow == .posted
        slot.pointee.targetCursor = cursor.target
        slot.pointee.pieceCursor = cursor.piece
        slot.pointee.chunkCursor = cursor.chunk
        return flow
    }

    private func target(_ slot: UnsafeMutablePointer<TransferSlot>, _ number: Int) -> ScatterTarget {
        if slot.pointee.kind != .write, let targets = slot.pointee.targets { return targets[number] }
        return ScatterTarget(
            attachment: slot.pointee.attachment, source: slot.pointee.source ?? UnsafeRawPointer(batch),
            length: slot.pointee.length, targetOffset: slot.pointee.targetOffset)
    }

    /// Fills the batch with the next requests that go to one domain.
    private func fill(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32, _ cursor: inout Cursor
    ) -> (count: Int, domain: Int) {
        var count = 0
        var domain = -1
        let context = context(of: slot, index)
        while cursor.target < slot.pointee.targetCount, count < Limits.requestsPerPost {
            let target = target(slot, cursor.target)
            let attachment = attachments + Int(target.attachment)
            guard let keys = attachment.pointee.keys else { break }
            let rails = attachment.pointee.rails
            let pieceCount = planner.cut(
                length: target.length, rails: rails.span,
                sequence: slot.pointee.sequence &+ UInt32(cursor.target),
                into: pieces)
            while cursor.piece < pieceCount, count < Limits.requestsPerPost {
                let piece = pieces[cursor.piece]
                let rail = rails[piece.rail]
                guard let chunk = nextChunk(slot, piece, keys[piece.rail].maximumWriteBytes, cursor.chunk)
                else {
                    cursor.piece += 1
                    cursor.chunk = 0
                    continue
                }
                if domain >= 0, rail.local != domain { return (count, domain) }
                domain = rail.local
                marks[count] = cursor
                batch[count] = WorkRequest(
                    context: context, source: target.source + piece.offset + chunk.offset,
                    length: chunk.length,
                    localKey: regions[Int(slot.pointee.localIndex)].localKeys[domain],
                    target: keys + piece.rail,
                    targetOffset: UInt64(target.targetOffset + piece.offset + chunk.offset),
                    immediate: slot.pointee.immediate, eighths: chunk.eighths)
                count += 1
                cursor.chunk = chunk.offset + max(1, chunk.length)
            }
            if cursor.piece == pieceCount { cursor = Cursor(target: cursor.target + 1) }
        }
        return (count, domain)
    }

    /// The next request of a piece in the slot's stage, beginning at `offset` or later; nil when there is none.
    private func nextChunk(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ piece: Piece, _ limit: UInt64, _ offset: Int
    ) -> (offset: Int, length: Int, eighths: UInt32)? {
        let limit = Int(limit)
        guard slot.pointee.eighths > 0 else {
            return offset < piece.length ? (offset, min(limit, piece.length - offset), 0) : nil
        }
        if piece.length <= limit, piece.eighths > 0 {
            if slot.pointee.isSilentStage { return nil }
            return offset == 0 ? (0, piece.length, piece.eighths) : nil
        }
        let last = piece.eighths > 0 ? (piece.length - 1) / limit * limit : piece.length
        if slot.pointee.isSilentStage {
            return offset < last ? (offset, min(limit, last - offset), 0) : nil
        }
        return piece.eighths > 0 && offset <= last ? (last, piece.length - last, piece.eighths) : nil
    }

    // MARK: Pages

    private func postPages(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) -> Flow {
        let rails = attachments[Int(slot.pointee.attachment)].rails
        var result = Flow.posted
        for rail in 0..<rails.count {
            let end = StripePlanner.start(
                ofRail: rail + 1, units: slot.pointee.pageCount, rails: rails.span,
                sequence: slot.pointee.sequence
            )
            while slot.pointee.railCursors[rail] < end {
                let domain = rails[rail].local
                let count = fillPages(slot, index, rail, end)
                if count == 0 { break }
                let after = Cursor(target: slot.pointee.railCursors[rail], chunk: slot.pointee.chunkCursor)
                var accepted = 0
                let flow = post(slot, domain, count, accepted: &accepted)
                let cursor = accepted < count ? marks[accepted] : after
                slot.pointee.railCursors[rail] = cursor.target
                slot.pointee.chunkCursor = cursor.chunk
                if flow == .failed { return .failed }
                if flow == .blocked {
                    // A page that is cut is finished before another rail goes on: they share the chunk cursor.
                    if cursor.chunk > 0 { return .blocked }
                    result = .blocked
                    break
                }
            }
        }
        return result
    }

    /// Fills the batch with pages of one rail, from its cursor on, and moves the cursor.
    private func fillPages(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32, _ rail: Int, _ end: Int
    ) -> Int {
        let attachment = attachments + Int(slot.pointee.attachment)
        guard let sources = slot.pointee.sourcePages, let targets = slot.pointee.targetPages,
            let keys = attachment.pointee.keys, let base = slot.pointee.source
        else { return 0 }
        let key = keys + rail
        let domain = attachment.pointee.rails[rail].local
        let length = slot.pointee.length
        if UInt64(length) > key.pointee.maximumWriteBytes { return fillLongPages(slot, index, rail, end) }
        if slot.pointee.isSilentStage {
            slot.pointee.railCursors[rail] = end
            return 0
        }
        let mergeLimit = mergeLimit(slot, domain, key.pointee.maximumWriteBytes)
        let context = context(of: slot, index)
        let localKey = regions[Int(slot.pointee.localIndex)].localKeys[domain]
        let (sourceStride, targetStride) = (slot.pointee.sourceStride, slot.pointee.targetStride)
        let (targetOffset, immediate, eighths) = (
            slot.pointee.targetOffset, slot.pointee.immediate, slot.pointee.eighths
        )
        var page = slot.pointee.railCursors[rail]
        var count = 0
        while page < end, count < Limits.requestsPerPost {
            marks[count].target = page
            marks[count].chunk = 0
            let first = page
            page += 1
            if mergeLimit > 0 {
                while page < end, sources[page] == sources[page - 1] &+ 1,
                    targets[page] == targets[page - 1] &+ 1,
                    (page - first + 1) * length <= mergeLimit
                { page += 1 }
            }
            (batch + count).initialize(
                to: WorkRequest(
                    context: context, source: base + Int(sources[first]) * sourceStride,
                    length: (page - first) * length, localKey: localKey, target: key,
                    targetOffset: UInt64(targetOffset + Int(targets[first]) * targetStride),
                    immediate: immediate,
                    eighths: UInt32(page - first) * eighths))
            count += 1
        }
        slot.pointee.railCursors[rail] = page
        return count
    }

    /// Bytes up to which pages that are neighbours on both sides travel as one request; 0 is never.
    private func mergeLimit(_ slot: UnsafeMutablePointer<TransferSlot>, _ domain: Int, _ limit: UInt64) -> Int
    {
        let length = slot.pointee.length
        guard length > 0, slot.pointee.sourceStride == length, slot.pointee.targetStride == length else {
            return 0
        }
        let manyCounts = countsManyBytes[domain]
        return slot.pointee.eighths > 0 ? Int(min(manyCounts, limit, 1 << 40)) : Int(min(limit, 1 << 40))
    }

    /// Pages longer than the longest write: cut, the counted chunk of each last.
    private func fillLongPages(
        _ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32, _ rail: Int, _ end: Int
    ) -> Int {
        let attachment = attachments + Int(slot.pointee.attachment)
        guard let sources = slot.pointee.sourcePages, let targets = slot.pointee.targetPages,
            let keys = attachment.pointee.keys, let base = slot.pointee.source
        else { return 0 }
        let key = keys + rail
        let domain = attachment.pointee.rails[rail].local
        var page = slot.pointee.railCursors[rail]
        var chunkStart = slot.pointee.chunkCursor
        let piece = Piece(rail: rail, offset: 0, length: slot.pointee.length, eighths: slot.pointee.eighths)
        var count = 0
        while page < end, count < Limits.requestsPerPost {
            guard let chunk = nextChunk(slot, piece, key.pointee.maximumWriteBytes, chunkStart) else {
                page += 1
                chunkStart = 0
                continue
            }
            marks[count] = Cursor(target: page, chunk: chunkStart)
            batch[count] = WorkRequest(
                context: context(of: slot, index),
                source: base + Int(sources[page]) * slot.pointee.sourceStride + chunk.offset,
                length: chunk.length,
                localKey: regions[Int(slot.pointee.localIndex)].localKeys[domain], target: key,
                targetOffset: UInt64(
                    slot.pointee.targetOffset + Int(targets[page]) * slot.pointee.targetStride + chunk.offset),
                immediate: slot.pointee.immediate, eighths: chunk.eighths)
            count += 1
            chunkStart = chunk.offset + max(1, chunk.length)
        }
        slot.pointee.railCursors[rail] = page
        slot.pointee.chunkCursor = chunkStart
        return count
    }

    // MARK: Messages

    /// Hands a message to its NIC; false when it is pushed back.
    private func sendMessage(_ slot: UnsafeMutablePointer<TransferSlot>, _ index: UInt32) -> Bool {
        guard slot.pointee.isPosting, let keys = attachments[Int(slot.pointee.attachment)].keys else {
            return true
        }
        let payload = UnsafeRawBufferPointer(start: slot.pointee.scratch, count: slot.pointee.length)
        let domain = attachments[Int(slot.pointee.attachment)].rails[0].local
        let result = domains[domain].send(payload, to: keys, context: context(of: slot, index))
        if result.status == .again { return false }
        slot.pointee.isPosting = false
        hot.pointee.posted &+= 1
        if result.status != .success { fail(slot, result.status, result.detail, domain) }
        if result.status == .success, !result.isComplete { slot.pointee.inFlight += 1 }
        if slot.pointee.inFlight == 0 { end(slot, index) }
        return true
    }
}
