/// What differs between two plans.
public struct PlanDifference: Hashable, Sendable {
    /// Sentences about models, layouts and options.
    public var notes: [String] = []
    /// Tasks of the first plan that are not in the second.
    public var removed = 0
    /// Tasks of the second plan that are not in the first.
    public var added = 0
    /// Boxes that both have, made by another rank.
    public var moved = 0
    /// For each trainer rank by how many bytes more it sends in the second plan.
    public var sentBytes: [Int] = []

    /// Whether the plans do the same.
    public var isEmpty: Bool { notes.isEmpty && removed == 0 && added == 0 && moved == 0 }

    /// - Complexity: O(tasks).
    public init(from first: Plan, to second: Plan) {
        if first.model != second.model { notes.append("the models differ") }
        if first.trainers != second.trainers { notes.append("the trainers' layouts differ") }
        if first.inference != second.inference { notes.append("the inference layouts differ") }
        if first.policy != second.policy {
            notes.append("policy \(first.policy.rawValue) became \(second.policy.rawValue)")
        }
        if first.watermarkBytes != second.watermarkBytes {
            notes.append("watermark \(first.watermarkBytes) became \(second.watermarkBytes)")
        }
        let old = Self.contents(first)
        let new = Self.contents(second)
        for (key, owners) in old {
            guard let others = new[key] else {
                removed += owners.count
                continue
            }
            moved += zip(owners.sorted(), others.sorted()).filter { $0 != $1 }.count
            removed += max(0, owners.count - others.count)
            added += max(0, others.count - owners.count)
        }
        for (key, owners) in new where old[key] == nil { added += owners.count }
        let (before, after) = (first.sentBytes, second.sentBytes)
        sentBytes = (0..<max(before.count, after.count)).map {
            ($0 < after.count ? after[$0] : 0) - ($0 < before.count ? before[$0] : 0)
        }
    }

    private struct Key: Hashable {
        var name: String
        var box: Box
        var writes: [PlanWrite]
    }

    private static func contents(_ plan: Plan) -> [Key: [Int32]] {
        var result: [Key: [Int32]] = [:]
        for task in plan.tasks {
            let key = Key(
                name: plan.target(of: task).name, box: task.box,
                writes: Array(plan.writes[task.writes.indices]))
            result[key, default: []].append(task.owner)
        }
        return result
    }
}
