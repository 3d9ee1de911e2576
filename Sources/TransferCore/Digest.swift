/// The digest of the data of a transfer: 128 bits that depend on every byte and on where it goes, but neither on the order in
/// which bytes arrive nor on which NIC carries them.
///
/// Each range - a write, a page, a slice of a scatter - is divided into granules of 4096 bytes, counted from the range's
/// first byte; the last one may be shorter. A granule's digest is a function of its offset in the target region, its length and
/// its bytes, and digests of granules are added, in two halves, modulo 2^64 each. Hence:
/// * any order gives the same digest;
/// * so does any cut of a range at a multiple of 4096 bytes from its beginning, and joining neighbours where the first is
///   a multiple of 4096 bytes long: digests of parts add up to that of the whole;
/// * a range of no bytes adds nothing, and a page that is written twice is counted twice.
///
/// It finds damage, not forgery: the keys are public. docs/reliability.md has the construction and its bound.
public struct Digest: Hashable, Sendable, Codable, CustomStringConvertible {
    /// The sum of the granules' first halves.
    public var low: UInt64
    /// The sum of the granules' second halves.
    public var high: UInt64

    /// Bytes of a granule.
    public static let granule = StripePlanner.granule
    /// The digest of nothing.
    public static let empty = Digest(low: 0, high: 0)

    public init(low: UInt64, high: UInt64) {
        self.low = low
        self.high = high
    }

    /// The digest of both.
    public static func + (left: Digest, right: Digest) -> Digest {
        Digest(low: left.low &+ right.low, high: left.high &+ right.high)
    }

    /// Adds the digest of more.
    public static func += (left: inout Digest, right: Digest) { left = left + right }

    /// Takes a part out again.
    public static func - (left: Digest, right: Digest) -> Digest {
        Digest(low: left.low &- right.low, high: left.high &- right.high)
    }

    public var description: String {
        let digits = [high, low].map { String($0, radix: 16) }
        return digits.map { String(repeating: "0", count: 16 - $0.count) + $0 }.joined()
    }
}

/// Where the ranges of a transfer lie in the target region.
public enum DigestRanges: Hashable, Sendable {
    /// One range, looked at in stripes of `stripeBytes`, a multiple of 4096; the last may be shorter.
    case stripes(offset: UInt64, byteCount: UInt64, stripeBytes: UInt64)
    /// Pages of `pageBytes`: page `i` begins at `offset + i * stride`.
    case pages(pageBytes: UInt64, stride: UInt64, offset: UInt64, indices: [UInt32])

    /// How many stripes or pages.
    public var count: Int {
        switch self {
        case .stripes(_, let byteCount, let stripeBytes):
            stripeBytes == 0
                ? 0 : Int(clamping: byteCount / stripeBytes + (byteCount % stripeBytes == 0 ? 0 : 1))
        case .pages(_, _, _, let indices): indices.count
        }
    }

    /// Stripe or page number `number`: its first byte in the target region, and its length.
    /// - Precondition: `number` is below `count`, and `check()` has not thrown.
    public subscript(number: Int) -> (offset: UInt64, byteCount: UInt64) {
        switch self {
        case .stripes(let offset, let byteCount, let stripeBytes):
            let start = UInt64(number) * stripeBytes
            return (offset + start, min(stripeBytes, byteCount - start))
        case .pages(let pageBytes, let stride, let offset, let indices):
            return (offset + UInt64(indices[number]) * stride, pageBytes)
        }
    }

    /// For people: which stripe or page, and where.
    public func name(of number: Int) -> String {
        let (offset, byteCount) = self[number]
        let place = "bytes \(offset)..<\(offset + byteCount) of the target"
        switch self {
        case .stripes: return "stripe \(number) (\(place))"
        case .pages(_, _, _, let indices): return "page \(indices[number]) (\(place))"
        }
    }

    /// Refuses ranges that cannot be: all offsets of the others fit into 63 bits.
    /// - Throws: `invalidArgument`.
    /// - Complexity: O(pages).
    public func check() throws(TransferError) {
        switch self {
        case .stripes(let offset, let byteCount, let stripeBytes):
            let (end, overflow) = offset.addingReportingOverflow(byteCount)
            guard stripeBytes > 0, stripeBytes % UInt64(Digest.granule) == 0, stripeBytes <= UInt64(Int.max),
                !overflow, end <= UInt64(Int.max)
            else { throw .invalidRanges }
        case .pages(let pageBytes, let stride, let offset, let indices):
            let (start, overflow) = stride.multipliedReportingOverflow(by: UInt64(indices.max() ?? 0))
            let (first, overflow2) = start.addingReportingOverflow(offset)
            let (end, overflow3) = first.addingReportingOverflow(pageBytes)
            guard !overflow, !overflow2, !overflow3, end <= UInt64(Int.max) else { throw .invalidRanges }
        }
    }
}

/// The digest of a transfer together with one for each of its stripes or pages, so that the receiver can say which one is
/// damaged. The sender makes it and sends it along, in a message or by any other channel.
///
/// The parts are half as long as the whole: they say where the damage is, and the whole says whether there is some.
public struct DigestList: Hashable, Sendable {
    /// The version of the binary form that this library writes.
    public static let version: UInt8 = 1
    private static let magic: [UInt8] = [0x54, 0x45, 0x44]  // "TED"

    /// Where the stripes or pages lie.
    public let ranges: DigestRanges
    /// The digest of all.
    public let total: Digest
    /// The lower halves of the digests of the stripes or pages, in their order.
    public let parts: [UInt64]

    /// Joins ranges with their digests.
    /// - Throws: `invalidArgument` for ranges that cannot be, or when there are not as many digests as ranges.
    public init(_ ranges: DigestRanges, _ digests: [Digest]) throws(TransferError) {
        try ranges.check()
        guard digests.count == ranges.count else {
            throw TransferError(.invalidArgument, "\(digests.count) digests of \(ranges.count) ranges")
        }
        self.ranges = ranges
        total = digests.reduce(.empty, +)
        parts = digests.map(\.low)
    }

    /// The numbers of the stripes or pages that differ from what `digests` says; all of them when only the total does.
    public func mismatches(_ digests: [Digest]) -> [Int] {
        guard digests.count == parts.count else { return Array(parts.indices) }
        let found = parts.indices.filter { parts[$0] != digests[$0].low }
        return found.isEmpty && digests.reduce(.empty, +) != total ? Array(parts.indices) : found
    }

    /// The compact binary form: about 60 bytes, and 8 for each stripe or 12 for each page (docs/wire-format.md). What fits
    /// into `Limits.messageBytes` can be sent as a message.
    /// - Complexity: O(stripes or pages).
    public func encoded() -> [UInt8] {
        var writer = ByteWriter()
        for byte in Self.magic { writer.write(byte) }
        writer.write(Self.version)
        switch ranges {
        case .stripes(let offset, let byteCount, let stripeBytes):
            writer.write(0 as UInt8)
            for value in [offset, byteCount, stripeBytes] { writer.write(value) }
        case .pages(let pageBytes, let stride, let offset, let indices):
            writer.write(1 as UInt8)
            for value in [pageBytes, stride, offset] { writer.write(value) }
            writer.write(UInt32(indices.count))
            for index in indices { writer.write(index) }
        }
        writer.write(total.low)
        writer.write(total.high)
        for part in parts { writer.write(part) }
        writer.write(CRC32C.checksum(writer.bytes))
        return writer.bytes
    }

    /// Reads the binary form. Memory is taken in proportion to `bytes`, whatever they say.
    /// - Throws: `malformedDescriptor` for damaged, truncated or overlong bytes, `unsupportedVersion` for another version.
    /// - Complexity: O(number of bytes).
    public init(decoding bytes: some Collection<UInt8>) throws(TransferError) {
        let body = try checked(
            [UInt8](bytes), magic: Self.magic, versions: Self.version...Self.version, kind: "list of digests")
        var reader = ByteReader(body.span)
        for _ in 0..<4 { _ = try reader.read(UInt8.self) }
        let kind = try reader.read(UInt8.self)
        let (first, second, third) = (
            try reader.read(UInt64.self), try reader.read(UInt64.self), try reader.read(UInt64.self)
        )
        switch kind {
        case 0: ranges = .stripes(offset: first, byteCount: second, stripeBytes: third)
        case 1:
            let count = Int(try reader.read(UInt32.self))
            guard count <= reader.remaining / 12 else { throw .truncated }
            var indices: [UInt32] = []
            indices.reserveCapacity(count)
            for _ in 0..<count { indices.append(try reader.read()) }
            ranges = .pages(pageBytes: first, stride: second, offset: third, indices: indices)
        default: throw TransferError(.malformedDescriptor, "a list of digests of unknown kind \(kind)")
        }
        do throws(TransferError) { try ranges.check() } catch {
            throw TransferError(.malformedDescriptor, error.message)
        }
        total = Digest(low: try reader.read(), high: try reader.read())
        guard reader.remaining % 8 == 0, reader.remaining / 8 == ranges.count else {
            throw TransferError(
                .malformedDescriptor, "\(reader.remaining) bytes of digests for \(ranges.count) ranges")
        }
        var parts: [UInt64] = []
        parts.reserveCapacity(ranges.count)
        for _ in 0..<ranges.count { parts.append(try reader.read()) }
        self.parts = parts
    }
}

extension TransferError {
    fileprivate static let invalidRanges = TransferError(
        .invalidArgument, "digests of ranges that no region has: stripes are multiples of 4096 bytes")
}
