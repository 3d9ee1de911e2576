internal import CPlatform
internal import CTransferEngine
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// An endpoint as handles know it, with its roles. It is used by one thread at a time, which `door` sees to, but for readings.
final class WeightsEndpoint: @unchecked Sendable {
    // SAFETY: everything but `readings` is touched by whoever is inside of `door` only.
    let box: EngineBox
    let plan: WeightsPlan
    let door = Door("endpoint")
    let readings = Mutex(Readings())
    private let endpoint: WeightEndpoint
    private let leader: Leader
    private var knownTrainer: WeightTrainer?
    private var knownController: WeightController?
    /// Whether the trainer's memory may be looked at by others.
    private var isPublished = false
    /// What has been asked for, and has or will have an outcome.
    private var updates: Set<UInt64> = []
    private var hasRolledBack = false

    /// Where who leads is now.
    private final class Leader {
        var address: EngineAddress
        init(_ address: EngineAddress) { self.address = address }
    }

    /// The receiver, which lends what it serves to any thread.
    struct Readings {
        var receiver: WeightReceiver?
        var lent: [UInt64: WeightReceiver.Reading] = [:]
        var last: UInt64 = 0
        /// Nothing is lent any more.
        var isClosed = false
    }

    init(_ box: EngineBox, _ plan: WeightsPlan) throws(Failure) {
        self.box = box
        self.plan = plan
        leader = Leader(box.engine.address)
        endpoint = try TransferEngineC.engine { () throws(TransferError) in try WeightEndpoint(box.engine) }
    }

    func follow(_ address: EngineAddress) { leader.address = address }

    // MARK: Roles

    var trainer: WeightTrainer {
        get throws(Failure) { try role(knownTrainer, "has no trainer; te_weights_train first") }
    }

    var controller: WeightController {
        get throws(Failure) { try role(knownController, "does not lead; te_weights_lead first") }
    }

    var receiver: WeightReceiver {
        get throws(Failure) {
            try role(readings.withLock { $0.receiver }, "has no receiver; te_weights_serve first")
        }
    }

    private func role<Role>(_ role: Role?, _ what: StaticString) throws(Failure) -> Role {
        guard let role else { throw Failure(TE_EINVALID, "this endpoint \(what)") }
        return role
    }

    func train(_ rank: UInt32) throws(Failure) {
        guard knownTrainer == nil else { throw Failure(TE_EINVALID, "this endpoint has a trainer already") }
        let (endpoint, plan, leader) = (endpoint, plan.plan, leader)
        knownTrainer = try engine { () throws(TransferError) in
            try WeightTrainer(endpoint, rank: Int(rank), plan: plan) { leader.address }
        }
    }

    func serve(_ rank: UInt32) throws(Failure) {
        guard readings.withLock({ $0.receiver == nil }) else {
            throw Failure(TE_EINVALID, "this endpoint has a receiver already")
        }
        let (endpoint, plan, leader) = (endpoint, plan.plan, leader)
        let receiver = try engine { () throws(TransferError) in
            try WeightReceiver(endpoint, rank: Int(rank), plan: plan) { leader.address }
        }
        readings.withLock { $0.receiver = receiver }
    }

    func lead(_ term: UInt32, _ options: WeightController.Options) throws(Failure) {
        if let before = knownController {
            guard term > before.term else {
                throw Failure(
                    TE_EINVALID, "options.term is \(term); this endpoint leads with \(before.term) already")
            }
            before.close()
        }
        knownController = WeightController(endpoint, plan: plan.plan, term: term, options: options)
        (updates, hasRolledBack) = ([], false)
    }

    // MARK: Trainers

    func fill(_ name: String, _ whole: UnsafeRawBufferPointer) throws(Failure) {
        let trainer = try trainer
        guard !isPublished else {
            throw Failure(TE_EBUSY, "the memory is published; te_weights_withdraw first")
        }
        guard let number = plan.number(of: name) else {
            throw Failure(TE_EINVALID, "the model has no parameter '\(name)'")
        }
        let bytes = plan.plan.model.tensors[number].byteCount
        guard whole.count == bytes else {
            throw Failure(TE_EINVALID, "'\(name)' has \(bytes) bytes, not \(whole.count)")
        }
        trainer.layout.fill(from: whole, tensor: number, model: plan.plan.model, into: trainer.memory.bytes)
    }

    func publish(_ version: UInt64) throws(Failure) {
        let trainer = try trainer
        guard version > 0 else { throw Failure(TE_EINVALID, "versions are above 0") }
        trainer.publish(version)
        isPublished = true
    }

    func withdraw() throws(Failure) {
        let trainer = try trainer
        try engine { () throws(TransferError) in try trainer.withdraw() }
        isPublished = false
    }

    // MARK: Readings

    /// Nil before the first version.
    func beginReading() throws(Failure) -> (number: UInt64, reading: WeightReceiver.Reading)? {
        let receiver = try receiver
        return try readings.withLock { readings throws(Failure) in
            guard !readings.isClosed else { throw Failure(TE_EBADHANDLE, "the endpoint is being closed") }
            guard let reading = receiver.beginReading() else { return nil }
            readings.last += 1
            readings.lent[readings.last] = reading
            return (readings.last, reading)
        }
    }

    func endReading(_ number: UInt64) throws(Failure) {
        let receiver = try receiver
        guard let reading = readings.withLock({ $0.lent.removeValue(forKey: number) }) else {
            throw Failure(TE_EINVALID, "reading \(number) has ended, or never began")
        }
        receiver.end(reading)
    }

    // MARK: Who leads

    func update(_ version: UInt64) throws(Failure) {
        let controller = try controller
        try engine { () throws(TransferError) in try controller.update(to: version) }
        updates.insert(version)
    }

    /// Nil while it is under way.
    func outcome(_ version: UInt64) throws(Failure) -> WeightController.Outcome? {
        if let outcome = try controller.outcomes[version] { return outcome }
        guard updates.contains(version) else {
            throw Failure(TE_EINVALID, "an update to version \(version) was not asked for")
        }
        return nil
    }

    func rollback(_ version: UInt64) throws(Failure) {
        let controller = try controller
        try engine { () throws(TransferError) in try controller.rollback(to: version) }
        hasRolledBack = true
    }

    /// Nil while it is under way.
    func rollbackOutcome() throws(Failure) -> WeightController.Outcome? {
        let controller = try controller
        guard hasRolledBack else { throw Failure(TE_EINVALID, "a rollback was not asked for") }
        return controller.rollbackOutcome
    }

    // MARK: Progress

    func poll() -> Bool {
        let isBusy = box.isManual && box.engine.progress()
        return endpoint.poll(at: te_monotonic_nanoseconds()) || isBusy
    }

    func wait(_ what: UInt32, _ version: UInt64, _ timeout: Int64) throws(Failure) {
        let deadline = box.deadline(timeout)
        var idle = 0
        while true {
            idle = poll() ? 0 : idle + 1
            if try has(what, version) { return }
            guard te_monotonic_nanoseconds() < deadline else { break }
            // Others may want the processor; who has had nothing to do for long can wait a little longer.
            for _ in 0..<(idle > 1000 ? 10 : idle > 16 ? 1 : 0) { pauseBriefly() }
        }
        if Int(what) != TE_WEIGHTS_TIME { throw Failure(TE_ETIMEDOUT, "it has not happened in time") }
    }

    private func has(_ what: UInt32, _ version: UInt64) throws(Failure) -> Bool {
        switch Int(what) {
        case TE_WEIGHTS_TIME: false
        case TE_WEIGHTS_COMPLETE: try controller.isComplete
        case TE_WEIGHTS_OUTCOME: try outcome(version) != nil
        case TE_WEIGHTS_ROLLBACK: try rollbackOutcome() != nil
        case TE_WEIGHTS_SERVED: try receiver.activeVersion == version
        case TE_WEIGHTS_PUSHED: try trainer.servedVersion == version
        default: throw Failure(TE_EINVALID, "nothing to wait for is \(what); TE_WEIGHTS_TIME and so on")
        }
    }

    var state: te_weights_state {
        var state = te_weights_state()
        if let trainer = knownTrainer {
            state.is_sending = trainer.isBusy ? 1 : 0
            state.sent_bytes = UInt64(trainer.sentBytes)
            state.pushed_version = trainer.servedVersion ?? 0
        }
        state.served_version = readings.withLock { $0.receiver }?.activeVersion ?? 0
        if let controller = knownController {
            state.is_leading = 1
            state.is_updating = controller.isBusy ? 1 : 0
            state.is_complete = controller.isComplete ? 1 : 0
            state.receiver_count = UInt32(controller.receiverCount)
            state.current_version = controller.currentVersion
        }
        return state
    }

    /// Ends the roles, unless weights are lent. Whoever calls has made the handle stand for nothing.
    func close() throws(Failure) {
        try readings.withLock { readings throws(Failure) in
            guard readings.lent.isEmpty else {
                throw Failure(TE_EBUSY, "weights are lent \(readings.lent.count) times; end the readings")
            }
            readings.isClosed = true
        }
        // What is under way ends at the latest when the engine gives up its proof.
        let deadline = box.deadline(-1) &+ 1_000_000_000
        while !endpoint.close(), te_monotonic_nanoseconds() < deadline {
            _ = poll()
            pauseBriefly()
        }
        box.giveBackMessages()
    }
}

let weightsEndpoints = Standing<WeightsEndpoint>(15, "te_weights_endpoint")

extension Failure {
    init(_ failure: WeightController.Failure) {
        let code =
            switch failure {
            case .nobodyThere, .shardsLost: TE_EPEERLOST
            case .damaged: TE_EDIGEST
            case .superseded, .cancelled: TE_ECANCELLED
            case .attempts, .timedOut: TE_ESTALLED
            case .notKept: TE_EINVALID
            }
        self.init(code, failure.description)
    }
}

extension WeightController.Options {
    init(_ c: te_weights_options) throws(Failure) {
        self.init()
        let day: UInt64 = 86_400_000_000_000
        guard c.term < 1 << 16, c.attempts <= 1 << 16, c.sendings <= 1 << 16 else {
            throw Failure(TE_EINVALID, "options: term, attempts and sendings are at most 65535")
        }
        guard c.repeat_interval_ns <= day, c.phase_timeout_ns <= day, c.update_timeout_ns <= day else {
            throw Failure(TE_EINVALID, "options: no time is longer than a day")
        }
        if c.attempts > 0 { attempts = Int(c.attempts) }
        if c.sendings > 0 { sendings = Int(c.sendings) }
        if c.repeat_interval_ns > 0 { repeatInterval = .nanoseconds(Int64(c.repeat_interval_ns)) }
        if c.phase_timeout_ns > 0 { phaseTimeout = .nanoseconds(Int64(c.phase_timeout_ns)) }
        if c.update_timeout_ns > 0 { updateTimeout = .nanoseconds(Int64(c.update_timeout_ns)) }
    }
}
