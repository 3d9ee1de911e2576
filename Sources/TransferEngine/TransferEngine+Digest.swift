internal import CPlatform
public import TransferCore

extension Digest {
    /// The digest of `bytes` that go to `offset` of a region.
    ///
    /// Any thread. The bytes must not change meanwhile.
    /// - Complexity: O(bytes), about as fast as memory is read.
    public init(of bytes: UnsafeRawBufferPointer, at offset: UInt64) {
        var halves: (UInt64, UInt64) = (0, 0)
        if let base = bytes.baseAddress {
            // SAFETY: `count` bytes can be read from `base`, and the pair is two 64-bit words.
            unsafe withUnsafeMutableBytes(of: &halves) {
                unsafe te_digest_add(
                    base, bytes.count, offset, $0.baseAddress?.assumingMemoryBound(to: UInt64.self))
            }
        }
        self.init(low: halves.0, high: halves.1)
    }
}

// End-to-end digests of transfers: the sender computes one over what it writes, the receiver over what has arrived.
//
// The sender names the places in the *target* region, the receiver its own region. Nothing here touches the engine's
// state: all may be called from any thread, while transfers are in flight; the bytes that are looked at must not change.
extension TransferEngine {
    /// The digest of one contiguous range.
    /// - Parameters:
    ///   - region: A registered region of this engine: the source before a write, the target after it.
    ///   - offset: First byte within the region.
    ///   - byteCount: Bytes.
    ///   - targetOffset: First byte within the target region; nil is `offset`, for the receiver.
    /// - Throws: `outOfRange` or `staleRegion`.
    /// - Complexity: O(byteCount).
    public func digest(
        of region: MemoryRegion, offset: Int = 0, byteCount: Int, targetOffset: Int? = nil
    ) throws(TransferError) -> Digest {
        try check(region, offset, byteCount)
        guard (targetOffset ?? offset) >= 0 else {
            throw TransferError(.invalidArgument, "a negative offset in the target")
        }
        return part(of: region, UInt64(offset), UInt64(byteCount), at: UInt64(targetOffset ?? offset))
    }

    /// The digest of pages, one range each.
    /// - Parameters:
    ///   - region: A registered region of this engine: the source before a paged write, the target after it.
    ///   - pageBytes: Bytes of one page.
    ///   - pages: Where the pages lie in `region`.
    ///   - targetPages: Where they lie in the target region; nil is `pages`, for the receiver.
    /// - Throws: `outOfRange`, `staleRegion` or `invalidArgument`.
    /// - Complexity: O(pages times pageBytes).
    public func digest(
        of region: MemoryRegion, pageBytes: Int, pages: Pages, targetPages: Pages? = nil
    ) throws(TransferError) -> Digest {
        let list = try digests(
            of: region, pageBytes: pageBytes, pages: pages, targetPages: targetPages)
        return list.digests.reduce(.empty, +)
    }

    /// The digest of one contiguous range with one for each stripe of it, for `verify` to name a damaged stripe.
    /// - Parameters:
    ///   - region: A registered region of this engine: the source of the write.
    ///   - offset: First byte within the region.
    ///   - byteCount: Bytes.
    ///   - targetOffset: First byte within the target region.
    ///   - stripeBytes: Bytes of one stripe, a multiple of 4096.
    /// - Throws: `outOfRange`, `staleRegion` or `invalidArgument`.
    /// - Complexity: O(byteCount).
    public func digestList(
        of region: MemoryRegion, offset: Int = 0, byteCount: Int, targetOffset: Int = 0,
        stripeBytes: Int = 1 << 20
    ) throws(TransferError) -> DigestList {
        try check(region, offset, byteCount)
        guard targetOffset >= 0, stripeBytes > 0 else {
            throw TransferError(.invalidArgument, "stripes of \(stripeBytes) bytes at \(targetOffset)")
        }
        let ranges = DigestRanges.stripes(
            offset: UInt64(targetOffset), byteCount: UInt64(byteCount), stripeBytes: UInt64(stripeBytes))
        try ranges.check()
        return try DigestList(ranges, digests(of: region, ranges, UInt64(offset) &- UInt64(targetOffset)))
    }

    /// The digest of pages with one for each page, for `verify` to name a damaged page.
    /// - Parameters:
    ///   - region: A registered region of this engine: the source of the paged write.
    ///   - pageBytes: Bytes of one page.
    ///   - pages: Where the pages come from.
    ///   - targetPages: Where they go.
    /// - Throws: `outOfRange`, `staleRegion` or `invalidArgument`.
    /// - Complexity: O(pages times pageBytes).
    public func digestList(
        of region: MemoryRegion, pageBytes: Int, pages: Pages, targetPages: Pages
    ) throws(TransferError) -> DigestList {
        let list = try digests(of: region, pageBytes: pageBytes, pages: pages, targetPages: targetPages)
        return try DigestList(list.ranges, list.digests)
    }

    /// Compares a range that has arrived with the sender's digest.
    /// - Parameters:
    ///   - digest: What the sender's `digest(of:offset:byteCount:targetOffset:)` returned.
    ///   - region: The region that was written into.
    ///   - offset: First byte within it.
    ///   - byteCount: Bytes.
    /// - Throws: `digestMismatch` when they differ; `outOfRange` or `staleRegion`.
    /// - Complexity: O(byteCount).
    public func verify(
        _ digest: Digest, of region: MemoryRegion, offset: Int = 0, byteCount: Int
    ) throws(TransferError) {
        let found = try self.digest(of: region, offset: offset, byteCount: byteCount)
        guard found == digest else {
            throw .mismatch("bytes \(offset)..<\(offset + byteCount)", digest, found)
        }
    }

    /// Compares pages that have arrived with the sender's digest.
    /// - Parameters:
    ///   - digest: What the sender's `digest(of:pageBytes:pages:targetPages:)` returned.
    ///   - region: The region that was written into.
    ///   - pageBytes: Bytes of one page.
    ///   - pages: Where the pages were written to, in any order.
    /// - Throws: `digestMismatch` when they differ; `outOfRange`, `staleRegion` or `invalidArgument`.
    /// - Complexity: O(pages times pageBytes).
    public func verify(
        _ digest: Digest, of region: MemoryRegion, pageBytes: Int, pages: Pages
    ) throws(TransferError) {
        let found = try self.digest(of: region, pageBytes: pageBytes, pages: pages)
        guard found == digest else { throw .mismatch("\(pages.count) pages", digest, found) }
    }

    /// Compares what has arrived with the sender's list, and names what differs.
    /// - Parameters:
    ///   - list: What the sender's `digestList` returned; it says where the ranges lie.
    ///   - region: The region that was written into.
    /// - Throws: `digestMismatch` with the stripes or pages that differ; `outOfRange` when the list names bytes outside of the
    ///   region, `staleRegion`.
    /// - Complexity: O(bytes of all ranges).
    public func verify(_ list: DigestList, of region: MemoryRegion) throws(TransferError) {
        let found = try mismatches(list, of: region)
        guard !found.isEmpty else { return }
        let names = found.prefix(3).map { list.ranges.name(of: $0) }.joined(separator: ", ")
        let more = found.count > 3 ? " and \(found.count - 3) more" : ""
        throw TransferError(
            .digestMismatch,
            "\(found.count) of \(list.parts.count) ranges are not what the sender digested: \(names)\(more)")
    }

    /// The numbers of the stripes or pages that differ from the sender's list, as in `verify`.
    /// - Parameters:
    ///   - list: What the sender's `digestList` returned.
    ///   - region: The region that was written into.
    /// - Returns: Positions in `list.parts`; none when all is well.
    /// - Throws: `outOfRange` or `staleRegion`.
    /// - Complexity: O(bytes of all ranges).
    public func mismatches(_ list: DigestList, of region: MemoryRegion) throws(TransferError) -> [Int] {
        try check(region, 0, 0)
        return list.mismatches(try digests(of: region, list.ranges, 0))
    }

    // MARK: Internals

    /// The digests of pages, and where they go.
    private func digests(
        of region: MemoryRegion, pageBytes: Int, pages: Pages, targetPages: Pages?
    ) throws(TransferError) -> (ranges: DigestRanges, digests: [Digest]) {
        let targets = targetPages ?? pages
        guard targets.count == pages.count else {
            throw TransferError(
                .invalidArgument, "\(pages.count) source pages but \(targets.count) target pages")
        }
        try check(region, 0, 0)
        try check(pages, pageBytes, region.byteCount, "source")
        try check(targets, pageBytes, .max, "target")
        let ranges = Self.ranges(targets, pageBytes)
        try ranges.check()
        let sources = Self.ranges(pages, pageBytes)
        let digests = (0..<ranges.count).map { number in
            part(of: region, sources[number].offset, UInt64(pageBytes), at: ranges[number].offset)
        }
        return (ranges, digests)
    }

    private static func ranges(_ pages: Pages, _ pageBytes: Int) -> DigestRanges {
        .pages(
            pageBytes: UInt64(pageBytes), stride: UInt64(pages.stride), offset: UInt64(pages.offset),
            indices: (0..<pages.count).map { unsafe pages.indices[$0] })
    }

    /// The digests of ranges of the target, which lie `distance` further on in `region`.
    private func digests(
        of region: MemoryRegion, _ ranges: DigestRanges, _ distance: UInt64
    ) throws(TransferError) -> [Digest] {
        var digests: [Digest] = []
        digests.reserveCapacity(ranges.count)
        for number in 0..<ranges.count {
            let (offset, byteCount) = ranges[number]
            let (start, _) = offset.addingReportingOverflow(distance)
            try check(region, Int(truncatingIfNeeded: start), Int(truncatingIfNeeded: byteCount))
            digests.append(part(of: region, start, byteCount, at: offset))
        }
        return digests
    }

    /// The digest of bytes that have been checked to lie in the region.
    private func part(of region: MemoryRegion, _ start: UInt64, _ byteCount: UInt64, at offset: UInt64)
        -> Digest
    {
        // SAFETY: the callers have checked the range, and the region is registered.
        let bytes = unsafe UnsafeRawBufferPointer(
            start: region.baseAddress + Int(start), count: Int(byteCount))
        return unsafe Digest(of: bytes, at: offset)
    }
}

extension TransferError {
    fileprivate static func mismatch(_ what: String, _ expected: Digest, _ found: Digest) -> TransferError {
        TransferError(
            .digestMismatch,
            "\(what) are not what the sender digested: \(found) instead of \(expected); a list of digests says where"
        )
    }
}
