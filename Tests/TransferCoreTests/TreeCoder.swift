/// The smallest coder that can carry a descriptor: a tree of numbers and texts in memory.
///
/// It is here because the package does without Foundation, and what is tested is that the types take part,
/// not a format.
enum TreeCoder {
    /// A node of the tree.
    final class Node {
        /// A number.
        var number: UInt64?
        /// A text.
        var text: String?
        /// The parts of a list.
        var items: [Node] = []
        /// The parts of a record.
        var fields: [String: Node] = [:]

        /// A new part at the end of the list.
        func item() -> Node {
            let node = Node()
            items.append(node)
            return node
        }

        /// A new part of the record.
        func field(_ key: some CodingKey) -> Node {
            let node = Node()
            fields[key.stringValue] = node
            return node
        }

        /// A part of the record that must be there.
        func existing(_ key: some CodingKey) throws -> Node {
            guard let node = fields[key.stringValue] else { throw Mismatch() }
            return node
        }
    }

    /// What did not fit.
    struct Mismatch: Error {}

    /// Encodes into a tree.
    static func encode(_ value: some Encodable, into node: Node = Node()) throws -> Node {
        switch value {
        case let text as String: node.text = text
        case let number as any FixedWidthInteger: node.number = UInt64(number)
        default: try value.encode(to: TreeEncoder(node: node))
        }
        return node
    }

    /// Decodes from a tree.
    static func decode<T: Decodable>(_ type: T.Type, from node: Node) throws -> T {
        if type == String.self, let text = node.text as? T { return text }
        guard let integer = type as? any FixedWidthInteger.Type else {
            return try T(from: TreeDecoder(node: node))
        }
        guard let number = node.number, let value = integer.init(exactly: number) as? T else {
            throw Mismatch()
        }
        return value
    }
}

// MARK: Encoding

private struct TreeEncoder: Encoder {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func container<Key: CodingKey>(keyedBy type: Key.Type) -> KeyedEncodingContainer<Key> {
        KeyedEncodingContainer(TreeRecordEncoder(node: node))
    }
    func unkeyedContainer() -> any UnkeyedEncodingContainer { TreeListEncoder(node: node) }
    func singleValueContainer() -> any SingleValueEncodingContainer { TreeValueEncoder(node: node) }
}

private struct TreeValueEncoder: SingleValueEncodingContainer {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }

    mutating func encodeNil() throws { throw TreeCoder.Mismatch() }
    mutating func encode<T: Encodable>(_ value: T) throws { _ = try TreeCoder.encode(value, into: node) }
}

private struct TreeListEncoder: UnkeyedEncodingContainer {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }
    var count: Int { node.items.count }

    mutating func encodeNil() throws { throw TreeCoder.Mismatch() }
    mutating func encode<T: Encodable>(_ value: T) throws {
        _ = try TreeCoder.encode(value, into: node.item())
    }
    mutating func nestedContainer<K: CodingKey>(keyedBy type: K.Type) -> KeyedEncodingContainer<K> {
        TreeEncoder(node: node.item()).container(keyedBy: type)
    }
    mutating func nestedUnkeyedContainer() -> any UnkeyedEncodingContainer {
        TreeListEncoder(node: node.item())
    }
    mutating func superEncoder() -> any Encoder { TreeEncoder(node: node.item()) }
}

private struct TreeRecordEncoder<Key: CodingKey>: KeyedEncodingContainerProtocol {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }

    mutating func encodeNil(forKey key: Key) throws { throw TreeCoder.Mismatch() }
    mutating func encode<T: Encodable>(_ value: T, forKey key: Key) throws {
        _ = try TreeCoder.encode(value, into: node.field(key))
    }
    mutating func nestedContainer<K: CodingKey>(
        keyedBy type: K.Type, forKey key: Key
    ) -> KeyedEncodingContainer<K> {
        TreeEncoder(node: node.field(key)).container(keyedBy: type)
    }
    mutating func nestedUnkeyedContainer(forKey key: Key) -> any UnkeyedEncodingContainer {
        TreeListEncoder(node: node.field(key))
    }
    mutating func superEncoder() -> any Encoder { TreeEncoder(node: node) }
    mutating func superEncoder(forKey key: Key) -> any Encoder { TreeEncoder(node: node.field(key)) }
}

// MARK: Decoding

private struct TreeDecoder: Decoder {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }
    var userInfo: [CodingUserInfoKey: Any] { [:] }

    func container<Key: CodingKey>(keyedBy type: Key.Type) throws -> KeyedDecodingContainer<Key> {
        KeyedDecodingContainer(TreeRecordDecoder(node: node))
    }
    func unkeyedContainer() throws -> any UnkeyedDecodingContainer { TreeListDecoder(node: node) }
    func singleValueContainer() throws -> any SingleValueDecodingContainer { TreeValueDecoder(node: node) }
}

private struct TreeValueDecoder: SingleValueDecodingContainer {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }

    func decodeNil() -> Bool { false }
    func decode<T: Decodable>(_ type: T.Type) throws -> T { try TreeCoder.decode(type, from: node) }
}

private struct TreeListDecoder: UnkeyedDecodingContainer {
    let node: TreeCoder.Node
    var currentIndex = 0
    var codingPath: [any CodingKey] { [] }
    var count: Int? { node.items.count }
    var isAtEnd: Bool { currentIndex == node.items.count }

    private mutating func next() throws -> TreeCoder.Node {
        guard !isAtEnd else { throw TreeCoder.Mismatch() }
        currentIndex += 1
        return node.items[currentIndex - 1]
    }

    mutating func decodeNil() throws -> Bool { false }
    mutating func decode<T: Decodable>(_ type: T.Type) throws -> T {
        try TreeCoder.decode(type, from: try next())
    }
    mutating func nestedContainer<K: CodingKey>(keyedBy type: K.Type) throws -> KeyedDecodingContainer<K> {
        try TreeDecoder(node: try next()).container(keyedBy: type)
    }
    mutating func nestedUnkeyedContainer() throws -> any UnkeyedDecodingContainer {
        TreeListDecoder(node: try next())
    }
    mutating func superDecoder() throws -> any Decoder { TreeDecoder(node: try next()) }
}

private struct TreeRecordDecoder<Key: CodingKey>: KeyedDecodingContainerProtocol {
    let node: TreeCoder.Node
    var codingPath: [any CodingKey] { [] }
    var allKeys: [Key] { node.fields.keys.compactMap { Key(stringValue: $0) } }

    func contains(_ key: Key) -> Bool { node.fields[key.stringValue] != nil }
    func decodeNil(forKey key: Key) throws -> Bool { false }
    func decode<T: Decodable>(_ type: T.Type, forKey key: Key) throws -> T {
        try TreeCoder.decode(type, from: try node.existing(key))
    }
    func nestedContainer<K: CodingKey>(
        keyedBy type: K.Type, forKey key: Key
    ) throws -> KeyedDecodingContainer<K> {
        try TreeDecoder(node: try node.existing(key)).container(keyedBy: type)
    }
    func nestedUnkeyedContainer(forKey key: Key) throws -> any UnkeyedDecodingContainer {
        TreeListDecoder(node: try node.existing(key))
    }
    func superDecoder() throws -> any Decoder { TreeDecoder(node: node) }
    func superDecoder(forKey key: Key) throws -> any Decoder { TreeDecoder(node: try node.existing(key)) }
}
