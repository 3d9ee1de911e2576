public import TransferCore

extension JSON {
    /// Reads one value, and nothing may follow it.
    /// - Throws: `malformedDescriptor`, with the place in bytes, for what is not JSON, is nested more than 64 deep, or names a
    ///   member twice.
    /// - Complexity: O(bytes).
    public init(parsing bytes: [UInt8]) throws(TransferError) {
        var parser = Parser(bytes: bytes)
        self = try parser.value(depth: 0)
        parser.skipSpace()
        guard parser.place == bytes.count else { throw parser.error("something follows the value") }
    }

    /// Reads one value.
    public init(parsing text: String) throws(TransferError) { try self.init(parsing: Array(text.utf8)) }
}

private struct Parser {
    let bytes: [UInt8]
    var place = 0

    func error(_ what: String) -> TransferError {
        TransferError(.malformedDescriptor, "not JSON at byte \(place): \(what)")
    }

    mutating func skipSpace() {
        while place < bytes.count, [0x20, 0x0A, 0x0D, 0x09].contains(bytes[place]) { place += 1 }
    }

    private mutating func take(_ character: Character) -> Bool {
        guard place < bytes.count, bytes[place] == character.asciiValue else { return false }
        place += 1
        return true
    }

    private mutating func expect(_ character: Character) throws(TransferError) {
        skipSpace()
        guard take(character) else { throw error("expected '\(character)'") }
    }

    mutating func value(depth: Int) throws(TransferError) -> JSON {
        guard depth <= 64 else { throw error("nested too deep") }
        skipSpace()
        guard place < bytes.count else { throw error("the text ends") }
        switch bytes[place] {
        case UInt8(ascii: "{"): return try object(depth)
        case UInt8(ascii: "["): return try array(depth)
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: return try number()
        }
    }

    private mutating func word(_ text: String, _ value: JSON) throws(TransferError) -> JSON {
        guard bytes[place...].starts(with: text.utf8) else { throw error("expected '\(text)'") }
        place += text.utf8.count
        return value
    }

    private mutating func array(_ depth: Int) throws(TransferError) -> JSON {
        place += 1
        var elements: [JSON] = []
        skipSpace()
        if take("]") { return .array([]) }
        repeat {
            elements.append(try value(depth: depth + 1))
            skipSpace()
        } while take(",")
        try expect("]")
        return .array(elements)
    }

    private mutating func object(_ depth: Int) throws(TransferError) -> JSON {
        place += 1
        var members: [JSON.Member] = []
        var names: Set<String> = []
        skipSpace()
        if take("}") { return .object(members) }
        repeat {
            skipSpace()
            guard place < bytes.count, bytes[place] == UInt8(ascii: "\"") else {
                throw error("expected a member's name")
            }
            let name = try string()
            guard names.insert(name).inserted else { throw error("'\(name)' occurs twice") }
            try expect(":")
            members.append(JSON.Member(name, try value(depth: depth + 1)))
            skipSpace()
        } while take(",")
        try expect("}")
        return .object(members)
    }

    private mutating func number() throws(TransferError) -> JSON {
        let begin = place
        while place < bytes.count, "+-.eE0123456789".utf8.contains(bytes[place]) { place += 1 }
        let text = String(decoding: bytes[begin..<place], as: UTF8.self)
        if let value = Int(text), !text.hasPrefix("+") { return .integer(value) }
        guard let value = Double(text), value.isFinite else { throw error("expected a value") }
        return .number(value)
    }

    private mutating func string() throws(TransferError) -> String {
        place += 1
        var result: [UInt8] = []
        while place < bytes.count {
            let byte = bytes[place]
            place += 1
            if byte == UInt8(ascii: "\"") { return String(decoding: result, as: UTF8.self) }
            if byte == UInt8(ascii: "\\") {
                result += Array(String(try escaped()).utf8)
            } else {
                result.append(byte)
            }
        }
        throw error("a string does not end")
    }

    private mutating func escaped() throws(TransferError) -> Character {
        guard place < bytes.count else { throw error("a string does not end") }
        place += 1
        switch bytes[place - 1] {
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{C}"
        case UInt8(ascii: "u"): return try unicode()
        case let other where [0x22, 0x5C, 0x2F].contains(other): return Character(UnicodeScalar(other))
        default: throw error("an unknown escape")
        }
    }

    private mutating func unicode() throws(TransferError) -> Character {
        let first = try hexadecimal()
        if let scalar = UnicodeScalar(first) { return Character(scalar) }
        guard first < 0xDC00, take("\\"), take("u") else { throw error("half a surrogate pair") }
        let second = try hexadecimal()
        guard (0xDC00..<0xE000).contains(second),
            let scalar = UnicodeScalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))
        else { throw error("half a surrogate pair") }
        return Character(scalar)
    }

    private mutating func hexadecimal() throws(TransferError) -> UInt32 {
        guard place + 4 <= bytes.count,
            let value = UInt32(String(decoding: bytes[place..<place + 4], as: UTF8.self), radix: 16)
        else { throw error("four hexadecimal digits belong here") }
        place += 4
        return value
    }
}
