import Testing
@testable import WeightTransfer

/// Plants one defect of each kind in a good plan; lint must name it and its place.
@Suite struct LintTests {
    private func plan() throws -> Plan {
        let model = try ModelDescription(
            name: "m",
            tensors: [
                TensorDescription("model.layers.0.self_attn.q_proj.weight", [512, 256]),
                TensorDescription("model.layers.0.self_attn.k_proj.weight", [128, 256]),
                TensorDescription("model.layers.0.self_attn.v_proj.weight", [128, 256]),
                TensorDescription("model.layers.0.mlp.down_proj.weight", [256, 1024]),
            ], attention: AttentionShape(heads: 8, keyValueHeads: 2, headSize: 64))
        var options = Planner.Options()
        options.taskBytes = 32 << 10
        return try Planner.plan(
            model, from: ParallelTrainer(fsdp: 4, replicas: 2).layout(of: model),
            to: ParallelInference(tensor: 2, replicas: 2, isQuantised: true).layout(of: model),
            options: options)
    }

    private func expect(
        _ rule: LintFinding.Rule, _ words: String, sourceLocation: SourceLocation = #_sourceLocation,
        _ plant: (inout Plan) -> Void
    ) throws {
        var plan = try plan()
        #expect(plan.lint() == [])
        plant(&plan)
        let findings = plan.lint()
        #expect(
            findings.contains { $0.rule == rule && $0.message.contains(words) },
            "\(findings)", sourceLocation: sourceLocation)
    }

    @Test func aMissingTask() throws {
        try expect(.coverage, "is never written on rank") { plan in
            let index = Int32(plan.tasks.count - 1)
            plan.tasks.removeLast()
            for rank in plan.sequences.indices { plan.sequences[rank].removeAll { $0 == .task(index) } }
        }
    }

    @Test func aTaskTwice() throws {
        try expect(.coverage, "is written twice on rank") { plan in
            plan.tasks.append(plan.tasks[0])
            plan.sequences[Int(plan.tasks[0].owner)].append(.task(Int32(plan.tasks.count - 1)))
        }
    }

    @Test func aMissingReplica() throws {
        try expect(.coverage, "elements are missing") { $0.tasks[1].writes.count -= 1 }
    }

    @Test func aWrongPlace() throws {
        try expect(.coverage, "its place is") { $0.writes[3].offset += 128 }
        try expect(.coverage, "the scales of") { $0.writes[3].scaleOffset += 4 }
        try expect(.coverage, "has no such tensor") { $0.writes[0].rank = 1 }
    }

    @Test func anOverlapInARegion() throws {
        try expect(.region, "share") { plan in
            plan.inference.targets[2].replicas[0].offset = plan.inference.targets[0].replicas[0].offset
        }
        try expect(.region, "whose region has") { $0.inference.regionBytes[0] = 1000 }
    }

    @Test func aPieceThatItsRankHasNot() throws {
        try expect(.source, "has not got") { plan in
            let rank = plan.pieces[0].rank
            plan.pieces[0].rank = (rank + 1) % 4 + (rank >= 4 ? 0 : 4)
        }
    }

    @Test func aPieceTooFew() throws {
        try expect(.source, "no piece has") { plan in
            guard let index = plan.tasks.indices.first(where: { plan.tasks[$0].pieces.count > 1 }) else {
                return
            }
            plan.tasks[index].pieces.count -= 1
        }
    }

    @Test func theWatermark() throws {
        try expect(.watermark, "the watermark is 1000") { $0.watermarkBytes = 1000 }
    }

    @Test func tasksOfOthersAndForgottenOnes() throws {
        try expect(.order, "is done 0 times") {
            $0.sequences[Int($0.tasks[0].owner)].removeAll { $0 == .task(0) }
        }
        try expect(.order, "which is rank") {
            $0.sequences[(Int($0.tasks[0].owner) + 1) % 8].append(.task(0))
        }
    }

    @Test func aRankThatIsIdle() throws {
        try expect(.balance, "has it too and sends 0") { plan in
            // Everything that ranks 4 to 7 do is done by 0 to 3, which hold the same.
            for index in plan.tasks.indices where plan.tasks[index].owner >= 4 {
                plan.tasks[index].owner -= 4
                for piece in plan.tasks[index].pieces.indices { plan.pieces[piece].rank %= 4 }
            }
            for rank in 4..<8 {
                plan.sequences[rank - 4] += plan.sequences[rank]
                plan.sequences[rank] = []
            }
        }
    }

    @Test func indicesThatPointNowhere() throws {
        try expect(.malformed, "names a target") { $0.tasks[0].target = 99 }
        try expect(.malformed, "a piece of part 9") { $0.pieces[0].part = 9 }
        try expect(.malformed, "is written to rank 77") { $0.writes[0].rank = 77 }
        try expect(.malformed, "is to do") { $0.sequences[0].append(.task(9999)) }
    }

    @Test func numbersThatCannotBe() throws {
        let most = Int(Int32.max)
        try expect(.malformed, "is larger than any memory") {
            $0.inference.targets[0].shape = [most, most, most]
        }
        try expect(.malformed, "names parameter 99") { $0.inference.targets[0].parts[0].source = 99 }
        try expect(.malformed, "which cannot be") { $0.inference.targets[0].parts[0].place.endRow += 1000 }
        try expect(.malformed, "which cannot be") { $0.inference.targets[0].parts[0].box.endRow -= 1 }
        try expect(.malformed, "something is written to byte") { $0.writes[0].offset = .max }
        try expect(.malformed, "bytes") { $0.inference.regionBytes[1] = .max }
        try expect(.malformed, "bytes") { $0.watermarkBytes = .min }
        try expect(.region, "is at byte") { $0.inference.targets[0].replicas[0].offset = .min }
        try expect(.coverage, "is outside of") { $0.tasks[0].box.endColumn = Int32.max }
        try expect(.source, "takes") { $0.pieces[0].box.endRow = Int32.max }
        try expect(.malformed, "more bytes are moved than") { plan in
            plan.model.tensors[0].shape = [1 << 30, 1 << 30]
            plan.gathers = [PlanGather(tensor: 0, ranks: [0, 1, 2, 3])]
        }
        var plan = try plan()
        #expect(plan.malformations().isEmpty)
        plan.tasks[0].target = 99
        #expect(plan.malformations().map(\.rule) == [.malformed])
        // What only a proof finds is not its affair.
        plan = try self.plan()
        plan.watermarkBytes = 1000
        #expect(plan.malformations().isEmpty && !plan.lint().isEmpty)
    }

    @Test func gathersInDifferentOrders() throws {
        let model = PublishedModel.smolLM2.description
        var options = Planner.Options()
        options.policy = .fullTensor
        var plan = try Planner.plan(
            model, from: ParallelTrainer(fsdp: 4).layout(of: model),
            to: ParallelInference().layout(of: model), options: options)
        #expect(plan.lint() == [])
        let places = plan.sequences[2].indices.filter { plan.sequences[2][$0].isGather }
        plan.sequences[2].swapAt(places[4], places[5])
        let findings = plan.lint()
        #expect(
            findings.contains {
                $0.rule == .order && $0.message.contains("rank 2 joins gather 5 before gather 4")
            })
        #expect(findings.allSatisfy { $0.rule == .order })
    }
}

extension PlanStep {
    fileprivate var isGather: Bool { if case .gather = self { true } else { false } }
}
