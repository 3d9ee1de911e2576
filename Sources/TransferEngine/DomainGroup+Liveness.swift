internal import Synchronization
internal import TransferCore

// Who is asked whether it lives, what the answers mean, and what happens without them. Contract, promise 7.
extension DomainGroup {
    /// The context of control messages: no slot has this index. A link's place has 20 bits (65536 attachments of 15 rails), its
    /// generation 12.
    private func controlContext(_ link: Link) -> UInt64 {
        link.generation << 52 | UInt64(link.index) << 32 | UInt64(UInt32.max)
    }

    // MARK: Sending

    /// The pair of NICs of a link, as both sides number them.
    func route(of link: Link) -> ControlMessage.Route {
        ControlMessage.Route(from: UInt8(link.domain), to: UInt8(truncatingIfNeeded: link.nic))
    }

    /// Sends a control message; one that is pushed back waits for the next look.
    func post(_ message: ControlMessage, over link: Link) {
        post(sealed(message.encoded, to: link.peer.engine), over: link)
    }

    private func post(_ message: [UInt8], over link: Link, since: UInt64? = nil) {
        let result = unsafe message.withUnsafeBytes { bytes in
            unsafe domains[link.domain].fabric.send(
                bytes, to: UnsafePointer(link.key.address(of: 0)), context: controlContext(link))
        }
        switch result.status {
        case .success:
            hot.value.posted &+= 1
            hot.value.controlMessages &+= 1
        case .again, .targetBusy:
            // Whoever has not taken an answer for so long is asked for no more of them: it asks again if it lives.
            let since = since ?? hot.value.now
            if links.outbox.count < Limits.messageBacklog, hot.value.now &- since < liveness.patience {
                links.outbox.append((link.index, message, since))
            }
        default: hasFailed(link)
        }
    }

    /// A control message has been delivered, or not.
    func noteControl(_ completion: Completion) {
        let index = Int(completion.context >> 32 & 0xF_FFFF)
        // Its link may have gone meanwhile.
        guard let link = links.all[index], link.generation == completion.context >> 52 else { return }
        if completion.status != .success { hasFailed(link) } else { link.lastAlive = hot.value.now }
    }

    private func hasFailed(_ link: Link) {
        if link.state == .up {
            if link.peer.hasOther(than: link) { bringDown(link) }
        } else {
            link.pause = min(max(link.pause * 2, liveness.firstPause), liveness.longestPause)
            link.nextTry = hot.value.now &+ link.pause
        }
    }

    // MARK: Receiving

    /// A two-sided message: the caller's, or one of ours.
    func receive(_ bytes: UnsafeRawBufferPointer, from sender: EngineID, _ domain: Int) {
        let message = unsafe bytes.bindMemory(to: UInt8.self).span
        do throws(TransferError) {
            let length = try check(message, from: sender)
            let kind = ControlMessage.kind(of: message)
            let control =
                kind == .payload
                ? nil : try ControlMessage(decoding: message.extracting(first: length))
            if let peer = links.peers[sender] { hasBeenHeard(peer) }
            if let control { return answer(control, from: sender) }
            let payload = unsafe UnsafeRawBufferPointer(
                rebasing: bytes[ControlMessage.headerBytes..<length])
            keepOwner()
            unsafe messages.deliver(payload, from: sender)
        } catch {
            refused.withLock { $0.note(error) }
        }
    }

    private func hasBeenHeard(_ peer: PeerRecord) {
        peer.lastHeard = hot.value.now
        peer.askedSince = 0
        guard peer.isLost else { return }
        peer.isLost = false
        links.totals[peer.place].isLost.store(false, ordering: .relaxed)
    }

    private func answer(_ message: ControlMessage, from sender: EngineID) {
        switch message {
        case .ping(let route, let address):
            guard let link = link(back: route, to: sender, address) else { return }
            post(.pong(route), over: link)
        case .pong(let route):
            guard let link = link(route, to: sender) else { return }
            bringUp(link)
        case .settle(let route, let connection, let address):
            guard domains.count > Int(route.to), let link = link(back: route, to: sender, address),
                let ledger = domains[Int(route.to)].fabric.settle(connection: connection, from: sender)
            else { return }
            // Not over the NICs that the question is about, which may be dead although nobody here has noticed.
            let other = link.peer.links.first { $0 !== link && $0.state == .up } ?? link
            post(.settled(route, connection: connection, ledger), over: other)
        case .settled(let route, let connection, let ledger):
            guard let link = link(route, to: sender) else { return }
            settle(connection, of: link, ledger)
        }
    }

    /// The link that a message of ours was about.
    private func link(_ route: ControlMessage.Route, to sender: EngineID) -> Link? {
        links.peers[sender]?.links.first {
            $0.domain == Int(route.from) && $0.nic == Int(route.to)
        }
    }

    /// The link over which to answer: between the same NICs if there is one and it is up, else another.
    private func link(back route: ControlMessage.Route, to sender: EngineID, _ address: [UInt8]) -> Link? {
        if links.peers[sender] == nil { meet(sender, address) }
        guard let peer = links.peers[sender] else { return nil }
        let same = peer.links.first { $0.domain == Int(route.to) && $0.nic == Int(route.from) }
        // A ping over a link that we hold to be down shows that it is not.
        return same ?? peer.links.first { $0.state == .up }
    }

    /// Attaches a peer that is known by its message only, to be able to answer it.
    private func meet(_ sender: EngineID, _ address: [UInt8]) {
        guard let address = try? EngineAddress(decoding: address), address.landing.engine == sender,
            links.peers.count < Limits.peers, let index = freeAttachments.pop()
        else { return }
        guard var made = try? TransferEngine.resolve(address.landing, .normal, self) else {
            freeAttachments.push(index)
            return
        }
        made.generation = nextGeneration()
        attachments[index] = made
        links.name(sender, address.name)
        links.peers[sender]?.landing = index
        hot.value.metPeers += 1
    }

    /// Forgets those who asked something once and have been silent since: they may be dead, and introduce themselves again if
    /// they are not.
    private func forgetSilent(_ now: UInt64) {
        for peer in links.peers.values where peer.landing != .max && now >= forgetDue(peer) {
            let index = peer.landing
            peer.landing = .max
            hot.value.metPeers -= 1
            detach(index)
            freeAttachments.push(index)
        }
    }

    private func forgetDue(_ peer: PeerRecord) -> UInt64 {
        peer.isLost ? 0 : peer.lastHeard &+ 8 * liveness.patience
    }

    // MARK: Looking

    /// Looks at everything that waits: asks the silent, gives up those who have not answered, tries failed links again.
    func tend() {
        let now = hot.value.now
        if now &- hot.value.lastTend >= liveness.intervalNanoseconds { restartQuestions(now) }
        hot.value.lastTend = now
        flushOutbox()
        for index in 0..<UInt32(hot.value.usedSlots) {
            if isPending(index) { doubt(&slots[index], now) }
            if slots[index].isAbandoned { tendReceipts(&slots[index], index, now) }
        }
        for case let link? in links.all { tend(link, now) }
        if hot.value.metPeers > 0 { forgetSilent(now) }
        for peer in links.peers.values
        where peer.askedSince != 0 && now &- peer.askedSince >= liveness.patience {
            peer.askedSince = 0
            lose(peer)
        }
        hot.value.nextTend = now &+ liveness.lookNanoseconds
    }

    /// This process has not looked for an interval or more: it slept, was stopped, or waited for nobody. Answers may have come
    /// and not been read, so that time is held against nobody.
    private func restartQuestions(_ now: UInt64) {
        for peer in links.peers.values where peer.askedSince != 0 { peer.askedSince = now }
        for case let link? in links.all where link.askedSince != 0 {
            link.askedSince = link.lastAlive >= link.askedSince ? 0 : now
        }
    }

    /// When a look at links and peers can matter although nothing else happens; `.max` is never.
    var tendDue: UInt64 {
        let waits = (0..<UInt32(hot.value.usedSlots)).contains {
            slots[$0].isAbandoned || isPending($0) && (slots[$0].kind != .count || !slots[$0].senders.isEmpty)
        }
        if waits || !links.outbox.isEmpty { return hot.value.nextTend }
        guard hot.value.downLinks > 0 || hot.value.metPeers > 0 else { return .max }
        // Nobody waits: links that are down are tried again when it is their turn.
        var due = UInt64.max
        for peer in links.peers.values where peer.landing != .max { due = min(due, forgetDue(peer)) }
        for case let link? in links.all where link.state == .down { due = min(due, link.nextTry) }
        return max(due, hot.value.nextTend)
    }

    func isPending(_ index: UInt32) -> Bool {
        // pairs with the store in submit
        statuses[index].load(ordering: .acquiring) & SlotStatus.pending != 0 && slots[index].isStarted
    }

    private func flushOutbox() {
        let waiting = links.outbox
        links.outbox = []
        for item in waiting {
            if let link = links.all[item.link] { post(item.message, over: link, since: item.since) }
        }
    }

    /// Asks the peers of a slot in which nothing has happened for an interval.
    private func doubt(_ slot: inout TransferSlot, _ now: UInt64) {
        if slot.kind == .count {
            for sender in slot.senders { if let peer = links.peers[sender] { doubt(peer, now) } }
            return
        }
        guard now &- min(now, slot.lastProgress) >= liveness.intervalNanoseconds else { return }
        if slot.isWide {
            for target in 0..<slot.targetCount {
                doubt(slot.targets[target].attachment, slot.kind == .barrier, now)
            }
        } else {
            doubt(slot.attachment, false, now)
        }
    }

    private func doubt(_ index: UInt32, _ withPeer: Bool, _ now: UInt64) {
        for rail in 0..<attachments[index].rails.count {
            guard let link = links.all[Int(attachments[index].links[rail])] else { continue }
            if withPeer { doubt(link.peer, now) }
            guard link.state == .up, link.askedSince == 0 else { continue }
            link.askedSince = now
            post(.ping(route(of: link), address: ownAddress), over: link)
        }
    }

    /// Asks a peer from which something is expected and nothing has come for an interval.
    private func doubt(_ peer: PeerRecord, _ now: UInt64) {
        guard now &- min(now, peer.lastHeard) >= liveness.intervalNanoseconds, peer.askedSince == 0,
            let link = peer.links.first(where: { $0.state == .up }) ?? peer.links.first
        else { return }
        peer.askedSince = now
        post(.ping(route(of: link), address: ownAddress), over: link)
    }

    private func tend(_ link: Link, _ now: UInt64) {
        // Answers that nobody waits for any more are not asked for.
        if link.settlements.contains(where: { $0.ledger == nil }) {
            link.settlements.removeAll { $0.ledger == nil && !isAwaited($0.connection, of: link) }
        }
        for place in link.settlements.indices
        where link.settlements[place].ledger == nil
            && now &- link.settlements[place].askedAt >= link.settlements[place].pause
        {
            link.settlements[place].askedAt = now
            // Less and less often: a receiver that does not look has to keep every question.
            link.settlements[place].pause = min(
                link.settlements[place].pause * 2, liveness.intervalNanoseconds)
            sendSettle(link.settlements[place].connection, of: link)
        }
        if link.state == .down {
            guard now >= link.nextTry else { return }
            link.pause = min(link.pause * 2, liveness.longestPause)
            link.nextTry = now &+ link.pause
            post(.ping(route(of: link), address: ownAddress), over: link)
        } else if link.askedSince != 0 {
            if link.lastAlive >= link.askedSince {
                link.askedSince = 0
            } else if now &- link.askedSince >= liveness.patience {
                giveUp(link)
            }
        }
    }

    /// A link has not answered. With the last one the peer is lost.
    private func giveUp(_ link: Link) {
        let hasOther = link.peer.hasOther(than: link)
        bringDown(link)
        if !hasOther { lose(link.peer) }
    }

    /// Fails everything that waits for a peer, by name. O(slots in use).
    func lose(_ peer: PeerRecord) {
        peer.isLost = true
        links.totals[peer.place].isLost.store(true, ordering: .relaxed)
        for link in peer.links { bringDown(link) }
        links.outbox.removeAll { links.all[$0.link]?.peer === peer }
        let silence = (hot.value.now &- min(hot.value.now, peer.lastHeard)) / 1_000_000
        let error = TransferError(
            .peerLost,
            "\(peer.description) has not answered \(engineName) over any of \(peer.links.count) links; last heard of "
                + "\(silence) ms ago. Is its process alive and making progress, and its network up?")
        for index in 0..<UInt32(hot.value.usedSlots)
        where isPending(index) && involves(&slots[index], peer) && !hot.value.finished.contains(index) {
            if !slots[index].unsettled.isEmpty { slots[index].isDoubtful = true }
            slots[index].unsettled = []
            giveUp(&slots[index], index, error)
        }
        for index in 0..<UInt32(hot.value.usedSlots)
        where slots[index].isAbandoned && slots[index].receipts.isEmpty && involves(&slots[index], peer) {
            dropUnsettled(&slots[index], index)
        }
    }

    func involves(_ slot: inout TransferSlot, _ peer: PeerRecord) -> Bool {
        switch slot.kind {
        case .count: return slot.senders.contains(peer.engine)
        case .scatter, .barrier:
            return (0..<slot.targetCount).contains { reaches(slot.targets[$0].attachment, peer) }
        case .write, .paged, .send: return reaches(slot.attachment, peer)
        }
    }

    private func reaches(_ index: UInt32, _ peer: PeerRecord) -> Bool {
        attachments[index].links.count > 0 && links.all[Int(attachments[index].links[0])]?.peer === peer
    }
}
