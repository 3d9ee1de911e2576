public import TransferCore

/// Makes plans.
///
/// Each target is cut at the borders of the trainers' shards, moved to the nearest border of a block where there are scales, into
/// cells. A cell is made by the rank that holds most of it; among replicas by the one that has least to send so far.
/// What that rank
/// lacks - parts of a block beyond its shard - it fetches. So nothing is gathered that need not be.
public struct Planner {
    /// How plans are made.
    public struct Options: Hashable, Sendable {
        /// Who prepares what.
        public var policy = Plan.Policy.direct
        /// Most bytes of temporary memory on a trainer rank.
        public var watermarkBytes = 2 << 30
        /// Larger cells are divided, so that replicas can share them and memory suffices.
        public var taskBytes = 32 << 20
        /// Trainer ranks that are lost.
        public var excluded: Set<Int> = []
        /// Only these inference ranks get anything; nil is all.
        public var receivers: Set<Int>?

        public init() {}
    }

    let model: ModelDescription
    let trainers: TrainerLayout
    let inference: InferenceLayout
    let options: Options
    var plan: Plan
    var shards: ShardTable
    /// Bytes that each trainer rank has to send so far.
    var load: [Int]

    /// Makes a plan.
    /// - Throws: `invalidArgument` where the layouts do not fit the model or each other; `unreachable` when only excluded ranks
    ///   hold a part of a parameter.
    /// - Complexity: O(tasks times shards of a parameter). Kimi-K2 for 256 trainers takes a few seconds.
    public static func plan(
        _ model: ModelDescription, from trainers: TrainerLayout, to inference: InferenceLayout,
        options: Options = Options()
    ) throws(TransferError) -> Plan {
        var planner = Planner(model, trainers, inference, options)
        for number in inference.targets.indices { try planner.check(number) }
        switch options.policy {
        case .direct:
            for number in inference.targets.indices { try planner.addDirect(number) }
            planner.rebalance()
            planner.order()
        case .fullTensor: try planner.addGathered()
        }
        return planner.plan
    }

    /// Makes a plan from the texts that `te weights plan` takes.
    /// - Parameters:
    ///   - model: See `ModelDescription.init(named:)`.
    ///   - trainers: See `ParallelTrainer.init(parsing:)`.
    ///   - inference: See `ParallelInference.init(parsing:)`.
    ///   - options: Tasks are at most a quarter of the watermark, so that several are under way.
    /// - Throws: What these throw, and what `plan(_:from:to:options:)` does.
    public static func plan(
        _ model: String, from trainers: String, to inference: String, options: Options = Options()
    ) throws(TransferError) -> Plan {
        let model = try ModelDescription(named: model)
        var options = options
        options.taskBytes = min(options.taskBytes, options.watermarkBytes / 4)
        return try plan(
            model, from: ParallelTrainer(parsing: trainers).layout(of: model),
            to: ParallelInference(parsing: inference).layout(of: model), options: options)
    }

    /// The same plan for some receivers and without lost trainers. Everybody who asks for the same gets the same.
    static func replan(
        _ plan: Plan, without excluded: Set<Int>, for receivers: Set<Int>
    ) throws(TransferError) -> Plan {
        var options = Options()
        options.policy = plan.policy
        options.watermarkBytes = plan.watermarkBytes
        options.taskBytes = plan.taskBytes
        options.excluded = excluded
        options.receivers = receivers
        return try self.plan(plan.model, from: plan.trainers, to: plan.inference, options: options)
    }

    private init(
        _ model: ModelDescription, _ trainers: TrainerLayout, _ inference: InferenceLayout, _ options: Options
    ) {
        self.model = model
        self.trainers = trainers
        self.inference = inference
        self.options = options
        plan = Plan(
            model: model, trainers: trainers, inference: inference, policy: options.policy,
            watermarkBytes: options.watermarkBytes, taskBytes: options.taskBytes)
        plan.excluded = Set(options.excluded.map { Int32($0) })
        shards = ShardTable(model, trainers)
        load = Array(repeating: 0, count: trainers.worldSize)
    }

    /// A part of a target, and who has the bytes for it.
    private struct Fragment {
        var part: Int
        /// In the target.
        var place: Box
        var ranks: [Int32]
    }

    private func check(_ number: Int) throws(TransferError) {
        let target = inference.targets[number]
        var covered = 0
        for part in target.parts {
            guard model.tensors.indices.contains(part.source) else {
                throw TransferError(.invalidArgument, "'\(target.name)' names parameter \(part.source)")
            }
            let tensor = model.tensors[part.source]
            guard tensor.box.contains(part.box), target.box.contains(part.place), !part.box.isEmpty else {
                throw TransferError(
                    .invalidArgument,
                    "'\(target.name)' takes \(part.box) of '\(tensor.name)' to \(part.place): outside of it")
            }
            let isQuantised = tensor.type == .bf16 && target.type == .f8e4m3 && target.hasBlockScales
            guard isQuantised || tensor.type == target.type && !target.hasBlockScales else {
                throw TransferError(
                    .invalidArgument,
                    "'\(target.name)': \(tensor.type.rawValue) to \(target.type.rawValue) is no known "
                        + "conversion; BF16 to F8_E4M3 with scales is"
                )
            }
            covered += part.place.count
        }
        guard covered == target.box.count else {
            throw TransferError(
                .invalidArgument,
                "the parts of '\(target.name)' have \(covered) elements, the target \(target.box.count)")
        }
    }

    private mutating func fragments(of target: Target) throws(TransferError) -> [Fragment] {
        var result: [Fragment] = []
        for (number, part) in target.parts.enumerated() {
            for shard in shards.shards(of: part.source) {
                guard let common = shard.box.intersection(part.box) else { continue }
                let alive =
                    plan.excluded.isEmpty ? shard.ranks : shard.ranks.filter { !plan.excluded.contains($0) }
                guard !alive.isEmpty else {
                    throw TransferError(
                        .unreachable,
                        "\(common) of '\(model.tensors[part.source].name)' is on lost trainer ranks \(shard.ranks) only"
                    )
                }
                result.append(Fragment(part: number, place: part.target(of: common), ranks: alive))
            }
        }
        return result
    }

    private mutating func addDirect(_ number: Int) throws(TransferError) {
        let target = inference.targets[number]
        let replicas = self.replicas(of: target)
        guard !replicas.isEmpty else { return }
        let fragments = try fragments(of: target)
        let granule = target.hasBlockScales ? Target.blockSize : 1
        let planes = Self.cuts(target.box.planes, fragments.lazy.map(\.place.planes), granule: 1)
        let columns = Self.cuts(target.box.columns, fragments.lazy.map(\.place.columns), granule: granule)
        let rows = Self.cuts(target.box.rows, fragments.lazy.map(\.place.rows), granule: granule)
        let inputBytes = target.hasBlockScales ? DataType.bf16.byteCount : target.type.byteCount
        for plane in planes {
            for column in columns {
                let limit = max(
                    granule,
                    options.taskBytes / (inputBytes * column.count * plane.count) / granule * granule)
                for row in rows {
                    for first in stride(from: row.lowerBound, to: row.upperBound, by: limit) {
                        let box = Box(
                            planes: plane, rows: first..<min(first + limit, row.upperBound), columns: column)
                        add(number, target, box, fragments, replicas)
                    }
                }
            }
        }
    }

    func replicas(of target: Target) -> [Target.Replica] {
        guard let receivers = options.receivers else { return target.replicas }
        return target.replicas.filter { receivers.contains(Int($0.rank)) }
    }

    /// The ranges between the borders of `ranges`, each border moved to a multiple of `granule`.
    private static func cuts(
        _ all: Range<Int>, _ ranges: some Sequence<Range<Int>>, granule: Int
    ) -> [Range<Int>] {
        var borders: Set<Int> = [all.lowerBound, all.upperBound]
        for range in ranges where range != all {
            for border in [range.lowerBound, range.upperBound] where border < all.upperBound {
                borders.insert((border + granule / 2) / granule * granule)
            }
        }
        let sorted = borders.filter { $0 <= all.upperBound }.sorted()
        return zip(sorted, sorted.dropFirst()).map { $0..<$1 }
    }

    private mutating func add(
        _ number: Int, _ target: Target, _ box: Box, _ fragments: [Fragment], _ replicas: [Target.Replica]
    ) {
        let inside = fragments.compactMap { fragment -> Fragment? in
            guard let common = fragment.place.intersection(box) else { return nil }
            return Fragment(part: fragment.part, place: common, ranks: fragment.ranks)
        }
        let owner = owner(inside)
        var preparation: Preparation = target.hasBlockScales ? .quantise : []
        let first = plan.pieces.count
        for fragment in inside {
            let part = target.parts[fragment.part]
            let rank = fragment.ranks.contains(owner) ? owner : lender(fragment.ranks, to: owner)
            if rank != owner { preparation.insert(.gather) }
            if part.isTransposed { preparation.insert(.transpose) }
            if fragment.part != inside[0].part { preparation.insert(.fuse) }
            plan.pieces.append(
                PlanPiece(rank: rank, part: Int32(fragment.part), box: part.source(of: fragment.place)))
        }
        // Several shards of one parameter are put together as well.
        if inside.count > 1 { preparation.insert(.fuse) }
        append(number, target, box, owner, preparation, pieces: first, replicas)
    }

    /// Adds a task whose pieces are there already.
    mutating func append(
        _ number: Int, _ target: Target, _ box: Box, _ owner: Int32, _ preparation: Preparation,
        pieces first: Int, _ replicas: [Target.Replica]
    ) {
        let place = target.offset(of: box)
        let scales = target.hasBlockScales ? target.scaleOffset(of: box) : 0
        let writes = PlanRange(plan.writes.count, count: replicas.count)
        for replica in replicas {
            plan.writes.append(
                PlanWrite(
                    rank: replica.rank, offset: replica.offset + place,
                    scaleOffset: target.hasBlockScales ? replica.scaleOffset + scales : -1))
        }
        let task = PlanTask(
            target: Int32(number), owner: owner, box: box, preparation: preparation,
            pieces: PlanRange(first, count: plan.pieces.count - first), writes: writes)
        plan.tasks.append(task)
        load[Int(owner)] += (plan.outputBytes(of: task) + plan.scaleBytes(of: task)) * replicas.count
    }

    /// The rank that holds most; among equals the one that has least to send.
    private func owner(_ fragments: [Fragment]) -> Int32 {
        let largest = fragments.max { $0.place.count < $1.place.count }
        var best: (rank: Int32, held: Int, load: Int)?
        for rank in largest?.ranks ?? [] {
            let held =
                fragments.count == 1
                ? 0 : fragments.reduce(0) { $0 + ($1.ranks.contains(rank) ? $1.place.count : 0) }
            let load = load[Int(rank)]
            if let known = best, known.held > held || known.held == held && known.load <= load { continue }
            best = (rank, held, load)
        }
        return best?.rank ?? 0
    }

    /// Who lends a piece: somebody on the same host, or else who has least to send.
    private func lender(_ ranks: [Int32], to owner: Int32) -> Int32 {
        let node = trainers.node(of: Int(owner))
        return ranks.min {
            let left = (trainers.node(of: Int($0)) == node ? 0 : 1, load[Int($0)])
            return left < (trainers.node(of: Int($1)) == node ? 0 : 1, load[Int($1)])
        } ?? owner
    }

    /// Moves tasks to replicas that have less to send, until none would gain; a first choice cannot know what comes later.
    private mutating func rebalance() {
        for _ in 0..<8 {
            var hasMoved = false
            for index in plan.tasks.indices where move(index) { hasMoved = true }
            if !hasMoved { return }
        }
    }

    /// Moves a task to the replica with the least load, if that leaves it below the present owner. Returns whether it did.
    private mutating func move(_ index: Int) -> Bool {
        let task = plan.tasks[index]
        let parts = inference.targets[Int(task.target)].parts
        guard let largest = plan.pieces[task.pieces.indices].max(by: { $0.box.count < $1.box.count }) else {
            return false
        }
        let bytes = (plan.outputBytes(of: task) + plan.scaleBytes(of: task)) * Int(task.writes.count)
        let holders = holders(largest, parts)
        guard holders.count > 1, holders.contains(task.owner),
            let other = holders.min(by: { load[Int($0)] < load[Int($1)] }),
            load[Int(task.owner)] > load[Int(other)] + bytes
        else { return false }
        var preparation = task.preparation.subtracting(.gather)
        for piece in task.pieces.indices {
            let ranks = self.holders(plan.pieces[piece], parts)
            let rank = ranks.contains(other) ? other : lender(ranks, to: other)
            if rank != other { preparation.insert(.gather) }
            plan.pieces[piece].rank = rank
        }
        plan.tasks[index].owner = other
        plan.tasks[index].preparation = preparation
        load[Int(task.owner)] -= bytes
        load[Int(other)] += bytes
        return true
    }

    private mutating func holders(_ piece: PlanPiece, _ parts: [Target.Part]) -> [Int32] {
        let ranks =
            shards.shards(of: parts[Int(piece.part)].source).first { $0.box.contains(piece.box) }?.ranks ?? []
        return plan.excluded.isEmpty ? ranks : ranks.filter { !plan.excluded.contains($0) }
    }

    /// Gives each rank the order of its tasks: those for a receiver are spread over all of the rank's bytes, so that all
    /// receivers have everything at about the same time; and every rank begins with another receiver, so that no
    /// receiver gets from all at once.
    private mutating func order() {
        var byOwner: [[Int32]] = Array(repeating: [], count: trainers.worldSize)
        for (index, task) in plan.tasks.enumerated() { byOwner[Int(task.owner)].append(Int32(index)) }
        for rank in byOwner.indices {
            var buckets: [Int32: [Int32]] = [:]
            for index in byOwner[rank] {
                let task = plan.tasks[Int(index)]
                buckets[plan.writes[Int(task.writes.first)].rank, default: []].append(index)
            }
            let receivers = buckets.keys.sorted()
            // When, from 0 to 1: tasks of one size come round by round, in each round a receiver at its turn.
            var keyed: [(time: Double, task: Int32)] = []
            keyed.reserveCapacity(byOwner[rank].count)
            for (position, receiver) in receivers.enumerated() {
                let turn = (position + receivers.count - rank % receivers.count) % receivers.count
                let tasks = buckets[receiver] ?? []
                let bytes = tasks.map { Double(plan.outputBytes(of: plan.tasks[Int($0)])) }
                let total = max(bytes.reduce(0, +), 1)
                var before = 0.0
                for (task, bytes) in zip(tasks, bytes) {
                    keyed.append(((before + bytes * Double(turn) / Double(receivers.count)) / total, task))
                    before += bytes
                }
            }
            keyed.sort { ($0.time, $0.task) < ($1.time, $1.task) }
            plan.sequences[rank] = keyed.map { .task($0.task) }
        }
    }
}

extension Target {
    /// Columns of the local tensor.
    private var columnCount: Int { box.columns.count }

    /// Bytes from the target's first element to a box's first.
    func offset(of box: Box) -> Int {
        let rows = box.planes.lowerBound * self.box.rows.count + box.rows.lowerBound
        return (rows * columnCount + box.columns.lowerBound) * type.byteCount
    }

    /// Bytes from the target's first scale to the first of a box that begins at a block.
    func scaleOffset(of box: Box) -> Int {
        let (rows, columns) = scaleShape
        let row = box.planes.lowerBound * rows + box.rows.lowerBound / Self.blockSize
        return (row * columns + box.columns.lowerBound / Self.blockSize) * 4
    }
}
