internal import Synchronization
internal import TransferCore

/// All NICs of the device and everything in flight on them: the one place where transfers are started, posted,
/// completed and counted.
///
/// It knows no thread and no clock of its own. Whoever calls `progress()` - a worker, the caller, a simulator - is
/// the *progress thread*, and everything here that is not said to be callable from anywhere belongs to it. State lies
/// behind pointers so that the data path pays neither for exclusivity checks nor for reference counts.
final class DomainGroup {
    let page: TargetPage
    let clock: any TransferClock
    let planner: StripePlanner
    let engineName: String

    let domains: UnsafeMutablePointer<any FabricDomain>
    let domainCount: Int
    /// For each domain, the largest request that may carry several counts.
    let countsManyBytes: UnsafeMutablePointer<UInt64>
    let domainNames: [String]
    let regions: UnsafeMutablePointer<RegionEntry>
    let attachments: UnsafeMutablePointer<Attachment>
    let freeAttachments = IndexStack(capacity: Limits.attachments)
    let slots: UnsafeMutablePointer<TransferSlot>
    /// Slots that nobody uses. Callable from anywhere.
    let free = IndexStack(capacity: Limits.transfers)
    /// Slots on their way to the progress thread. Callable from anywhere.
    let submissions = IndexQueue(capacity: Limits.transfers)
    /// Those who sleep until a transfer ends, and what became of failed transfers.
    let outcomes = Mutex(Outcomes())

    /// Slots with requests to post, and slots that ended and whose callbacks are due.
    let ready: UnsafeMutablePointer<SlotRing>
    let finished: UnsafeMutablePointer<SlotRing>
    /// Slots that wait for a counter, in no order.
    let waits: UnsafeMutablePointer<UInt32>
    let hot: UnsafeMutablePointer<Hot>

    let batch: UnsafeMutablePointer<WorkRequest>
    /// Where the slot's cursor stood before each request of the batch.
    let marks: UnsafeMutablePointer<Cursor>
    let pieces: Table<Piece>
    let completions: UnsafeMutableBufferPointer<Completion>

    var watchers: [WatcherEntry] = []
    let messages = MessageInbox()

    /// The group's scalars.
    struct Hot {
        var waitCount = 0
        var sequence: UInt32 = 0
        var rounds: UInt64 = 0
        var isInProgress = false
        /// The time of the last look at the clock.
        var now: UInt64 = 0
        /// Slots below this have been used.
        var usedSlots = 0
        var posted: UInt64 = 0
    }

    /// How far a slot has been posted.
    struct Cursor {
        var target = 0
        var piece = 0
        var chunk = 0
    }

    init(
        domains: [any FabricDomain], page: TargetPage, clock: any TransferClock, planner: StripePlanner,
        name: String
    ) {
        self.page = page
        self.clock = clock
        self.planner = planner
        engineName = name
        domainCount = domains.count
        self.domains = .allocate(capacity: domains.count)
        self.domains.initialize(from: domains, count: domains.count)
        countsManyBytes = .allocate(capacity: domains.count)
        for (index, domain) in domains.enumerated() {
            let attributes = domain.attributes
            countsManyBytes[index] = attributes.countsMany ? attributes.countsManyBytes : 0
        }
        domainNames = domains.map { "\($0.attributes.fabric) \($0.attributes.name)" }
        regions = .allocate(capacity: Limits.regions)
        regions.initialize(repeating: RegionEntry(), count: Limits.regions)
        attachments = .allocate(capacity: Limits.attachments)
        attachments.initialize(repeating: Attachment(), count: Limits.attachments)
        slots = .allocate(capacity: Limits.transfers)
        for index in 0..<Limits.transfers { (slots + index).initialize(to: TransferSlot()) }
        ready = .allocate(capacity: 1)
        ready.initialize(to: SlotRing(capacity: Limits.transfers))
        finished = .allocate(capacity: 1)
        finished.initialize(to: SlotRing(capacity: Limits.transfers))
        waits = .allocate(capacity: Limits.counterWaits)
        hot = .allocate(capacity: 1)
        hot.initialize(to: Hot())
        hot.pointee.now = clock.nowNanoseconds
        batch = .allocate(capacity: Limits.requestsPerPost)
        marks = .allocate(capacity: Limits.requestsPerPost)
        pieces = Table(repeating: Piece(rail: 0, offset: 0, length: 0), count: Limits.railsPerRoute + 1)
        completions = .allocate(capacity: Limits.completionsPerPoll)
    }

    deinit {
        domains.deinitialize(count: domainCount)
        domains.deallocate()
        countsManyBytes.deallocate()
        regions.deallocate()
        for index in 0..<Limits.attachments where attachments[index].generation != 0 {
            releaseAttachment(index)
        }
        attachments.deallocate()
        slots.deinitialize(count: Limits.transfers)
        slots.deallocate()
        ready.deinitialize(count: 1)
        ready.deallocate()
        finished.deinitialize(count: 1)
        finished.deallocate()
        waits.deallocate()
        hot.deallocate()
        batch.deallocate()
        marks.deallocate()
        completions.deallocate()
    }

    /// Frees the memory of an attachment; its imports have been released.
    func releaseAttachment(_ index: Int) {
        attachments[index].rails.deallocate()
        attachments[index].keys?.deallocate()
        attachments[index] = Attachment()
    }

    // MARK: The loop

    /// One round: takes submissions, posts, polls, counts, calls back. Returns whether anything happened.
    @discardableResult func progress() -> Bool {
        precondition(!hot.pointee.isInProgress, "progress() was called from a callback")
        hot.pointee.isInProgress = true
        defer { hot.pointee.isInProgress = false }
        var isBusy = false
        while let index = submissions.pop() {
            start(slots + Int(index), index)
            isBusy = true
        }
        if !ready.pointee.isEmpty, pumpReady() { isBusy = true }
        for domain in 0..<domainCount where poll(domain) { isBusy = true }
        if hot.pointee.waitCount > 0, checkCounters() { isBusy = true }
        if !watchers.isEmpty, checkWatchers() { isBusy = true }
        if !finished.pointee.isEmpty {
            runCallbacks()
            isBusy = true
        }
        hot.pointee.rounds &+= 1
        if hot.pointee.rounds & 1023 == 0 { checkDeadlines() }
        return isBusy
    }

    /// Whether nothing needs a progress thread until somebody wakes it. Announced beforehand through
    /// `TargetPage.sleeping`, so that nothing is missed in between.
    func maySleep() -> Bool {
        if submissions.mayHaveItems || !ready.pointee.isEmpty || !finished.pointee.isEmpty { return false }
        for index in 0..<hot.pointee.waitCount {
            let slot = slots + Int(waits[index])
            if page.eighths(of: slot.pointee.immediate) >= slot.pointee.expectedEighths { return false }
        }
        for domain in 0..<domainCount where !domains[domain].prepareToSleep() { return false }
        return true
    }

    private func poll(_ domain: Int) -> Bool {
        if messages.isFull { return false }
        let count = domains[domain].poll(completions)
        for index in 0..<count {
            let completion = completions[index]
            if completion.count == 0 {
                messages.deliver(completion.message, from: EngineID(rawValue: completion.context))
            } else {
                complete(completion, domain)
            }
        }
        return count > 0
    }

    private func checkCounters() -> Bool {
        var isBusy = false
        var index = 0
        while index < hot.pointee.waitCount {
            let slotIndex = waits[index]
            let slot = slots + Int(slotIndex)
            if page.consume(eighths: slot.pointee.expectedEighths, from: slot.pointee.immediate) {
                hot.pointee.waitCount -= 1
                waits[index] = waits[hot.pointee.waitCount]
                end(slot, slotIndex)
                isBusy = true
            } else {
                index += 1
            }
        }
        return isBusy
    }

    private func runCallbacks() {
        // Only those that are due now: a callback may end further transfers at once.
        for _ in 0..<finished.pointee.count {
            let index = finished.pointee.removeFirst()
            settle(slots + Int(index), index)
        }
    }
}

/// A queue of slot indices, each in it at most once, so that it cannot overflow.
struct SlotRing: ~Copyable {
    private let storage: UnsafeMutablePointer<UInt32>
    private let mask: Int
    private var first = 0
    private var end = 0

    init(capacity: Int) {
        storage = .allocate(capacity: capacity)
        mask = capacity - 1
    }

    deinit { storage.deallocate() }

    var isEmpty: Bool { first == end }
    var count: Int { end &- first }

    mutating func append(_ index: UInt32) {
        assert(count <= mask)
        storage[end & mask] = index
        end &+= 1
    }

    mutating func removeFirst() -> UInt32 {
        defer { first &+= 1 }
        return storage[first & mask]
    }
}

extension SlotRing {
    func contains(_ index: UInt32) -> Bool { (first..<end).contains { storage[$0 & mask] == index } }

    /// Takes an index out of the middle. O(count).
    mutating func remove(_ index: UInt32) {
        for _ in 0..<count {
            let other = removeFirst()
            if other != index { append(other) }
        }
    }
}
