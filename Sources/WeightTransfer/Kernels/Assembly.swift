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

    /// Puts the pieces of a task together, when there are several or one lies in another way.
    /// - Parameters:
    ///   - inputs: For each piece where it lies, and its rows there.
    ///   - place: Room for the box, row after row.
    /// - Returns: Where the box lies: at `place`, or where it lay before.
    static func assemble(
        _ task: PlanTask, _ target: Target, _ pieces: ArraySlice<PlanPiece>, _ inputs: [PlacedStrips],
        at place: UnsafeMutableRawPointer
    ) -> PlacedStrips {
        guard !task.preparation.subtracting(.quantise).isEmpty else { return inputs[0] }
        let elementBytes = target.hasBlockScales ? DataType.bf16.byteCount : target.type.byteCount
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
        return unsafe PlacedStrips(place, Strips(packed: task.box, at: 0, elementBytes: elementBytes))
    }

    /// Quantises a box.
    /// - Parameters:
    ///   - from: The box, BF16.
    ///   - output: Room for the codes, row after row.
    ///   - scales: Room for the scales.
    static func quantise(
        _ box: Box, _ from: PlacedStrips, output: UnsafeMutableRawPointer, scales: UnsafeMutableRawPointer
    ) {
        for plane in 0..<box.planes.count {
            let size = box.rows.count * box.columns.count
            let scaleCount = box.scaleCount / box.planes.count
            unsafe BlockQuantisation.quantise(
                from.plane(plane), sourceStride: from.strips.stride / 2, rows: box.rows.count,
                columns: box.columns.count,
                to: (output + plane * size).assumingMemoryBound(to: UInt8.self),
                scales: (scales + 4 * plane * scaleCount).assumingMemoryBound(to: Float.self))
        }
    }

    /// Whether a box can be quantised to where it is to stay.
    static func quantisesInPlace(_ box: Box) -> Bool {
        box.planes.count == 1 && box.columns.count % Target.blockSize == 0
    }

    /// Quantises a box to where it is to stay.
    /// - Parameters:
    ///   - from: The box, BF16.
    ///   - output: The first byte of its place, whose rows are those of `target`.
    ///   - scales: Room for the scales.
    ///   - base: What offsets count from.
    /// - Returns: What `target.digest` would say of it.
    static func quantise(
        _ box: Box, _ from: PlacedStrips, inPlace output: UnsafeMutableRawPointer, _ target: Strips,
        scales: UnsafeMutableRawPointer, base: Int
    ) -> Digest {
        unsafe BlockQuantisation.quantise(
            from.plane(0), sourceStride: from.strips.stride / 2, rows: box.rows.count,
            columns: box.columns.count,
            to: output.assumingMemoryBound(to: UInt8.self), targetStride: target.stride,
            scales: scales.assumingMemoryBound(to: Float.self), digestedAt: target.first - base)
    }
}

extension PlacedStrips {
    /// The first of the BF16 numbers of a plane.
    fileprivate func plane(_ number: Int) -> UnsafePointer<UInt16> {
        unsafe (memory + strips.offset(number * strips.rows)).assumingMemoryBound(to: UInt16.self)
    }
}
