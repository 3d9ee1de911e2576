internal import CPlatform
internal import Glibc
public import TransferCore

/// A file that is readable while one of several is, or after some time: what an event loop waits for.
public struct WaitFile: Sendable {
    /// To be waited for. Reading it says nothing.
    public let descriptor: Int32
    private let timer: Int32

    /// Opens it. The files have to stay open as long as it is.
    /// - Throws: `TransferError.Code.limitReached` when the process may have no more files.
    public init(_ files: [Int32]) throws(TransferError) {
        descriptor = te_wait_new()
        timer = te_timer_new()
        var failure = min(descriptor, timer, 0)
        for file in files + [timer] where failure == 0 { failure = te_wait_add(descriptor, file) }
        guard failure == 0 else {
            close()
            throw TransferError(
                .limitReached, "no file to wait for: \(errorText(-failure)); raise the limit of open files")
        }
    }

    /// Makes it readable in so many nanoseconds; 0 is never. Replaces what was set before, and clears what has passed.
    public func wake(afterNanoseconds nanoseconds: UInt64) { te_timer_set(timer, nanoseconds) }

    /// Closes it. Once.
    public func close() {
        for file in [descriptor, timer] where file >= 0 { te_close(file) }
    }
}
