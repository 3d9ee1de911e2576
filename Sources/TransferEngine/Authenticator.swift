internal import TransferCore

#if Authentication
    internal import Crypto
#endif

/// Signs what this engine sends and hands out, and checks what comes, with the cluster's key. Messages are its progress
/// thread's; descriptors are signed and checked on any thread.
///
/// A message's code covers both engines, which are new with each incarnation, and a number that the receiver takes once: what
/// was recorded is good for nobody, now or after a restart (docs/wire-format.md).
final class Authenticator: @unchecked Sendable {
    // SAFETY: the keys and `engine` do not change; `sent` and `seen` belong to the progress thread.

    /// What a sealed message has after its payload: a number and a code.
    static let trailerBytes = 8 + RemoteRegion.signatureBytes

    private let engine: EngineID
    private let messages: SigningKey
    private let descriptors: SigningKey
    /// The last number for each receiver, and the numbers that have come from each sender. They outlive connections, or what
    /// was sent over the last one could be sent again.
    private var sent: [EngineID: UInt64] = [:]
    private var seen: [EngineID: ReplayWindow] = [:]

    init(key: ClusterKey, engine: EngineID) {
        self.engine = engine
        messages = SigningKey(key, purpose: "TransferEngine message 1")
        descriptors = SigningKey(key, purpose: "TransferEngine descriptor 1")
    }

    // MARK: Messages

    /// What follows a message to `receiver`.
    func trailer(of message: Span<UInt8>, to receiver: EngineID) -> [UInt8] {
        sent[receiver, default: 0] += 1
        var number = ByteWriter()
        number.write(sent[receiver, default: 0])
        return number.bytes + messages.code(of: bound(message, number.bytes, from: engine, to: receiver))
    }

    /// Checks a sealed message. Returns the bytes before its trailer.
    /// - Throws: `malformedDescriptor`, `forged`, `replayed`, or `limitReached` for too many senders.
    func check(_ message: Span<UInt8>, from sender: EngineID) throws(TransferError) -> Int {
        let length = message.count - Self.trailerBytes
        guard length >= ControlMessage.headerBytes else {
            throw TransferError(
                .malformedDescriptor, "a sealed message of \(message.count) bytes was cut off")
        }
        let number = (length..<length + 8).map { message[$0] }
        let code = (length + 8..<message.count).map { message[$0] }
        let signed = bound(message.extracting(0..<length), number, from: sender, to: engine)
        guard messages.isRight(code, of: signed) else {
            throw TransferError(
                .forged,
                "a message that names engine \(sender) as its sender was altered, or signed with another cluster key; "
                    + "give both engines the same key")
        }
        guard seen[sender] != nil || seen.count < Limits.peers else {
            throw TransferError(
                .limitReached,
                "\(Limits.peers) senders have been heard since this engine was opened; open a new one")
        }
        let value = number.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard seen[sender, default: ReplayWindow()].take(value) else {
            throw TransferError(
                .replayed,
                "message \(value) of engine \(sender) came again: it was recorded and repeated, or delivered twice"
            )
        }
        return length
    }

    private func bound(
        _ message: Span<UInt8>, _ number: [UInt8], from sender: EngineID, to receiver: EngineID
    ) -> [UInt8] {
        var writer = ByteWriter()
        writer.write(sender.rawValue)
        writer.write(receiver.rawValue)
        var bytes = writer.bytes + number
        bytes.reserveCapacity(bytes.count + message.count)
        for index in 0..<message.count { bytes.append(message[index]) }
        return bytes
    }

    // MARK: Descriptors

    /// The descriptor with its signature.
    func signed(_ region: RemoteRegion) -> RemoteRegion {
        var region = region
        region.signature = descriptors.code(of: region.signedBytes)
        return region
    }

    /// - Throws: `unauthenticated` or `forged`.
    func check(_ region: RemoteRegion) throws(TransferError) {
        guard !region.signature.isEmpty else {
            throw TransferError(
                .unauthenticated,
                "the descriptor of engine \(region.engine) is not signed; give that engine the cluster's key")
        }
        guard descriptors.isRight(region.signature, of: region.signedBytes) else {
            throw TransferError(
                .forged,
                "the descriptor of engine \(region.engine) is not what it signed, or it has another cluster key: "
                    + "ask it for the descriptor again, and give both engines the same key")
        }
    }
}

#if Authentication
    extension Authenticator { static var isAvailable: Bool { true } }

    /// A key for one purpose, derived from the cluster's.
    private struct SigningKey {
        private let key: SymmetricKey

        init(_ cluster: ClusterKey, purpose: String) {
            key = SymmetricKey(
                data: HMAC<SHA256>.authenticationCode(
                    for: Array(purpose.utf8), using: SymmetricKey(data: cluster.bytes)))
        }

        func code(of bytes: [UInt8]) -> [UInt8] {
            Array(HMAC<SHA256>.authenticationCode(for: bytes, using: key))
        }

        /// Compares in constant time.
        func isRight(_ code: [UInt8], of bytes: [UInt8]) -> Bool {
            HMAC<SHA256>.isValidAuthenticationCode(code, authenticating: bytes, using: key)
        }
    }
#else
    extension Authenticator { static var isAvailable: Bool { false } }

    /// There is none: `ClusterKey` cannot be made, so nothing here is called.
    private struct SigningKey {
        init(_ cluster: ClusterKey, purpose: String) {}
        func code(of bytes: [UInt8]) -> [UInt8] { [] }
        func isRight(_ code: [UInt8], of bytes: [UInt8]) -> Bool { false }
    }
#endif
