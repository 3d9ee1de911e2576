internal import TransferEngine

/// A decoder as its prefiller knows it.
struct DecoderSession {
    let hello: KVMessage.Hello
    let peer: Peer
    let mapping: KVMapping
    var memory = PrefillerSession()
    var liveness: PeerLiveness
    /// Set when it is over; it goes when its last job has ended.
    var end: KVError?
    /// The target's regions as each of our ranks knows them.
    var attached: [Attachment: RemoteMemory] = [:]

    struct Attachment: Hashable {
        var sourceRank: Int
        var targetRank: Int
        var region: Int
    }
}

// Sessions: whom we write to, and who lives.
extension KVPrefiller {
    func receive(_ arrival: MessagePort.Arrival, _ sender: EngineID) {
        switch arrival {
        case .message(let message): receive(message, sender)
        case .stranger(let session, let address, let error):
            guard address.engine == sender,
                let peer = try? ranks[0].engine.connect(to: address)
            else { return }
            port.send(.refuse(session: session, reason: error), to: peer) { _ in }
        }
    }

    private func receive(_ message: KVMessage, _ sender: EngineID) {
        switch message {
        case .hello(let hello): welcome(hello, sender)
        case .prefill(let prefill):
            guard hear(prefill.session, sender) else { return }
            offer(prefill)
        case .cancel(let session, let request):
            guard hear(session, sender) else { return }
            cancel(session, request)
        case .heartbeat(let heartbeat):
            guard hear(heartbeat.session, sender) else { return }
            sessions[heartbeat.session]?.memory.forget(below: heartbeat.number)
        case .goodbye(let session):
            guard hear(session, sender) else { return }
            close(session, KVError(.cancelled, "the decoder left"))
        case .welcome, .refuse, .receipt, .digests: break
        }
    }

    private func hear(_ session: UInt64, _ sender: EngineID) -> Bool {
        guard let known = sessions[session], known.peer.engine == sender else { return false }
        sessions[session]?.liveness.hear(now: now)
        return true
    }

    private func welcome(_ hello: KVMessage.Hello, _ sender: EngineID) {
        guard sessions[hello.session] == nil, hello.address.engine == sender else { return }
        let peer: Peer
        do throws(TransferError) { peer = try ranks[0].engine.connect(to: hello.address) } catch { return }
        // A decoder that introduces itself again has forgotten what was before, or has taken our right to write back.
        for (session, known) in sessions.sorted(by: { $0.key < $1.key })
        where known.peer.engine == sender || known.hello.name == hello.name {
            close(session, KVError(.cancelled, "\(hello.name) introduced itself again"))
        }
        do throws(KVError) {
            let mapping = try KVMapping(source: layout, target: hello.layout)
            guard hello.ranks.count == hello.layout.rankCount else {
                throw KVError(
                    .invalidLayout, "\(hello.ranks.count) ranks; \(hello.layout.rankCount) in the layout")
            }
            for (index, rank) in hello.ranks.enumerated() {
                try rank.placement.validate(
                    hello.layout, rank: index, regionBytes: rank.regions.map { Int(clamping: $0.length) })
            }
            sessions[hello.session] = DecoderSession(
                hello: hello, peer: peer, mapping: mapping,
                liveness: PeerLiveness(
                    intervalNanoseconds: configuration.heartbeat.nanoseconds,
                    intervals: configuration.heartbeats,
                    now: now))
            send(
                .welcome(KVMessage.Welcome(session: hello.session, name: configuration.name, layout: layout)),
                to: hello.session)
            beat(hello.session)
        } catch {
            port.send(.refuse(session: hello.session, reason: error), to: peer) { _ in }
        }
    }

    func send(_ message: KVMessage, to session: UInt64) {
        guard let peer = sessions[session]?.peer else { return }
        port.send(message, to: peer) { [weak self] error in self?.close(session, error) }
    }

    private func beat(_ session: UInt64) {
        send(
            .heartbeat(
                KVMessage.Heartbeat(session: session, number: UInt64(load), isDraining: isDraining)),
            to: session)
    }

    /// The decoder is gone: its jobs end, and so does the session with the last of them.
    func close(_ session: UInt64, _ reason: KVError) {
        guard let known = sessions[session], known.end == nil else { return }
        sessions[session]?.end = reason
        for number in jobs.keys.sorted() where jobs[number]?.prefill.session == session {
            apply(.stop(reason), to: number)
        }
        forgetIfDone(session)
    }

    func forgetIfDone(_ session: UInt64) {
        guard let known = sessions[session], known.end != nil,
            !jobs.values.contains(where: { $0.prefill.session == session }),
            !quarantine.contains(where: { $0.prefill.session == session })
        else { return }
        sessions[session] = nil
        for (attachment, memory) in known.attached.sorted(by: { $0.key.order < $1.key.order }) {
            try? ranks[attachment.sourceRank].engine.detach(memory)
        }
    }

    func look(_ time: UInt64) {
        if !hasClock {
            // Who was heard before anybody told the time was heard now.
            hasClock = true
            for session in sessions.keys { sessions[session]?.liveness.hear(now: time) }
        }
        now = time
        port.flush()
        pump()
        for session in sessions.keys.sorted() where sessions[session]?.end == nil {
            switch sessions[session]?.liveness.tick(now: now) {
            case .beat?: beat(session)
            case .lost?:
                let name = sessions[session]?.hello.name ?? ""
                close(
                    session,
                    KVError(.peerLost, "\(name) has been silent for \(configuration.heartbeats) heartbeats"))
            case .alive?, nil: break
            }
        }
        revokeIfNeeded()
    }

    /// Makes source pages unreadable for what might still read them, when nothing else is being written.
    private func revokeIfNeeded() {
        guard !quarantine.isEmpty, jobs.values.allSatisfy({ $0.machine.inFlight == 0 }) else { return }
        for rank in ranks.indices {
            for region in ranks[rank].regions.indices {
                do throws(TransferError) {
                    ranks[rank].regions[region] = try ranks[rank].engine.revoke(ranks[rank].regions[region])
                } catch {
                    return  // The engine keeps the memory; it is tried again at the next look.
                }
            }
        }
        let released = quarantine
        quarantine = []
        for entry in released {
            entry.handler?(.released)
            forgetIfDone(entry.prefill.session)
        }
    }

    /// Tokens that have been asked for and not been written.
    var load: Int { jobs.values.reduce(0) { $0 + $1.prefill.span.end - $1.prefill.span.cached } }
}

extension DecoderSession.Attachment {
    /// So that a simulation does the same in every run.
    fileprivate var order: Int { (sourceRank * KVLimits.ranks + targetRank) * KVLimits.regions + region }
}
