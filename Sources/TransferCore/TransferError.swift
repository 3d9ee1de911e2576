/// What went wrong, for whom, and what to do about it.
///
/// One error type for the whole library. `code` is for programs, `description` for people: it names the operation,
/// the peer or the NIC, and a remedy where there is one.
public struct TransferError: Error, Equatable, Hashable, Sendable, CustomStringConvertible {
    /// The kind of failure. New kinds may be added; keep a `default` case.
    public struct Code: Hashable, Sendable, CustomStringConvertible {
        @usableFromInline enum Kind: UInt8, CaseIterable, Sendable {
            case invalidArgument, outOfRange, malformedDescriptor, unsupportedVersion, accessDenied
            case staleRegion, backPressure, limitReached, unreachable, peerLost, providerFailed
            case stalled, cancelled, unavailable, closed, digestMismatch
            case unauthenticated, forged, replayed, expired
        }

        @usableFromInline let kind: Kind
        @inlinable init(_ kind: Kind) { self.kind = kind }

        /// An argument that can never work, for example lists of different lengths.
        public static let invalidArgument = Code(.invalidArgument)
        /// Bytes outside the source or the target region.
        public static let outOfRange = Code(.outOfRange)
        /// A descriptor that was truncated, altered or is not one.
        public static let malformedDescriptor = Code(.malformedDescriptor)
        /// A descriptor written by another version of the format.
        public static let unsupportedVersion = Code(.unsupportedVersion)
        /// The region does not allow this use, or its key is wrong.
        public static let accessDenied = Code(.accessDenied)
        /// The region was deregistered, or its place holds a newer generation.
        public static let staleRegion = Code(.staleRegion)
        /// A queue is full: progress the engine and submit again.
        public static let backPressure = Code(.backPressure)
        /// One of `Limits` would be exceeded.
        public static let limitReached = Code(.limitReached)
        /// No NIC of this device can reach the peer.
        public static let unreachable = Code(.unreachable)
        /// The peer went away.
        public static let peerLost = Code(.peerLost)
        /// The fabric reported an error.
        public static let providerFailed = Code(.providerFailed)
        /// A deadline passed; the description is the stall report.
        public static let stalled = Code(.stalled)
        /// Ended by the caller.
        public static let cancelled = Code(.cancelled)
        /// A provider or a library is not present on this machine.
        public static let unavailable = Code(.unavailable)
        /// Data is not what the sender digested; the description says which.
        public static let digestMismatch = Code(.digestMismatch)
        /// One side has a cluster key and the other has none: a descriptor or a message is not signed where it must be, or is
        /// where nobody can tell.
        public static let unauthenticated = Code(.unauthenticated)
        /// A descriptor or a message is not what its sender signed, or was signed with another cluster key.
        public static let forged = Code(.forged)
        /// A message that came before.
        public static let replayed = Code(.replayed)
        /// A descriptor whose time is over.
        public static let expired = Code(.expired)
        /// The engine has been shut down.
        public static let closed = Code(.closed)

        public var description: String { "\(kind)" }
    }

    /// The kind of failure.
    public let code: Code
    /// What happened and what to do.
    public let message: String

    /// Makes an error; `message` says what happened, to whom, and what to do.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { "\(code): \(message)" }
}
