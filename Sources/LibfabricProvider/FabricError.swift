import CLibfabric
import TransferCore

/// libfabric's error numbers, in the words of the contract.
enum FabricError {
    /// What a (positive) error number of an operation means for it.
    static func status(of error: Int32) -> WorkStatus {
        switch error {
        case ECONNRESET, ECONNABORTED, ECONNREFUSED, ENOTCONN, ESHUTDOWN, ETIMEDOUT, EHOSTUNREACH,
            ENETUNREACH,
            EHOSTDOWN, ENETDOWN, EPIPE, ECANCELED, EIO:
            return .peerLost
        case EACCES, EPERM, EKEYREJECTED, Int32(FI_ENOKEY):
            return .accessDenied
        default:
            return .providerFailed
        }
    }

    /// libfabric's words for an error number.
    static func text(_ error: Int32) -> String {
        guard te_fabric_load() == 0, let words = te_fi_strerror(abs(error)) else { return "error \(error)" }
        return String(cString: words)
    }

    /// An error of a call that opens or registers something.
    static func failure(_ call: String, _ error: Int32, nic: String, remedy: String = "") -> TransferError {
        let code: TransferError.Code = abs(error) == ENOMEM ? .limitReached : .providerFailed
        let hint = remedy.isEmpty ? "set FI_LOG_LEVEL=warn to see libfabric's own report" : remedy
        return TransferError(code, "\(call) on \(nic): \(text(error)) (\(abs(error))); \(hint)")
    }

    /// A string of C's that may be missing.
    static func string(_ text: UnsafePointer<CChar>?) -> String {
        guard let text else { return "" }
        return String(cString: text)
    }
}
