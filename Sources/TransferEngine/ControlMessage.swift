internal import TransferCore

/// What precedes every two-sided message: whether it is the caller's or the engine's, and what it asks.
///
/// Eight bytes: a magic byte, the kind, the version, whether it is sealed, the number of a caller's message; then the payload,
/// and the trailer of sealed ones (docs/wire-format.md). Control messages are small, may be lost or repeated, and are answered
/// or asked again.
enum ControlMessage: Hashable, Sendable {
    static let headerBytes = 8
    private static let magic: UInt8 = 0x54
    private static let version: UInt8 = 1

    /// The pair of NICs a message is about, each by its place in its engine's landing descriptor.
    struct Route: Hashable, Sendable {
        /// Of the engine that asks.
        var from: UInt8
        /// Of the engine that is asked.
        var to: UInt8
    }

    /// Are you there? With the sender's address, since the peer may not know it.
    case ping(Route, address: [UInt8])
    /// I am; the route is the ping's.
    case pong(Route)
    /// Close this connection of mine to your NIC, and tell me what you have counted of it.
    case settle(Route, connection: UInt64, address: [UInt8])
    /// It is closed.
    case settled(Route, connection: UInt64, DeliveryLedger)

    /// What a message is by its header.
    enum Kind: UInt8 { case payload, ping, pong, settle, settled }

    /// Writes the header of a caller's message.
    static func mark(_ header: borrowing Table<UInt8>) {
        header[0] = magic
        header[1] = Kind.payload.rawValue
        header[2] = version
        for index in 3..<headerBytes { header[index] = 0 }
    }

    /// Gives a caller's message a number, once: with the sender's identity it names the message in traces. Engines that know
    /// of no numbers pass over it.
    static func number(_ header: borrowing Table<UInt8>, next: inout UInt32) {
        guard number(of: header.span) == 0 else { return }
        next = next == .max ? 1 : next + 1
        for index in 0..<4 { header[4 + index] = UInt8(truncatingIfNeeded: next >> (8 * UInt32(index))) }
    }

    /// The number in a message's header; 0 for none.
    static func number(of message: Span<UInt8>) -> UInt32 {
        guard message.count >= headerBytes, message[1] == Kind.payload.rawValue else { return 0 }
        return (0..<4).reduce(0) { $0 | UInt32(message[4 + $1]) << (8 * UInt32($1)) }
    }

    /// Reads a header; nil for what no engine of this version sends.
    static func kind(of message: Span<UInt8>) -> Kind? {
        guard message.count >= headerBytes, message[0] == magic, message[2] == version else { return nil }
        return Kind(rawValue: message[1])
    }

    /// Says in a header that a trailer follows the payload.
    static let sealMark: (place: Int, value: UInt8) = (3, 1)

    /// Whether a trailer follows the payload.
    static func isSealed(_ message: Span<UInt8>) -> Bool {
        message.count > sealMark.place && message[sealMark.place] == sealMark.value
    }

    private var kind: Kind {
        switch self {
        case .ping: .ping
        case .pong: .pong
        case .settle: .settle
        case .settled: .settled
        }
    }

    /// The whole message; at most `Limits.packetBytes`.
    var encoded: [UInt8] {
        var writer = ByteWriter()
        for byte in [Self.magic, kind.rawValue, Self.version, 0, 0, 0, 0, 0] as [UInt8] { writer.write(byte) }
        switch self {
        case .ping(let route, let address):
            writer.write(route)
            writer.write(long: address)
        case .pong(let route):
            writer.write(route)
        case .settle(let route, let connection, let address):
            writer.write(route)
            writer.write(connection)
            writer.write(long: address)
        case .settled(let route, let connection, let ledger):
            writer.write(route)
            writer.write(connection)
            writer.write(ledger.base)
            writer.write(UInt16(ledger.bits.count))
            for word in ledger.bits { writer.write(word) }
        }
        return writer.bytes
    }

    /// Reads a control message. Every number in it is the peer's word and nothing more.
    init(decoding message: Span<UInt8>) throws(TransferError) {
        guard let kind = Self.kind(of: message) else {
            throw TransferError(.malformedDescriptor, "not a control message of this version")
        }
        var reader = ByteReader(message.extracting(droppingFirst: Self.headerBytes))
        let route = Route(from: try reader.read(), to: try reader.read())
        switch kind {
        case .payload: throw TransferError(.malformedDescriptor, "a message of the caller's")
        case .ping: self = .ping(route, address: try reader.readLong())
        case .pong: self = .pong(route)
        case .settle:
            let connection: UInt64 = try reader.read()
            self = .settle(route, connection: connection, address: try reader.readLong())
        case .settled:
            let connection: UInt64 = try reader.read()
            let base: UInt64 = try reader.read()
            let count = Int(try reader.read(UInt16.self))
            guard count <= DeliveryLedger.words else {
                throw TransferError(.malformedDescriptor, "a ledger of \(count) words")
            }
            var bits: [UInt64] = []
            for _ in 0..<count { bits.append(try reader.read()) }
            self = .settled(route, connection: connection, DeliveryLedger(base: base, bits: bits))
        }
        guard reader.remaining == 0 else {
            throw TransferError(.malformedDescriptor, "a control message has bytes after its end")
        }
    }
}

extension ByteWriter {
    fileprivate mutating func write(_ route: ControlMessage.Route) {
        write(route.from)
        write(route.to)
    }

    fileprivate mutating func write(long bytes: [UInt8]) {
        write(UInt16(bytes.count))
        for byte in bytes { write(byte) }
    }
}

extension ByteReader {
    fileprivate mutating func readLong() throws(TransferError) -> [UInt8] {
        let count = Int(try read(UInt16.self))
        guard count <= remaining else {
            throw TransferError(.malformedDescriptor, "a control message ends too early")
        }
        var bytes: [UInt8] = []
        for _ in 0..<count { bytes.append(try read()) }
        return bytes
    }
}
