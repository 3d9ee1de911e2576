/// Something that is wrong with a plan, with the counter-example.
public struct LintFinding: Hashable, Sendable, CustomStringConvertible {
    /// Which promise is broken.
    public enum Rule: String, Hashable, Sendable, CaseIterable {
        /// Indices that point nowhere.
        case malformed
        /// Every destination byte is written exactly once.
        case coverage
        /// Nothing is written outside of a region, and no two tensors share bytes.
        case region
        /// Pieces are what the task needs, and their ranks have them.
        case source
        /// Temporary memory stays below the watermark.
        case watermark
        /// Ranks that meet in several gathers meet in the same order, and each task is done once, by its owner.
        case order
        /// No rank has much to send that another one could, which has less.
        case balance
    }

    /// Which promise is broken.
    public var rule: Rule
    /// The counter-example.
    public var message: String

    public var description: String { "\(rule.rawValue): \(message)" }
}

extension Plan {
    /// Proves that the plan does what it must, or names counter-examples.
    /// - Parameter limit: Most findings of each rule.
    /// - Returns: Nothing for a good plan.
    /// - Complexity: O(tasks log tasks + writes).
    public func lint(limit: Int = 5) -> [LintFinding] {
        let linter = Linter(plan: self, limit: limit)
        linter.checkWhetherSound()
        guard linter.findings.isEmpty else { return linter.findings }
        linter.checkCoverage()
        linter.checkRegions()
        linter.checkSources()
        linter.checkWatermark()
        linter.checkOrder()
        linter.checkBalance()
        return linter.findings
    }

    /// What makes a plan that was read from a file unfit for anything but `lint`: whoever computes with it relies on these.
    package func malformations() -> [LintFinding] {
        let linter = Linter(plan: self, limit: 1)
        linter.checkWhetherSound()
        return linter.findings
    }

    /// The largest of `values`, divided by their mean; 1 without any.
    public static func imbalance(_ values: [Int]) -> Double {
        let total = values.reduce(0, +)
        return total == 0 ? 1 : Double(values.max() ?? 0) * Double(values.count) / Double(total)
    }
}

final class Linter {
    let plan: Plan
    let limit: Int
    var findings: [LintFinding] = []
    private var counts: [LintFinding.Rule: Int] = [:]

    init(plan: Plan, limit: Int) {
        self.plan = plan
        self.limit = limit
    }

    /// Notes a finding; false once there are enough of this rule.
    @discardableResult
    func note(_ rule: LintFinding.Rule, _ message: @autoclosure () -> String) -> Bool {
        counts[rule, default: 0] += 1
        guard counts[rule, default: 0] <= limit else { return false }
        findings.append(LintFinding(rule: rule, message: message()))
        return true
    }

    func name(_ task: PlanTask) -> String { "'\(plan.inference.targets[Int(task.target)].name)' \(task.box)" }

    /// Everything else relies on numbers that do not overflow and indices that are valid.
    func checkWhetherSound() {
        checkBounds()
        if findings.isEmpty { checkStructure() }
        if findings.isEmpty { checkSums() }
    }

    func checkStructure() {
        let trainers = Int32(plan.trainers.worldSize)
        let receivers = Int32(plan.inference.worldSize)
        if plan.inference.regionBytes.count != plan.inference.worldSize
            || plan.sequences.count != plan.trainers.worldSize
        {
            note(.malformed, "not every rank has a region or a sequence")
        }
        for (index, task) in plan.tasks.enumerated() {
            guard plan.inference.targets.indices.contains(Int(task.target)),
                (0..<trainers).contains(task.owner),
                task.pieces.first >= 0, task.pieces.count > 0,
                task.pieces.indices.upperBound <= plan.pieces.count,
                task.writes.first >= 0, task.writes.count > 0,
                task.writes.indices.upperBound <= plan.writes.count
            else {
                note(.malformed, "task \(index) names a target, a rank, pieces or writes that there are not")
                continue
            }
            let parts = plan.inference.targets[Int(task.target)].parts
            for piece in plan.pieces[task.pieces.indices]
            where !parts.indices.contains(Int(piece.part)) || !(0..<trainers).contains(piece.rank) {
                note(
                    .malformed,
                    "task \(index), \(name(task)): a piece of part \(piece.part) on rank \(piece.rank)")
            }
            for write in plan.writes[task.writes.indices] where !(0..<receivers).contains(write.rank) {
                note(.malformed, "task \(index), \(name(task)) is written to rank \(write.rank)")
            }
        }
        for gather in plan.gathers
        where !plan.model.tensors.indices.contains(Int(gather.tensor))
            || !gather.ranks.allSatisfy({ (0..<trainers).contains($0) })
        {
            note(.malformed, "a gather of parameter \(gather.tensor) on ranks \(gather.ranks)")
        }
        for (rank, steps) in plan.sequences.enumerated() {
            for step in steps {
                switch step {
                case .task(let index) where plan.tasks.indices.contains(Int(index)): continue
                case .gather(let index) where plan.gathers.indices.contains(Int(index)): continue
                default: note(.malformed, "rank \(rank) is to do \(step), which there is not")
                }
            }
        }
    }

    // MARK: Memory and order

    func checkWatermark() {
        for (index, task) in plan.tasks.enumerated() {
            let bytes = plan.temporaryBytes(of: task)
            if bytes > plan.watermarkBytes {
                note(
                    .watermark,
                    "task \(index), \(name(task)), needs \(bytes) bytes on rank \(task.owner); the watermark "
                        + "is \(plan.watermarkBytes)"
                )
            }
        }
    }

    func checkOrder() {
        var done = Array(repeating: 0, count: plan.tasks.count)
        var places: [Int32: [Int32: Int]] = [:]
        for (rank, steps) in plan.sequences.enumerated() {
            for (place, step) in steps.enumerated() {
                switch step {
                case .task(let index):
                    done[Int(index)] += 1
                    if plan.tasks[Int(index)].owner != Int32(rank) {
                        note(
                            .order,
                            "rank \(rank) does task \(index), which is rank \(plan.tasks[Int(index)].owner)'s"
                        )
                    }
                case .gather(let index): places[index, default: [:]][Int32(rank)] = place
                }
            }
        }
        for (index, count) in done.enumerated() where count != 1 {
            note(.order, "task \(index), \(name(plan.tasks[index])), is done \(count) times")
        }
        checkGathers(places)
    }

    /// Two ranks that meet in gathers meet in the same order, or both wait for ever: seen where the order of one is not that of
    /// the plan's list while another's is.
    private func checkGathers(_ places: [Int32: [Int32: Int]]) {
        var last: [Int32: (place: Int, gather: Int32)] = [:]
        for index in plan.gathers.indices {
            let gather = plan.gathers[index]
            for rank in gather.ranks {
                guard let place = places[Int32(index)]?[rank] else {
                    note(
                        .order,
                        "rank \(rank) never joins gather \(index) of '\(plan.model.tensors[Int(gather.tensor)].name)'"
                    )
                    continue
                }
                if let before = last[rank], before.place > place {
                    let other = plan.gathers[Int(before.gather)].ranks.first { other in
                        other != rank && gather.ranks.contains(other)
                    }
                    note(
                        .order,
                        "rank \(rank) joins gather \(index) before gather \(before.gather); rank "
                            + "\(other ?? rank) the other way round"
                    )
                }
                last[rank] = (place, Int32(index))
            }
        }
    }

    // MARK: Balance

    /// A rank sends a task although another one has the same bytes, and would still have less to send afterwards.
    func checkBalance() {
        guard plan.policy == .direct else { return }
        let sent = plan.sentBytes
        let slack = sent.reduce(0, +) / max(1, sent.count) / 20
        var shards = ShardTable(plan.model, plan.trainers)
        for (index, task) in plan.tasks.enumerated() {
            let bytes = (plan.outputBytes(of: task) + plan.scaleBytes(of: task)) * Int(task.writes.count)
            guard let largest = plan.pieces[task.pieces.indices].max(by: { $0.box.count < $1.box.count })
            else { continue }
            let source = plan.inference.targets[Int(task.target)].parts[Int(largest.part)].source
            guard let shard = shards.shards(of: source).first(where: { $0.box.contains(largest.box) }) else {
                continue
            }
            for other in shard.ranks where other != task.owner && !plan.excluded.contains(other) {
                guard sent[Int(task.owner)] > sent[Int(other)] + 2 * bytes + slack else { continue }
                note(
                    .balance,
                    "task \(index), \(name(task)), is sent by rank \(task.owner), which sends "
                        + "\(sent[Int(task.owner)]) bytes; rank \(other) has it too and sends \(sent[Int(other)])"
                )
                break
            }
        }
    }
}
