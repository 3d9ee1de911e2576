internal import Synchronization
public import TransferCore

/// Immediates that are handed out and taken back (contract, promise 4). All throw `closed` when the engine has been closed.
extension TransferEngine {
    /// Hands out immediates that nobody else uses and whose counters are 0: for one request of one peer. Tell the peer their
    /// numbers. They come from the upper half of the 30 bits; the lower half stays the caller's own.
    /// - Parameter count: 1 to `ImmediateLeases.longest`.
    /// - Throws: `invalidArgument`, or `limitReached` when all are open or in quarantine.
    /// - Complexity: O(count). From any thread.
    public func lease(_ count: Int = 1) throws(TransferError) -> ImmediateLease {
        try control.withLock { control throws(TransferError) in
            if control.isClosed { throw .engineClosed }
            return try control.leases.lease(count: count, page: page)
        }
    }

    /// Ends a lease. What arrives for it later is counted nowhere.
    ///
    /// - Parameters:
    ///   - lease: One that was handed out and has not ended.
    ///   - isQuiet: Whether nothing can arrive any more: all that was expected has been counted, or the sender's
    ///     cancellation was `quiescent`. If not, the immediates stay in quarantine until `reclaim`.
    /// - Throws: `invalidArgument` for a lease that has ended.
    /// - Complexity: O(count). From any thread.
    public func end(_ lease: ImmediateLease, isQuiet: Bool) throws(TransferError) {
        try control.withLock { control throws(TransferError) in
            if control.isClosed { throw .engineClosed }
            try control.leases.end(lease, isQuiet: isQuiet, page: page)
        }
    }

    /// Takes a lease out of quarantine: the sender has become quiet since, or the regions it could write to were revoked. Returns
    /// how many arrivals came after the lease had ended.
    /// - Throws: `invalidArgument` for a lease that is not in quarantine.
    public func reclaim(_ lease: ImmediateLease) throws(TransferError) -> Int {
        try control.withLock { control throws(TransferError) in
            if control.isClosed { throw .engineClosed }
            return try control.leases.reclaim(lease, page: page)
        }
    }

    /// How many arrivals came so far after a lease in quarantine had ended.
    /// - Throws: `invalidArgument` for a lease that is not in quarantine.
    public func lateArrivals(of lease: ImmediateLease) throws(TransferError) -> Int {
        try control.withLock { control throws(TransferError) in
            if control.isClosed { throw .engineClosed }
            return try control.leases.lateArrivals(of: lease, page: page)
        }
    }
}
