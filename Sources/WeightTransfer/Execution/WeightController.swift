public import TransferEngine

/// Leads updates: one of the ranks, no server of its own. Trainers write when it says so, receivers serve a version
/// when it says so.
///
/// An attempt has four phases: receivers open their spare slots; trainers write; receivers compare digests; receivers
/// commit. Until the last phase nothing that is served has changed, and whatever goes wrong begins another attempt
/// without whoever was lost, or ends the update. Once all receivers are prepared the version is decided, once: a
/// receiver that is lost afterwards, or does not answer in time, is left out and gets it when it is back. Decisions
/// are numbered, and receivers keep the number: so a controller that follows another learns what was decided last.
///
/// What is not answered is asked again, so that no message has to arrive the first time; every phase has an end.
public final class WeightController {
    enum Phase: Hashable {
        case idle, opening, training, verifying, committing
        /// Whether everybody still has a version, and the return to it.
        case recalling, rollingBack

        /// Whether nothing is decided yet.
        var isOpen: Bool { self == .opening || self == .training || self == .verifying }
    }

    let endpoint: WeightEndpoint
    let plan: Plan
    package let term: UInt32
    var options: Options
    var trainers: [Int: WeightMember] = [:]
    var receivers: [Int: WeightMember] = [:]
    var phase = Phase.idle
    var attempt: UInt32 = 0
    var version: UInt64 = 0
    /// The attempt that decided `currentVersion`.
    var decision: UInt32 = 0
    /// The version that is decided and that receivers which come later get.
    public internal(set) var currentVersion: UInt64 = 0
    /// Outcomes of `update`, by version.
    public internal(set) var outcomes: [UInt64: Outcome] = [:]
    /// How the last `rollback` went; nil while it is under way.
    public internal(set) var rollbackOutcome: Outcome?
    /// Attempts that were given up, and why.
    public internal(set) var log: [String] = []
    /// How long each phase of the last attempt took: opening, training, verifying, committing.
    public internal(set) var phaseSeconds: [String: Double] = [:]
    var attemptsLeft = 0
    var isCatchingUp = false
    /// What was asked for since the last poll, which is how the time is known: nobody polls while an application is busy.
    var wanted: (version: UInt64, since: UInt64?)?
    private var recalled: UInt64?
    /// Who takes part in this attempt.
    var lost: Set<Int> = []
    var participants: Set<Int> = []
    var slots: [Int: WeightMessage] = [:]
    var answered: Set<Int> = []
    /// Receivers that took part in a decision and have not said that they serve it.
    var leftOut: Set<Int> = []
    /// How often each task of this update has arrived damaged.
    var damage: [TaskName: Int] = [:]
    /// Why receivers do not open.
    var obstacles: [Int: String] = [:]
    var updateBegan: UInt64 = 0
    var phaseBegan: UInt64 = 0
    var nextRepeat: UInt64 = 0

    /// A member as the controller knows it.
    struct WeightMember {
        var address: EngineAddress
        var isAlive = true
        var version: UInt64 = 0
        /// A wait for an immediate that nobody sends: it fails when the member is lost.
        var watch: Transfer?
    }

    /// The immediate of `WeightMember.watch`; nobody else may use it.
    static let watchImmediate: Immediate = 0x0FFF_FFF0

    /// - Parameters:
    ///   - endpoint: Of this process.
    ///   - plan: The plan of an update of everything.
    ///   - term: Higher than that of any controller before.
    ///   - options: What may take how long.
    public init(_ endpoint: WeightEndpoint, plan: Plan, term: UInt32 = 1, options: Options = Options()) {
        self.endpoint = endpoint
        self.plan = plan
        self.term = term
        self.options = options
        endpoint.controller = self
    }

    /// Whether all ranks of the plan have joined and are there.
    public var isComplete: Bool {
        trainers.values.count(where: \.isAlive) == plan.trainers.worldSize
            && receivers.values.count(where: \.isAlive) == plan.inference.worldSize
    }

    /// Receivers that are there.
    public var receiverCount: Int { receivers.values.count(where: \.isAlive) }

    /// Whether an update is under way.
    public var isBusy: Bool { phase != .idle || wanted != nil || recalled != nil }

    /// What is under way and who has not answered, for people who wait.
    public var state: String {
        let silent = (phase == .training ? working : participants).subtracting(answered).sorted()
        return "\(phase) version \(version), attempt \(attempt), waiting for \(silent)"
    }

    /// Begins an update of all receivers that are there to a version that all trainers have published or will publish. The number
    /// of a version is used once. It has an outcome at the latest `Options.updateTimeout` and two phases later.
    /// - Throws: `invalidArgument` for a version that is not above the current one; `backPressure` while an update is
    ///   wanted already.
    public func update(to version: UInt64) throws(TransferError) {
        guard version > currentVersion, outcomes[version] == nil else {
            throw TransferError(
                .invalidArgument,
                "version \(version) is not above the current one, \(currentVersion), or was tried")
        }
        guard wanted == nil else {
            throw TransferError(
                .backPressure, "version \(wanted?.version ?? 0) waits to be served; wait for its outcome")
        }
        wanted = (version, nil)
        // Whoever is late gets the new version instead.
        if isCatchingUp, phase.isOpen { giveUp(.cancelled) }
    }

    /// Lets all receivers that are there serve the version before, if all of them still have it whole; otherwise none does.
    /// `rollbackOutcome` says which.
    /// - Throws: `backPressure` while an update is under way; `invalidArgument` for the version that is served.
    public func rollback(to version: UInt64) throws(TransferError) {
        guard !isBusy else {
            throw TransferError(.backPressure, "an update is under way; wait for its outcome")
        }
        guard version != currentVersion else {
            throw TransferError(.invalidArgument, "version \(version) is the current one")
        }
        rollbackOutcome = nil
        recalled = version
    }

    /// Ends what it has in the engine; nothing is asked of it afterwards.
    package func close() {
        for watch in (trainers.values.map(\.watch) + receivers.values.map(\.watch)).compactMap({ $0 }) {
            try? endpoint.engine.cancel(watch) { _ in }
        }
    }

    /// Begins the rollback that was asked for; false when there is none.
    func beginRollback() -> Bool {
        guard let version = recalled else { return false }
        recalled = nil
        self.version = version
        isCatchingUp = false
        nextAttempt()
        participants = Set(receivers.filter { $0.value.isAlive }.keys)
        if participants.isEmpty {
            endRollback(.failed(.nobodyThere("receiver")))
        } else {
            enter(.recalling)
        }
        return true
    }

    /// Ends the update that is under way: nobody serves it.
    public func cancel() {
        if let wanted { outcomes[wanted.version] = .failed(.cancelled) }
        wanted = nil
        if phase.isOpen { giveUp(.cancelled) }
    }
}
