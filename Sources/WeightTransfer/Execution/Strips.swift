internal import TransferEngine

/// Where the rows of a box lie in memory.
struct Strips: Hashable {
    /// Byte of the first element.
    var first: Int
    /// Bytes of a row of the box.
    var rowBytes: Int
    /// Bytes from one row to the next.
    var stride: Int
    var planes: Int
    var rows: Int
    /// Rows of a plane of the tensor that the box lies in.
    var rowsPerPlane: Int

    /// The rows of `box` in a tensor that begins at `offset` and has the elements of `container`.
    init(_ box: Box, in container: Box, at offset: Int, elementBytes: Int) {
        let width = container.columns.count
        let row =
            (box.planes.lowerBound - container.planes.lowerBound) * container.rows.count
            + box.rows.lowerBound - container.rows.lowerBound
        first = offset + (row * width + box.columns.lowerBound - container.columns.lowerBound) * elementBytes
        rowBytes = box.columns.count * elementBytes
        stride = width * elementBytes
        planes = box.planes.count
        rows = box.rows.count
        rowsPerPlane = container.rows.count
    }

    /// The rows of a box that lies alone in memory.
    init(packed box: Box, at offset: Int, elementBytes: Int) {
        self.init(box, in: box, at: offset, elementBytes: elementBytes)
    }

    var rowCount: Int { planes * rows }
    var byteCount: Int { rowCount * rowBytes }
    var isContiguous: Bool { rowCount == 1 || rowBytes == stride && (planes == 1 || rows == rowsPerPlane) }

    /// The place of row `number` of the box, in strides from `first`.
    @inline(__always) func index(_ number: Int) -> Int { number / rows * rowsPerPlane + number % rows }
    /// The first byte of row `number`.
    @inline(__always) func offset(_ number: Int) -> Int { first + index(number) * stride }

    /// How often `write` lets the receiver count.
    static func count(_ source: Strips, _ target: Strips) -> Int {
        source.isContiguous && target.isContiguous ? 1 : source.rowCount
    }

    /// The digest of a box, the same wherever it lies, if it is divided in the same way: as one range, or by rows.
    /// - Parameters:
    ///   - memory: Where the box is now.
    ///   - base: What offsets count from.
    ///   - target: Where it goes.
    ///   - isWhole: Whether it is looked at as one range, which both places must be then.
    func digest(of memory: UnsafeRawPointer, base: Int, target: Strips, isWhole: Bool) -> Digest {
        if isWhole {
            return unsafe Digest(
                of: UnsafeRawBufferPointer(start: memory + first, count: byteCount),
                at: UInt64(target.first - base))
        }
        var sum = Digest.empty
        for row in 0..<rowCount {
            sum += unsafe Digest(
                of: UnsafeRawBufferPointer(start: memory + offset(row), count: rowBytes),
                at: UInt64(target.offset(row) - base))
        }
        return sum
    }
}

extension TransferEngine {
    /// Writes rows to rows, in one transfer.
    func write(
        _ source: Strips, of region: MemoryRegion, to target: Strips, of remote: RemoteMemory,
        immediate: Immediate
    ) throws(TransferError) -> Transfer {
        if source.isContiguous, target.isContiguous {
            return try write(
                from: region, sourceOffset: source.first, byteCount: source.byteCount, to: remote,
                targetOffset: target.first, immediate: immediate)
        }
        let from = (0..<source.rowCount).map { UInt32(source.index($0)) }
        let to = (0..<target.rowCount).map { UInt32(target.index($0)) }
        let result = unsafe from.withUnsafeBufferPointer { from in
            unsafe to.withUnsafeBufferPointer { to -> Result<Transfer, TransferError> in
                do throws(TransferError) {
                    return .success(
                        try write(
                            pageBytes: source.rowBytes, from: region,
                            pages: unsafe Pages(from, stride: source.stride, offset: source.first),
                            to: remote,
                            pages: unsafe Pages(to, stride: target.stride, offset: target.first),
                            immediate: immediate))
                } catch {
                    return .failure(error)
                }
            }
        }
        return try result.get()
    }
}

/// Rows of a box, and the memory that they lie in.
@safe struct PlacedStrips {
    // SAFETY: whoever makes one keeps the memory until the task that it belongs to is over.
    let memory: UnsafeRawPointer
    let strips: Strips

    init(_ memory: UnsafeRawPointer, _ strips: Strips) {
        unsafe self.memory = memory
        self.strips = strips
    }
}
