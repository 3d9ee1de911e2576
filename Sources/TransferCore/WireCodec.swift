/// Bounds-checked reading of little-endian bytes. Every descriptor and every frame from a peer goes through here.
public struct ByteReader: ~Escapable {
    private let bytes: Span<UInt8>
    private var offset = 0

    @_lifetime(copy bytes)
    public init(_ bytes: Span<UInt8>) { self.bytes = bytes }

    /// Bytes not read yet.
    public var remaining: Int { bytes.count - offset }

    /// Reads one little-endian integer.
    public mutating func read<T: FixedWidthInteger & BitwiseCopyable>(_ type: T.Type = T.self)
        throws(TransferError) -> T
    {
        guard remaining >= MemoryLayout<T>.size else { throw .truncated }
        var value: T = 0
        for index in (0..<MemoryLayout<T>.size).reversed() {
            value = value << 8 | T(truncatingIfNeeded: bytes[offset + index])
        }
        offset += MemoryLayout<T>.size
        return value
    }

    /// Reads a length byte and as many bytes, at most `limit`.
    public mutating func readBytes(limit: Int) throws(TransferError) -> [UInt8] {
        let count = Int(try read(UInt8.self))
        guard count <= limit, count <= remaining else { throw .truncated }
        var result: [UInt8] = []
        result.reserveCapacity(count)
        for _ in 0..<count { result.append(try read(UInt8.self)) }
        return result
    }

    /// Reads a length byte and as much UTF-8, at most `limit` bytes.
    public mutating func readString(limit: Int) throws(TransferError) -> String {
        guard let text = String(validating: try readBytes(limit: limit), as: UTF8.self) else {
            throw TransferError(.malformedDescriptor, "a name in the descriptor is not UTF-8")
        }
        return text
    }
}

/// Builds little-endian bytes.
public struct ByteWriter {
    /// What has been written.
    public private(set) var bytes: [UInt8] = []

    public init() {}

    /// Appends one integer, little-endian.
    public mutating func write<T: FixedWidthInteger>(_ value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) {
            bytes.append(UInt8(truncatingIfNeeded: value >> T(shift)))
        }
    }

    /// Appends a length byte and as many whole characters of UTF-8 as fit into `limit` bytes.
    public mutating func write(text: String, limit: Int) {
        var end = text.startIndex
        var count = 0
        while end < text.endIndex {
            let next = text.index(after: end)
            count += text[end..<next].utf8.count
            if count > min(limit, Int(UInt8.max)) { break }
            end = next
        }
        write(counted: text[..<end].utf8)
    }

    /// Appends a length byte and the bytes. Traps above 255 bytes: callers validate first.
    public mutating func write(counted value: some Collection<UInt8>) {
        write(UInt8(value.count))
        bytes.append(contentsOf: value)
    }
}

extension TransferError {
    static let truncated = TransferError(
        .malformedDescriptor, "the bytes end too early; ask the peer for the descriptor again")
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4): tells damaged descriptors from whole ones. Not a signature.
enum CRC32C {
    private static let table: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in
            value & 1 == 0 ? value >> 1 : value >> 1 ^ 0x82F6_3B78
        }
    }

    static func checksum(_ bytes: some Sequence<UInt8>) -> UInt32 {
        ~bytes.reduce(~0) { table[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] ^ $0 >> 8 }
    }
}

/// Checks magic, version and checksum of something encoded; returns the bytes without the checksum.
func checked(
    _ bytes: [UInt8], magic: [UInt8], versions: ClosedRange<UInt8>, kind: String
) throws(TransferError) -> [UInt8] {
    guard bytes.count >= 8 else { throw .truncated }
    guard bytes.starts(with: magic) else {
        throw TransferError(.malformedDescriptor, "these bytes are not a \(kind) of this kind")
    }
    let body = bytes.dropLast(4)
    let found = bytes.suffix(4).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    guard CRC32C.checksum(body) == found else {
        throw TransferError(
            .malformedDescriptor, "the \(kind)'s checksum is wrong: it was altered on its way")
    }
    guard versions.contains(bytes[3]) else {
        throw TransferError(
            .unsupportedVersion,
            "\(kind) version \(bytes[3]), this library reads \(versions.upperBound); update the older side")
    }
    return Array(body)
}
