internal import Platform
internal import Synchronization
internal import TransferCore

/// All NICs of the device and everything in flight on them: the one place where transfers are started, posted,
/// completed and counted.
///
/// It knows no thread and no clock of its own. Whoever calls `progress()` - a worker, the caller, a simulator - is
/// the *progress thread*, and everything here that is not said to be callable from anywhere belongs to it. State lies
/// in tables so that the data path pays neither for exclusivity checks nor for reference counts.
final class DomainGroup {
    let page: TargetPage
    let clock: any TransferClock
    let planner: StripePlanner
    let engineName: String
    let recorder: FlightRecorder
    /// The engine, when it has a worker.
    weak var owner: TransferEngine?
    /// See `keepOwner`. The worker's.
    private var keptOwner: TransferEngine?

    let domains: Table<HeldDomain>
    /// For each domain, the largest request that may carry several counts.
    let countsManyBytes: Table<UInt64>
    let domainNames: [String]
    let regions = Table(repeating: RegionEntry(), count: Limits.regions)
    let attachments: Table<Attachment>
    let freeAttachments: IndexStack
    let slots = Table(count: Limits.transfers) { _ in TransferSlot() }
    /// For each slot, whether its transfer has ended (`SlotStatus`). Callable from anywhere.
    let statuses = Table(count: Limits.transfers) { _ in Atomic<UInt64>(1 << 32) }
    /// Slots that nobody uses. Callable from anywhere.
    let free = IndexStack(capacity: Limits.transfers)
    /// Slots on their way to the progress thread. Callable from anywhere.
    let submissions = IndexQueue(capacity: Limits.transfers)
    /// Those who sleep until a transfer ends, and what became of failed transfers.
    let outcomes = Mutex(Outcomes())

    /// Slots that wait for a counter, in no order.
    let waits = Table<UInt32>(repeating: 0, count: Limits.counterWaits)
    let hot = Cell(Hot())

    let batch = Table(count: Limits.requestsPerPost) { _ in WorkRequest() }
    /// Where the slot's cursor stood before each request of the batch.
    let marks = Table(repeating: Cursor(), count: Limits.requestsPerPost)
    let pieces = Table(repeating: Piece(rail: 0, offset: 0, length: 0), count: Limits.railsPerRoute)
    let completions = Table(
        repeating: Completion(context: 0, count: 1), count: Limits.completionsPerPoll)

    let counters = Counters()
    let messages = MessageInbox()
    let links = Links()
    let liveness: Liveness
    let yielding: Yielding
    /// Nil without a cluster key.
    let authenticator: Authenticator?
    /// Messages that were not taken. Callable from anywhere.
    let refused = Mutex(RefusedMessages())
    /// Our own address, for peers that do not know it; set once the landing region is registered.
    var ownAddress: [UInt8] = []

    /// What changes all the time.
    struct Hot: ~Copyable {
        /// Slots with requests to post.
        var ready = SlotRing(capacity: Limits.transfers)
        /// Slots that ended and whose callbacks are due.
        var finished = SlotRing(capacity: Limits.transfers)
        var watchers: [WatcherEntry] = []
        /// When a watched word changed last.
        var lastWatched: UInt64 = 0
        /// Sets of NICs, other than all, that regions have been registered on.
        var nicSets: [UInt8] = []
        /// Of the newest attachment.
        var generation: UInt32 = 0
        var waitCount = 0
        /// Peers that are attached only because they asked something.
        var metPeers = 0
        /// Links that are down. While it is 0 nothing about links costs anything.
        var downLinks = 0
        /// Attachments whose descriptors expire, and when by `clock`.
        var expiring: [(attachment: UInt32, generation: UInt32, at: UInt64)] = []
        /// When to look at links and peers again.
        var nextTend: UInt64 = 0
        /// When they were looked at.
        var lastTend: UInt64 = 0
        var sequence: UInt32 = 0
        var rounds: UInt64 = 0
        var isInProgress = false
        /// The time of the last look at the clock.
        var now: UInt64 = 0
        /// Slots below this have been used.
        var usedSlots = 0
        var posted: UInt64 = 0
        var traffic = Traffic()
        /// Requests that the next batch may have.
        var batchLimit = Limits.requestsPerPost
        /// Control messages that NICs have taken.
        var controlMessages: UInt64 = 0
        /// The number of the caller's last message.
        var messages: UInt32 = 0
        /// For event loops, with manual progress.
        var waitFile: WaitFile?
        /// Whether nobody makes progress until that file is readable.
        var isResting = false
    }

    /// How far a slot has been posted.
    struct Cursor {
        var target = 0
        var piece = 0
        var chunk = 0
    }

    init(
        domains: [any FabricDomain], page: TargetPage, clock: any TransferClock, planner: StripePlanner,
        name: String, liveness: Liveness, yielding: Yielding, attachments attachmentLimit: Int,
        authenticator: Authenticator?,
        recorder: consuming FlightRecorder
    ) {
        attachments = Table(count: attachmentLimit) { _ in Attachment() }
        freeAttachments = IndexStack(capacity: attachmentLimit)
        self.liveness = liveness
        self.yielding = yielding
        self.authenticator = authenticator
        self.page = page
        self.clock = clock
        self.planner = planner
        engineName = name
        self.recorder = recorder
        self.domains = Table(count: domains.count) { HeldDomain(fabric: domains[$0]) }
        countsManyBytes = Table(
            domains.map { $0.attributes.countsMany ? $0.attributes.countsManyBytes : 0 })
        domainNames = domains.map { "\($0.attributes.fabric) \($0.attributes.name)" }
        hot.value.now = clock.nowNanoseconds
    }

    /// What the NICs are.
    var attributes: [DomainAttributes] { (0..<domains.count).map { domains[$0].fabric.attributes } }

    // MARK: The loop

    /// One round: takes submissions, posts, polls, counts, calls back. Returns whether anything happened.
    @discardableResult func progress() -> Bool {
        precondition(!hot.value.isInProgress, "progress() was called from a callback")
        hot.value.isInProgress = true
        defer { hot.value.isInProgress = false }
        var isBusy = false
        while let index = submissions.pop() {
            start(&slots[index], index)
            isBusy = true
        }
        if !hot.value.ready.isEmpty, pumpReady() { isBusy = true }
        for domain in 0..<domains.count where poll(domain) { isBusy = true }
        if hot.value.waitCount > 0, checkCounters() { isBusy = true }
        if !hot.value.watchers.isEmpty, checkWatchers() { isBusy = true }
        if !hot.value.finished.isEmpty {
            runCallbacks()
            isBusy = true
        }
        hot.value.rounds &+= 1
        if hot.value.rounds & 1023 == 0 { checkDeadlines() }
        return isBusy
    }

    /// Whether nothing needs a progress thread until somebody wakes it. Announced beforehand through
    /// `TargetPage.sleeping`, so that nothing is missed in between. What NICs have pushed back is tried again without pause,
    /// unless the group `isStuck`: then for a moment only, since nobody announces that there is room.
    func maySleep(isStuck: Bool) -> Bool {
        if submissions.mayHaveItems || !hot.value.finished.isEmpty { return false }
        if !hot.value.ready.isEmpty, !isStuck { return false }
        for index in 0..<hot.value.waitCount {
            let slot = waits[index]
            if page.eighths(of: slots[slot].immediate) >= slots[slot].expectedEighths { return false }
        }
        for domain in 0..<domains.count where !domains[domain].fabric.prepareToSleep() { return false }
        return true
    }

    private func poll(_ domain: Int) -> Bool {
        if messages.isFull { return false }
        let count = unsafe domains[domain].poll(completions.memory)
        if count > 0 { recorder.tick() }
        for index in 0..<count {
            let completion = completions[index]
            if completion.count == 0 {
                traceMessage(completion, domain)
                unsafe receive(completion.message, from: EngineID(rawValue: completion.context), domain)
            } else if completion.context & 0xFFFF_FFFF == UInt64(UInt32.max) {
                noteControl(completion)
            } else {
                complete(completion, domain)
            }
        }
        return count > 0
    }

    private func checkCounters() -> Bool {
        var isBusy = false
        var index = 0
        while index < hot.value.waitCount {
            let slot = waits[index]
            if page.consume(eighths: slots[slot].expectedEighths, from: slots[slot].immediate) {
                hot.value.waitCount -= 1
                waits[index] = waits[hot.value.waitCount]
                end(&slots[slot], slot)
                isBusy = true
            } else {
                index += 1
            }
        }
        return isBusy
    }

    /// Keeps the engine until the worker's pass is over, because what is called back may let go of it. Nothing with manual
    /// progress, where the caller has it.
    func keepOwner() {
        // An engine that is ending waits for the worker: it needs no keeping, and is nil here.
        if keptOwner == nil { keptOwner = owner }
    }

    /// What `keepOwner` has kept in this pass, for the caller to let go of.
    func takeKeptOwner() -> TransferEngine? {
        guard keptOwner != nil else { return nil }
        defer { keptOwner = nil }
        return keptOwner
    }

    func runCallbacks() {
        keepOwner()
        // Only those that are due now: a callback may end further transfers at once.
        for _ in 0..<hot.value.finished.count {
            let index = hot.value.finished.removeFirst()
            settle(&slots[index], index)
        }
    }
}

/// A queue of slot indices, each in it at most once, so that it cannot overflow.
struct SlotRing: ~Copyable {
    private let storage: Table<UInt32>
    private let mask: Int
    private var first = 0
    private var end = 0

    /// `capacity` is a power of two.
    init(capacity: Int) {
        storage = Table(repeating: 0, count: capacity)
        mask = capacity - 1
    }

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

    func contains(_ index: UInt32) -> Bool { (first..<end).contains { storage[$0 & mask] == index } }

    /// Takes an index out of the middle. O(count).
    mutating func remove(_ index: UInt32) {
        for _ in 0..<count {
            let other = removeFirst()
            if other != index { append(other) }
        }
    }
}

/// A NIC's domain in a table. What the data path calls goes through methods of this: as it cannot be copied, they do not
/// count references to the domain, an atomic add and an atomic subtract for each call through `fabric`.
struct HeldDomain: ~Copyable {
    let fabric: any FabricDomain

    @inline(__always) borrowing func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        unsafe fabric.post(requests)
    }
    /// Posts the first request of a table, which does not move.
    @inline(__always) borrowing func post(firstOf batch: borrowing Table<WorkRequest>) -> Bool {
        unsafe post(UnsafeBufferPointer(start: batch.address(of: 0), count: 1)).accepted == 1
    }
    /// Lets `body` make the bytes of the first request of a table.
    borrowing func fill(
        firstOf batch: borrowing Table<WorkRequest>, _ body: (UnsafeMutableRawPointer) -> Void
    ) -> Bool {
        unsafe fabric.fill(UnsafeBufferPointer(start: batch.address(of: 0), count: 1), body) == .success
    }
    @inline(__always) borrowing func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int {
        unsafe fabric.poll(completions)
    }
}
