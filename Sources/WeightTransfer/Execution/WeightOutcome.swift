extension WeightController {
    /// How an update went.
    public enum Outcome: Hashable, Sendable {
        /// The version is decided: all receivers that took part serve it, but for those that were lost, or did not answer, after
        /// that. They get it when they are back.
        case committed(leftOut: [Int])
        /// No receiver serves it.
        case failed(Failure)

        /// Whether the version is decided.
        public var isCommitted: Bool {
            if case .committed = self { true } else { false }
        }
    }

    /// Why nobody serves a version.
    public enum Failure: Error, Hashable, Sendable, CustomStringConvertible {
        /// No receiver, or no trainer, is there.
        case nobodyThere(String)
        /// Trainers are lost and no replica has what they had.
        case shardsLost(String)
        /// A parameter arrived wrong every time that it was sent.
        case damaged(parameter: String, trainer: Int, times: Int)
        /// A later version was decided by another controller.
        case superseded(by: UInt64)
        /// So many attempts, the last of which ended for this reason.
        case attempts(Int, last: String)
        /// All attempts together took longer than `Options.updateTimeout`; the last one ended for this reason.
        case timedOut(last: String)
        /// A receiver no longer has the version that was to be served again.
        case notKept(UInt64, receiver: Int)
        /// `cancel` was called, or another update came first.
        case cancelled

        public var description: String {
            switch self {
            case .nobodyThere(let who): "no \(who) is there; start one, or look why it does not join"
            case .shardsLost(let text): text
            case .damaged(let parameter, let trainer, let times):
                "'\(parameter)' from trainer \(trainer) was not what that trainer sent, \(times) times: "
                    + "check the memory of that host and of the receivers"
            case .superseded(let version): "version \(version) was decided meanwhile"
            case .attempts(let count, let last): "\(count) attempts failed; the last: \(last)"
            case .timedOut(let last): "the update took too long; the last attempt: \(last)"
            case .notKept(let version, let rank):
                "receiver \(rank) no longer has version \(version); push it again under a new number"
            case .cancelled: "cancelled by the caller"
            }
        }
    }

    /// What may take how long. Every phase, and the whole update, has an end.
    public struct Options: Hashable, Sendable {
        /// Unanswered messages are repeated after this.
        public var repeatInterval: Duration = .milliseconds(50)
        /// A phase that takes longer begins another attempt; receivers that take longer to commit are left out.
        public var phaseTimeout: Duration = .seconds(60)
        /// All attempts together.
        public var updateTimeout: Duration = .seconds(600)
        /// Attempts at one version.
        public var attempts = 8
        /// How often a task that arrives damaged is sent before the update fails.
        public var sendings = 3

        public init() {}
    }
}

/// A task as members name it to each other, whatever its number in a plan: the target and the box.
struct TaskName: Hashable, Sendable {
    var target: Int32
    var box: Box

    /// Words of an encoded name.
    static let wordCount = 7

    init(_ task: PlanTask) { (target, box) = (task.target, task.box) }

    var words: [UInt32] {
        [
            UInt32(bitPattern: target), UInt32(bitPattern: box.firstPlane), UInt32(bitPattern: box.endPlane),
            UInt32(bitPattern: box.firstRow), UInt32(bitPattern: box.endRow),
            UInt32(bitPattern: box.firstColumn), UInt32(bitPattern: box.endColumn),
        ]
    }

    /// Nil for words that name no box.
    init?(_ words: ArraySlice<UInt32>) {
        guard words.count == Self.wordCount else { return nil }
        let numbers = words.map { Int(Int32(bitPattern: $0)) }
        let ranges = [1, 3, 5].map { (numbers[$0], numbers[$0 + 1]) }
        guard numbers[0] >= 0, ranges.allSatisfy({ $0.0 >= 0 && $0.0 < $0.1 }) else { return nil }
        target = Int32(numbers[0])
        box = Box(
            planes: ranges[0].0..<ranges[0].1, rows: ranges[1].0..<ranges[1].1,
            columns: ranges[2].0..<ranges[2].1)
    }

    /// The names in a list of words; what is not whole is left out.
    static func list(_ words: [UInt32]) -> [TaskName] {
        stride(from: 0, to: words.count - words.count % wordCount, by: wordCount).compactMap {
            TaskName(words[$0..<$0 + wordCount])
        }
    }
}
