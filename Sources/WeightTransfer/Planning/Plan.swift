/// Who sends what to whom: computed once from the two layouts, kept as a file, read by everybody.
///
/// Tasks are the unit: one trainer rank makes one box of one target and writes it to all ranks that hold this target.
/// Pieces and writes of all tasks lie in two flat arrays, so that a plan of a million tasks is a few hundred megabytes at most.
public struct Plan: Hashable, Sendable {
    /// The parameters.
    public var model: ModelDescription
    /// Where they come from.
    public var trainers: TrainerLayout
    /// Where they go.
    public var inference: InferenceLayout
    /// How the plan was made.
    public var policy: Policy
    /// Most bytes of temporary memory on a trainer rank.
    public var watermarkBytes: Int
    /// Larger cells are divided; see `Planner.Options.taskBytes`.
    public var taskBytes: Int
    /// Trainer ranks that take no part, because they are lost.
    public var excluded: Set<Int32> = []
    /// Everything that is to be done.
    public var tasks: [PlanTask] = []
    /// What tasks are made of; see `PlanTask.pieces`.
    public var pieces: [PlanPiece] = []
    /// Where tasks go; see `PlanTask.writes`.
    public var writes: [PlanWrite] = []
    /// All-gathers of whole parameters, for `Policy.fullTensor`.
    public var gathers: [PlanGather] = []
    /// For each trainer rank its steps, in order.
    public var sequences: [[PlanStep]] = []

    /// Who prepares what.
    public enum Policy: String, Hashable, Sendable {
        /// Each rank prepares what it holds and fetches only what a block of scales lacks.
        case direct
        /// Every parameter is gathered whole on all ranks of its mesh first, as the paper describes it. For predictions.
        case fullTensor = "full-tensor"
    }

    init(
        model: ModelDescription, trainers: TrainerLayout, inference: InferenceLayout, policy: Policy,
        watermarkBytes: Int, taskBytes: Int
    ) {
        self.model = model
        self.trainers = trainers
        self.inference = inference
        self.policy = policy
        self.watermarkBytes = watermarkBytes
        self.taskBytes = taskBytes
        sequences = Array(repeating: [], count: trainers.worldSize)
    }
}

/// A box of a target, and who makes it.
public struct PlanTask: Hashable, Sendable {
    /// Index into the inference layout's targets.
    public var target: Int32
    /// The trainer rank that prepares and writes it.
    public var owner: Int32
    /// Which part of the target.
    public var box: Box
    /// What is to be done to its pieces.
    public var preparation: Preparation
    /// Its pieces: so many, from this one on.
    public var pieces: PlanRange
    /// Its writes: so many, from this one on.
    public var writes: PlanRange
}

/// Some neighbours in a flat array.
public struct PlanRange: Hashable, Sendable {
    /// The first.
    public var first: Int32
    /// How many.
    public var count: Int32

    init(_ first: Int, count: Int) {
        self.first = Int32(first)
        self.count = Int32(count)
    }

    /// As indices.
    @inline(__always) public var indices: Range<Int> { Int(first)..<Int(first) + Int(count) }
}

/// What happens to pieces before they are written.
public struct Preparation: OptionSet, Hashable, Sendable, CustomStringConvertible {
    public let rawValue: UInt8

    public init(rawValue: UInt8) { self.rawValue = rawValue }

    /// Pieces come from other ranks.
    public static let gather = Preparation(rawValue: 1)
    /// Several parameters become one.
    public static let fuse = Preparation(rawValue: 2)
    /// Rows become columns.
    public static let transpose = Preparation(rawValue: 4)
    /// BF16 becomes FP8 with a scale for each block.
    public static let quantise = Preparation(rawValue: 8)

    public var description: String {
        let names = [
            (Preparation.gather, "gather"), (.fuse, "fuse"), (.transpose, "transpose"),
            (.quantise, "quantise"),
        ]
        return isEmpty ? "none" : names.filter { contains($0.0) }.map(\.1).joined(separator: "+")
    }
}

/// A box of a parameter on one trainer rank, which becomes a part of a task.
public struct PlanPiece: Hashable, Sendable {
    /// The trainer rank that has it.
    public var rank: Int32
    /// Which of the target's parts it belongs to.
    public var part: Int32
    /// Which box of the parameter.
    public var box: Box
}

/// A place where a task goes.
public struct PlanWrite: Hashable, Sendable {
    /// The inference rank.
    public var rank: Int32
    /// First byte of the task's first element in the rank's region.
    public var offset: Int
    /// First byte of its first scale; -1 without scales.
    public var scaleOffset: Int
}

/// An all-gather of a parameter.
public struct PlanGather: Hashable, Sendable {
    /// Index into the model's parameters.
    public var tensor: Int32
    /// Those who get all of it.
    public var ranks: [Int32]
}

/// What a rank does next.
public enum PlanStep: Hashable, Sendable {
    /// Index into `Plan.tasks`.
    case task(Int32)
    /// Index into `Plan.gathers`: all its ranks take part.
    case gather(Int32)
}

extension Plan {
    /// The target of a task.
    @inline(__always) public func target(of task: PlanTask) -> Target { inference.targets[Int(task.target)] }

    /// Bytes that a task writes to each of its ranks, without scales.
    public func outputBytes(of task: PlanTask) -> Int {
        task.box.count * inference.targets[Int(task.target)].type.byteCount
    }

    /// Bytes of a task's scales; 0 without.
    public func scaleBytes(of task: PlanTask) -> Int {
        guard inference.targets[Int(task.target)].hasBlockScales else { return 0 }
        return task.box.scaleCount * 4
    }

    /// Bytes that the pieces of a task have where they come from; `fetched` counts those of other ranks only.
    public func inputBytes(of task: PlanTask, fetched: Bool = false) -> Int {
        let target = inference.targets[Int(task.target)]
        return task.pieces.indices.reduce(0) { sum, index in
            let piece = pieces[index]
            if fetched, piece.rank == task.owner { return sum }
            return sum + piece.box.count * model.tensors[target.parts[Int(piece.part)].source].type.byteCount
        }
    }

    /// Temporary memory that a task needs: what it fetches and what it makes. A task without preparation is written from where it
    /// lies and needs none.
    public func temporaryBytes(of task: PlanTask) -> Int {
        temporaryParts(of: task).reduce(0) { $0 + Staging.rounded($1) }
    }

    /// What a task's temporary memory is for: what it fetches, pieces put together before they are quantised, its
    /// output, its scales, and
    /// the entries that tell its receivers.
    func temporaryParts(of task: PlanTask) -> [Int] {
        let entry = ArrivalEntry.byteCount
        if task.preparation.isEmpty { return [0, 0, 0, 0, entry] }
        let isQuantised = task.preparation.contains(.quantise)
        let isAssembled = isQuantised && task.preparation != .quantise
        // Each fetched piece begins at an aligned place.
        let fetched = pieces[task.pieces.indices].reduce(0) { sum, piece in
            piece.rank == task.owner ? sum : sum + Staging.rounded(bytes(of: piece, task))
        }
        return [
            fetched, isAssembled ? 2 * task.box.count : 0, outputBytes(of: task), scaleBytes(of: task), entry,
        ]
    }

    /// Bytes of a piece where it comes from.
    func bytes(of piece: PlanPiece, _ task: PlanTask) -> Int {
        let source = inference.targets[Int(task.target)].parts[Int(piece.part)].source
        return piece.box.count * model.tensors[source].type.byteCount
    }

    /// Bytes that each trainer rank sends to inference ranks.
    public var sentBytes: [Int] {
        var result = Array(repeating: 0, count: trainers.worldSize)
        for task in tasks where result.indices.contains(Int(task.owner)) {
            result[Int(task.owner)] += (outputBytes(of: task) + scaleBytes(of: task)) * Int(task.writes.count)
        }
        return result
    }

    /// Bytes that each inference rank receives.
    public var receivedBytes: [Int] {
        var result = Array(repeating: 0, count: inference.worldSize)
        for task in tasks {
            let bytes = outputBytes(of: task) + scaleBytes(of: task)
            for write in task.writes.indices where result.indices.contains(Int(writes[write].rank)) {
                result[Int(writes[write].rank)] += bytes
            }
        }
        return result
    }

    /// Bytes that each trainer rank gets from other trainer ranks.
    public var fetchedBytes: [Int] {
        var result = Array(repeating: 0, count: trainers.worldSize)
        for task in tasks where task.preparation.contains(.gather) {
            result[Int(task.owner)] += inputBytes(of: task, fetched: true)
        }
        for gather in gathers {
            let bytes = model.tensors[Int(gather.tensor)].byteCount
            for rank in gather.ranks { result[Int(rank)] += bytes - bytes / gather.ranks.count }
        }
        return result
    }
}

extension Box {
    /// Blocks with one scale, of a box that begins at a block.
    var scaleCount: Int {
        let size = Target.blockSize
        return planes.count * ((rows.count + size - 1) / size) * ((columns.count + size - 1) / size)
    }
}

/// How temporary memory is divided.
enum Staging {
    /// Everything begins at a multiple of this.
    static let alignment = 64

    @inline(__always) static func rounded(_ bytes: Int) -> Int {
        (bytes + alignment - 1) / alignment * alignment
    }
}
