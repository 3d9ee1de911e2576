internal import Synchronization
internal import TransferCore

// For whoever drives engines in virtual time: simulators.
extension TransferEngine {
    /// Looks at the clock: deadlines, heartbeats, links to be tried again. Returns when something of that kind is due next;
    /// `.max` is never. For engines with manual progress on a clock of their own. O(transfers in use).
    package func tick() -> UInt64 {
        precondition(isManual, "tick() is for engines with manual progress")
        if isStopping.load(ordering: .relaxed) { return .max }
        group.checkDeadlines()
        return group.nextDeadline
    }

    /// What is taken at the moment, to find leaks.
    package var usage: Usage {
        var usage = Usage(downLinks: group.hot.value.downLinks)
        for index in 0..<UInt32(group.hot.value.usedSlots) {
            // pairs with the store in submit
            if group.statuses[index].load(ordering: .acquiring) & SlotStatus.pending != 0 {
                usage.pending += 1
            }
            if group.slots[index].isAbandoned { usage.abandoned += 1 }
        }
        return usage
    }

    /// See `usage`.
    package struct Usage: Hashable, Sendable {
        /// Transfers that have not ended.
        package var pending = 0
        /// Transfers whose caller has been told, and of which something is in flight or unsettled.
        package var abandoned = 0
        /// Links that are not in use because they failed.
        package var downLinks = 0
    }
}
