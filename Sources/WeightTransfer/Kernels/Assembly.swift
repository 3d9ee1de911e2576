internal import TransferCore

/// Puts pieces together.
enum Assembly {
    /// Copies rows.
    static func copy(
        _ from: UnsafeRawPointer, _ source: Strips, _ to: UnsafeMutableRawPointer, _ target: Strips
    ) {
        if source.isContiguous, target.isContiguous {
            unsafe (to + target.first).copyMemory(from: from + source.first, byteCount: source.byteCount)
            return
        }
        for row in 0..<source.rowCount {
            unsafe (to + target.offset(row)).copyMemory(
                from: from + source.offset(row), byteCount: source.rowBytes)
        }
    }

    /// Copies rows to columns, in tiles that stay in the cache.
    /// - Precondition: the target has as many rows as the source has columns, and the other way round.
    static func transpose(
        _ from: UnsafeRawPointer, _ source: Strips, _ to: UnsafeMutableRawPointer, _ target: Strips,
        elementBytes: Int
    ) {
        switch elementBytes {
        case 1: unsafe transpose(from, source, to, target, UInt8.self)
        case 2: unsafe transpose(from, source, to, target, UInt16.self)
        case 4: unsafe transpose(from, source, to, target, UInt32.self)
        default: unsafe transpose(from, source, to, target, UInt64.self)
        }
    }

    private static func transpose<Element: BitwiseCopyable>(
        _ from: UnsafeRawPointer, _ source: Strips, _ to: UnsafeMutableRawPointer, _ target: Strips,
        _ type: Element.Type
    ) {
        let size = MemoryLayout<Element>.size
        let tile = 32
        let columns = source.rowBytes / size
        for plane in 0..<source.planes {
            for top in stride(from: 0, to: source.rows, by: tile) {
                for left in stride(from: 0, to: columns, by: tile) {
                    for column in left..<min(left + tile, columns) {
                        let line = unsafe to + target.offset(plane * target.rows + column)
                        for row in top..<min(top + tile, source.rows) {
                            let place = source.offset(plane * source.rows + row) + column * size
                            let element = unsafe from.loadUnaligned(fromByteOffset: place, as: Element.self)
                            unsafe line.storeBytes(of: element, toByteOffset: row * size, as: Element.self)
                        }
                    }
                }
            }
        }
    }

    /// Makes a task's output.
    /// - Parameters:
    ///   - inputs: For each piece where it lies, and its rows there.
    ///   - work: Room for the pieces put together; used only when they have to be and are quantised afterwards.
    ///   - output: The box, row after row.
    ///   - scales: Its scales; used only when it is quantised.
    static func prepare(
        _ task: PlanTask, _ target: Target, _ pieces: ArraySlice<PlanPiece>,
        _ inputs: [PlacedStrips], work: UnsafeMutableRawPointer,
        output: UnsafeMutableRawPointer, scales: UnsafeMutableRawPointer
    ) {
        let isQuantised = target.hasBlockScales
        let elementBytes = isQuantised ? DataType.bf16.byteCount : target.type.byteCount
        var from = inputs[0]
        if !task.preparation.subtracting(.quantise).isEmpty {
            let place = unsafe isQuantised ? work : output
            for (piece, input) in zip(pieces, inputs) {
                let part = target.parts[Int(piece.part)]
                let strips = Strips(
                    part.target(of: piece.box), in: task.box, at: 0, elementBytes: elementBytes)
                if part.isTransposed {
                    unsafe transpose(input.memory, input.strips, place, strips, elementBytes: elementBytes)
                } else {
                    unsafe copy(input.memory, input.strips, place, strips)
                }
            }
            from = unsafe PlacedStrips(
                place, Strips(packed: task.box, at: 0, elementBytes: elementBytes))
        }
        guard isQuantised else { return }
        for plane in 0..<task.box.planes.count {
            // The caller's memory: source rows of `columns` BF16 numbers, and room for as many bytes and their scales.
            let input = unsafe (from.memory + from.strips.offset(plane * from.strips.rows))
                .assumingMemoryBound(to: UInt16.self)
            let size = task.box.rows.count * task.box.columns.count
            let scaleCount = task.box.scaleCount / task.box.planes.count
            unsafe BlockQuantisation.quantise(
                input, sourceStride: from.strips.stride / 2, rows: task.box.rows.count,
                columns: task.box.columns.count,
                to: (output + plane * size).assumingMemoryBound(to: UInt8.self),
                scales: (scales + 4 * plane * scaleCount).assumingMemoryBound(to: Float.self))
        }
    }
}
