internal import CTransferEngine
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// A plan as handles know it, with what is computed of it once.
final class WeightsPlan: Sendable {
    let plan: Plan
    private let computed = Mutex(Computed())

    private struct Computed {
        var findings: [LintFinding]?
        var parameters: CStrings?
        var targets: CStrings?
        var numbers: [String: Int]?
    }

    init(_ plan: Plan) { self.plan = plan }

    var findings: [LintFinding] {
        computed.withLock { computed in
            let findings = computed.findings ?? plan.lint()
            computed.findings = findings
            return findings
        }
    }

    /// Roles compute with a plan, and write by it: only what has been proved will do.
    func refuseUnproven() throws(Failure) {
        guard plan.policy == .direct else {
            throw Failure(TE_EINVALID, "a \(plan.policy.rawValue) plan can be predicted, not done")
        }
        if let finding = findings.first(where: { $0.rule != .balance }) {
            throw Failure(TE_EINVALID, "the plan is not good: \(finding)")
        }
    }

    /// The number of a parameter; nil when there is none of this name.
    func number(of parameter: String) -> Int? {
        computed.withLock { computed in
            let numbers =
                computed.numbers
                ?? Dictionary(uniqueKeysWithValues: plan.model.tensors.enumerated().map { ($1.name, $0) })
            computed.numbers = numbers
            return numbers[parameter]
        }
    }

    func shards(of rank: UInt32) throws(Failure) -> [te_weights_shard] {
        let ranks = plan.trainers.worldSize
        guard rank < ranks else { throw Failure(TE_EINVALID, "trainer rank \(rank) of \(ranks)") }
        let names = computed.withLock { computed in
            let names = computed.parameters ?? CStrings(plan.model.tensors.map(\.name))
            computed.parameters = names
            return names
        }
        let memory = ShardMemory(model: plan.model, trainers: plan.trainers, rank: Int(rank))
        return memory.entries.sorted { $0.key < $1.key }.map { number, entry in
            te_weights_shard(plan.model.tensors[number], names[number], entry)
        }
    }

    func targets(of rank: UInt32) throws(Failure) -> [te_weights_target] {
        let ranks = plan.inference.worldSize
        guard rank < ranks else { throw Failure(TE_EINVALID, "inference rank \(rank) of \(ranks)") }
        let names = computed.withLock { computed in
            let names = computed.targets ?? CStrings(plan.inference.targets.map(\.name))
            computed.targets = names
            return names
        }
        return plan.inference.targets.enumerated().compactMap { number, target in
            target.replicas.first { $0.rank == Int32(rank) }.map {
                te_weights_target(target, names[number], $0)
            }
        }
    }
}

let weightsPlans = Standing<WeightsPlan>(14, "te_weights_plan")

/// Texts as C has them, all in one piece of memory.
final class CStrings: @unchecked Sendable {
    // SAFETY: nothing is written after `init`.
    private let bytes: UnsafeMutableBufferPointer<CChar>
    private let offsets: [Int]

    init(_ texts: [String]) {
        bytes = .allocate(capacity: texts.reduce(0) { $0 + $1.utf8.count + 1 })
        var offsets: [Int] = []
        var place = 0
        for text in texts {
            offsets.append(place)
            for byte in text.utf8 {
                bytes.initializeElement(at: place, to: CChar(bitPattern: byte))
                place += 1
            }
            bytes.initializeElement(at: place, to: 0)
            place += 1
        }
        self.offsets = offsets
    }

    deinit { bytes.deallocate() }

    subscript(number: Int) -> UnsafePointer<CChar>? {
        bytes.baseAddress.map { UnsafePointer($0 + offsets[number]) }
    }
}

/// Three numbers, 0 where there are fewer.
private func three(_ numbers: [Int]) -> (UInt64, UInt64, UInt64) {
    func number(_ index: Int) -> UInt64 { numbers.indices.contains(index) ? UInt64(numbers[index]) : 0 }
    return (number(0), number(1), number(2))
}

extension DataType {
    /// The number in the C interface.
    fileprivate var number: UInt32 {
        switch self {
        case .bf16: UInt32(TE_WEIGHTS_BF16)
        case .f16: UInt32(TE_WEIGHTS_F16)
        case .f32: UInt32(TE_WEIGHTS_F32)
        case .f8e4m3: UInt32(TE_WEIGHTS_F8_E4M3)
        case .u8: UInt32(TE_WEIGHTS_U8)
        case .i32: UInt32(TE_WEIGHTS_I32)
        case .i64: UInt32(TE_WEIGHTS_I64)
        }
    }
}

extension te_weights_shard {
    fileprivate init(_ tensor: TensorDescription, _ name: UnsafePointer<CChar>?, _ entry: ShardMemory.Entry) {
        let all = [entry.box.planes, entry.box.rows, entry.box.columns]
        // Vectors are one column.
        let ranges = tensor.shape.count == 1 ? [all[1]] : Array(all.suffix(tensor.shape.count))
        self.init(
            size: UInt32(MemoryLayout<te_weights_shard>.size), type: tensor.type.number, name: name,
            dimensions: UInt64(tensor.shape.count), shape: three(tensor.shape),
            first: three(ranges.map(\.lowerBound)), extent: three(ranges.map(\.count)),
            offset: UInt64(entry.offset), length: UInt64(entry.box.count * tensor.type.byteCount))
    }
}

extension te_weights_target {
    fileprivate init(_ target: Target, _ name: UnsafePointer<CChar>?, _ replica: Target.Replica) {
        let (rows, columns) = target.scaleShape
        let scales = Array([target.box.planes.count, rows, columns].suffix(target.shape.count))
        self.init(
            size: UInt32(MemoryLayout<te_weights_target>.size), type: target.type.number, name: name,
            dimensions: UInt64(target.shape.count), shape: three(target.shape),
            offset: UInt64(replica.offset), length: UInt64(target.byteCount),
            scale_offset: UInt64(max(0, replica.scaleOffset)), scale_length: UInt64(target.scaleByteCount),
            scale_shape: target.hasBlockScales ? three(scales) : (0, 0, 0))
    }
}
