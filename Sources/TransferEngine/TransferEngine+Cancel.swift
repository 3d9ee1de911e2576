public import TransferCore

/// The end of a transfer before its time, and the proof that it is over.
extension TransferEngine {
    /// Ends a transfer now, with `TransferError.Code.cancelled`, and calls `onReceipt` once it is known whether anything
    /// of it can still land.
    ///
    /// Nothing more of the transfer is posted; what NICs have taken is left to end by itself for three quarters of `timeout`.
    /// Then its connections are broken, and the receiver is asked to close its side; the only connection to a peer stays while
    /// others use it. `quiescent` means that no byte can land any more, on any NIC, and no immediate can be counted. A transfer
    /// that has ended is quiescent at once, and may be cancelled any number of times; what has been counted stays counted.
    /// - Parameters:
    ///   - transfer: A transfer or a counter wait of this engine.
    ///   - timeout: How long to wait for the proof; nil is the engine's default.
    ///   - onReceipt: Called once, on the thread that makes progress, or before this returns.
    /// - Throws: `closed` when the engine has been closed.
    public func cancel(
        _ transfer: Transfer, timeout: Duration? = nil,
        onReceipt: @escaping @Sendable (CancelReceipt) -> Void
    ) throws(TransferError) {
        let nanoseconds = timeout?.nanoseconds ?? defaultTimeout
        try perform { group throws(TransferError) in group.cancel(transfer, nanoseconds, onReceipt) }
    }

    /// Ends a transfer now and suspends until it is known whether anything of it can still land.
    ///
    /// With manual progress somebody else must call `progress()` meanwhile.
    /// - Throws: `closed` when the engine has been closed.
    public func cancel(
        _ transfer: Transfer, timeout: Duration? = nil
    ) async throws(TransferError) -> CancelReceipt {
        let result = await unsafe withUnsafeContinuation {
            (continuation: UnsafeContinuation<Result<CancelReceipt, TransferError>, Never>) in
            do throws(TransferError) {
                try cancel(transfer, timeout: timeout) { unsafe continuation.resume(returning: .success($0)) }
            } catch {
                unsafe continuation.resume(returning: .failure(error))
            }
        }
        return try result.get()
    }

    /// Ends every peer's right to write into a region, and returns when that is true. The memory stays registered, under a new
    /// generation and new keys: descriptors of before are refused, those of the returned region are good.
    ///
    /// The old value must not be used any more; transfers that use it as their source must have ended.
    /// - Throws: what `deregister` and `register` throw. After an error the region is gone and memory that the engine allocated
    ///   is kept but not given back.
    public func revoke(_ region: MemoryRegion) throws(TransferError) -> MemoryRegion {
        let known = try forget(region)
        try performRemoval(of: known, keepingMemory: true)
        return try reregister(known)
    }
}
