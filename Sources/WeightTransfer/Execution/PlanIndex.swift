internal import TransferEngine

/// What follows from a plan and is looked up while it is done.
struct PlanIndex {
    /// For each write its number among those of its receiver, in the order of tasks: the place of its entry in the
    /// receiver's table.
    let ordinals: [Int32]
    /// For each receiver its writes, by that number: task and write.
    let arrivals: [[(task: Int32, write: Int32)]]

    init(_ plan: Plan) {
        var ordinals = Array(repeating: Int32(0), count: plan.writes.count)
        var arrivals: [[(task: Int32, write: Int32)]] = Array(repeating: [], count: plan.inference.worldSize)
        for (number, task) in plan.tasks.enumerated() {
            for index in task.writes.indices {
                let rank = Int(plan.writes[index].rank)
                ordinals[index] = Int32(arrivals[rank].count)
                arrivals[rank].append((Int32(number), Int32(index)))
            }
        }
        self.ordinals = ordinals
        self.arrivals = arrivals
    }
}

/// What a trainer leaves beside the data of each task: 32 bytes, little-endian.
struct ArrivalEntry {
    static let byteCount = 32

    enum Mode: UInt64 {
        /// The task has been written in this attempt.
        case written = 1
        /// It was written in an earlier attempt of this version.
        case already = 2
        /// It is what the version before had: to be copied from the slot that is served.
        case unchanged = 3
    }

    var digest: Digest
    var mode: Mode
    /// How often the receiver counts for the data and the scales, if they are written.
    var count: Int
}

extension Plan {
    /// The rows of a task's box where they go.
    func strips(of task: PlanTask, _ write: PlanWrite) -> Strips {
        let target = inference.targets[Int(task.target)]
        let bytes = target.type.byteCount
        return Strips(
            task.box, in: target.box, at: write.offset - target.offset(of: task.box), elementBytes: bytes)
    }

    /// The rows of its scales, where they go; nil without.
    func scaleStrips(of task: PlanTask, _ write: PlanWrite) -> Strips? {
        let target = inference.targets[Int(task.target)]
        guard target.hasBlockScales else { return nil }
        let (rows, columns) = target.scaleShape
        let all = Box(planes: target.box.planes, rows: 0..<rows, columns: 0..<columns)
        return Strips(
            task.box.scaleBox, in: all, at: write.scaleOffset - target.scaleOffset(of: task.box),
            elementBytes: 4)
    }

    /// Bytes of a rank's slot: a version's region, and behind it the entries.
    func slotBytes(rank: Int, entries: Int) -> Int {
        tableOffset(rank: rank) + max(1, entries) * ArrivalEntry.byteCount
    }

    /// Where the entries begin.
    func tableOffset(rank: Int) -> Int { Staging.rounded(inference.regionBytes[rank]) }
}

extension Box {
    /// Blocks with one scale, as rows and columns of the scales.
    var scaleBox: Box {
        let size = Target.blockSize
        return Box(
            planes: planes, rows: rows.lowerBound / size..<(rows.upperBound + size - 1) / size,
            columns: columns.lowerBound / size..<(columns.upperBound + size - 1) / size)
    }
}
