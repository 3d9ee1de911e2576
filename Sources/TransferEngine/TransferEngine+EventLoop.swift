internal import CPlatform
internal import Platform
internal import Synchronization
internal import TransferCore

/// Engines in an event loop: epoll, libuv, asyncio. No thread but the loop's own, and no wake-up but the system's.
///
/// ```swift
/// let engine = try TransferEngine(Configuration(progress: .eventLoop))
/// let file = try engine.openWaitFile()
/// while let readable = loop.next(), readable == file {
///     engine.progress()
///     engine.rest()
/// }
/// ```
extension TransferEngine {
    /// A file that is readable when there is something to do: call `progress()`, and then `rest()`. It is readable from the
    /// beginning. The engine closes it when it is let go of; of several calls all return the same file.
    ///
    /// With NICs that tell of arrivals by no file - EFA, libfabric's shm, and libfabric's others with `Progress.manual` - it is
    /// readable all the time.
    ///
    /// From the thread that makes progress.
    /// - Parameter others: Files of the caller's that make it readable as well, given with the first call. Here and not around
    ///   it, because the system lets files wait for files only five levels deep, of which NICs take up to three.
    /// - Throws: `TransferError.Code.limitReached` when the process may have no more files, `engineClosed`.
    public func openWaitFile(with others: [Int32] = []) throws(TransferError) -> Int32 {
        precondition(isManual, "openWaitFile() is for engines without a thread of their own")
        guard !isStopping.load(ordering: .relaxed) else { throw .engineClosed }
        if let known = group.hot.value.waitFile { return known.descriptor }
        let file = try WaitFile(filesToWaitFor + others)
        group.hot.value.waitFile = file
        _ = te_event_signal(wakeFile)
        return file.descriptor
    }

    /// Says that nobody makes progress until the file of `openWaitFile` is readable. When something is to be done at once it is
    /// readable now. Whatever is submitted afterwards makes it readable too, so that its deadline is kept.
    ///
    /// From the thread that makes progress. Costs three system calls. Does nothing without a file.
    public func rest() {
        guard isManual, let file = group.hot.value.waitFile, !isStopping.load(ordering: .relaxed) else {
            return
        }
        _ = te_event_drain(wakeFile)
        page.signals.sleeping.store(1, ordering: .sequentiallyConsistent)
        group.hot.value.isResting = true
        guard group.maySleep(isStuck: false) else { return stir() }
        group.checkDeadlines()
        guard group.hot.value.finished.isEmpty else { return stir() }
        file.wake(afterNanoseconds: UInt64(millisecondsToSleep) * 1_000_000)
    }

    /// Ends a rest, if there is one: the loop is to come and make progress.
    @inline(__always) func stirIfResting() {
        if group.hot.value.isResting { stir() }
    }

    private func stir() {
        group.hot.value.isResting = false
        page.signals.sleeping.store(0, ordering: .sequentiallyConsistent)
        _ = te_event_signal(wakeFile)
    }
}
