internal import TransferEngine

extension WeightController {
    func join(_ message: WeightMessage) {
        guard let address = try? EngineAddress(decoding: message.bytes) else { return }
        let rank = Int(message.rank)
        let worldSize = message.isTrainer ? plan.trainers.worldSize : plan.inference.worldSize
        guard rank < worldSize else { return }
        let known = message.isTrainer ? trainers[rank] : receivers[rank]
        let isAnother = known.map { $0.address.landing.engine != address.landing.engine } ?? false
        if isAnother { lose(rank, isTrainer: message.isTrainer, "was started anew") }
        var member = isAnother ? WeightMember(address: address) : known ?? WeightMember(address: address)
        member.address = address
        member.isAlive = true
        member.version = message.first
        if message.isTrainer {
            trainers[rank] = member
        } else {
            receivers[rank] = member
            learn(message.first, decidedBy: message.attempt)
        }
    }

    /// A controller that follows another learns from receivers what was decided last.
    private func learn(_ served: UInt64, decidedBy attempt: UInt32) {
        guard attempt > decision, phase == .idle || phase.isOpen else { return }
        (currentVersion, decision) = (served, attempt)
        if let wanted, wanted.version <= served {
            self.wanted = nil
            outcomes[wanted.version] = outcome(of: wanted.version)
        }
        let isUpdate = !isCatchingUp
        guard phase.isOpen, isCatchingUp || version <= served else { return }
        giveUp(.superseded(by: served))
        if isUpdate { outcomes[version] = outcome(of: version) }
    }

    /// Of a version that another controller has decided, or that came too late.
    private func outcome(of version: UInt64) -> Outcome {
        guard version == currentVersion else { return .failed(.superseded(by: currentVersion)) }
        return .committed(leftOut: receivers.filter { $0.value.version != version }.keys.sorted())
    }

    private func lose(_ rank: Int, isTrainer: Bool, _ reason: String) {
        let isNew = isTrainer ? trainers[rank]?.isAlive == true : receivers[rank]?.isAlive == true
        if isTrainer {
            trainers[rank]?.isAlive = false
            trainers[rank]?.watch = nil
        } else {
            receivers[rank]?.isAlive = false
            receivers[rank]?.watch = nil
        }
        guard isNew, isTrainer ? working.contains(rank) : participants.contains(rank) else { return }
        switch phase {
        case .opening, .training, .verifying: retry("\(isTrainer ? "trainer" : "receiver") \(rank) \(reason)")
        case .committing, .rollingBack:
            if !isTrainer { leaveOut(rank) }
        case .recalling:
            if !isTrainer { recalled(rank, hasVersion: true) }
        case .idle: break
        }
    }

    /// Looks whether members are lost.
    func watch() {
        for isTrainer in [true, false] {
            let members = isTrainer ? trainers : receivers
            for (rank, member) in members.sorted(by: { $0.key < $1.key })
            where member.isAlive && member.address.landing.engine != endpoint.engine.id {
                guard let watch = member.watch else {
                    let peer = try? endpoint.peer(member.address)
                    let watch = peer.flatMap {
                        try? endpoint.engine.expect(
                            Self.watchImmediate, count: 1, from: [$0], timeout: .seconds(3600))
                    }
                    if isTrainer { trainers[rank]?.watch = watch } else { receivers[rank]?.watch = watch }
                    continue
                }
                guard case .failed(let error) = endpoint.engine.status(of: watch) else { continue }
                if isTrainer { trainers[rank]?.watch = nil } else { receivers[rank]?.watch = nil }
                if error.code != .stalled { lose(rank, isTrainer: isTrainer, "is lost: \(error.message)") }
            }
        }
    }
}

// MARK: Messages to members

extension WeightController {
    func message(_ kind: WeightMessage.Kind, isTrainer: Bool = false, rank: Int = 0) -> WeightMessage {
        var message = WeightMessage(kind)
        message.isTrainer = isTrainer
        message.rank = UInt32(rank)
        message.term = term
        message.version = version
        message.attempt = attempt
        return message
    }

    func send(_ message: WeightMessage, to member: WeightMember?) {
        guard let member, member.isAlive else { return }
        endpoint.send(message, to: member.address)
    }

    /// Asks everybody who has not answered in this phase.
    func ask() {
        let silent = participants.subtracting(answered).sorted()
        switch phase {
        case .idle: break
        case .opening:
            for rank in silent {
                var message = message(.open, rank: rank)
                (message.ranks, message.others) = (list(lost), list(participants))
                send(message, to: receivers[rank])
            }
        case .training: for rank in working.subtracting(answered).sorted() { start(rank) }
        case .verifying: for rank in silent { send(message(.verify, rank: rank), to: receivers[rank]) }
        case .committing: for rank in silent { send(message(.commit, rank: rank), to: receivers[rank]) }
        case .recalling: for rank in silent { send(message(.recall, rank: rank), to: receivers[rank]) }
        case .rollingBack: for rank in silent { send(message(.rollback, rank: rank), to: receivers[rank]) }
        }
    }

    private func start(_ rank: Int) {
        for (other, member) in trainers.sorted(by: { $0.key < $1.key }) where other != rank && member.isAlive
        {
            var peer = message(.peer, isTrainer: true, rank: other)
            peer.bytes = member.address.encoded()
            send(peer, to: trainers[rank])
        }
        var start = message(.start, isTrainer: true, rank: rank)
        (start.ranks, start.others) = (list(lost), list(participants))
        start.tasks = damage.keys.flatMap(\.words)
        // Who leads may be lost meanwhile: then nobody else ends the trainer's part.
        start.first = options.phaseTimeout.inNanoseconds
        send(start, to: trainers[rank])
        for (receiver, slot) in slots.sorted(by: { $0.key < $1.key }) {
            var target = message(.target, isTrainer: true, rank: receiver)
            (target.first, target.second, target.bytes) = (slot.first, slot.second, slot.bytes)
            send(target, to: trainers[rank])
        }
    }

    private func list(_ ranks: Set<Int>) -> [UInt32] { ranks.sorted().map { UInt32($0) } }
}
