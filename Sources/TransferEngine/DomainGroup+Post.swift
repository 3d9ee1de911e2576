internal import TransferCore

// From a slot to work requests. No allocation, no lock.
extension DomainGroup {
    /// What posting a slot came to.
    private enum Flow {
        case posted, blocked, failed
        /// One target takes no more now; others may.
        case busy
    }

    /// Begins an operation that `submit` filled in.
    func start(_ slot: inout TransferSlot, _ index: UInt32) {
        slot.isStarted = true
        slot.lastProgress = slot.submitted
        hot.value.usedSlots = max(hot.value.usedSlots, Int(index) + 1)
        traceStart(slot, index)
        tally(slot)
        switch slot.kind {
        case .count:
            awaitCount(&slot, index)
        case .send:
            slot.isPosting = true
            if !sendMessage(&slot, index) { makeReady(&slot, index) }
        case .write, .paged, .scatter, .barrier:
            slot.isPosting = true
            if hot.value.downLinks > 0 { redirect(&slot) }
            classify(&slot)
            hot.value.sequence &+= 1
            slot.sequence = hot.value.sequence
            slot.isSilentStage = slot.eighths > 0 && needsSilentStage(&slot)
            rewind(&slot, attachments[slot.attachment])
            pump(&slot, index)
        }
    }

    /// Puts a slot among those that wait for a counter, or ends it at once.
    func awaitCount(_ slot: inout TransferSlot, _ index: UInt32) {
        traceWait(slot, index)
        if page.consume(eighths: slot.expectedEighths, from: slot.immediate) {
            end(&slot, index)
        } else {
            waits[hot.value.waitCount] = index
            hot.value.waitCount += 1
        }
    }

    /// Goes on with the slots that providers pushed back. Returns whether anything moved.
    func pumpReady() -> Bool {
        let before = hot.value.posted
        defer { hot.value.batchLimit = Limits.requestsPerPost }
        if hot.value.traffic.isMixed {
            for trafficClass in TrafficClass.allCases { pumpReady(trafficClass) }
        } else {
            pumpReady(nil)
        }
        return hot.value.posted != before
    }

    /// Gives the slots of a class, or all, a turn.
    private func pumpReady(_ trafficClass: TrafficClass?) {
        for _ in 0..<hot.value.ready.count {
            let index = hot.value.ready.removeFirst()
            if let trafficClass, slots[index].trafficClass ?? .urgent != trafficClass {
                hot.value.ready.append(index)
                continue
            }
            slots[index].isReady = false
            // Many slots may wait for the same full NIC: each tries a few requests before it prepares more.
            hot.value.batchLimit = Limits.requestsPerRetry
            if slots[index].kind == .send {
                if !sendMessage(&slots[index], index) { makeReady(&slots[index], index) }
            } else {
                pump(&slots[index], index)
            }
        }
    }

    /// Posts what can be posted; a slot that is pushed back waits in `ready`. What it still needs afterwards it owns.
    private func pump(_ slot: inout TransferSlot, _ index: UInt32) {
        var flow = Flow.posted
        hot.value.traffic.turnBytes = 0
        if slot.isPosting {
            flow = slot.kind == .paged ? postPages(&slot, index) : postTargets(&slot, index)
            if flow == .posted {
                slot.isPosting = false
                if !slot.isSilentStage { tallyPosted(slot) }
            }
        }
        if flow == .posted, !slot.redo.isEmpty { flow = postAgain(&slot, index) }
        switch flow {
        case .blocked, .busy:
            slot.pages.keep()
            makeReady(&slot, index)
        case .posted, .failed:
            slot.isPosting = false
            // What is in flight may have to be posted again, over another rail.
            let mayFail = slot.inFlight > 0 || !slot.unsettled.isEmpty
            let isNeeded = slot.isSilentStage || mayFail && hasSeveralRails(slot.attachment)
            if isNeeded { slot.pages.keep() } else { slot.pages.forget() }
            if slot.inFlight == 0 { proceed(&slot, index) }
        }
    }

    private func hasSeveralRails(_ index: UInt32) -> Bool {
        let root = attachments[index].root
        return attachments[root == .max ? index : root].rails.count > 1
    }

    /// Queues a slot to be pumped, once.
    func makeReady(_ slot: inout TransferSlot, _ index: UInt32) {
        guard !slot.isReady else { return }
        slot.isReady = true
        hot.value.ready.append(index)
    }

    /// Nothing of the slot is in flight: posts what has to be posted again, waits for what is unsettled, or goes on.
    func proceed(_ slot: inout TransferSlot, _ index: UInt32) {
        if slot.failure == .success, !slot.redo.isEmpty {
            makeReady(&slot, index)
        } else if slot.failure != .success || slot.unsettled.isEmpty {
            advance(&slot, index)
        }
    }

    /// A stage of the slot is over: begins the next one or ends the transfer.
    func advance(_ slot: inout TransferSlot, _ index: UInt32) {
        if slot.isSilentStage, slot.failure == .success {
            slot.isSilentStage = false
            slot.isPosting = true
            if slot.kind == .scatter { for target in 0..<slot.targetCount { slot.targets[target].rewind() } }
            rewind(&slot, attachments[slot.attachment])
            makeReady(&slot, index)
        } else if slot.kind == .barrier, slot.failure == .success {
            slot.expectedEighths = Int64(slot.targetCount) * Int64(Eighths.whole)
            awaitCount(&slot, index)
        } else {
            end(&slot, index)
        }
    }

    private func rewind(_ slot: inout TransferSlot, _ attachment: borrowing Attachment) {
        slot.targetCursor = 0
        slot.pieceCursor = 0
        slot.chunkCursor = 0
        slot.passCount = slot.targetCount
        slot.asideCount = 0
        guard slot.kind == .paged else { return }
        for rail in 0..<attachment.rails.count {
            slot.railCursors[rail] = firstPage(ofRail: rail, &slot, attachment)
            slot.railChunks[rail] = 0
        }
    }

    private func firstPage(
        ofRail rail: Int, _ slot: inout TransferSlot, _ attachment: borrowing Attachment
    ) -> Int {
        StripePlanner.start(
            ofRail: rail, units: slot.pages.count, rails: attachment.rails.span, sequence: slot.sequence)
    }

    /// Whether a part of the data must be there before the counted requests are posted.
    private func needsSilentStage(_ slot: inout TransferSlot) -> Bool {
        if slot.kind != .scatter, slot.kind != .barrier {
            return isLong(slot.length, slot.attachment)
                || slot.kind == .write && isWide(slot.length, slot.attachment)
        }
        for target in 0..<slot.targetCount {
            let target = slot.targets[target]
            if isLong(target.length, target.attachment) || isWide(target.length, target.attachment) {
                return true
            }
        }
        return false
    }

    private func isLong(_ length: Int, _ attachment: UInt32) -> Bool {
        UInt64(length) > attachments[attachment].maximumWriteBytes
    }

    private func isWide(_ length: Int, _ attachment: UInt32) -> Bool {
        attachments[attachment].rails.count > 8 && length >= 2 * planner.stripeBytes
    }

    /// Posts `batch[accepted..<count]` on one domain, and moves `accepted` behind those that were taken.
    private func post(
        _ slot: inout TransferSlot, _ index: UInt32, _ domain: Int, _ count: Int, accepted: inout Int
    ) -> Flow {
        while accepted < count {
            var end = count
            if hot.value.downLinks > 0 {
                end = divert(&slot, domain, &accepted, count)
                if accepted == count { break }
            }
            let mayYield = mayYield(slot)
            if mayYield {
                let allowance = allowance(slot, accepted, end)
                if allowance == 0 { return .blocked }
                end = accepted + allowance
            }
            // The batch does not move, and its requests stay good until they are filled anew.
            let result = unsafe domains[domain].post(
                UnsafeBufferPointer(start: batch.address(of: accepted), count: end - accepted))
            tally(result, domain, from: accepted)
            if mayYield {
                noteBytes(&slot, accepted..<accepted + result.accepted, isComplete: result.isComplete)
            }
            accepted += result.accepted
            hot.value.posted &+= UInt64(result.accepted)
            if result.isComplete {
                slot.completed += result.accepted
            } else {
                slot.inFlight += result.accepted
            }
            tracePost(slot, index, domain, result.accepted, of: count - accepted + result.accepted)
            if result.status == .success, result.accepted > 0 { continue }
            if result.status == .success || result.status == .again { return .blocked }
            if result.status == .targetBusy { return .busy }
            if isBroken(batch[accepted], domain, result.status) { continue }
            let peer = unsafe batch[accepted].target.pointee.peer
            fail(&slot, result.status, result.detail, domain, peer: peer)
            return .failed
        }
        hot.value.batchLimit = Limits.requestsPerPost
        return .posted
    }

    /// Posts again what was on NICs that failed, over those that are left.
    private func postAgain(_ slot: inout TransferSlot, _ index: UInt32) -> Flow {
        while let tag = slot.redo.last {
            guard let way = detour(&slot, tag) else {
                fail(&slot, .peerLost, 0, Int(slot.failureDomain))
                return .failed
            }
            let count = fill(&slot, index, again: tag, over: way.attachment, way.rail)
            var accepted = 0
            // A link that breaks here sends its requests back to the list: take this one off first.
            slot.redo.removeLast()
            let domain = attachments[way.attachment].rails[way.rail].local
            let before = hot.value.posted
            let flow = post(&slot, index, domain, count, accepted: &accepted)
            counters.nics[domain].takenOver.raise(by: hot.value.posted &- before)
            let isPaged = slot.kind == .paged && !tag.isChunk
            let rest = isPaged ? tag.dropping(accepted) : accepted == count ? nil : tag
            if flow != .failed, let rest { slot.redo.append(rest) }
            if flow != .posted { return flow }
        }
        return .posted
    }

    /// Fills the batch with the requests that a tag names, for another rail. Pages that travelled as one go one by one, since
    /// the other NIC may not count many.
    private func fill(
        _ slot: inout TransferSlot, _ index: UInt32, again tag: RequestTag, over attachment: UInt32,
        _ rail: Int
    ) -> Int {
        let way = way(&slot, index, to: attachments[attachment], rail: rail)
        if slot.kind == .paged, !tag.isChunk {
            let count = min(tag.part, Limits.requestsPerPost)
            for page in 0..<count {
                let (source, target) = place(&slot, ofPage: tag.unit + page)
                batch[page] = way.request(
                    RequestTag(rail: tag.rail, unit: tag.unit + page, part: 1), from: source, slot.length,
                    at: target, eighths: slot.eighths)
            }
            return count
        }
        let (piece, source, target) = piece(&slot, of: tag)
        let limit = attachments[slot.attachment(of: tag)].maximumWriteBytes
        let chunk = piece.chunk(
            from: tag.chunk * Int(limit), limit: limit, counts: slot.eighths > 0, isSilent: slot.isSilentStage
        )
        guard let chunk else { return 0 }
        batch[0] = way.request(
            tag, from: source + piece.offset + chunk.offset, chunk.length,
            at: target + piece.offset + chunk.offset, eighths: chunk.eighths)
        return 1
    }

    private func place(_ slot: inout TransferSlot, ofPage page: Int) -> (source: Int, target: Int) {
        let source = Int(slot.pages.sources[page])
        let target = Int(slot.pages.targets[page])
        let (sourceOffset, targetOffset) = (slot.sourceOffset, slot.targetOffset)
        return (sourceOffset + source * slot.sourceStride, targetOffset + target * slot.targetStride)
    }

    /// The piece that a tag's chunk belongs to, and where source and target begin.
    private func piece(_ slot: inout TransferSlot, of tag: RequestTag) -> (Piece, source: Int, target: Int) {
        if slot.kind == .paged {
            let (source, target) = place(&slot, ofPage: tag.unit)
            let piece = Piece(rail: tag.rail, offset: 0, length: slot.length, eighths: slot.eighths)
            return (piece, source, target)
        }
        let target = target(&slot, slot.place(of: tag))
        let count = cut(&slot, target, attachments[target.attachment])
        let number = (0..<count).first { pieces[$0].rail == tag.rail } ?? 0
        return (pieces[number], target.sourceOffset, target.targetOffset)
    }

    // MARK: Writes, scatters, barriers

    private func postTargets(_ slot: inout TransferSlot, _ index: UInt32) -> Flow {
        var cursor = Cursor(
            target: slot.targetCursor, piece: slot.pieceCursor,
            chunk: slot.chunkCursor)
        var flow = Flow.posted
        repeat {
            let (count, domain) = fill(&slot, index, &cursor)
            if count == 0 { break }
            var accepted = 0
            flow = post(&slot, index, domain, count, accepted: &accepted)
            while flow == .busy, slot.kind != .write {
                accepted = setAside(&slot, accepted, count, &cursor)
                flow = post(&slot, index, domain, count, accepted: &accepted)
            }
            if accepted < count { cursor = marks[accepted] }
        } while flow == .posted
        if flow == .posted, slot.asideCount > 0 {
            // All have had their turn: those that were busy have the next one.
            slot.passCount = slot.asideCount
            slot.asideCount = 0
            cursor = beginning(&slot, 0)
            flow = .blocked
        }
        slot.targetCursor = cursor.target
        slot.pieceCursor = cursor.piece
        slot.chunkCursor = cursor.chunk
        return flow
    }

    /// Where a target begins, or goes on after it was busy.
    private func beginning(_ slot: inout TransferSlot, _ target: Int) -> Cursor {
        guard slot.kind != .write, target < slot.passCount else { return Cursor(target: target) }
        return Cursor(
            target: target, piece: Int(slot.targets[target].piece), chunk: slot.targets[target].chunk)
    }

    /// Leaves a busy target for the next pass, from request `position` of the batch on: it moves to the front of the table,
    /// where all others have been posted. Returns the first request of the batch that is for another target.
    private func setAside(
        _ slot: inout TransferSlot, _ position: Int, _ count: Int, _ cursor: inout Cursor
    ) -> Int {
        let mark = marks[position]
        var next = position + 1
        while next < count, marks[next].target == mark.target { next += 1 }
        if cursor.target == mark.target { cursor = beginning(&slot, mark.target + 1) }
        var target = slot.targets[mark.target]
        target.piece = UInt16(truncatingIfNeeded: mark.piece)
        target.chunk = mark.chunk
        slot.targets[mark.target] = slot.targets[slot.asideCount]
        slot.targets[slot.asideCount] = target
        slot.asideCount += 1
        return next
    }

    private func target(_ slot: inout TransferSlot, _ number: Int) -> ScatterTarget {
        if slot.kind != .write { return slot.targets[number] }
        return ScatterTarget(
            attachment: slot.attachment, sourceOffset: slot.sourceOffset, length: slot.length,
            targetOffset: slot.targetOffset)
    }

    /// Fills the batch with the next requests that go to one domain.
    private func fill(
        _ slot: inout TransferSlot, _ index: UInt32, _ cursor: inout Cursor
    ) -> (count: Int, domain: Int) {
        var count = 0
        var domain = -1
        while cursor.target < slot.passCount, count < hot.value.batchLimit {
            let target = target(&slot, cursor.target)
            let isWhole = fill(&slot, index, target, attachments[target.attachment], &cursor, &count, &domain)
            guard isWhole else { break }
            cursor = beginning(&slot, cursor.target + 1)
        }
        return (count, domain)
    }

    /// Cuts what goes to one target into `pieces`.
    private func cut(
        _ slot: inout TransferSlot, _ target: ScatterTarget, _ attachment: borrowing Attachment
    ) -> Int {
        planner.cut(
            length: target.length, rails: attachment.rails.span,
            sequence: slot.sequence &+ UInt32(target.number), into: pieces)
    }

    /// Goes on with the requests to one target. Returns whether those were all.
    private func fill(
        _ slot: inout TransferSlot, _ index: UInt32, _ target: ScatterTarget,
        _ attachment: borrowing Attachment, _ cursor: inout Cursor, _ count: inout Int, _ domain: inout Int
    ) -> Bool {
        let pieceCount = cut(&slot, target, attachment)
        while cursor.piece < pieceCount, count < hot.value.batchLimit {
            let piece = pieces[cursor.piece]
            let local = attachment.rails[piece.rail].local
            let limit = attachment.maximumWriteBytes
            let next = piece.chunk(
                from: cursor.chunk, limit: limit, counts: slot.eighths > 0, isSilent: slot.isSilentStage)
            guard let chunk = next else {
                cursor.piece += 1
                cursor.chunk = 0
                continue
            }
            if domain >= 0, local != domain { return false }
            domain = local
            let offset = piece.offset + chunk.offset
            marks[count] = cursor
            let tag = RequestTag(
                rail: piece.rail, unit: Int(target.number),
                chunk: chunk.offset == 0 ? 0 : chunk.offset / Int(limit))
            batch[count] = way(&slot, index, to: attachment, rail: piece.rail).request(
                tag, from: target.sourceOffset + offset, chunk.length, at: target.targetOffset + offset,
                eighths: chunk.eighths)
            count += 1
            cursor.chunk = chunk.offset + max(1, chunk.length)
        }
        return cursor.piece == pieceCount
    }

    /// What the requests of a slot over one rail have in common.
    @inline(__always)
    private func way(
        _ slot: inout TransferSlot, _ index: UInt32, to attachment: borrowing Attachment, rail: Int
    ) -> Way {
        let domain = attachment.rails[rail].local
        // Attached keys do not move.
        return unsafe Way(
            base: regions[slot.localIndex].base, context: context(index),
            localKey: regions[slot.localIndex].localKeys[domain],
            target: UnsafePointer(attachment.keys.address(of: rail)), immediate: slot.immediate)
    }

    // MARK: Pages

    private func postPages(_ slot: inout TransferSlot, _ index: UInt32) -> Flow {
        var result = Flow.posted
        for rail in 0..<attachments[slot.attachment].rails.count {
            let domain = attachments[slot.attachment].rails[rail].local
            let end = firstPage(ofRail: rail + 1, &slot, attachments[slot.attachment])
            while slot.railCursors[rail] < end {
                let count = fillPages(&slot, index, rail, end)
                if count == 0 { break }
                let after = Cursor(target: slot.railCursors[rail], chunk: slot.railChunks[rail])
                var accepted = 0
                let flow = post(&slot, index, domain, count, accepted: &accepted)
                let cursor = accepted < count ? marks[accepted] : after
                slot.railCursors[rail] = cursor.target
                slot.railChunks[rail] = cursor.chunk
                if flow == .failed { return .failed }
                if flow == .blocked || flow == .busy {
                    result = .blocked
                    break
                }
            }
        }
        return result
    }

    /// Fills the batch with pages of one rail, from its cursor on, and moves the cursor.
    private func fillPages(_ slot: inout TransferSlot, _ index: UInt32, _ rail: Int, _ end: Int) -> Int {
        let page = slot.railCursors[rail]
        let limit = attachments[slot.attachment].maximumWriteBytes
        if UInt64(slot.length) > limit {
            let (count, cursor) = longPages(
                &slot, index, to: attachments[slot.attachment], rail, page..<end)
            slot.railCursors[rail] = cursor.target
            slot.railChunks[rail] = cursor.chunk
            return count
        }
        if slot.isSilentStage {
            slot.railCursors[rail] = end
            return 0
        }
        let (count, next) = wholePages(&slot, index, to: attachments[slot.attachment], rail, page..<end)
        slot.railCursors[rail] = next
        return count
    }

    /// Pages that fit into one request, or several neighbours in one. Returns how many requests, and the next page.
    private func wholePages(
        _ slot: inout TransferSlot, _ index: UInt32, to attachment: borrowing Attachment, _ rail: Int,
        _ range: Range<Int>
    ) -> (count: Int, next: Int) {
        let way = way(&slot, index, to: attachment, rail: rail)
        let mergeLimit = mergeLimit(&slot, attachment, rail)
        let (length, eighths) = (slot.length, slot.eighths)
        let (sourceOffset, sourceStride) = (slot.sourceOffset, slot.sourceStride)
        let (targetOffset, targetStride) = (slot.targetOffset, slot.targetStride)
        let sources = slot.pages.sources
        let targets = slot.pages.targets
        let end = min(range.upperBound, sources.count)
        let limit = hot.value.batchLimit
        var page = range.lowerBound
        var count = 0
        while page < end, count < limit {
            let first = page
            page += 1
            if mergeLimit > 0 {
                while page < end, sources[page] == sources[page - 1] &+ 1,
                    targets[page] == targets[page - 1] &+ 1,
                    (page - first + 1) * length <= mergeLimit
                { page += 1 }
            }
            marks[count] = Cursor(target: first)
            batch[count] = way.request(
                RequestTag(rail: rail, unit: first, part: page - first),
                from: sourceOffset + Int(sources[first]) * sourceStride, (page - first) * length,
                at: targetOffset + Int(targets[first]) * targetStride,
                eighths: UInt32(page - first) * eighths)
            count += 1
        }
        return (count, page)
    }

    /// Bytes up to which pages that are neighbours on both sides travel as one request; 0 is never.
    private func mergeLimit(
        _ slot: inout TransferSlot, _ attachment: borrowing Attachment, _ rail: Int
    ) -> Int {
        StripePlanner.mergeLimit(
            pageBytes: slot.length,
            areAdjacent: slot.sourceStride == slot.length && slot.targetStride == slot.length,
            counts: slot.eighths > 0, countsManyBytes: countsManyBytes[attachment.rails[rail].local],
            maximumWriteBytes: mayYield(slot)
                ? min(attachment.keys[rail].maximumWriteBytes, UInt64(yielding.bytes))
                : attachment.keys[rail].maximumWriteBytes)
    }

    /// Pages longer than the longest write: cut, the counted chunk of each last.
    private func longPages(
        _ slot: inout TransferSlot, _ index: UInt32, to attachment: borrowing Attachment, _ rail: Int,
        _ range: Range<Int>
    ) -> (count: Int, next: Cursor) {
        let way = way(&slot, index, to: attachment, rail: rail)
        let limit = attachment.maximumWriteBytes
        let piece = Piece(rail: rail, offset: 0, length: slot.length, eighths: slot.eighths)
        var cursor = Cursor(target: range.lowerBound, chunk: slot.railChunks[rail])
        let (counts, isSilent) = (slot.eighths > 0, slot.isSilentStage)
        let sources = slot.pages.sources
        let targets = slot.pages.targets
        var count = 0
        while cursor.target < range.upperBound, count < hot.value.batchLimit {
            let next = piece.chunk(from: cursor.chunk, limit: limit, counts: counts, isSilent: isSilent)
            guard let chunk = next else {
                cursor = Cursor(target: cursor.target + 1)
                continue
            }
            marks[count] = cursor
            let tag = RequestTag(
                rail: rail, unit: cursor.target,
                chunk: chunk.offset == 0 ? 0 : chunk.offset / Int(limit))
            batch[count] = way.request(
                tag, from: slot.sourceOffset + Int(sources[cursor.target]) * slot.sourceStride + chunk.offset,
                chunk.length,
                at: slot.targetOffset + Int(targets[cursor.target]) * slot.targetStride + chunk.offset,
                eighths: chunk.eighths)
            count += 1
            cursor.chunk = chunk.offset + max(1, chunk.length)
        }
        return (count, cursor)
    }

    // MARK: Messages

    /// Hands a message to its NIC; false when it is pushed back.
    private func sendMessage(_ slot: inout TransferSlot, _ index: UInt32) -> Bool {
        guard slot.isPosting else { return true }
        let rail = hot.value.downLinks > 0 ? firstRailUp(slot.attachment) : 0
        let domain = attachments[slot.attachment].rails[rail].local
        ControlMessage.number(slot.message, next: &hot.value.messages)
        seal(&slot)
        // The provider copies the payload before it returns.
        let result = unsafe domains[domain].fabric.send(
            UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(slot.message.memory)[..<slot.length]),
            to: UnsafePointer(attachments[slot.attachment].keys.address(of: rail)), context: context(index))
        traceSend(slot, index, domain, result.status)
        if result.status == .again || result.status == .targetBusy { return false }
        slot.isPosting = false
        tallyPosted(slot)
        hot.value.posted &+= 1
        if result.status != .success { fail(&slot, result.status, result.detail, domain) }
        if result.status == .success, !result.isComplete { slot.inFlight += 1 }
        if slot.inFlight == 0 { end(&slot, index) }
        return true
    }
}
