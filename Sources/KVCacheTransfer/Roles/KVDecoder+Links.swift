internal import TransferEngine

/// A prefiller as its decoder knows it.
struct DecoderLink {
    enum State {
        /// Introduced, and not yet answered.
        case greeting
        case open(KVMapping)
        case lost(KVError)
    }

    let peer: Peer
    var state = State.greeting
    var session: UInt64 = 0
    var nextRequest: UInt64 = 1
    /// All requests below have ended, as of the last heartbeat.
    var oldest: UInt64 = 1
    var liveness = PeerLiveness(intervalNanoseconds: .max, intervals: 2, now: 0)
    var load = 0
    var isDraining = false
    /// Requests that wait for the answer, or for the regions to be revoked.
    var waiting: [UInt64] = []
    /// Whether the decoder has left it.
    var isLeft = false

    var isInUse: Bool {
        if case .lost = state { return false }
        return true
    }
}

// Sessions: who works with whom, and who lives.
extension KVDecoder {
    /// Introduces the decoder, with its regions as they are now.
    func greet(_ number: UInt64) {
        if let failure { return lose(number, links[number]?.session ?? 0, failure) }
        let session = random.next()
        links[number]?.session = session
        links[number]?.nextRequest = 1
        links[number]?.oldest = 1
        links[number]?.state = .greeting
        links[number]?.liveness = PeerLiveness(
            intervalNanoseconds: configuration.heartbeat.nanoseconds, intervals: configuration.heartbeats,
            now: now)
        sessions[session] = number
        send(
            .hello(
                KVMessage.Hello(
                    session: session, name: configuration.name, address: ranks[0].engine.address,
                    layout: layout,
                    ranks: ranks.map { rank in
                        KVMessage.RankTarget(
                            placement: rank.placement,
                            regions: rank.regions.map { rank.engine.descriptor(of: $0) })
                    }, wantsDigests: configuration.digests)), to: number)
    }

    func send(_ message: KVMessage, to link: UInt64) {
        guard let entry = links[link] else { return }
        let session = entry.session
        port.send(message, to: entry.peer) { [weak self] error in self?.lose(link, session, error) }
    }

    func receive(_ arrival: MessagePort.Arrival, _ sender: EngineID) {
        guard case .message(let message) = arrival else { return }
        switch message {
        case .welcome(let welcome):
            guard let number = hear(welcome.session, sender) else { return }
            open(number, welcome)
        case .refuse(let session, let reason):
            guard let number = hear(session, sender) else { return }
            lose(number, session, reason)
        case .heartbeat(let heartbeat):
            guard let number = hear(heartbeat.session, sender) else { return }
            links[number]?.load = Int(clamping: heartbeat.number)
            links[number]?.isDraining = heartbeat.isDraining
        case .receipt(let receipt):
            guard let number = request(receipt.session, receipt.request, sender) else { return }
            apply(.receipt(isQuiet: receipt.isQuiet, receipt.reason), to: number)
        case .digests(let digests):
            guard let number = request(digests.session, digests.request, sender) else { return }
            take(digests, number)
        case .hello, .prefill, .cancel, .goodbye: break
        }
    }

    /// Notes a sign of life, also in a session that is over; the request that a prefiller's message is about.
    private func request(_ session: UInt64, _ request: UInt64, _ sender: EngineID) -> UInt64? {
        _ = hear(session, sender)
        guard let number = numbers[SessionRequest(session: session, request: request)],
            let entry = requests[number], links[entry.link]?.peer.engine == sender
        else { return nil }
        return number
    }

    /// Notes a sign of life; the link when the session is its current one.
    private func hear(_ session: UInt64, _ sender: EngineID) -> UInt64? {
        guard let number = sessions[session], let link = links[number], link.session == session,
            link.peer.engine == sender
        else { return nil }
        links[number]?.liveness.hear(now: now)
        return number
    }

    private func open(_ number: UInt64, _ welcome: KVMessage.Welcome) {
        guard case .greeting = links[number]?.state else { return }
        do throws(KVError) {
            links[number]?.state = .open(try KVMapping(source: welcome.layout, target: layout))
            sendWaiting(number)
        } catch {
            lose(number, welcome.session, error)
        }
    }

    /// The prefiller is gone, or of no use. Its requests fail; their pages stay until nothing can be written into them.
    func lose(_ number: UInt64, _ session: UInt64, _ reason: KVError) {
        guard let link = links[number], link.session == session else { return }
        if case .lost = link.state { return }
        links[number]?.state = .lost(reason)
        links[number]?.waiting = []
        port.forget(link.peer.engine)
        for request in requests.keys.sorted() {
            guard let entry = requests[request], entry.link == number else { continue }
            if entry.isSent {
                apply(.lost(KVError(.peerLost, "\(link.peer.name) is lost: \(reason)")), to: request)
            } else {
                // Nobody knows of its pages.
                apply(.receipt(isQuiet: true, reason), to: request)
            }
        }
    }

    func look(_ time: UInt64) {
        if !hasClock {
            // What was begun before anybody told the time began now.
            hasClock = true
            for number in links.keys { links[number]?.liveness.hear(now: time) }
            for number in requests.keys { requests[number]?.deadline &+= time }
        }
        now = time
        port.flush()
        for number in links.keys.sorted() {
            guard let link = links[number], link.isInUse else { continue }
            switch links[number]?.liveness.tick(now: now) {
            case .beat?:
                let oldest = oldest(link.session, link)
                links[number]?.oldest = oldest
                send(
                    .heartbeat(KVMessage.Heartbeat(session: link.session, number: oldest, isDraining: false)),
                    to: number)
            case .lost?:
                lose(
                    number, link.session,
                    KVError(
                        .peerLost,
                        "\(link.peer.name) has been silent for \(configuration.heartbeats) heartbeats"))
            case .alive?, nil: break
            }
        }
        lookAtRequests()
        revokeIfNeeded()
        for (number, link) in links
        where link.isLeft && !requests.values.contains(where: { $0.link == number }) {
            links[number] = nil
            sessions[link.session] = nil
        }
    }

    /// All requests of a session below this number have ended.
    func oldest(_ session: UInt64, _ link: DecoderLink) -> UInt64 {
        requests.values.reduce(link.nextRequest) {
            $1.session == session && $1.isSent ? min($0, $1.numberInSession) : $0
        }
    }

    // MARK: Quarantine

    /// Whether new requests wait until the regions have been revoked.
    var isClosing: Bool {
        guard let since = quarantinedSince else { return false }
        return now >= since &+ configuration.quarantine.nanoseconds
    }

    /// Takes everybody's right to write back when there are pages that cannot be had otherwise and nobody else is writing.
    func revokeIfNeeded() {
        let quarantined = requests.filter { $0.value.machine.state == .quarantined && !$0.value.isStuck }
        quarantinedSince = quarantined.isEmpty ? nil : quarantinedSince ?? now
        guard !quarantined.isEmpty else { return }
        let isBusy = requests.values.contains { $0.isSent && $0.machine.state != .quarantined }
        guard !isBusy else { return }
        let isQuiet = revokeRegions()
        for number in quarantined.keys.sorted() {
            if isQuiet { apply(.revoked, to: number) } else { requests[number]?.isStuck = true }
        }
        quarantinedSince = nil
        for number in links.keys.sorted() where links[number]?.isInUse == true { greet(number) }
    }

    /// Registers all regions anew; false when a writer may still be inside of one. It writes for its own request only, so that
    /// all other pages can be used.
    private func revokeRegions() -> Bool {
        var isQuiet = true
        for rank in ranks.indices {
            let engine = ranks[rank].engine
            for (index, region) in ranks[rank].regions.enumerated() {
                do throws(TransferError) {
                    ranks[rank].regions[index] = try engine.revoke(region)
                } catch {
                    isQuiet = false
                    // The registration is gone, the memory is not: the engine keeps it for whoever is inside.
                    do throws(TransferError) {
                        ranks[rank].regions[index] = try unsafe engine.register(region.bytes)
                    } catch { failure = KVError(error) }
                }
            }
        }
        return isQuiet
    }
}
