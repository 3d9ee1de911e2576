internal import Synchronization
public import TransferEngine

/// A trainer rank: holds shards, and does its part of the plan when the controller says so.
///
/// Each task goes through four stages: its pieces are here or are fetched from other ranks; they are put together and
/// quantised; the result
/// is written to the receivers that need it; and its temporary memory is given back when that is done. Several tasks are under
/// way at a time, as many as the watermark allows.
public final class WeightTrainer {
    let endpoint: WeightEndpoint
    let engine: TransferEngine
    let rank: Int
    private let base: Plan
    private let controller: () -> EngineAddress
    /// The shards; filled by the caller before `publish`.
    public let memory: MemoryRegion
    /// Where each shard lies in `memory`.
    public let layout: ShardMemory
    let shards: ShardTable
    private var published: UInt64 = 0
    private var peers: [Int: EngineAddress] = [:]
    private var waitingPulls: [WeightMessage] = []
    var run: TrainerRun?
    /// Writes to other trainers.
    private var lent: [Transfer] = []
    private var planned: (excluded: [UInt32], receivers: [UInt32], plan: Plan, index: PlanIndex)?
    /// What has been written in attempts of the present version: not sent again after somebody else was lost.
    var delivered: [TaskName: ArrivalRecord] = [:]
    private var deliveredVersion: UInt64 = 0
    private var newestAttempt: UInt32 = 0
    private var staging: MemoryRegion?
    /// Slots that receivers had granted and have revoked since. What is granted next lies in the same memory, which stays
    /// mapped on a host that way.
    private var kept: [Int32: [RemoteMemory]] = [:]
    /// What the version that is served everywhere was made of.
    var served: (version: UInt64, records: [TaskName: ArrivalRecord]) = (0, [:])
    /// The version that the controller has said is served; nil before the first.
    public var servedVersion: UInt64? { served.version == 0 ? nil : served.version }
    /// Bytes written to receivers since the beginning.
    public internal(set) var sentBytes = 0
    /// Of those, the ones that were made in the receiver's memory: quantised, for one receiver only, on the same host, by the
    /// thread that makes the engine's progress.
    public internal(set) var inPlaceBytes = 0
    /// Whether tasks whose sources have not changed are left out.
    public var isDelta = true

    struct ArrivalRecord {
        /// Of the shards that it was made of; nil when some were fetched.
        var source: Digest?
        var output: Digest
        var count: Int
        /// Whether its bytes were sent in this update; receivers copy what has not changed only when they verify.
        var isWritten = true
        /// Engines that have it.
        var receivers: Set<UInt64>
    }

    /// - Parameters:
    ///   - endpoint: Of this process.
    ///   - rank: The trainer rank.
    ///   - plan: The plan of an update of everything; `Plan.Policy.direct`.
    ///   - controller: Where the controller is now.
    /// - Throws: `invalidArgument`, or what the engine says when there is no memory.
    public init(
        _ endpoint: WeightEndpoint, rank: Int, plan: Plan, controller: @escaping () -> EngineAddress
    ) throws(TransferError) {
        guard (0..<plan.trainers.worldSize).contains(rank), plan.policy == .direct else {
            throw TransferError(
                .invalidArgument,
                "trainer \(rank) of a \(plan.policy.rawValue) plan for \(plan.trainers.worldSize); direct plans can be done"
            )
        }
        self.endpoint = endpoint
        engine = endpoint.engine
        self.rank = rank
        base = plan
        self.controller = controller
        layout = ShardMemory(model: plan.model, trainers: plan.trainers, rank: rank)
        shards = ShardTable(plan.model, plan.trainers)
        memory = try engine.allocate(byteCount: layout.byteCount, access: .localOnly)
        endpoint.trainer = self
    }

    /// Says that `memory` holds a version, and stays as it is until the version is served or another one is published.
    public func publish(_ version: UInt64) {
        published = version
        let waiting = waitingPulls
        waitingPulls = []
        for pull in waiting { handle(pull) }
    }

    /// Says that `memory` is about to change: until the next `publish` nothing of it is sent, to receivers that come
    /// late neither.
    /// - Throws: `backPressure` while something of it is under way; ask again, or wait for the update's outcome.
    public func withdraw() throws(TransferError) {
        published = 0
        guard !isBusy else {
            throw TransferError(
                .backPressure, "trainer \(rank) is sending; change its memory when the update has an outcome")
        }
    }

    /// Whether something of an update is under way, so that `memory` must stay as it is.
    public var isBusy: Bool {
        lent.removeAll { !engine.isPending($0) }
        return run.map { !$0.isOver } ?? false || !lent.isEmpty
    }

    /// Ends what is under way, and gives the memory back once that is quiet; false until then.
    func close() -> Bool {
        published = 0
        waitingPulls = []
        if let run, !run.isOver {
            run.cancel()
            _ = run.poll()
        }
        guard !isBusy else { return false }
        run?.close()
        run = nil
        letGo(except: [])
        if let staging { try? engine.deregister(staging) }
        staging = nil
        try? engine.deregister(memory)
        return true
    }

    // MARK: Messages

    func join() {
        var message = WeightMessage(.join)
        message.isTrainer = true
        message.rank = UInt32(rank)
        message.first = published
        message.bytes = engine.address.encoded()
        endpoint.send(message, to: controller())
    }

    func handle(_ message: WeightMessage) {
        switch message.kind {
        case .peer:
            if let address = try? EngineAddress(decoding: message.bytes) {
                peers[Int(message.rank)] = address
            }
        case .start: start(message)
        case .target where run?.isAbout(message) == true: run?.addTarget(message)
        case .pull: lend(message)
        case .abort where run?.isAbout(message) == true: run?.cancel()
        case .finished: finish(message.version)
        default: break
        }
    }

    /// Temporary memory of at least `byteCount` bytes: that of the run before, if it has as much.
    func takeStaging(_ byteCount: Int) throws(TransferError) -> MemoryRegion {
        if let kept = staging {
            staging = nil
            if kept.byteCount >= byteCount { return kept }
            try? engine.deregister(kept)
        }
        return try engine.allocate(byteCount: byteCount)
    }

    /// - Parameter isQuiet: Whether nobody writes into it any more; otherwise that right ends here.
    func giveBackStaging(_ region: MemoryRegion, isQuiet: Bool) {
        if isQuiet, staging == nil { staging = region } else { try? engine.deregister(region) }
    }

    /// Attaches what a receiver has granted, and lets go of what it had granted for the same slot: it has two.
    func attach(_ descriptor: RemoteRegion, of receiver: Int32) throws(TransferError) -> RemoteMemory {
        let memory = try engine.attach(descriptor, as: .bulk)
        var old = kept[receiver, default: []]
        while let first = old.first, old.count > 1 || first.engine != memory.engine {
            try? engine.detach(first)
            old.removeFirst()
        }
        kept[receiver] = old
        return memory
    }

    func keep(_ memory: RemoteMemory, of receiver: Int32) { kept[receiver, default: []].append(memory) }

    /// Lets go of what receivers had granted that take no part any more.
    func letGo(except receivers: Set<Int32>) {
        for (receiver, memories) in kept.sorted(by: { $0.key < $1.key }) where !receivers.contains(receiver) {
            for memory in memories { try? engine.detach(memory) }
            kept[receiver] = nil
        }
    }

    func address(of trainer: Int) -> EngineAddress? { peers[trainer] }

    private func start(_ message: WeightMessage) {
        if let run, run.isAbout(message) { return answer(run) }
        // An attempt that is over must not begin again, however late it is asked for.
        guard published == message.version, message.attempt > newestAttempt else { return }
        // The run before must be quiet: its temporary memory and its immediates are used again.
        if let run, !run.isOver { return run.cancel() }
        run?.close()
        run = nil
        newestAttempt = message.attempt
        if deliveredVersion != message.version { delivered = [:] }
        deliveredVersion = message.version
        for task in TaskName.list(message.tasks) {
            delivered[task] = nil
            served.records[task] = nil
        }
        do throws(TransferError) {
            let (plan, index) = try plan(message)
            let run = try TrainerRun(self, plan, index, message)
            self.run = run
            answer(run)
        } catch {
            var answer = WeightMessage(.trained)
            answer.isTrainer = true
            answer.rank = UInt32(rank)
            answer.version = message.version
            answer.attempt = message.attempt
            answer.status = .failed
            answer.bytes = Array(error.description.utf8.prefix(1000))
            endpoint.send(answer, to: controller())
        }
    }

    private func plan(_ message: WeightMessage) throws(TransferError) -> (Plan, PlanIndex) {
        if let planned, planned.excluded == message.ranks, planned.receivers == message.others {
            return (planned.plan, planned.index)
        }
        let plan = try Planner.replan(
            base, without: Set(message.ranks.map { Int($0) }), for: Set(message.others.map { Int($0) }))
        let index = PlanIndex(plan)
        planned = (message.ranks, message.others, plan, index)
        return (plan, index)
    }

    private func answer(_ run: TrainerRun) {
        var answer = WeightMessage(.trained)
        answer.isTrainer = true
        answer.rank = UInt32(rank)
        answer.version = run.version
        answer.attempt = run.attempt
        answer.status = run.status
        answer.first = UInt64(sentBytes)
        answer.bytes = Array(run.failure.utf8.prefix(1000))
        endpoint.send(answer, to: controller())
    }

    private func finish(_ version: UInt64) {
        guard deliveredVersion == version, served.version != version else { return }
        served = (version, delivered)
    }

    /// Writes a piece into the temporary memory of a rank that needs it.
    private func lend(_ message: WeightMessage) {
        guard message.version == published else {
            if message.version > published, waitingPulls.count < 4096 { waitingPulls.append(message) }
            return
        }
        guard message.ranks.count == 7, let entry = layout.entries[Int(message.ranks[0])] else { return }
        let numbers = message.ranks.map { Int($0) }
        guard numbers[1] < numbers[2], numbers[3] < numbers[4], numbers[5] < numbers[6] else { return }
        let box = Box(
            planes: numbers[1]..<numbers[2], rows: numbers[3]..<numbers[4], columns: numbers[5]..<numbers[6])
        guard entry.box.contains(box), let descriptor = try? RemoteRegion(decoding: message.bytes),
            let remote = try? engine.attach(descriptor, as: .bulk)
        else { return }
        let bytes = base.model.tensors[numbers[0]].type.byteCount
        let transfer = try? engine.write(
            Strips(box, in: entry.box, at: entry.offset, elementBytes: bytes), of: memory,
            to: Strips(packed: box, at: Int(message.second), elementBytes: bytes), of: remote,
            immediate: Immediate(truncatingIfNeeded: message.first))
        if lent.count > 256 { lent.removeAll { !engine.isPending($0) } }
        if let transfer { lent.append(transfer) }
    }

    func poll() -> Bool {
        guard let run, !run.isOver else { return false }
        let wasBusy = run.poll()
        if run.isOver { answer(run) }
        return wasBusy
    }
}
