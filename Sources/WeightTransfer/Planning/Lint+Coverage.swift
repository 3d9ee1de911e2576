extension Linter {
    /// Every byte of every replica of every target is written exactly once.
    func checkCoverage() {
        var byTarget: [[Int32]] = Array(repeating: [], count: plan.inference.targets.count)
        for (index, task) in plan.tasks.enumerated() { byTarget[Int(task.target)].append(Int32(index)) }
        for (number, target) in plan.inference.targets.enumerated() {
            let tasks = byTarget[number]
            if tasks.isEmpty, !target.replicas.isEmpty {
                note(.coverage, "nothing of '\(target.name)' is written, on rank \(target.replicas[0].rank)")
                continue
            }
            checkPlaces(target, tasks)
            // Mostly all tasks go to all replicas: then one look suffices.
            let isUniform = tasks.allSatisfy { plan.tasks[Int($0)].writes.count == target.replicas.count }
            if isUniform {
                checkTiling(target, tasks.map { plan.tasks[Int($0)].box }, target.replicas.first?.rank ?? 0)
            } else {
                checkEachReplica(target, tasks)
            }
        }
    }

    /// Each write goes to where its replica has the box, and to no replica twice.
    private func checkPlaces(_ target: Target, _ tasks: [Int32]) {
        var places: [Int32: Target.Replica] = [:]
        for replica in target.replicas { places[replica.rank] = replica }
        for index in tasks {
            let task = plan.tasks[Int(index)]
            let offset = target.offset(of: task.box)
            let scales = target.hasBlockScales ? target.scaleOffset(of: task.box) : 0
            var seen: Set<Int32> = []
            for write in plan.writes[task.writes.indices] {
                guard let replica = places[write.rank] else {
                    note(
                        .coverage, "\(name(task)) is written to rank \(write.rank), which has no such tensor")
                    continue
                }
                if write.offset != replica.offset + offset {
                    note(
                        .coverage,
                        "\(name(task)) goes to byte \(write.offset) of rank \(write.rank); its place is "
                            + "\(replica.offset + offset)"
                    )
                }
                if target.hasBlockScales, write.scaleOffset != replica.scaleOffset + scales {
                    note(
                        .coverage,
                        "the scales of \(name(task)) go to byte \(write.scaleOffset) of rank \(write.rank); "
                            + "their place is \(replica.scaleOffset + scales)"
                    )
                }
                if !seen.insert(write.rank).inserted {
                    note(.coverage, "\(name(task)) is written to rank \(write.rank) twice")
                }
            }
        }
    }

    private func checkEachReplica(_ target: Target, _ tasks: [Int32]) {
        var boxes: [Int32: [Box]] = [:]
        for index in tasks {
            let task = plan.tasks[Int(index)]
            for write in plan.writes[task.writes.indices] { boxes[write.rank, default: []].append(task.box) }
        }
        for replica in target.replicas { checkTiling(target, boxes[replica.rank] ?? [], replica.rank) }
    }

    /// Boxes tile a tensor when they lie in it, are disjoint, and have as many elements.
    private func checkTiling(_ target: Target, _ boxes: [Box], _ rank: Int32) {
        let all = target.box
        for box in boxes where !all.contains(box) || box.isEmpty {
            note(.coverage, "'\(target.name)' \(box) is outside of \(all), on rank \(rank)")
            return
        }
        let sorted = boxes.sorted { ($0.firstPlane, $0.firstRow) < ($1.firstPlane, $1.firstRow) }
        if let (one, other) = Self.overlap(sorted), let common = one.intersection(other) {
            note(
                .coverage,
                "'\(target.name)' \(common) is written twice on rank \(rank), in \(one) and in \(other)")
            return
        }
        if target.hasBlockScales {
            for box in boxes
            where box.rows.lowerBound % Target.blockSize != 0
                || box.columns.lowerBound % Target.blockSize != 0
            {
                note(.coverage, "'\(target.name)' \(box) begins inside a block with one scale")
            }
        }
        let covered = boxes.reduce(0) { $0 + $1.count }
        if covered != all.count {
            let hole = Self.hole(all, sorted)
            note(
                .coverage,
                "'\(target.name)' plane \(hole.plane) row \(hole.row) column \(hole.column) is never written "
                    + "on rank \(rank): \(all.count - covered) elements are missing"
            )
        }
    }

    /// Two boxes with common elements, of boxes sorted by plane and row.
    private static func overlap(_ boxes: [Box]) -> (Box, Box)? {
        for (index, box) in boxes.enumerated() {
            for other in boxes[(index + 1)...] {
                // Sorted: once the others begin behind this one, all further ones do.
                if other.firstPlane >= box.endPlane
                    || other.firstPlane == box.firstPlane && box.planes.count == 1
                        && other.firstRow >= box.endRow
                {
                    break
                }
                if box.intersection(other) != nil { return (box, other) }
            }
        }
        return nil
    }

    /// The first element that no box covers.
    private static func hole(_ all: Box, _ boxes: [Box]) -> (plane: Int, row: Int, column: Int) {
        for plane in all.planes {
            for row in all.rows {
                let line = boxes.filter { $0.planes.contains(plane) && $0.rows.contains(row) }
                var column = all.columns.lowerBound
                for box in line.sorted(by: { $0.firstColumn < $1.firstColumn })
                where box.columns.contains(column) {
                    column = box.columns.upperBound
                }
                if column < all.columns.upperBound { return (plane, row, column) }
            }
        }
        return (0, 0, 0)
    }

    // MARK: Regions

    /// Tensors lie inside the regions of their ranks, and do not overlap there.
    func checkRegions() {
        var ranges: [[(begin: Int, end: Int, target: Int32)]] = Array(
            repeating: [], count: plan.inference.worldSize)
        for (number, target) in plan.inference.targets.enumerated() {
            for replica in target.replicas {
                guard plan.inference.regionBytes.indices.contains(Int(replica.rank)) else {
                    note(.region, "'\(target.name)' is on rank \(replica.rank), which there is not")
                    continue
                }
                ranges[Int(replica.rank)].append(
                    (replica.offset, replica.offset + target.byteCount, Int32(number)))
                if target.hasBlockScales {
                    ranges[Int(replica.rank)].append(
                        (replica.scaleOffset, replica.scaleOffset + target.scaleByteCount, Int32(number)))
                }
            }
        }
        for rank in ranges.indices {
            let sorted = ranges[rank].sorted { $0.begin < $1.begin }
            var before: (begin: Int, end: Int, target: Int32) = (0, 0, 0)
            for range in sorted {
                let name = plan.inference.targets[Int(range.target)].name
                if range.begin < 0 || range.end > plan.inference.regionBytes[rank] {
                    note(
                        .region,
                        "'\(name)' takes bytes \(range.begin)..<\(range.end) of rank \(rank), whose region "
                            + "has \(plan.inference.regionBytes[rank])"
                    )
                }
                if range.begin < before.end {
                    note(
                        .region,
                        "'\(name)' and '\(plan.inference.targets[Int(before.target)].name)' share byte "
                            + "\(range.begin) of rank \(rank)"
                    )
                }
                before = range
            }
        }
    }

    // MARK: Sources

    /// The pieces of each task tile its box, and their ranks hold them (or have gathered them).
    func checkSources() {
        var shards = ShardTable(plan.model, plan.trainers)
        for task in plan.tasks {
            let target = plan.inference.targets[Int(task.target)]
            var boxes: [Box] = []
            for piece in plan.pieces[task.pieces.indices] {
                let part = target.parts[Int(piece.part)]
                boxes.append(part.target(of: piece.box))
                let isHeld = shards.shards(of: part.source).contains {
                    $0.box.contains(piece.box) && $0.ranks.contains(piece.rank)
                }
                if plan.policy == .direct, !isHeld {
                    note(
                        .source,
                        "rank \(piece.rank) has not got \(piece.box) of "
                            + "'\(plan.model.tensors[part.source].name)', which \(name(task)) needs"
                    )
                }
                if plan.excluded.contains(piece.rank) {
                    note(.source, "\(name(task)) needs rank \(piece.rank), which is lost")
                }
            }
            checkPieces(task, boxes)
        }
    }

    private func checkPieces(_ task: PlanTask, _ boxes: [Box]) {
        if boxes.count == 1, boxes[0] == task.box { return }
        for box in boxes where !task.box.contains(box) {
            note(.source, "\(name(task)) is made of \(box), which lies outside of it")
            return
        }
        let sorted = boxes.sorted { ($0.firstPlane, $0.firstRow) < ($1.firstPlane, $1.firstRow) }
        if let (one, other) = Self.overlap(sorted) {
            note(.source, "\(name(task)) is made of \(one) and \(other), which overlap")
        } else if boxes.reduce(0, { $0 + $1.count }) != task.box.count {
            let hole = Self.hole(task.box, sorted)
            note(
                .source,
                "\(name(task)): no piece has plane \(hole.plane) row \(hole.row) column \(hole.column)")
        }
    }
}
