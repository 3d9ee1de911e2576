internal import CTransferEngine
internal import TransferEngine

/// Why a call fails: a code of the C interface and what to say.
struct Failure: Error {
    var code: Int32
    var message: String

    init(_ code: Int, _ message: String) {
        self.code = Int32(code)
        self.message = message
    }

    init(_ error: TransferError) {
        code = error.code.number
        message = error.message
    }

    /// Makes it the thread's last error. Returns its code.
    func report() -> Int32 {
        tei_set_error(code, message, te_status_remedy(code))
        return code
    }

    static func badHandle(_ handle: UInt64, _ kind: Handle.Kind) -> Failure {
        let found = Handle.Kind(rawValue: handle >> 60)
        let reason =
            handle == 0
            ? "is 0"
            : found == kind
                ? "was released, or its engine was closed"
                : "is not one but \(found.map { "a te_\($0)" } ?? "no handle")"
        return Failure(TE_EBADHANDLE, "te_\(kind) 0x\(String(handle, radix: 16)) \(reason)")
    }

    static func isNull(_ name: String) -> Failure { Failure(TE_EINVALID, "\(name) is NULL") }
}

/// Calls the engine.
@inline(__always)
func engine<Value>(_ body: () throws(TransferError) -> Value) throws(Failure) -> Value {
    do throws(TransferError) { return try body() } catch { throw Failure(error) }
}

extension Result<Void, TransferError> {
    var status: Int32 {
        switch self {
        case .success: Int32(TE_OK)
        case .failure(let error): error.code.number
        }
    }
}

extension TransferError.Code {
    /// The number in the C interface.
    var number: Int32 {
        let number =
            switch self {
            case .invalidArgument: TE_EINVALID
            case .outOfRange: TE_EOUTOFRANGE
            case .malformedDescriptor: TE_EMALFORMED
            case .unsupportedVersion: TE_EUNSUPPORTEDVERSION
            case .accessDenied: TE_EACCESS
            case .staleRegion: TE_ESTALE
            case .backPressure: TE_EBACKPRESSURE
            case .limitReached: TE_ELIMIT
            case .unreachable: TE_EUNREACHABLE
            case .peerLost: TE_EPEERLOST
            case .providerFailed: TE_EPROVIDER
            case .stalled: TE_ESTALLED
            case .cancelled: TE_ECANCELLED
            case .unavailable: TE_EUNAVAILABLE
            case .closed: TE_ECLOSED
            case .digestMismatch: TE_EDIGEST
            case .unauthenticated: TE_EUNAUTHENTICATED
            case .forged: TE_EFORGED
            case .replayed: TE_EREPLAYED
            case .expired: TE_EEXPIRED
            default: TE_EPROVIDER
            }
        return Int32(number)
    }
}

private let statuses: [(code: Int, name: StaticString, remedy: StaticString)] = [
    (TE_OK, "TE_OK", "Nothing to do."),
    (TE_PENDING, "TE_PENDING", "Wait, or look again."),
    (TE_EINVALID, "TE_EINVALID", "Correct the argument that the message names."),
    (TE_EOUTOFRANGE, "TE_EOUTOFRANGE", "Keep offset and length inside the region, or give a larger buffer."),
    (TE_EMALFORMED, "TE_EMALFORMED", "Send the descriptor's bytes whole and unchanged."),
    (TE_EUNSUPPORTEDVERSION, "TE_EUNSUPPORTEDVERSION", "Use the same version of the library on both sides."),
    (
        TE_EACCESS, "TE_EACCESS",
        "Have the owner register the region with TE_REMOTE_WRITE and send its descriptor."
    ),
    (TE_ESTALE, "TE_ESTALE", "Get the owner's new descriptor and attach it."),
    (TE_EBACKPRESSURE, "TE_EBACKPRESSURE", "Poll events, wait for transfers, and submit again."),
    (TE_ELIMIT, "TE_ELIMIT", "Release what is not used, or raise the limit that the message names."),
    (TE_EUNREACHABLE, "TE_EUNREACHABLE", "Open both engines with a NIC of the same fabric."),
    (TE_EPEERLOST, "TE_EPEERLOST", "Connect and attach again once the peer is back."),
    (TE_EPROVIDER, "TE_EPROVIDER", "See the message; 'te info' shows the state of the NICs."),
    (
        TE_ESTALLED, "TE_ESTALLED",
        "See the report: whether the peer lives, makes progress and was sent the same immediates."
    ),
    (TE_ECANCELLED, "TE_ECANCELLED", "Nothing to do: it was cancelled."),
    (TE_EUNAVAILABLE, "TE_EUNAVAILABLE", "'te info' shows what this machine has and what to install."),
    (TE_ECLOSED, "TE_ECLOSED", "Open another engine."),
    (TE_EDIGEST, "TE_EDIGEST", "Transfer the data again."),
    (TE_EBADHANDLE, "TE_EBADHANDLE", "Use handles of this engine that have not been released."),
    (TE_EBUSY, "TE_EBUSY", "Wait for the transfers that use it, or cancel them."),
    (TE_ETIMEDOUT, "TE_ETIMEDOUT", "Wait again, or cancel."),
    (TE_EUNAUTHENTICATED, "TE_EUNAUTHENTICATED", "Give the other engine the cluster's key, too."),
    (TE_EFORGED, "TE_EFORGED", "Ask the owner for the descriptor again, and give both engines the same key."),
    (TE_EREPLAYED, "TE_EREPLAYED", "Nothing to do: it was taken once."),
    (TE_EEXPIRED, "TE_EEXPIRED", "Ask the owner for a new descriptor, and compare the clocks of both hosts."),
    (TE_EUNPROVEN, "TE_EUNPROVEN", "Have the target's owner revoke the region before its memory is reused."),
    (
        TE_EWRONGTHREAD, "TE_EWRONGTHREAD",
        "Call it from a thread of the process that opened the engine, outside of callbacks."
    ),
]

private func text(_ string: StaticString) -> UnsafePointer<CChar> {
    UnsafeRawPointer(string.utf8Start).assumingMemoryBound(to: CChar.self)
}

@c @implementation public func te_status_name(_ status: Int32) -> UnsafePointer<CChar>! {
    text(statuses.first { $0.code == Int(status) }?.name ?? "unknown")
}

@c @implementation public func te_status_remedy(_ status: Int32) -> UnsafePointer<CChar>! {
    text(statuses.first { $0.code == Int(status) }?.remedy ?? "Not a status of this version.")
}
