// The view for people and scripts. Field names are stable; new ones may be added.
extension Plan {
    /// Figures of the whole plan.
    public var summary: JSON {
        let (sent, received, fetched) = (sentBytes, receivedBytes, fetchedBytes)
        let temporary = tasks.lazy.map { self.temporaryBytes(of: $0) }.max() ?? 0
        return .object([
            "format": .string("te-weight-plan"), "version": .integer(Int(Self.fileVersion)),
            "model": .string(model.name), "parameters": .integer(model.parameterCount),
            "policy": .string(policy.rawValue), "trainers": .integer(trainers.worldSize),
            "receivers": .integer(inference.worldSize), "targets": .integer(inference.targets.count),
            "tasks": .integer(tasks.count), "writes": .integer(writes.count),
            "gathers": .integer(gathers.count),
            "excluded": .array(excluded.sorted().map { .integer(Int($0)) }),
            "watermark_bytes": .integer(watermarkBytes), "largest_task_bytes": .integer(temporary),
            "sent_bytes": .integer(sent.reduce(0, +)), "sent_max_over_mean": .number(Self.imbalance(sent)),
            "received_bytes_max": .integer(received.max() ?? 0),
            "received_max_over_mean": .number(Self.imbalance(received)),
            "fetched_bytes": .integer(fetched.reduce(0, +)),
        ])
    }

    /// One task: where it comes from, what happens, where it goes.
    public func json(of index: Int) -> JSON {
        let task = tasks[index]
        let target = target(of: task)
        return .object([
            "task": .integer(index), "target": .string(target.name), "dtype": .string(target.type.rawValue),
            "owner": .integer(Int(task.owner)), "box": Self.json(task.box),
            "prepare": .string(task.preparation.description),
            "temporary_bytes": .integer(temporaryBytes(of: task)),
            "from": .array(
                pieces[task.pieces.indices].map { piece in
                    .object([
                        "rank": .integer(Int(piece.rank)),
                        "parameter": .string(model.tensors[target.parts[Int(piece.part)].source].name),
                        "box": Self.json(piece.box),
                    ])
                }),
            "to": .array(
                writes[task.writes.indices].map { write in
                    .object([
                        "rank": .integer(Int(write.rank)), "offset": .integer(write.offset),
                        "scale_offset": write.scaleOffset < 0 ? .null : .integer(write.scaleOffset),
                    ])
                }),
            "bytes": .integer(outputBytes(of: task)), "scale_bytes": .integer(scaleBytes(of: task)),
        ])
    }

    private static func json(_ box: Box) -> JSON {
        .array(
            [box.planes, box.rows, box.columns].map {
                .array([.integer($0.lowerBound), .integer($0.upperBound)])
            })
    }
}
