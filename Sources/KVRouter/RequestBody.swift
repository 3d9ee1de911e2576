#if HTTP
    /// A JSON object in which some members are read or replaced, and all others are passed on byte for byte.
    ///
    /// Only the object itself is taken apart: a prompt of a hundred thousand tokens costs one look at each byte, and numbers keep
    /// all of their digits. What is inside of a member is for the engine to understand.
    struct RequestBody {
        /// Names as they stand between their quotes.
        private var members: [(name: ArraySlice<UInt8>, value: ArraySlice<UInt8>)] = []

        /// What is deeper is not read: it would be no request.
        private static let depthLimit = 256

        /// Reads an object. O(bytes).
        /// - Throws: `Malformed` with the place.
        init(_ bytes: [UInt8]) throws(Malformed) {
            var rest = bytes[...]
            try Self.take("{", from: &rest)
            if Self.next(&rest) == UInt8(ascii: "}") {
                rest.removeFirst()
            } else {
                repeat {
                    guard Self.next(&rest) == UInt8(ascii: "\"") else { throw Malformed(at: rest.startIndex) }
                    let name = try Self.string(&rest)
                    try Self.take(":", from: &rest)
                    members.append((name.dropFirst().dropLast(), try Self.value(&rest)))
                } while Self.takes(",", from: &rest)
                try Self.take("}", from: &rest)
            }
            guard Self.next(&rest) == nil else { throw Malformed(at: rest.startIndex) }
        }

        /// Where it is not JSON.
        struct Malformed: Error {
            var offset: Int
            init(at offset: Int) { self.offset = offset }
        }

        /// The text of a member; the last one, if the name occurs twice.
        subscript(name: StaticString) -> ArraySlice<UInt8>? {
            members.last { $0.name.elementsEqual(Self.utf8(name)) }?.value
        }

        /// A member that is a whole number.
        func integer(_ name: StaticString) -> Int? {
            self[name].flatMap { Int(String(decoding: $0, as: UTF8.self)) }
        }

        /// Gives a member another text, in JSON, or takes it out.
        mutating func set(_ name: StaticString, to text: String?) {
            members.removeAll { $0.name.elementsEqual(Self.utf8(name)) }
            if let text { members.append((Self.utf8(name)[...], Array(text.utf8)[...])) }
        }

        /// The object as text.
        var bytes: [UInt8] {
            var text: [UInt8] = []
            text.reserveCapacity(members.reduce(2) { $0 + $1.name.count + $1.value.count + 4 })
            text.append(UInt8(ascii: "{"))
            for (index, member) in members.enumerated() {
                if index > 0 { text.append(UInt8(ascii: ",")) }
                text.append(UInt8(ascii: "\""))
                text += member.name
                text += Array("\":".utf8)
                text += member.value
            }
            text.append(UInt8(ascii: "}"))
            return text
        }

        private static func utf8(_ name: StaticString) -> [UInt8] { Array(name.description.utf8) }

        /// The next byte that is no space.
        private static func next(_ rest: inout ArraySlice<UInt8>) -> UInt8? {
            while let byte = rest.first, byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 {
                rest.removeFirst()
            }
            return rest.first
        }

        private static func takes(_ sign: Unicode.Scalar, from rest: inout ArraySlice<UInt8>) -> Bool {
            guard next(&rest) == UInt8(ascii: sign) else { return false }
            rest.removeFirst()
            return true
        }

        private static func take(_ sign: Unicode.Scalar, from rest: inout ArraySlice<UInt8>) throws(Malformed)
        {
            guard takes(sign, from: &rest) else { throw Malformed(at: rest.startIndex) }
        }

        /// A string with its quotes.
        private static func string(_ rest: inout ArraySlice<UInt8>) throws(Malformed) -> ArraySlice<UInt8> {
            var end = rest.startIndex + 1
            while end < rest.endIndex, rest[end] != UInt8(ascii: "\"") {
                end += rest[end] == UInt8(ascii: "\\") ? 2 : 1
            }
            guard end < rest.endIndex else { throw Malformed(at: rest.startIndex) }
            defer { rest = rest[(end + 1)...] }
            return rest[...end]
        }

        /// Any value: brackets that fit, and no more than that.
        private static func value(_ rest: inout ArraySlice<UInt8>) throws(Malformed) -> ArraySlice<UInt8> {
            guard let first = next(&rest) else { throw Malformed(at: rest.startIndex) }
            let whole = rest
            var open: [UInt8] = []
            switch first {
            case UInt8(ascii: "\""): _ = try string(&rest)
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                repeat {
                    guard let byte = rest.first, open.count < depthLimit else {
                        throw Malformed(at: rest.startIndex)
                    }
                    switch byte {
                    case UInt8(ascii: "\""):
                        _ = try string(&rest)
                        continue
                    // The bracket that closes a bracket is two behind it in ASCII.
                    case UInt8(ascii: "{"), UInt8(ascii: "["): open.append(byte + 2)
                    case UInt8(ascii: "}"), UInt8(ascii: "]"):
                        guard open.popLast() == byte else { throw Malformed(at: rest.startIndex) }
                    default: break
                    }
                    rest.removeFirst()
                } while !open.isEmpty
            default:
                let isEnd: (UInt8) -> Bool = { $0 <= 0x20 || ",}]{[\":".utf8.contains($0) }
                rest = rest.drop { !isEnd($0) }
                guard rest.startIndex > whole.startIndex else { throw Malformed(at: rest.startIndex) }
            }
            return whole[..<rest.startIndex]
        }
    }
#endif
