package import TransferCore

/// The tensors of a GGUF file, as BF16: F32, Q8_0 and Q4_1, the types of the demonstration's model.
package struct GGUF {
    private struct Entry {
        var shape: [Int]
        var type: UInt32
        var offset: Int
    }

    private let bytes: [UInt8]
    private var entries: [String: Entry] = [:]
    private var place = 24

    /// Reads the whole of a file.
    /// - Throws: `malformedDescriptor` for what is no GGUF file.
    package init(parsing bytes: [UInt8]) throws(TransferError) {
        self.bytes = bytes
        guard bytes.count > 24, Array(bytes[..<4]) == Array("GGUF".utf8) else {
            throw error("not a GGUF file")
        }
        let tensors = try integer(at: 8, size: 8)
        for _ in 0..<(try integer(at: 16, size: 8)) {
            _ = try text()
            try skipValue(UInt32(try take(4)), depth: 0)
        }
        for _ in 0..<tensors {
            let name = try text()
            var shape: [Int] = []
            let dimensions = try take(4)
            guard dimensions <= 4 else { throw error("'\(name)' has \(dimensions) dimensions") }
            for _ in 0..<dimensions { shape.insert(try take(8), at: 0) }
            let type = UInt32(try take(4))
            let offset = try take(8)
            guard offset <= bytes.count else { throw error("'\(name)' is behind the end") }
            entries[name] = Entry(shape: shape, type: type, offset: offset)
        }
        let start = (place + 31) / 32 * 32
        for name in entries.keys { entries[name]?.offset += start }
    }

    private func error(_ what: String) -> TransferError {
        TransferError(.malformedDescriptor, "GGUF: \(what)")
    }

    private func integer(at place: Int, size: Int) throws(TransferError) -> Int {
        guard place >= 0, place + size <= bytes.count else { throw error("the file ends at byte \(place)") }
        let value = (0..<size).reduce(UInt64(0)) { $0 | UInt64(bytes[place + $1]) << (8 * UInt64($1)) }
        guard let value = Int(exactly: value) else { throw error("a number is too large at byte \(place)") }
        return value
    }

    private mutating func take(_ size: Int) throws(TransferError) -> Int {
        let value = try integer(at: place, size: size)
        place += size
        return value
    }

    private mutating func skip(_ size: Int) throws(TransferError) {
        guard size <= bytes.count - place else { throw error("the file ends at byte \(place)") }
        place += size
    }

    private mutating func text() throws(TransferError) -> String {
        let count = try take(8)
        guard count <= bytes.count - place else { throw error("a text does not end") }
        defer { place += count }
        return String(decoding: bytes[place..<place + count], as: UTF8.self)
    }

    private mutating func skipValue(_ type: UInt32, depth: Int) throws(TransferError) {
        switch type {
        case 0, 1, 7: try skip(1)
        case 2, 3: try skip(2)
        case 4, 5, 6: try skip(4)
        case 10, 11, 12: try skip(8)
        case 8: _ = try text()
        case 9:
            guard depth < 16 else { throw error("lists are nested too deep") }
            let element = UInt32(try take(4))
            for _ in 0..<(try take(8)) { try skipValue(element, depth: depth + 1) }
        default: throw error("a value of type \(type)")
        }
    }

    /// A tensor by its name in checkpoints; nil when there is none of this name and shape.
    package func bf16(_ tensor: TensorDescription) throws(TransferError) -> [UInt16]? {
        guard let entry = entries[Self.name(tensor.name)], entry.shape == tensor.shape else { return nil }
        var result: [UInt16] = []
        result.reserveCapacity(tensor.count)
        let (elements, size) = entry.type == 0 ? (1, 4) : entry.type == 8 ? (32, 34) : (32, 20)
        guard [0, 3, 8].contains(entry.type), tensor.count % elements == 0,
            entry.offset + tensor.count / elements * size <= bytes.count
        else { throw error("'\(tensor.name)' of type \(entry.type)") }
        for block in 0..<tensor.count / elements {
            let place = entry.offset + block * size
            switch entry.type {
            case 0: result.append(Self.short(Float(bitPattern: UInt32(try integer(at: place, size: 4)))))
            case 8:
                let scale = half(place)
                for index in 0..<32 {
                    result.append(Self.short(scale * Float(Int8(bitPattern: bytes[place + 2 + index]))))
                }
            default:
                let (scale, least) = (half(place), half(place + 2))
                for index in 0..<32 {
                    let byte = bytes[place + 4 + index % 16]
                    result.append(Self.short(scale * Float(index < 16 ? byte & 15 : byte >> 4) + least))
                }
            }
        }
        return result
    }

    /// IEEE binary16, finite.
    private func half(_ place: Int) -> Float {
        let bits = UInt16(bytes[place]) | UInt16(bytes[place + 1]) << 8
        let exponent = Int(bits >> 10 & 31)
        let mantissa = Float(bits & 1023)
        let value =
            exponent == 0
            ? mantissa * 0x1p-24
            : (1024 + mantissa) * Float(sign: .plus, exponent: exponent - 25, significand: 1)
        return bits >> 15 == 0 ? value : -value
    }

    /// The nearest BF16, ties to even.
    private static func short(_ value: Float) -> UInt16 {
        let bits = value.bitPattern
        return UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
    }

    private static func name(_ name: String) -> String {
        var name = name
        let pairs = [
            ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("model.layers", "blk"),
            ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"),
        ]
        for (long, short) in pairs {
            if let range = name.firstRange(of: long) { name.replaceSubrange(range, with: short) }
        }
        return name
    }
}
