internal import TransferCore

/// How long a plan takes, and what each rank does meanwhile, by a cost model.
///
/// Trainer ranks go through their steps. With full tensors a device does one thing after the other, and a thread beside it
/// submits the writes of what an event says is ready, as the paper describes it; direct plans run as a pipeline of loading,
/// preparing, submitting and writing. NICs carry what they are given in order, on both sides; a receiver takes from several
/// senders at a time, as fast as its NIC can.
public struct Prediction: Hashable, Sendable {
    /// What time is spent on.
    public enum Stage: String, Hashable, Sendable, CaseIterable {
        case load, gather, fuse, quantise, submit
        /// For other ranks. With full tensors: what all others leave of the time, as in the paper's breakdown.
        case wait
        /// Writes that nothing hides.
        case rest
    }

    /// One thing that a rank did.
    public struct Span: Hashable, Sendable {
        /// What.
        public var stage: Stage
        /// Seconds from the beginning.
        public var begin: Double
        /// Seconds from the beginning.
        public var end: Double
    }

    /// Seconds from the beginning until the last byte has arrived.
    public var seconds = 0.0
    /// Seconds that a rank spends on each stage: the mean of all trainer ranks.
    public var stages: [Stage: Double] = [:]
    /// Calls of each stage: the mean of all trainer ranks.
    public var calls: [Stage: Double] = [:]
    /// Seconds that each receiver's NIC is busy.
    public var receiverSeconds: [Double] = []
    /// Seconds that each sender's NIC is busy with writes.
    public var senderSeconds: [Double] = []
    /// What some ranks did, in order.
    public var spans: [Int: [Span]] = [:]
    /// When each receiver had everything.
    public var arrivals: [Double] = []

    init() {}
}

extension Plan {
    /// Predicts how long the plan takes.
    /// - Parameters:
    ///   - model: What things cost.
    ///   - traced: Trainer ranks whose steps are kept.
    /// - Complexity: O(tasks log ranks + writes).
    public func predict(_ model: CostModel = CostModel(), tracing traced: Set<Int> = []) -> Prediction {
        var predictor = Predictor(plan: self, model: model, traced: traced)
        predictor.run()
        return predictor.finished()
    }
}

private struct Predictor {
    let plan: Plan
    let model: CostModel
    let traced: Set<Int>
    var result = Prediction()
    /// How much slower than the fastest each rank's host is.
    private var slowness: [Double]
    private var position: [Int]
    /// When each of a rank's own resources is free; with full tensors the device loads as well.
    private var loader: [Double]
    private var device: [Double]
    private var host: [Double]
    private var sender: [Double]
    private var receiver: [Double]
    private var lastWrite: [Double]
    private var totals: [[Double]]
    private var counts: [[Double]]
    private var shards: ShardTable
    private var heap = RankHeap()
    /// Ranks that have come to a gather that others have not, and when.
    private var arrived: [Int32: [(rank: Int32, time: Double)]] = [:]

    init(plan: Plan, model: CostModel, traced: Set<Int>) {
        self.plan = plan
        self.model = model
        self.traced = traced
        let ranks = plan.trainers.worldSize
        var state = model.seed
        slowness = (0..<ranks).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return 1 + model.skew * Double(state >> 11) / Double(UInt64(1) << 53)
        }
        position = Array(repeating: 0, count: ranks)
        loader = Array(repeating: 0, count: ranks)
        device = loader
        host = loader
        sender = loader
        lastWrite = loader
        receiver = Array(repeating: 0, count: plan.inference.worldSize)
        let stages = Prediction.Stage.allCases.count
        totals = Array(repeating: Array(repeating: 0, count: stages), count: ranks)
        counts = totals
        shards = ShardTable(plan.model, plan.trainers)
        result.senderSeconds = loader
        result.receiverSeconds = receiver
        result.arrivals = receiver
    }

    mutating func run() {
        for rank in position.indices where !plan.sequences[rank].isEmpty { heap.push(0, Int32(rank)) }
        while let (_, rank) = heap.pop() {
            let steps = plan.sequences[Int(rank)]
            guard position[Int(rank)] < steps.count else { continue }
            switch steps[position[Int(rank)]] {
            case .gather(let gather): join(gather, rank)
            case .task(let index):
                if plan.policy == .direct {
                    pipelined(plan.tasks[Int(index)])
                } else {
                    serial(plan.tasks[Int(index)])
                }
                advance(rank)
            }
        }
    }

    private mutating func advance(_ rank: Int32) {
        position[Int(rank)] += 1
        heap.push(plan.policy == .direct ? host[Int(rank)] : device[Int(rank)], rank)
    }

    private mutating func note(_ stage: Prediction.Stage, _ rank: Int, _ begin: Double, _ end: Double) {
        guard end > begin, let index = Prediction.Stage.allCases.firstIndex(of: stage) else { return }
        totals[rank][index] += end - begin
        counts[rank][index] += 1
        if traced.contains(rank) {
            result.spans[rank, default: []].append(Prediction.Span(stage: stage, begin: begin, end: end))
        }
    }

    // MARK: Full tensors

    /// Loads the own shard, then waits until everybody has come.
    private mutating func join(_ index: Int32, _ rank: Int32) {
        let gather = plan.gathers[Int(index)]
        let tensor = plan.model.tensors[Int(gather.tensor)]
        let begin = device[Int(rank)]
        let bytes = Double(tensor.byteCount) / Double(gather.ranks.count)
        let end = begin + (model.loadSeconds + bytes / model.loadRate) * slowness[Int(rank)]
        note(.load, Int(rank), begin, end)
        arrived[index, default: []].append((rank, end))
        guard let waiting = arrived[index], waiting.count == gather.ranks.count else { return }
        arrived[index] = nil
        let start = waiting.map(\.time).max() ?? end
        let nodes = Set(gather.ranks.map { plan.trainers.node(of: Int($0)) })
        let others = bytes * Double(gather.ranks.count - 1)
        let isRemote = nodes.count > 1
        let seconds = model.gatherSeconds + others / (isRemote ? model.nicRate : model.nodeRate)
        for (member, time) in waiting {
            note(.wait, Int(member), time, start)
            note(.gather, Int(member), start, start + seconds)
            device[Int(member)] = start + seconds
            // What a collective takes of the NIC, writes do not get.
            if isRemote {
                sender[Int(member)] = max(sender[Int(member)], start) + others / model.nicRate
            }
            advance(member)
        }
    }

    private mutating func serial(_ task: PlanTask) {
        let rank = Int(task.owner)
        var now = device[rank]
        let input = Double(plan.inputBytes(of: task))
        if task.preparation.contains(.fuse) { now = spend(.fuse, rank, now, input / model.fuseRate) }
        if task.preparation.contains(.quantise) {
            now = spend(.quantise, rank, now, input / model.quantiseRate)
        }
        device[rank] = now
        write(task, from: max(host[rank], now))
    }

    private mutating func spend(
        _ stage: Prediction.Stage, _ rank: Int, _ begin: Double, _ seconds: Double
    ) -> Double {
        let end = begin + seconds + model.kernelSeconds * slowness[rank]
        note(stage, rank, begin, end)
        return end
    }

    // MARK: Direct

    private mutating func pipelined(_ task: PlanTask) {
        let rank = Int(task.owner)
        let input = Double(plan.inputBytes(of: task))
        let fetched = Double(plan.inputBytes(of: task, fetched: true))
        var begin = loader[rank]
        loader[rank] += (model.loadSeconds + (input - fetched) / model.loadRate) * slowness[rank]
        note(.load, rank, begin, loader[rank])
        var ready = loader[rank]
        if fetched > 0 {
            begin = ready
            ready += model.gatherSeconds + fetched / model.nicRate
            note(.gather, rank, begin, ready)
        }
        if !task.preparation.subtracting(.gather).isEmpty {
            var now = max(device[rank], ready)
            if task.preparation.contains(.fuse) { now = spend(.fuse, rank, now, input / model.fuseRate) }
            if task.preparation.contains(.quantise) {
                now = spend(.quantise, rank, now, input / model.quantiseRate)
            }
            device[rank] = now
            ready = now
        }
        write(task, from: max(host[rank], ready))
    }

    // MARK: Writes

    private mutating func write(_ task: PlanTask, from start: Double) {
        let rank = Int(task.owner)
        let bytes = Double(plan.outputBytes(of: task) + plan.scaleBytes(of: task))
        let seconds = bytes / model.nicRate
        var now = start
        for write in plan.writes[task.writes.indices] {
            let begin = now
            now += model.submitSeconds
            note(.submit, rank, begin, now)
            let leaves = max(sender[rank], now)
            sender[rank] = leaves + seconds
            let target = Int(write.rank)
            let arrives = max(receiver[target], leaves) + seconds
            receiver[target] = arrives
            result.senderSeconds[rank] += seconds
            result.receiverSeconds[target] += seconds
            result.arrivals[target] = max(result.arrivals[target], arrives)
            lastWrite[rank] = max(lastWrite[rank], arrives, sender[rank])
        }
        host[rank] = now
    }

    mutating func finished() -> Prediction {
        let ranks = position.indices.filter { !plan.sequences[$0].isEmpty }
        result.seconds = max(lastWrite.max() ?? 0, host.max() ?? 0)
        for rank in ranks {
            let end = plan.policy == .direct ? host[rank] : max(host[rank], device[rank])
            note(.rest, rank, end, lastWrite[rank])
            note(.wait, rank, max(end, lastWrite[rank]), result.seconds)
            guard plan.policy == .fullTensor, let wait = Prediction.Stage.allCases.firstIndex(of: .wait)
            else {
                continue
            }
            totals[rank][wait] += result.seconds - totals[rank].reduce(0, +)
        }
        for (index, stage) in Prediction.Stage.allCases.enumerated() where !ranks.isEmpty {
            result.stages[stage] = ranks.reduce(0) { $0 + totals[$1][index] } / Double(ranks.count)
            result.calls[stage] = ranks.reduce(0) { $0 + counts[$1][index] } / Double(ranks.count)
        }
        return result
    }
}

/// Ranks by the time of their next step.
private struct RankHeap {
    private var entries: [(time: Double, rank: Int32)] = []

    mutating func push(_ time: Double, _ rank: Int32) {
        entries.append((time, rank))
        var child = entries.count - 1
        while child > 0, entries[child] < entries[(child - 1) / 2] {
            entries.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    mutating func pop() -> (time: Double, rank: Int32)? {
        guard let first = entries.first else { return nil }
        let last = entries.removeLast()
        guard !entries.isEmpty else { return first }
        entries[0] = last
        var parent = 0
        while 2 * parent + 1 < entries.count {
            var child = 2 * parent + 1
            if child + 1 < entries.count, entries[child + 1] < entries[child] { child += 1 }
            guard entries[child] < entries[parent] else { break }
            entries.swapAt(child, parent)
            parent = child
        }
        return first
    }
}
