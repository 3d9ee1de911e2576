public import TransferEngine

/// Leads updates: one of the ranks, no server of its own. Trainers write when it says so, receivers serve a version
/// when it says so.
///
/// An attempt has four phases: receivers open their spare slots; trainers write; receivers compare digests; receivers
/// commit. Until
/// the last phase nothing that is served has changed, and whatever goes wrong begins another attempt without whoever
/// was lost, or ends
/// the update. Once all receivers are prepared the version is decided: a receiver that is lost afterwards gets it
/// when it comes back.
/// What is not answered is asked again, so that no message has to arrive the first time.
public final class WeightController {
    /// How an update went.
    public enum Outcome: Hashable, Sendable {
        /// All receivers that are there serve it.
        case committed
        /// Nobody serves it, for this reason.
        case failed(String)
    }

    /// What may take how long.
    public struct Options: Hashable, Sendable {
        /// Unanswered messages are repeated after this.
        public var repeatInterval: Duration = .milliseconds(50)
        /// A phase that takes longer begins another attempt.
        public var phaseTimeout: Duration = .seconds(60)
        /// Attempts at one version.
        public var attempts = 8

        public init() {}
    }

    enum Phase: Hashable { case idle, opening, training, verifying, committing, rollingBack }

    let endpoint: WeightEndpoint
    let plan: Plan
    let term: UInt32
    let options: Options
    var trainers: [Int: WeightMember] = [:]
    var receivers: [Int: WeightMember] = [:]
    var phase = Phase.idle
    var attempt: UInt32 = 0
    var version: UInt64 = 0
    /// The version that is decided and that receivers which come later get.
    public internal(set) var currentVersion: UInt64 = 0
    /// Outcomes of `update`, by version.
    public internal(set) var outcomes: [UInt64: Outcome] = [:]
    /// Attempts that were given up, and why.
    public internal(set) var log: [String] = []
    /// How long each phase of the last attempt took: opening, training, verifying, committing.
    public internal(set) var phaseSeconds: [String: Double] = [:]
    var attemptsLeft = 0
    var isCatchingUp = false
    var wanted: UInt64?
    /// Who takes part in this attempt.
    var lost: Set<Int> = []
    var participants: Set<Int> = []
    var slots: [Int: WeightMessage] = [:]
    var answered: Set<Int> = []
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
    public var isBusy: Bool { phase != .idle || wanted != nil }

    /// Begins an update of all receivers that are there to a version that all trainers have published or will publish.
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
                .backPressure, "version \(wanted ?? 0) waits to be served; wait for its outcome")
        }
        wanted = version
    }

    /// Lets all receivers serve the version before, if they still have it whole.
    /// - Throws: `backPressure` while an update is under way.
    public func rollback(to version: UInt64) throws(TransferError) {
        guard !isBusy else {
            throw TransferError(.backPressure, "an update is under way; wait for its outcome")
        }
        self.version = version
        enter(.rollingBack)
    }

    /// Ends the update that is under way: nobody serves it.
    public func cancel() {
        wanted = nil
        if [.opening, .training, .verifying].contains(phase) { giveUp("cancelled by the caller") }
    }
}
