internal import TransferEngine

extension WeightController {
    func handle(_ message: WeightMessage) {
        if message.kind == .join { return join(message) }
        guard message.attempt == attempt, phase != .idle else { return }
        let rank = Int(message.rank)
        switch (message.kind, phase) {
        case (.opened, .opening) where participants.contains(rank): opened(rank, message)
        case (.trained, .training) where working.contains(rank):
            if message.status == .failed { return retry("trainer \(rank): \(message.text)") }
            if message.status == .done { answered.insert(rank) }
            if answered.count == working.count { enter(.verifying) }
        case (.prepared, .verifying) where participants.contains(rank),
            (.prepared, .training) where participants.contains(rank):
            if message.status == .failed { return damaged(rank, message) }
            guard message.status == .done, phase == .verifying else { return }
            answered.insert(rank)
            if answered == participants { decide(.committing) }
        case (.committed, .committing) where participants.contains(rank),
            (.committed, .rollingBack) where participants.contains(rank):
            receivers[rank]?.version = message.version
            // Whoever has lost what it had prepared gets it again later.
            if message.version != version { leftOut.insert(rank) }
            answered.insert(rank)
            settle()
        case (.committed, .recalling) where participants.contains(rank):
            recalled(rank, hasVersion: message.status == .done)
        default: break
        }
    }

    /// Trainers that take part.
    var working: Set<Int> { Set(0..<plan.trainers.worldSize).subtracting(lost) }

    func poll() -> Bool {
        watch()
        if phase == .idle { return beginRollback() || beginNext() }
        guard endpoint.now >= nextRepeat else { return false }
        nextRepeat = endpoint.now + options.repeatInterval.inNanoseconds
        if phase.isOpen, endpoint.now > updateBegan + options.updateTimeout.inNanoseconds {
            giveUp(.timedOut(last: log.last ?? silence))
        } else if endpoint.now > phaseBegan + options.phaseTimeout.inNanoseconds {
            phaseIsOver()
        } else {
            ask()
        }
        return true
    }

    /// Who has not answered.
    private var silence: String {
        let isTraining = phase == .training
        let silent = (isTraining ? working : participants).subtracting(answered).sorted()
        return
            "the phase '\(phase)' took too long: \(isTraining ? "trainers" : "receivers") \(silent) did not answer"
            + obstacles.sorted { $0.key < $1.key }.map { "; receiver \($0.key): \($0.value)" }.joined()
    }

    private func phaseIsOver() {
        switch phase {
        case .idle: break
        case .opening, .training, .verifying: retry(silence)
        case .committing, .rollingBack:
            leftOut.formUnion(participants.subtracting(answered))
            answered = participants
            settle()
        case .recalling: endRollback(.failed(.timedOut(last: silence)))
        }
    }

    // MARK: Attempts

    /// Begins what is wanted, or brings receivers that came late to the current version.
    private func beginNext() -> Bool {
        let alive = receivers.filter { $0.value.isAlive }
        if let wanted {
            let since = wanted.since ?? endpoint.now
            self.wanted?.since = since
            let hasTrainers = trainers.values.contains(where: \.isAlive)
            guard !alive.isEmpty, hasTrainers else {
                guard endpoint.now > since + options.phaseTimeout.inNanoseconds else { return false }
                self.wanted = nil
                outcomes[wanted.version] = .failed(.nobodyThere(hasTrainers ? "receiver" : "trainer"))
                return true
            }
            self.wanted = nil
            begin(wanted.version, Set(alive.keys), since: since, isCatchingUp: false)
            return true
        }
        let late = alive.filter { $0.value.version != currentVersion }
        guard currentVersion > 0, !late.isEmpty, endpoint.now >= nextRepeat,
            trainers.values.contains(where: { $0.isAlive && $0.version == currentVersion })
        else { return false }
        begin(currentVersion, Set(late.keys), since: endpoint.now, isCatchingUp: true)
        return true
    }

    private func begin(
        _ version: UInt64, _ participants: Set<Int>, since: UInt64, isCatchingUp: Bool
    ) {
        self.version = version
        self.participants = participants
        self.isCatchingUp = isCatchingUp
        attemptsLeft = options.attempts
        updateBegan = since
        damage = [:]
        open()
    }

    /// Attempts of a controller that follows another must not be taken for that one's.
    func nextAttempt() { attempt = max(attempt + 1, term << 16) }

    /// Trainers that can take no part: lost, or beyond this version. Whoever is behind it may still publish it.
    private func absent() -> Set<Int> {
        Set(
            (0..<plan.trainers.worldSize).filter { rank in
                guard let trainer = trainers[rank], trainer.isAlive else { return true }
                return isCatchingUp ? trainer.version != version : trainer.version > version
            })
    }

    /// Begins an attempt with those who are there.
    private func open() {
        nextAttempt()
        attemptsLeft -= 1
        lost = absent()
        participants = participants.filter { receivers[$0]?.isAlive == true }
        guard !participants.isEmpty else { return awaitReceiver() }
        guard attemptsLeft >= 0 else { return giveUp(.attempts(options.attempts, last: log.last ?? "")) }
        do throws(TransferError) {
            if !lost.isEmpty { _ = try Planner.replan(plan, without: lost, for: participants) }
        } catch { return giveUp(.shardsLost(error.message)) }
        slots = [:]
        obstacles = [:]
        enter(.opening)
    }

    /// All are lost. One that was started anew joins again in a moment: the update waits for it as it does at its beginning.
    private func awaitReceiver() {
        guard !isCatchingUp else { return giveUp(.nobodyThere("receiver")) }
        phase = .idle
        wanted = (version, updateBegan)
    }

    private func opened(_ rank: Int, _ message: WeightMessage) {
        guard message.status == .done else {
            obstacles[rank] = message.text
            return
        }
        obstacles[rank] = nil
        slots[rank] = message
        answered.insert(rank)
        if answered == participants { enter(.training) }
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
    func retry(_ reason: String) {
        if log.count < 1000 { log.append("version \(version), attempt \(attempt): \(reason)") }
        abort()
        open()
    }

    /// Some of what a receiver got is not what was sent: that is sent again, but not for ever.
    private func damaged(_ rank: Int, _ message: WeightMessage) {
        for task in TaskName.list(message.tasks)
        where plan.inference.targets.indices.contains(Int(task.target)) {
            let times = damage[task, default: 0] + 1
            damage[task] = times
            guard times < options.sendings else {
                let name = plan.inference.targets[Int(task.target)].name
                return giveUp(
                    .damaged(parameter: name, trainer: Int(message.ranks.first ?? 0), times: times))
            }
        }
        retry("receiver \(rank): \(message.text)")
    }

    /// Ends the update: nobody has changed what it serves.
    func giveUp(_ reason: Failure) {
        abort()
        phase = .idle
        nextRepeat = endpoint.now + options.repeatInterval.inNanoseconds
        if !isCatchingUp { outcomes[version] = .failed(reason) }
        isCatchingUp = false
    }

    private func abort() {
        let message = message(.abort)
        for rank in working.sorted() { send(message, to: trainers[rank]) }
        for rank in participants.sorted() { send(message, to: receivers[rank]) }
    }

    // MARK: Decisions

    /// All participants can serve the version: it is decided.
    private func decide(_ phase: Phase) {
        (currentVersion, decision) = (version, attempt)
        leftOut = []
        enter(phase)
    }

    func leaveOut(_ rank: Int) {
        leftOut.insert(rank)
        answered.insert(rank)
        settle()
    }

    /// Ends a decision that all participants have heard of, or cannot.
    private func settle() {
        guard participants.isSubset(of: answered) else { return }
        let outcome = Outcome.committed(leftOut: leftOut.sorted())
        if phase == .rollingBack { return endRollback(outcome) }
        if !isCatchingUp { outcomes[version] = outcome }
        let finished = message(.finished, isTrainer: true)
        for rank in working.sorted() { send(finished, to: trainers[rank]) }
        notePhase()
        phase = .idle
        isCatchingUp = false
        nextRepeat = endpoint.now
    }

    func recalled(_ rank: Int, hasVersion: Bool) {
        guard hasVersion else { return endRollback(.failed(.notKept(version, receiver: rank))) }
        answered.insert(rank)
        if participants.isSubset(of: answered) { decide(.rollingBack) }
    }

    func endRollback(_ outcome: Outcome) {
        rollbackOutcome = outcome
        phase = .idle
        nextRepeat = endpoint.now
    }
}

extension WeightMessage {
    /// What `bytes` say, where they are a text.
    var text: String { String(decoding: bytes, as: UTF8.self) }
}

extension Duration {
    /// Nanoseconds of a positive duration.
    var inNanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        return UInt64(max(0, seconds)) &* 1_000_000_000 &+ UInt64(max(0, attoseconds) / 1_000_000_000)
    }
}
