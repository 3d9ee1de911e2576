internal import TransferCore

// A NIC that fails in the middle of a transfer. Its connection is broken for good; what it had taken and not delivered goes
// over the NICs that are left; what may have been counted is settled with the receiver first, so that a count is added once.
// A link that is down is tried again after a pause that doubles, and used for new transfers once the peer has answered over it.
extension DomainGroup {
    // MARK: Posting while a link is down

    /// Sets apart the requests of a batch whose link is down, from `accepted` on. Returns where the run of those ends that can be
    /// posted.
    func divert(_ slot: inout TransferSlot, _ domain: Int, _ accepted: inout Int, _ count: Int) -> Int {
        while accepted < count, isDown(batch[accepted], domain) {
            slot.redo.append(batch[accepted].tag)
            accepted += 1
        }
        var end = accepted
        while end < count, !isDown(batch[end], domain) { end += 1 }
        return end
    }

    private func link(of request: borrowing WorkRequest, _ domain: Int) -> Link? {
        links.link(domain: domain, number: unsafe request.target.pointee.peer)
    }

    private func isDown(_ request: borrowing WorkRequest, _ domain: Int) -> Bool {
        link(of: request, domain)?.state == .down
    }

    /// Whether a NIC that refused a request with an error counts as failed, because the peer can be reached some other way.
    func isBroken(_ request: borrowing WorkRequest, _ domain: Int, _ status: WorkStatus) -> Bool {
        guard status == .peerLost || status == .providerFailed, let link = link(of: request, domain),
            link.peer.hasOther(than: link)
        else { return false }
        bringDown(link)
        return true
    }

    /// Lets a new transfer use the links that are up.
    func redirect(_ slot: inout TransferSlot) {
        slot.attachment = attachmentUp(slot.attachment)
        guard slot.isWide else { return }
        for target in 0..<slot.targetCount {
            slot.targets[target].attachment = attachmentUp(slot.targets[target].attachment)
        }
    }

    /// The attachment over the links that are up; the same one where all are, or none.
    func attachmentUp(_ index: UInt32) -> UInt32 {
        let root = attachments[index].root == .max ? index : attachments[index].root
        let up = railsUp(attachments[root])
        if up == 0 || up == 1 << UInt16(attachments[root].rails.count) - 1 { return root }
        if let known = attachments[root].detours.first(where: { $0.rails == up }) { return known.index }
        guard let place = freeAttachments.pop() else { return root }
        attachments[place] = restricted(attachments[root]) { up & 1 << UInt16($0) != 0 }
        attachments[place].root = root
        attachments[root].detours.append((up, place))
        return place
    }

    private func railsUp(_ attachment: borrowing Attachment) -> UInt16 {
        var up: UInt16 = 0
        for rail in 0..<attachment.rails.count where links.all[Int(attachment.links[rail])]?.state == .up {
            up |= 1 << UInt16(rail)
        }
        return up
    }

    /// A rail over which messages can go; the first one when none is up.
    func firstRailUp(_ index: UInt32) -> Int {
        let up = railsUp(attachments[index])
        return up == 0 ? 0 : up.trailingZeroBitCount
    }

    /// The rail that carries a request whose own has failed: among those that are up in turn, by their shares.
    func detour(_ slot: inout TransferSlot, _ tag: RequestTag) -> (attachment: UInt32, rail: Int)? {
        let place = attachmentUp(slot.attachment(of: tag))
        hot.value.sequence &+= 1
        let sequence = hot.value.sequence
        let rail = turn(sequence, attachments[place])
        guard links.all[Int(attachments[place].links[rail])]?.state == .up else { return nil }
        return (place, rail)
    }

    private func turn(_ sequence: UInt32, _ attachment: borrowing Attachment) -> Int {
        var rail = 0
        while rail + 1 < attachment.rails.count,
            StripePlanner.start(
                ofRail: rail + 1, units: 1, rails: attachment.rails.span, sequence: sequence) == 0
        { rail += 1 }
        return rail
    }

    // MARK: Failing

    /// What becomes of a request that failed, when that can be known and there is another way; false when it fails its transfer.
    func recover(_ slot: inout TransferSlot, _ completion: Completion, _ domain: Int) -> Bool {
        guard completion.delivery != .unknown, slot.failure == .success,
            completion.status == .peerLost || completion.status == .providerFailed,
            let link = links.link(domain: domain, number: completion.peer)
        else { return false }
        guard slot.isAbandoned || link.peer.hasOther(than: link) else { return false }
        switch completion.delivery {
        case .unknown: return false
        case .never:
            bringDown(link)
            if !slot.isAbandoned { slot.redo.append(completion.tag) }
        case .unsettled(let connection, let ordinal):
            bringDown(link)
            if let ledger = link.ledger(of: connection) {
                if !slot.isAbandoned, !ledger.contains(ordinal) { slot.redo.append(completion.tag) }
                return true
            }
            slot.unsettled.append(
                UnsettledPart(
                    tag: completion.tag, link: link.index, connection: connection, ordinal: ordinal))
            ask(about: connection, of: link)
        }
        return true
    }

    /// Stops using a link. Everything in flight over it ends.
    func bringDown(_ link: Link) {
        guard link.state == .up else { return }
        link.state = .down
        link.askedSince = 0
        link.pause = max(link.pause, liveness.firstPause)
        link.nextTry = hot.value.now &+ link.pause
        hot.value.downLinks += 1
        counters.nics[link.domain].linkFailures.raise()
        hot.value.nextTend = 0
        sever(link)
    }

    /// Breaks a link's connection; the key stays in place as long as the link.
    func sever(_ link: Link) {
        unsafe domains[link.domain].fabric.sever(UnsafePointer(link.key.address(of: 0)))
    }

    /// Uses a link again.
    func bringUp(_ link: Link) {
        link.lastAlive = hot.value.now
        link.askedSince = 0
        guard link.state == .down else { return }
        link.state = .up
        link.pause = 0
        hot.value.downLinks -= 1
    }

    // MARK: Settling

    /// Asks the receiver, now and again until it answers.
    private func ask(about connection: UInt64, of link: Link) {
        guard !link.settlements.contains(where: { $0.connection == connection }) else { return }
        if link.settlements.count >= Liveness.rememberedSettlements,
            let old = link.settlements.firstIndex(where: { $0.ledger != nil })
        {
            // Those that are not answered stay: somebody waits for them.
            link.settlements.remove(at: old)
        }
        link.settlements.append(
            Link.Settlement(
                connection: connection, ledger: nil, askedAt: hot.value.now, pause: liveness.firstPause))
        sendSettle(connection, of: link)
    }

    /// Whether a transfer waits for the receiver's word about a connection. O(slots in use).
    func isAwaited(_ connection: UInt64, of link: Link) -> Bool {
        (0..<UInt32(hot.value.usedSlots)).contains {
            slots[$0].unsettled.contains { $0.connection == connection && $0.link == link.index }
        }
    }

    func sendSettle(_ connection: UInt64, of link: Link) {
        let other = link.peer.links.first { $0 !== link && $0.state == .up } ?? link
        post(.settle(route(of: link), connection: connection, address: ownAddress), over: other)
    }

    /// The receiver has closed a connection and says what it has counted.
    func settle(_ connection: UInt64, of link: Link, _ ledger: DeliveryLedger) {
        guard let place = link.settlements.firstIndex(where: { $0.connection == connection }),
            link.settlements[place].ledger == nil
        else { return }
        link.settlements[place].ledger = ledger
        forEachUnsettled(of: link) { part in
            part.connection != connection ? .keep : ledger.contains(part.ordinal) ? .drop : .redo
        }
    }

    enum Fate { case keep, drop, redo }

    /// Decides about unsettled parts, and lets their transfers go on. O(slots in use).
    func forEachUnsettled(of link: Link, _ decide: (UnsettledPart) -> Fate) {
        for index in 0..<UInt32(hot.value.usedSlots) where !slots[index].unsettled.isEmpty {
            decideUnsettled(&slots[index], index, link, decide)
        }
    }

    private func decideUnsettled(
        _ slot: inout TransferSlot, _ index: UInt32, _ link: Link, _ decide: (UnsettledPart) -> Fate
    ) {
        var kept: [UnsettledPart] = []
        for part in slot.unsettled {
            switch part.link == link.index ? decide(part) : .keep {
            case .keep: kept.append(part)
            case .drop: break
            case .redo: if !slot.isAbandoned { slot.redo.append(part.tag) }
            }
        }
        guard kept.count < slot.unsettled.count else { return }
        slot.unsettled = kept
        slot.lastProgress = hot.value.now
        guard slot.inFlight == 0 else { return }
        if slot.isAbandoned {
            if kept.isEmpty { recycle(&slot, index) }
        } else if !slot.isPosting, !slot.isReady {
            proceed(&slot, index)
        }
    }
}
