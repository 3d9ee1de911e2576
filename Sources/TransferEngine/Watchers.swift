internal import Synchronization
public import TransferCore

/// Called with the value before and after a change of a watched word, on the thread that makes progress. Values in
/// between may be skipped.
public typealias WatchCallback = @Sendable (_ old: UInt64, _ new: UInt64) -> Void

/// A watched word. A plain value; `TransferEngine.unwatch` ends it.
public struct Watcher: Hashable, Sendable {
    let number: UInt64
}

/// A word, what it was, and whom to tell.
struct WatcherEntry {
    var number: UInt64
    var word: UnsafeMutablePointer<Atomic<UInt64>>
    var last: UInt64
    var callback: WatchCallback
}

extension DomainGroup {
    /// Looks at all watched words. Returns whether one has changed.
    func checkWatchers() -> Bool {
        var hasChanged = false
        var index = 0
        while index < watchers.count {
            // pairs with the producer's increment
            let new = watchers[index].word.pointee.load(ordering: .acquiring)
            let old = watchers[index].last
            if new != old {
                watchers[index].last = new
                hasChanged = true
                watchers[index].callback(old, new)
            }
            index += 1
        }
        return hasChanged
    }
}

/// Messages for the receive pool, or kept until there is one.
final class MessageInbox {
    private var backlog: [(EngineID, [UInt8])] = []
    private var handler: MessageHandler?

    /// Without a receive pool and with a full backlog nothing more is polled: senders are pushed back.
    var isFull: Bool { backlog.count > Limits.messageBacklog - Limits.completionsPerPoll }

    func deliver(_ bytes: UnsafeRawBufferPointer, from sender: EngineID) {
        if let handler {
            handler(bytes, sender)
        } else {
            backlog.append((sender, Array(bytes)))
        }
    }

    func open(_ handler: MessageHandler?) {
        self.handler = handler
        guard let handler else { return }
        let early = backlog
        backlog = []
        for (sender, bytes) in early { bytes.withUnsafeBytes { handler($0, sender) } }
    }
}

/// Called for each message, on the thread that makes progress. The bytes are valid during the call.
public typealias MessageHandler = @Sendable (_ bytes: UnsafeRawBufferPointer, _ sender: EngineID) -> Void
