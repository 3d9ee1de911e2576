import Testing
import TransferEngine
@testable import WeightTransfer

/// Plans of small random models, element by element against the layouts they were made from.
@Suite struct PlanTests {
    /// Does a plan with numbers for elements: parameter `t` has `t * 2^32 + index` everywhere.
    static func perform(_ plan: Plan) -> [[Int: [Int]]] {
        var regions: [[Int: [Int]]] = Array(repeating: [:], count: plan.inference.worldSize)
        for (number, target) in plan.inference.targets.enumerated() {
            for replica in target.replicas {
                regions[Int(replica.rank)][number] = Array(repeating: -1, count: target.box.count)
            }
        }
        for steps in plan.sequences {
            for case .task(let index) in steps {
                let task = plan.tasks[Int(index)]
                let target = plan.target(of: task)
                for write in plan.writes[task.writes.indices] {
                    guard let replica = target.replicas.first(where: { $0.rank == write.rank }) else {
                        continue
                    }
                    for piece in plan.pieces[task.pieces.indices] {
                        copy(plan, task, target, piece, write.offset - replica.offset) {
                            regions[Int(write.rank)][Int(task.target)]?[$0] = $1
                        }
                    }
                }
            }
        }
        return regions
    }

    private static func copy(
        _ plan: Plan, _ task: PlanTask, _ target: Target, _ piece: PlanPiece, _ offset: Int,
        _ store: (Int, Int) -> Void
    ) {
        let part = target.parts[Int(piece.part)]
        let source = plan.model.tensors[part.source].box
        let width = target.box.columns.count
        // The write says where the box's first element goes; rows follow at the target's own distance.
        let first = offset / target.type.byteCount
        for plane in piece.box.planes {
            for row in piece.box.rows {
                for column in piece.box.columns {
                    let one = Box(
                        planes: plane..<plane + 1, rows: row..<row + 1, columns: column..<column + 1)
                    let place = part.target(of: one)
                    let rows =
                        (place.planes.lowerBound - task.box.planes.lowerBound) * target.box.rows.count
                        + place.rows.lowerBound - task.box.rows.lowerBound
                    let index = first + rows * width + place.columns.lowerBound - task.box.columns.lowerBound
                    let element = (plane * source.rows.count + row) * source.columns.count + column
                    store(index, part.source << 32 + element)
                }
            }
        }
    }

    /// What the layout says, without any planning.
    static func expected(_ plan: Plan) -> [[Int: [Int]]] {
        var regions: [[Int: [Int]]] = Array(repeating: [:], count: plan.inference.worldSize)
        for (number, target) in plan.inference.targets.enumerated() {
            var content = Array(repeating: -1, count: target.box.count)
            for part in target.parts {
                let source = plan.model.tensors[part.source].box
                for plane in part.box.planes {
                    for (i, row) in part.box.rows.enumerated() {
                        for (j, column) in part.box.columns.enumerated() {
                            let (r, c) = part.isTransposed ? (j, i) : (i, j)
                            let index =
                                ((part.place.planes.lowerBound + plane - part.box.planes.lowerBound)
                                    * target.box.rows.count + part.place.rows.lowerBound + r)
                                * target.box.columns.count + part.place.columns.lowerBound + c
                            content[index] =
                                part.source << 32 + (plane * source.rows.count + row) * source.columns.count
                                + column
                        }
                    }
                }
            }
            for replica in target.replicas { regions[Int(replica.rank)][number] = content }
        }
        return regions
    }

    @Test(arguments: 0..<150) func everyElementArrivesOnceWhereItBelongs(seed: UInt64) throws {
        let plan = try RandomLayouts(seed: seed).plan()
        #expect(plan.lint() == [])
        #expect(Self.perform(plan) == Self.expected(plan))
        #expect(try Plan(decoding: plan.encoded()) == plan)
    }

    @Test(arguments: 0..<40) func plansWithoutALostReplicaDoTheSame(seed: UInt64) throws {
        var layouts = RandomLayouts(seed: seed)
        let whole = try layouts.plan()
        let lost = Int.random(in: 0..<whole.trainers.worldSize, using: &layouts.random)
        var options = layouts.options
        options.excluded = [lost]
        do {
            let plan = try Planner.plan(
                whole.model, from: whole.trainers, to: whole.inference, options: options)
            #expect(plan.lint() == [])
            #expect(plan.tasks.allSatisfy { $0.owner != Int32(lost) })
            #expect(Self.perform(plan) == Self.expected(plan))
        } catch {
            #expect(error.code == .unreachable)
            #expect(error.message.contains("lost trainer ranks"))
        }
    }

    @Test func truncatedAndAlteredFilesAreRefused() throws {
        let bytes = try RandomLayouts(seed: 3).plan().encoded()
        for end in stride(from: 0, to: bytes.count, by: 7) {
            #expect(throws: TransferError.self) { try Plan(decoding: Array(bytes[..<end])) }
        }
        for place in stride(from: 0, to: bytes.count, by: 11) {
            var altered = bytes
            altered[place] ^= 0x40
            #expect(throws: TransferError.self) { try Plan(decoding: altered) }
        }
        var newer = bytes
        newer[4] = 9
        #expect(throws: TransferError.self) { try Plan(decoding: newer) }
    }

    @Test func aPlanDiffersFromAnotherByWhatWasMoved() throws {
        let layouts = RandomLayouts(seed: 3)
        let plan = try layouts.plan()
        #expect(PlanDifference(from: plan, to: plan).isEmpty)
        var other = plan
        other.tasks[0].owner = (plan.tasks[0].owner + 1) % Int32(plan.trainers.worldSize)
        let difference = PlanDifference(from: plan, to: other)
        #expect(difference.moved == 1 && difference.added == 0 && difference.removed == 0)
        #expect(difference.sentBytes.reduce(0, +) == 0)
        #expect(difference.sentBytes[Int(other.tasks[0].owner)] > 0)
        other.watermarkBytes += 1
        #expect(PlanDifference(from: plan, to: other).notes.count == 1)
    }

    /// Receivers whose tasks are of other sizes, and so more or fewer, have everything at about the same time.
    @Test func receiversAreDoneTogether() throws {
        let model = try ModelDescription(
            name: "wide and narrow",
            tensors: (0..<16).flatMap {
                [
                    TensorDescription("model.layers.\($0).mlp.up_proj.weight", [1024, 128]),
                    TensorDescription("model.layers.\($0).mlp.down_proj.weight", [256, 512]),
                ]
            })
        var layout = try ParallelInference(isQuantised: true).layout(of: model)
        layout = InferenceLayout(
            worldSize: 2, regionBytes: [layout.regionBytes[0], layout.regionBytes[0]],
            targets: layout.targets.enumerated().map { index, target in
                var target = target
                for replica in target.replicas.indices { target.replicas[replica].rank = Int32(index % 2) }
                return target
            })
        var options = Planner.Options()
        options.taskBytes = 64 << 10
        let plan = try Planner.plan(
            model, from: ParallelTrainer(fsdp: 2).layout(of: model), to: layout, options: options)
        for steps in plan.sequences {
            var bytes = 0
            var last: [Int32: Int] = [:]
            for case .task(let number) in steps {
                let task = plan.tasks[Int(number)]
                bytes += plan.outputBytes(of: task)
                last[plan.writes[Int(task.writes.first)].rank] = bytes
            }
            #expect(last.count == 2)
            for end in last.values { #expect(Double(end) > 0.9 * Double(bytes)) }
        }
        #expect(Set(plan.tasks.map { plan.outputBytes(of: $0) }).count > 1)
    }

    /// The paper's largest case. How long it takes is for the benchmark; that it is right is for here.
    @Test func gatheredPlansCoverEverything() throws {
        let model = PublishedModel.smolLM2.description
        var options = Planner.Options()
        options.policy = .fullTensor
        let plan = try Planner.plan(
            model, from: ParallelTrainer(fsdp: 4, replicas: 2, pipeline: 2).layout(of: model),
            to: ParallelInference(tensor: 2, replicas: 2, isQuantised: true).layout(of: model),
            options: options)
        #expect(plan.lint() == [])
        #expect(plan.gathers.count == model.tensors.count)
        #expect(Plan.imbalance(plan.receivedBytes) < 1.5)
    }
}
