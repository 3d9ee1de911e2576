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
@safe struct WatcherEntry {
    var number: UInt64
    // Eight aligned bytes of a registered region, which stays until after `unwatch`.
    private let word: UnsafeMutablePointer<Atomic<UInt64>>
    var last: UInt64
    var callback: WatchCallback

    init(number: UInt64, word: UnsafeMutableRawPointer, callback: @escaping WatchCallback) {
        self.number = number
        unsafe self.word = word.assumingMemoryBound(to: Atomic<UInt64>.self)
        self.callback = callback
        last = 0
        last = value
    }

    /// What the word holds now. Pairs with the producer's increment.
    var value: UInt64 { unsafe word.pointee.load(ordering: .acquiring) }
}

extension DomainGroup {
    /// Looks at all watched words. Returns whether one has changed.
    func checkWatchers() -> Bool {
        var hasChanged = false
        var index = 0
        while index < hot.value.watchers.count {
            let new = hot.value.watchers[index].value
            let old = hot.value.watchers[index].last
            if new != old {
                hot.value.watchers[index].last = new
                if !hasChanged { hot.value.lastWatched = clock.nowNanoseconds }
                hasChanged = true
                keepOwner()
                hot.value.watchers[index].callback(old, new)
            }
            index += 1
        }
        return hasChanged
    }

    /// How long a progress thread may sleep before it looks at the watched words again: a tenth of the time that has passed
    /// since the last change, so that a word that rests costs ever less and a change is late by a tenth of its pause.
    var watchMilliseconds: Int32 {
        if hot.value.watchers.isEmpty { return 1000 }
        let quiet = hot.value.now &- min(hot.value.now, hot.value.lastWatched)
        return Int32(min(max(1, quiet / 10_000_000), UInt64(Limits.watchMilliseconds)))
    }
}

/// Messages for the receive pool, or kept until there is one.
@safe final class MessageInbox {
    private var backlog: [(EngineID, [UInt8])] = []
    private var handler: MessageHandler?
    private var isReady: (@Sendable () -> Bool)?
    /// Whether there is anything to look at before a poll: read in every round, so free of exclusivity checks.
    private let mayBeFull = Cell(false)

    /// With a full backlog, or a handler that is not ready, nothing more is polled: senders are pushed back.
    var isFull: Bool { mayBeFull.value && isFullNow }

    private var isFullNow: Bool {
        if let isReady { return !isReady() }
        return backlog.count > Limits.messageBacklog - Limits.completionsPerPoll
    }

    func deliver(_ bytes: UnsafeRawBufferPointer, from sender: EngineID) {
        if let handler = unsafe handler {
            unsafe handler(bytes, sender)
        } else {
            backlog.append((sender, unsafe Array(bytes)))
            mayBeFull.value = true
        }
    }

    /// Lets go of whoever was told, and of what nobody has got.
    func close() {
        unsafe open(nil)
        backlog = []
        mayBeFull.value = false
    }

    func open(_ handler: MessageHandler?, while isReady: (@Sendable () -> Bool)? = nil) {
        unsafe self.handler = handler
        self.isReady = isReady
        guard let handler = unsafe handler else {
            mayBeFull.value = isReady != nil || !backlog.isEmpty
            return
        }
        mayBeFull.value = isReady != nil
        let early = backlog
        backlog = []
        for (sender, bytes) in early { unsafe bytes.withUnsafeBytes { unsafe handler($0, sender) } }
    }
}

/// Called for each message, on the thread that makes progress. The bytes are valid during the call.
public typealias MessageHandler = @Sendable (_ bytes: UnsafeRawBufferPointer, _ sender: EngineID) -> Void
