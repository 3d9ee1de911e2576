public import TransferCore

/// The header of a safetensors file: eight bytes of length, JSON, then the data.
public struct SafetensorsHeader: Hashable, Sendable {
    /// The parameters, by the place of their data.
    public var tensors: [TensorDescription]
    /// Where each parameter's data begins, counted from the beginning of the file.
    public var offsets: [Int]
    /// Bytes of the whole file.
    public var fileByteCount: Int

    /// Longest header that is accepted.
    public static let maximumByteCount = 100 << 20

    /// The length of the header, from the first eight bytes of the file.
    /// - Throws: `malformedDescriptor` for fewer bytes or a length beyond `maximumByteCount`.
    public static func length(of prefix: some Collection<UInt8>) throws(TransferError) -> Int {
        let bytes = Array(prefix.prefix(8))
        let length = bytes.enumerated().reduce(UInt64(0)) {
            $0 | UInt64($1.element) << (8 * UInt64($1.offset))
        }
        guard bytes.count == 8, (2...UInt64(maximumByteCount)).contains(length) else {
            throw TransferError(
                .malformedDescriptor, "not a safetensors file: its header has no valid length")
        }
        return Int(length)
    }

    /// Reads a header, without its eight bytes of length.
    /// - Throws: `malformedDescriptor` unless every parameter has as many bytes as its shape says, and the data are contiguous
    ///   without gaps or overlaps.
    public init(parsing bytes: [UInt8]) throws(TransferError) {
        var entries: [(begin: Int, end: Int, tensor: TensorDescription)] = []
        for member in try JSON(parsing: bytes).members where member.name != "__metadata__" {
            guard let range = member.value["data_offsets"]?.integers, range.count == 2,
                range[0] >= 0, range[0] <= range[1]
            else { throw TransferError(.malformedDescriptor, "'\(member.name)' has no valid data_offsets") }
            var members = member.value.members
            members.append(JSON.Member("name", .string(member.name)))
            entries.append((range[0], range[1], try TensorDescription(json: .object(members))))
        }
        entries.sort { ($0.begin, $0.tensor.name) < ($1.begin, $1.tensor.name) }
        var place = 0
        for (begin, end, tensor) in entries {
            guard begin == place, end - begin == tensor.checkedByteCount else {
                throw TransferError(
                    .malformedDescriptor,
                    "'\(tensor.name)' at \(begin)..<\(end): its shape \(tensor.shape) of \(tensor.type) does not fit there, "
                        + "or does not follow byte \(place)")
            }
            place = end
        }
        tensors = entries.map(\.tensor)
        offsets = entries.map { $0.begin + 8 + bytes.count }
        fileByteCount = 8 + bytes.count + place
    }

    /// The beginning of a file with these parameters in this order: length and header, padded to 8 bytes.
    public static func encode(_ tensors: [TensorDescription]) -> [UInt8] {
        var place = 0
        let members = tensors.map { tensor in
            defer { place += tensor.byteCount }
            return JSON.Member(
                tensor.name,
                .object([
                    "dtype": .string(tensor.type.rawValue),
                    "shape": .array(tensor.shape.map(JSON.integer)),
                    "data_offsets": .array([.integer(place), .integer(place + tensor.byteCount)]),
                ]))
        }
        var text = Array(JSON.object(members).description.utf8)
        while text.count % 8 != 0 { text.append(0x20) }
        let length = UInt64(text.count)
        return (0..<8).map { UInt8(truncatingIfNeeded: length >> (8 * UInt64($0))) } + text
    }
}
