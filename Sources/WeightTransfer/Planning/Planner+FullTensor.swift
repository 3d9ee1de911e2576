internal import TransferCore

// The order that the paper describes: each parameter is gathered whole on the ranks of its mesh, projections are fused and
// quantised there, and the ranks that have the result share the writes. Of the ranks that could, those gather a parameter that
// have least to send; but what experts have goes to them in turn, so that some gather only what is fused. The latter is our
// reading: the rank of the paper's table gathers twice for each fusion, and nothing else.
extension Planner {
    mutating func addGathered() throws(TransferError) {
        guard options.excluded.isEmpty else {
            throw TransferError(
                .invalidArgument, "a full-tensor plan needs all ranks of each mesh; plan with direct")
        }
        var steps: [[PlanStep]] = Array(repeating: [], count: trainers.worldSize)
        var turns: [Int: Int] = [:]
        // Parameters of one mesh follow each other, those that no expert has first.
        let names = model.tensors.map { ParameterName($0.name).expert != nil }
        let isExpert = inference.targets.map { names[$0.parts[0].source] }
        for wanted in [false, true] {
            for (key, members) in grouped(where: { isExpert[$0] == wanted }) {
                let mesh = trainers.meshes[trainers.tensors[key[0]].mesh]
                let groups = Self.replicaGroups(mesh, trainers.tensors[key[0]].placements)
                let turn = turns[trainers.tensors[key[0]].mesh, default: 0] % groups.count
                let group = wanted ? groups[turn] : leastLoaded(groups)
                turns[trainers.tensors[key[0]].mesh, default: 0] += 1
                for tensor in key {
                    plan.gathers.append(PlanGather(tensor: Int32(tensor), ranks: group))
                    for rank in group { steps[Int(rank)].append(.gather(Int32(plan.gathers.count - 1))) }
                }
                for number in members { share(number, group, &steps) }
            }
        }
        plan.sequences = steps
    }

    /// The ranks that have least to send so far.
    private func leastLoaded(_ groups: [[Int32]]) -> [Int32] {
        groups.min { left, right in
            left.reduce(0) { $0 + load[Int($1)] } < right.reduce(0) { $0 + load[Int($1)] }
        } ?? []
    }

    /// Targets that are made of the same parameters, with those parameters, in order.
    private func grouped(where isWanted: (Int) -> Bool) -> [(key: [Int], members: [Int])] {
        var places: [[Int]: Int] = [:]
        var result: [(key: [Int], members: [Int])] = []
        for number in inference.targets.indices where isWanted(number) {
            guard !replicas(of: inference.targets[number]).isEmpty else { continue }
            let key = inference.targets[number].parts.map(\.source)
            if let place = places[key] {
                result[place].members.append(number)
            } else {
                places[key] = result.count
                result.append((key, [number]))
            }
        }
        return result
    }

    /// Sets of ranks that hold all of a parameter together: one for each position along the replicated dimensions.
    private static func replicaGroups(_ mesh: Mesh, _ placements: [Placement]) -> [[Int32]] {
        var groups: [Int: [Int32]] = [:]
        for (position, rank) in mesh.ranks.enumerated() {
            var stride = mesh.ranks.count
            var key = 0
            for (length, placement) in zip(mesh.shape, placements) {
                stride /= length
                if placement == .replicate { key = key * length + position / stride % length }
            }
            groups[key, default: []].append(Int32(rank))
        }
        return groups.keys.sorted().map { groups[$0] ?? [] }
    }

    /// Divides the receivers of a target among the ranks that have it, by what these have to send so far.
    private mutating func share(_ number: Int, _ group: [Int32], _ steps: inout [[PlanStep]]) {
        let target = inference.targets[number]
        let replicas = replicas(of: target)
        let owners = group.sorted { (load[Int($0)], $0) < (load[Int($1)], $1) }.prefix(replicas.count)
        for (turn, owner) in owners.enumerated() {
            let mine = stride(from: turn, to: replicas.count, by: owners.count).map { replicas[$0] }
            let first = plan.pieces.count
            for (number, part) in target.parts.enumerated() {
                plan.pieces.append(PlanPiece(rank: owner, part: Int32(number), box: part.box))
            }
            var preparation: Preparation = target.parts.count > 1 ? [.gather, .fuse] : .gather
            if target.hasBlockScales { preparation.insert(.quantise) }
            append(number, target, target.box, owner, preparation, pieces: first, mine)
            steps[Int(owner)].append(.task(Int32(plan.tasks.count - 1)))
        }
    }
}
