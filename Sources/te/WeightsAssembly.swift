internal import TransferEngine
internal import WeightTransfer

/// What inference ranks must hold, and what they held together: slowly, row by row, from the layouts alone.
enum WeightAssembly {
    /// A target before it is quantised, made of whole parameters.
    static func target(
        _ target: Target, _ model: ModelDescription, _ parameter: (Int) throws -> [UInt8]
    ) rethrows -> [UInt8] {
        let size = target.parts.first.map { model.tensors[$0.source].type.byteCount } ?? 1
        var result = [UInt8](repeating: 0, count: target.box.count * size)
        for part in target.parts {
            let whole = try parameter(part.source)
            forEachRow(part, target, model) { row, place, count in
                result.replaceSubrange(
                    place * size..<(place + count) * size, with: whole[row * size..<(row + count) * size])
            }
        }
        return result
    }

    /// A whole parameter, made of the targets that have parts of it; nil where some of it is in none.
    static func parameter(
        _ tensor: Int, _ plan: Plan, _ target: (Target) throws -> [UInt8]
    ) rethrows -> [UInt8]? {
        let description = plan.model.tensors[tensor]
        let size = description.type.byteCount
        var result = [UInt8](repeating: 0, count: description.byteCount)
        var isThere = [Bool](repeating: false, count: description.count)
        for candidate in plan.inference.targets where candidate.parts.contains(where: { $0.source == tensor })
        {
            guard candidate.type == description.type, !candidate.hasBlockScales else { return nil }
            let bytes = try target(candidate)
            for part in candidate.parts where part.source == tensor {
                forEachRow(part, candidate, plan.model) { row, place, count in
                    result.replaceSubrange(
                        row * size..<(row + count) * size, with: bytes[place * size..<(place + count) * size])
                    isThere.replaceSubrange(row..<row + count, with: repeatElement(true, count: count))
                }
            }
        }
        return isThere.allSatisfy { $0 } ? result : nil
    }

    /// First element in the parameter and in the target, and elements, of each row of a part that is not transposed.
    private static func forEachRow(
        _ part: Target.Part, _ target: Target, _ model: ModelDescription, _ body: (Int, Int, Int) -> Void
    ) {
        let whole = Box(shape: model.tensors[part.source].shape)
        for plane in 0..<part.box.planes.count {
            for row in 0..<part.box.rows.count {
                let from =
                    ((part.box.planes.lowerBound + plane) * whole.rows.count + part.box.rows.lowerBound + row)
                    * whole.columns.count + part.box.columns.lowerBound
                let to =
                    ((part.place.planes.lowerBound + plane) * target.box.rows.count
                        + part.place.rows.lowerBound + row) * target.box.columns.count
                    + part.place.columns.lowerBound
                body(from, to, part.box.columns.count)
            }
        }
    }
}
