internal import TransferEngine

extension WeightController {
    func handle(_ message: WeightMessage) {
        if message.kind == .join { return join(message) }
        let rank = Int(message.rank)
        if message.kind == .committed { return committed(rank, message.version) }
        guard message.version == version, message.attempt == attempt, phase != .idle else { return }
        switch (message.kind, phase) {
        case (.opened, .opening) where participants.contains(rank):
            slots[rank] = message
            if slots.count == participants.count { enter(.training) }
        case (.trained, .training) where !lost.contains(rank):
            if message.status == .failed { return retry("trainer \(rank): \(Self.text(message))") }
            if message.status == .done { answered.insert(rank) }
            if answered.count == working.count { enter(.verifying) }
        case (.prepared, .verifying), (.prepared, .training):
            guard participants.contains(rank) else { return }
            if message.status == .failed { return retry("receiver \(rank): \(Self.text(message))") }
            guard message.status == .done, phase == .verifying else { return }
            answered.insert(rank)
            if answered.count == participants.count { decide() }
        default: break
        }
    }

    private static func text(_ message: WeightMessage) -> String {
        String(decoding: message.bytes, as: UTF8.self)
    }

    /// Trainers that take part.
    var working: Set<Int> { Set(0..<plan.trainers.worldSize).subtracting(lost) }

    // MARK: Members

    private func join(_ message: WeightMessage) {
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
            // A controller that follows another learns from receivers what was decided.
            if phase == .idle { currentVersion = max(currentVersion, message.first) }
        }
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
        guard isNew else { return }
        let takesPart = isTrainer ? working.contains(rank) : participants.contains(rank)
        guard takesPart else { return }
        let text = "\(isTrainer ? "trainer" : "receiver") \(rank) \(reason)"
        switch phase {
        case .opening, .training, .verifying: retry(text)
        case .committing where !isTrainer: committed(rank, version)
        case .rollingBack where !isTrainer: committed(rank, version)
        default: break
        }
    }

    /// Looks whether members are lost.
    private func watch() {
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

    // MARK: Phases

    func poll() -> Bool {
        watch()
        if phase == .idle { return beginNext() }
        guard endpoint.now >= nextRepeat else { return false }
        nextRepeat = endpoint.now + options.repeatInterval.inNanoseconds
        if endpoint.now > phaseBegan + options.phaseTimeout.inNanoseconds, phase != .committing {
            if phase == .rollingBack { phase = .idle } else { retry("the phase '\(phase)' took too long") }
            return true
        }
        ask()
        return true
    }

    /// Begins what is wanted, or brings receivers that came late to the current version.
    private func beginNext() -> Bool {
        let alive = receivers.filter { $0.value.isAlive }
        if let wanted, !alive.isEmpty, !trainers.isEmpty {
            self.wanted = nil
            isCatchingUp = false
            begin(wanted, Set(alive.keys))
            return true
        }
        let late = alive.filter { $0.value.version < currentVersion }
        guard currentVersion > 0, !late.isEmpty, endpoint.now >= nextRepeat,
            trainers.values.contains(where: { $0.isAlive && $0.version == currentVersion })
        else { return false }
        isCatchingUp = true
        begin(currentVersion, Set(late.keys))
        return true
    }

    private func begin(_ version: UInt64, _ participants: Set<Int>) {
        self.version = version
        self.participants = participants
        attemptsLeft = options.attempts
        open()
    }

    /// Begins an attempt with those who are there.
    private func open() {
        // Attempts of a controller that follows another must not be taken for that one's.
        attempt = max(attempt + 1, term << 16)
        attemptsLeft -= 1
        lost = Set((0..<plan.trainers.worldSize).filter { trainers[$0]?.isAlive != true })
        participants = participants.filter { receivers[$0]?.isAlive == true }
        guard !participants.isEmpty else { return giveUp("no receiver is left") }
        guard attemptsLeft >= 0 else {
            return giveUp("\(options.attempts) attempts failed; the last: \(log.last ?? "")")
        }
        do throws(TransferError) {
            if !lost.isEmpty { _ = try Planner.replan(plan, without: lost, for: participants) }
        } catch { return giveUp(error.message) }
        slots = [:]
        enter(.opening)
    }

    func enter(_ phase: Phase) {
        notePhase()
        self.phase = phase
        answered = []
        phaseBegan = endpoint.now
        nextRepeat = endpoint.now + options.repeatInterval.inNanoseconds
        ask()
    }

    private func notePhase() { phaseSeconds["\(phase)"] = Double(endpoint.now - phaseBegan) / 1e9 }

    /// Begins another attempt.
    private func retry(_ reason: String) {
        if log.count < 1000 { log.append("version \(version), attempt \(attempt): \(reason)") }
        abort()
        open()
    }

    /// Ends the update: nobody has changed what it serves.
    func giveUp(_ reason: String) {
        abort()
        phase = .idle
        nextRepeat = endpoint.now + options.repeatInterval.inNanoseconds
        if !isCatchingUp { outcomes[version] = .failed(reason) }
    }

    private func abort() {
        let message = message(.abort)
        for rank in working.sorted() { send(message, to: trainers[rank]) }
        for rank in participants.sorted() { send(message, to: receivers[rank]) }
    }

    /// All receivers are prepared: from here on the version is decided.
    private func decide() {
        currentVersion = max(currentVersion, version)
        enter(.committing)
    }

    private func committed(_ rank: Int, _ version: UInt64) {
        if receivers[rank]?.isAlive == true { receivers[rank]?.version = version }
        guard phase == .committing || phase == .rollingBack else { return }
        if version == self.version || receivers[rank]?.isAlive != true { answered.insert(rank) }
        let awaited = phase == .committing ? participants : Set(receivers.filter { $0.value.isAlive }.keys)
        guard awaited.isSubset(of: answered) else { return }
        if phase == .rollingBack {
            currentVersion = self.version
        } else if !isCatchingUp {
            outcomes[self.version] = .committed
        }
        let finished = message(.finished, isTrainer: true)
        for rank in working.sorted() { send(finished, to: trainers[rank]) }
        notePhase()
        phase = .idle
        nextRepeat = endpoint.now
    }

    // MARK: Questions

    private func message(_ kind: WeightMessage.Kind, isTrainer: Bool = false, rank: Int = 0) -> WeightMessage
    {
        var message = WeightMessage(kind)
        message.isTrainer = isTrainer
        message.rank = UInt32(rank)
        message.term = term
        message.version = version
        message.attempt = attempt
        return message
    }

    private func send(_ message: WeightMessage, to member: WeightMember?) {
        guard let member, member.isAlive else { return }
        endpoint.send(message, to: member.address)
    }

    /// Asks everybody who has not answered in this phase.
    private func ask() {
        switch phase {
        case .idle: break
        case .opening:
            for rank in participants.sorted() where slots[rank] == nil {
                var message = message(.open, rank: rank)
                (message.ranks, message.others) = (list(lost), list(participants))
                send(message, to: receivers[rank])
            }
        case .training: for rank in working.sorted() where !answered.contains(rank) { start(rank) }
        case .verifying:
            for rank in participants.sorted() where !answered.contains(rank) {
                send(message(.verify, rank: rank), to: receivers[rank])
            }
        case .committing:
            for rank in participants.sorted() where !answered.contains(rank) {
                send(message(.commit, rank: rank), to: receivers[rank])
            }
        case .rollingBack:
            for rank in receivers.keys.sorted() where !answered.contains(rank) {
                send(message(.rollback, rank: rank), to: receivers[rank])
            }
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
        send(start, to: trainers[rank])
        for (receiver, slot) in slots.sorted(by: { $0.key < $1.key }) {
            var target = message(.target, isTrainer: true, rank: receiver)
            (target.first, target.second, target.bytes) = (slot.first, slot.second, slot.bytes)
            send(target, to: trainers[rank])
        }
    }

    private func list(_ ranks: Set<Int>) -> [UInt32] { ranks.sorted().map { UInt32($0) } }
}

extension Duration {
    /// Nanoseconds of a positive duration.
    var inNanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(max(0, seconds)) &* 1_000_000_000 &+ UInt64(max(0, attoseconds) / 1_000_000_000)
    }
}
