extension Linter {
    /// Larger than any memory: sums of some of these are still numbers.
    private static let most = 1 << 48

    /// Nothing that is computed with a plan overflows. A plan that was read from a file may say anything.
    func checkBounds() {
        let sizes = [plan.watermarkBytes, plan.taskBytes] + plan.inference.regionBytes
        if let size = sizes.first(where: { !(0...Self.most).contains($0) }) {
            note(.malformed, "a region, a watermark or a task of \(size) bytes")
        }
        for target in plan.inference.targets { check(target) }
        for write in plan.writes
        where !(0...Self.most).contains(write.offset) || !(-1...Self.most).contains(write.scaleOffset) {
            note(
                .malformed, "something is written to byte \(write.offset), its scales to \(write.scaleOffset)"
            )
        }
        guard findings.isEmpty else { return }
        for (index, task) in plan.tasks.enumerated() {
            // Where there is no such target the structure is wrong, which is found next.
            guard plan.inference.targets.indices.contains(Int(task.target)) else { continue }
            let target = plan.inference.targets[Int(task.target)]
            if !target.box.contains(task.box) {
                note(.coverage, "task \(index), \(name(task)), is outside of \(target.box)")
            }
            guard task.pieces.first >= 0, task.pieces.indices.upperBound <= plan.pieces.count else {
                continue
            }
            for piece in plan.pieces[task.pieces.indices] where target.parts.indices.contains(Int(piece.part))
            {
                let part = target.parts[Int(piece.part)]
                if !part.box.contains(piece.box) {
                    note(.source, "task \(index), \(name(task)), takes \(piece.box) of \(part.box)")
                }
            }
        }
    }

    /// Sums of bytes are numbers, too. The structure has to be right.
    func checkSums() {
        var total = 0
        func add(_ bytes: Int, times: Int = 1) {
            let (product, isLarge) = bytes.multipliedReportingOverflow(by: times)
            let (sum, isLarger) = total.addingReportingOverflow(product)
            total = isLarge || isLarger ? .max : sum
        }
        for task in plan.tasks {
            add(plan.outputBytes(of: task) + plan.scaleBytes(of: task), times: Int(task.writes.count))
            for piece in plan.pieces[task.pieces.indices] { add(plan.bytes(of: piece, task)) }
        }
        for gather in plan.gathers {
            add(plan.model.tensors[Int(gather.tensor)].byteCount, times: gather.ranks.count)
        }
        if total > 1 << 60 { note(.malformed, "more bytes are moved than any memory has") }
    }

    private func check(_ target: Target) {
        let bytes = (target.shape + [target.type.byteCount]).product
        guard let bytes, bytes <= Self.most else {
            note(.malformed, "'\(target.name)' of shape \(target.shape) is larger than any memory")
            return
        }
        for replica in target.replicas
        where !(0...Self.most).contains(replica.offset) || !(-1...Self.most).contains(replica.scaleOffset) {
            note(.region, "'\(target.name)' is at byte \(replica.offset) of rank \(replica.rank)")
        }
        for part in target.parts {
            guard plan.model.tensors.indices.contains(part.source) else {
                note(.malformed, "'\(target.name)' names parameter \(part.source), which there is not")
                continue
            }
            let turned = part.isTransposed ? part.box.transposed : part.box
            let isAsLarge =
                turned.planes.count == part.place.planes.count && turned.rows.count == part.place.rows.count
                && turned.columns.count == part.place.columns.count
            if !plan.model.tensors[part.source].box.contains(part.box) || !target.box.contains(part.place)
                || !isAsLarge
            {
                note(.malformed, "'\(target.name)' takes \(part.box) to \(part.place), which cannot be")
            }
        }
    }
}
