internal import SimulatedProvider
public import TransferCore
internal import TransferEngine
internal import WeightTransfer

/// Runs weight updates among trainers and receivers that crash at any step and come back, and checks that nobody ever
/// serves anything
/// but a whole version, that versions that were decided are served by everybody in the end, and that nothing hangs.
/// - Complexity: Some tens of milliseconds for a seed.
public func simulateWeights(seed: UInt64) throws(TransferError) -> Outcome {
    let world = try WeightWorld(seed: seed)
    return world.run()
}

private final class WeightWorld {
    static let versions: UInt64 = 3
    static let tick: UInt64 = 6_250_000

    let network: SimulatedNetwork
    var random: SeededGenerator
    let plan: Plan
    let oracle: WeightOracle
    var members: [Member] = []
    var controller: WeightController?
    /// Which trainer has the controller, and its term.
    var leader = 0
    var term: UInt32 = 0
    var published: UInt64 = 0
    var outcome = Outcome()
    var crashes: [WeightCase.Crash] = []
    /// When which member's process is there, but does nothing of an update.
    var silences: [WeightCase.Silence] = []
    var owners: [UInt64: (process: Int, nic: Int)] = [:]
    private var incarnations = 0
    private var nextTick: UInt64 = 0
    private let seed: UInt64
    private let address = Leader()

    /// Where members find the controller.
    final class Leader {
        var address: EngineAddress?
    }

    final class Member {
        let index: Int
        let engine: TransferEngine
        let endpoint: WeightEndpoint
        var trainer: WeightTrainer?
        var receiver: WeightReceiver?
        var isAlive = true
        var seenVersion: UInt64 = 0

        init(_ index: Int, _ engine: TransferEngine) throws(TransferError) {
            self.index = index
            self.engine = engine
            endpoint = try WeightEndpoint(engine)
        }
    }

    init(seed: UInt64) throws(TransferError) {
        self.seed = seed
        random = SeededGenerator(seed: seed &* 0x9E37_79B9 &+ 5)
        network = SimulatedNetwork(seed: seed)
        (plan, oracle) = try WeightCase.plan(&random)
        for index in 0..<plan.trainers.worldSize + plan.inference.worldSize {
            members.append(try open(index))
        }
        address.address = members[0].engine.address
        makeController()
        crashes = WeightCase.crashes(of: members.count, &random)
        silences = WeightCase.silences(of: members.count, seed: seed)
        network.faults = FaultRule(
            faults: WeightCase.faults(&random), random: SeededGenerator(seed: seed &+ 77), owners: owners)
    }

    deinit { for member in members where member.isAlive { member.engine.close() } }

    private func open(_ index: Int) throws(TransferError) -> Member {
        incarnations += 1
        var configuration = Configuration(name: "member \(index)", progress: .manual, timeout: .seconds(2))
        configuration.liveness = World.liveness
        let engine = try TransferEngine(
            configuration, clock: network,
            random: SeededGenerator(seed: seed &+ UInt64(incarnations) &* 1_000_003)
        ) { page in
            let domain = network.openDomain(
                SimulatedNIC(
                    name: "\(index)", megabitsPerSecond: 10_000, jitterNanoseconds: 20_000,
                    maximumWriteBytes: 1 << 30, queueDepth: 64, reorder: true),
                page: page, engine: page.engine)
            owners[domain.id] = (index, 0)
            return [domain]
        }
        let member = try Member(index, engine)
        let address = address
        let own = engine.address
        let leader: () -> EngineAddress = { address.address ?? own }
        if index < plan.trainers.worldSize {
            member.trainer = try WeightTrainer(member.endpoint, rank: index, plan: plan, controller: leader)
            if published > 0 { fill(member, published) }
        } else {
            member.receiver = try WeightReceiver(
                member.endpoint, rank: index - plan.trainers.worldSize, plan: plan, controller: leader)
        }
        return member
    }

    /// Loads a trainer's shards of a version and publishes it.
    private func fill(_ member: Member, _ version: UInt64) {
        guard let trainer = member.trainer else { return }
        for tensor in plan.model.tensors.indices where trainer.layout.entries[tensor] != nil {
            let bytes = oracle.bytes(of: tensor, version: version)
            unsafe bytes.withUnsafeBytes {
                unsafe trainer.layout.fill(
                    from: $0, tensor: tensor, model: plan.model, into: trainer.memory.bytes)
            }
        }
        trainer.publish(version)
    }

    private func makeController() {
        term += 1
        var options = WeightController.Options()
        options.phaseTimeout = .seconds(5)
        controller = WeightController(members[leader].endpoint, plan: plan, term: term, options: options)
        address.address = members[leader].engine.address
    }

    // MARK: The run

    func run() -> Outcome {
        for version in 1...Self.versions { update(to: version) }
        settle()
        outcome.hash = network.traceHash
        outcome.events = network.eventCount
        outcome.nanoseconds = network.nowNanoseconds
        return outcome
    }

    private func update(to version: UInt64) {
        step(until: network.nowNanoseconds + 2_000_000_000) { self.controller?.isComplete == true }
        wait("for the update before") { self.controller?.isBusy == false }
        // Before anybody changes its shards, nothing of the version before may be under way.
        wait("for trainers") { self.members.allSatisfy { !$0.isAlive || self.isIdle($0.trainer) } }
        published = version
        for member in members where member.isAlive { fill(member, version) }
        guard let controller, controller.currentVersion < version else { return }
        do throws(TransferError) { try controller.update(to: version) } catch {
            return violate("update to \(version): \(error)")
        }
        wait("for the outcome of \(version)") {
            self.controller.map { $0.outcomes[version] != nil || $0 !== controller } ?? false
        }
        if self.controller !== controller { return }
        switch controller.outcomes[version] {
        case .committed: outcome.completed += 1
        case .failed: outcome.failed += 1
        case nil: break
        }
    }

    /// Nothing takes longer than a minute.
    private func wait(_ what: String, until isDone: () -> Bool) {
        step(until: network.nowNanoseconds + 60_000_000_000, isDone)
        if !isDone() { violate("waited \(what): \(controller?.state ?? "nobody leads")") }
    }

    /// Whether nothing of a trainer is under way; from then on nothing is begun.
    private func isIdle(_ trainer: WeightTrainer?) -> Bool {
        guard let trainer else { return true }
        return (try? trainer.withdraw()) != nil
    }

    /// Everybody is back: in the end all serve what was decided.
    private func settle() {
        step(until: max(crashes.last?.time ?? 0, silences.map(\.until).max() ?? 0) + 1) { false }
        // Trainers may have moved on from a version that not all receivers got: the next one reaches everybody.
        update(to: Self.versions + 1)
        let limit = network.nowNanoseconds + 60_000_000_000
        let areEqual = { [self] in
            guard let controller, controller.isComplete, !controller.isBusy else { return false }
            return members.allSatisfy {
                $0.receiver.map { ($0.activeVersion ?? 0) == controller.currentVersion } ?? true
            }
        }
        step(until: limit, areEqual)
        if !areEqual() {
            let versions = members.compactMap { $0.receiver.map { $0.activeVersion ?? 0 } }
            violate(
                "in the end receivers serve \(versions), decided is \(controller?.currentVersion ?? 0), "
                    + "complete \(controller?.isComplete ?? false)"
                    + ", busy \(controller?.isBusy ?? false): \(controller?.log.suffix(4) ?? [])"
            )
        }
        for member in members { check(member, isDue: true) }
    }

    private func step(until limit: UInt64, _ isDone: () -> Bool) {
        while network.nowNanoseconds < limit, !isDone(), outcome.violations.count < 5 {
            while let crash = crashes.first, crash.time <= network.nowNanoseconds {
                crashes.removeFirst()
                if crash.isRestart { restart(crash.member) } else { self.crash(crash.member) }
            }
            var isBusy = false
            for member in members where member.isAlive {
                if member.engine.progress() { isBusy = true }
                if !isSilent(member), member.endpoint.poll(at: network.nowNanoseconds) { isBusy = true }
                check(member, isDue: false)
            }
            if !isBusy { advance() }
        }
    }

    private func advance() {
        let due = crashes.first.map { max($0.time, network.nowNanoseconds) } ?? .max
        let next = min(nextTick, due, network.nextEventNanoseconds ?? .max)
        if network.nextEventNanoseconds == next { network.step() } else { network.run(until: next) }
        guard network.nowNanoseconds >= nextTick else { return }
        nextTick = network.nowNanoseconds + Self.tick
        for member in members where member.isAlive { _ = member.engine.tick() }
    }

    private func isSilent(_ member: Member) -> Bool {
        let now = network.nowNanoseconds
        return silences.contains { $0.member == member.index && $0.from <= now && now < $0.until }
    }

    private func crash(_ index: Int) {
        guard members[index].isAlive else { return }
        members[index].isAlive = false
        members[index].engine.close()
        guard index == leader else { return }
        // Somebody else takes the lead; with nobody left, whoever comes back first.
        controller = nil
        if let next = (0..<plan.trainers.worldSize).first(where: { members[$0].isAlive }) {
            leader = next
            makeController()
        }
    }

    private func restart(_ index: Int) {
        guard !members[index].isAlive else { return }
        do throws(TransferError) { members[index] = try open(index) } catch {
            return violate("restart: \(error)")
        }
        network.faults = FaultRule(faults: [], random: SeededGenerator(seed: seed &+ 78), owners: owners)
        if controller == nil, index < plan.trainers.worldSize {
            leader = index
            makeController()
        }
    }

    /// Looks at what a receiver serves: whenever that changes, and whenever it is due.
    private func check(_ member: Member, isDue: Bool) {
        guard member.isAlive, let receiver = member.receiver else { return }
        let active = receiver.activeVersion ?? 0
        guard active != member.seenVersion || isDue, active > 0 else { return }
        if active < member.seenVersion { violate("receiver \(member.index) went back to \(active)") }
        member.seenVersion = active
        let damage = unsafe receiver.read { version, weights in
            unsafe oracle.damage(rank: member.index - plan.trainers.worldSize, version: version, weights)
        }
        if let damage = damage ?? nil { violate(damage) }
    }

    private func violate(_ text: String) {
        outcome.violations.append("at \(network.nowNanoseconds / 1000) us: \(text)")
    }
}
