public import TransferEngine

/// Why a cache could not be transferred. `code` is for programs, `message` for people. It travels between the two sides.
public struct KVError: Error, Hashable, Sendable, CustomStringConvertible {
    /// The kind of failure. The numbers are those of the wire.
    public enum Code: UInt8, Hashable, Sendable, CaseIterable {
        /// A layout or a placement that describes nothing.
        case invalidLayout = 1
        /// The two sides keep different things; the message names the field.
        case incompatible = 2
        /// The other side speaks another version of the protocol.
        case unsupportedVersion = 3
        /// Bytes that are no message.
        case malformedMessage = 4
        /// The prefiller does not take the request: it drains, is full, or does not know the session.
        case refused = 5
        /// The other side has been silent for too long, or its engine is gone.
        case peerLost = 6
        /// The deadline of the request passed.
        case deadline = 7
        /// Cancelled by the decoder.
        case cancelled = 8
        /// Given up by the prefiller: preempted, or its model failed.
        case aborted = 9
        /// A write failed.
        case transferFailed = 10
        /// No pages are free.
        case noPages = 11
        /// What arrived is not what the prefiller sent.
        case digestMismatch = 12
    }

    /// The kind of failure.
    public var code: Code
    /// What happened, to whom, and what to do.
    public var message: String

    /// Makes an error.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    /// Makes one of an engine's error.
    public init(_ error: TransferError) {
        self.init(error.code == .peerLost ? .peerLost : .transferFailed, error.description)
    }

    public var description: String { "\(code): \(message)" }
}
