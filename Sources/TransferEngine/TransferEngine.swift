internal import CPlatform
internal import Platform
internal import SharedMemoryProvider
internal import Synchronization
@_exported public import TransferCore

/// Point-to-point transfers of one process: one-sided writes whose arrival the receiver counts.
///
/// ```swift
/// let engine = try TransferEngine(Configuration(name: "decoder"))
/// let region = try engine.allocate(byteCount: 1 << 20)
/// send(engine.descriptor(of: region).encoded())             // by any channel, to the peer
/// try await engine.result(of: engine.expect(7, count: 4))   // four writes with immediate 7 have arrived
/// ```
///
/// An engine serves one device (a NUMA node or a GPU) through all of that device's NICs; a process with several devices opens
/// one engine for each. No operation is ordered after another one: a receiver knows that data has arrived when it has
/// counted the immediates that came with it, and in no other way.
///
/// All methods may be called from any thread, unless `Configuration.Progress.manual` was chosen: then all calls come from
/// one thread at a time. Submitting neither blocks nor allocates once warm; registering and attaching do both.
public final class TransferEngine: @unchecked Sendable {
    // SAFETY: `group` belongs to the progress thread; other threads reach it only through its lock-free queues and
    // `perform`. `regionNames` and the like are guarded by `control`.
    let group: DomainGroup
    let page: TargetPage
    let configuration: Configuration
    let control: Mutex<Control>
    /// The thread that makes progress; 0 in manual mode, where every thread may.
    let progressToken = Atomic<UInt>(0)
    let isManual: Bool
    /// Nanoseconds of `Configuration.timeout`.
    let defaultTimeout: UInt64
    let wakeFile: Int32
    private let pageMapping: SharedMapping
    private let host: SharedMemoryHost?
    /// Set once, when the engine closes.
    let lifetime = WorkerLifetime()
    let isStopping = Atomic<Bool>(false)
    /// Set once nobody makes progress any more.
    private let isOver = Atomic<Bool>(false)
    /// Who wants what is pending to be failed, since somebody began with it.
    private let failers = Atomic<Int>(0)

    /// What registration and attachment keep; never on the data path.
    struct Control: ~Copyable {
        var regions: [UInt32: RegisteredRegion] = [:]
        /// Entries that a registration is about to take.
        var reservedRegions: Set<UInt32> = []
        var attached: [TrafficClass: [RemoteRegion: RemoteMemory]] = [:]
        var nextGeneration: UInt32
        var nextRegion: UInt32 = 0
        var nextAttachment: UInt32 = 0
        var nextWatcher: UInt64 = 0
        var random: any RandomNumberGenerator & Sendable
        var leases = ImmediateLeases()
        var tasks: [@Sendable () -> Void] = []
        var thread: PlatformThread?
        /// No more is taken.
        var isClosed = false
    }
    /// Whether `Control.tasks` may hold something.
    let hasTasks = Atomic<Bool>(false)

    /// This engine's identity.
    public var id: EngineID { page.engine }
    /// How peers reach this engine.
    public private(set) var address: EngineAddress

    /// Opens an engine on the NICs of `configuration` and starts its thread.
    /// - Throws: `unavailable` when a NIC is not there, `limitReached` when memory, files or threads run out.
    public convenience init(_ configuration: Configuration = Configuration()) throws(TransferError) {
        try self.init(configuration, clock: SystemClock(), random: SystemRandomNumberGenerator()) {
            (page, mapping, wakeFile) throws(TransferError) in
            try openDomains(configuration, page: page, pageFile: mapping.file, wakeFile: wakeFile)
        }
    }

    /// Opens an engine on domains that the caller made, with the caller's clock and randomness: for simulators and for
    /// providers outside this package. `makeDomains` is given the engine's target page.
    public convenience init(
        _ configuration: Configuration, clock: any TransferClock,
        random: any RandomNumberGenerator & Sendable,
        domains makeDomains: (TargetPage) throws(TransferError) -> [any FabricDomain]
    ) throws(TransferError) {
        try self.init(configuration, clock: clock, random: random) { (page, _, _) throws(TransferError) in
            (try makeDomains(page), nil)
        }
    }

    private init(
        _ configuration: Configuration, clock: any TransferClock,
        random: any RandomNumberGenerator & Sendable,
        open: (TargetPage, SharedMapping, Int32) throws(TransferError) -> (
            [any FabricDomain], SharedMemoryHost?
        )
    ) throws(TransferError) {
        var random = random
        let id = EngineID(rawValue: random.next())
        let mapping = try SharedMapping.create(name: "te-page", byteCount: TargetPage.byteCount)
        let page = unsafe TargetPage.initialize(
            mapping.base, engine: id, fencesWriters: RemoteBarrier.isUsable)
        let wakeFile = te_event_new()
        guard wakeFile >= 0 else {
            mapping.unmap()
            throw TransferError(
                .limitReached, "no event: \(errorText(-wakeFile)); raise the limit of open files")
        }
        let domains: [any FabricDomain]
        do throws(TransferError) {
            (domains, host) = try open(page, mapping, wakeFile)
        } catch {
            mapping.unmap()
            te_close(wakeFile)
            throw error
        }
        guard (1...Limits.nicsPerDevice).contains(domains.count) else {
            mapping.unmap()
            te_close(wakeFile)
            throw TransferError(
                .invalidArgument, "\(domains.count) NICs; a device has 1 to \(Limits.nicsPerDevice)")
        }
        self.configuration = configuration
        self.page = page
        pageMapping = mapping
        self.wakeFile = wakeFile
        isManual = configuration.progress.isManual
        defaultTimeout = configuration.timeout.nanoseconds
        group = DomainGroup(
            domains: domains, page: page, clock: clock,
            planner: StripePlanner(stripeBytes: max(configuration.stripeBytes, StripePlanner.granule)),
            name: configuration.name, liveness: configuration.liveness, yielding: configuration.yielding,
            attachments: configuration.attachmentLimit,
            authenticator: configuration.clusterKey.map { Authenticator(key: $0, engine: id) },
            recorder: FlightRecorder(
                capacity: configuration.traceEvents, clock: clock, directory: configuration.traceDirectory))
        let firstGeneration = UInt32(truncatingIfNeeded: random.next() >> 33) | 1
        control = Mutex(Control(nextGeneration: firstGeneration, random: random))
        address = EngineAddress(
            name: configuration.name,
            landing: RemoteRegion(
                engine: id, device: 0, index: 0, generation: 0, access: .localOnly, length: 0, base: 0,
                secret: 0,
                nics: []))
        if !isManual { try startWorker() }
        let landing = try allocate(byteCount: 4096)
        address.landing = signed(content(of: landing), byteCount: 0)
        let encoded = address.encoded()
        try perform { group throws(TransferError) in group.ownAddress = encoded }
    }

    /// Ends the engine: stops its thread, ends all registrations, closes the NICs. Idempotent.
    ///
    /// Transfers and waits that have not ended fail with `closed`, here; whoever awaits them is told. Afterwards, and
    /// meanwhile on other threads, every operation fails with `closed`, transfers that had ended keep their results, and
    /// counters are 0. Memory that the engine allocated is gone: nobody may read it any more.
    ///
    /// In a callback of an engine with a thread of its own, the end comes when that round of callbacks is over, not before this
    /// returns.
    public func close() {
        guard !isManual, isProgressThread, lifetime.isInPass.load(ordering: .relaxed) else { return end() }
        group.keepOwner()
        lifetime.endsAfterPass.store(true, ordering: .relaxed)
        // pairs with the loads in pass() and submit
        isStopping.store(true, ordering: .sequentiallyConsistent)
    }

    /// Closes the engine, also on its worker's thread when that was the last to have it.
    private func end() {
        let (wasClosed, thread) = control.withLock { control in
            defer {
                control.thread = nil
                control.isClosed = true
            }
            return (control.isClosed, control.thread)
        }
        guard !wasClosed else { return }
        // pairs with the loads in work() and submit
        isStopping.store(true, ordering: .sequentiallyConsistent)
        if let thread, !isManual, isProgressThread {
            precondition(!lifetime.isInPass.load(ordering: .relaxed), "the engine ended inside its own work")
            lifetime.isOver.store(true, ordering: .relaxed)
            thread.detach()
        } else if let thread {
            _ = te_event_signal(wakeFile)
            thread.join()
        }
        progressToken.store(0, ordering: .relaxed)
        group.owner = nil
        // Handlers may have the engine, which would have them for ever.
        group.messages.close()
        group.hot.value.watchers = []
        releaseAll()
        for domain in 0..<group.domains.count { group.domains[domain].fabric.close() }
        host?.close()
        isOver.store(true, ordering: .sequentiallyConsistent)  // pairs with the load in failPending()
        failPending()
        // Others may be about to look at a counter or to wake the worker: what they touch stays until nobody has the engine.
        pageMapping.retire(from: TargetPage.headerBytes)
    }

    deinit {
        end()
        for known in control.withLock({ $0.regions }).values { known.mapping?.unmap() }
        pageMapping.withoutFile.unmap()
        group.hot.value.waitFile?.close()
        te_close(wakeFile)
    }

    /// Fails what nobody makes progress with any more: `close` does it, and whoever submits while the engine closes. Does
    /// nothing before that. One thread at a time is at it, and looks again for those who came meanwhile.
    func failPending() {
        // pairs with the store in close(), and with one another: close() comes later and sees what was submitted
        guard isOver.load(ordering: .sequentiallyConsistent),
            failers.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue == 0
        else { return }
        var seen = 1
        var isDone = false
        while !isDone {
            group.failPending(.engineClosed)
            // pairs with the add above, of another thread
            (isDone, seen) = failers.compareExchange(
                expected: seen, desired: 0, ordering: .acquiringAndReleasing)
        }
    }

    // MARK: The worker

    private func startWorker() throws(TransferError) {
        // The engine stays as long as its worker: `close`, which `deinit` calls, joins the thread, or runs on it.
        let worker = ThreadOwner(self)
        let lifetime = lifetime
        group.owner = self
        guard
            let thread = PlatformThread(
                name: "te-worker", cpu: configuration.processor,
                body: { Self.work(worker, lifetime) })
        else { throw TransferError(.limitReached, "no thread for the engine; raise the limit of processes") }
        control.withLock { $0.thread = thread }
        // Until the worker has introduced itself, submissions would run on this thread.
        // pairs with the store in work()
        while progressToken.load(ordering: .acquiring) == 0 { te_cpu_relax() }
    }

    /// The worker's thread. A callback may let go of the last reference to the engine, or be it: the group keeps the engine in
    /// every pass that calls back, and the end of it, if it is that, comes here, where nothing uses the engine any more.
    private static func work(
        _ worker: ThreadOwner<TransferEngine>, _ lifetime: WorkerLifetime
    ) {
        var idle = Idle()
        var goesOn = true
        while goesOn {
            worker.use { engine in
                lifetime.isInPass.store(true, ordering: .relaxed)
                goesOn = engine.pass(&idle)
                lifetime.isInPass.store(false, ordering: .relaxed)
                let kept = engine.group.takeKeptOwner()
                if lifetime.endsAfterPass.load(ordering: .relaxed) { engine.end() }
                return kept
            }
            if lifetime.isOver.load(ordering: .relaxed) { return }
        }
    }

    /// One round of the worker; false after the last.
    private func pass(_ idle: inout Idle) -> Bool {
        if progressToken.load(ordering: .relaxed) == 0 {
            // pairs with the load in startWorker()
            progressToken.store(PlatformThread.token, ordering: .releasing)
        }
        if hasTasks.load(ordering: .acquiring) { runTasks() }  // pairs with the store in perform
        if isStopping.load(ordering: .acquiring) {  // pairs with the store in end()
            runTasks()
            return false
        }
        if group.progress() {
            idle = Idle()
            return true
        }
        te_cpu_relax()
        guard case .adaptive(let spinNanoseconds) = configuration.progress else { return true }
        let now = te_monotonic_nanoseconds()
        if idle.since == 0 { idle = Idle(since: now, lookedAt: now) }
        guard now - idle.lookedAt >= spinNanoseconds else { return true }
        switch sleep(isStuck: now - idle.since >= Self.stuckNanoseconds) {
        case .woken: idle = Idle()
        case .awake: idle.lookedAt = now
        // After a sleep in which nothing happened one look suffices.
        case .timePassed: break
        }
        return true
    }

    /// How long nothing has happened, as the worker sees it: since when, and when it last tried to sleep.
    private struct Idle {
        var since: UInt64 = 0
        var lookedAt: UInt64 = 0
    }
    private enum Sleep { case woken, awake, timePassed }

    /// A NIC that has taken nothing for so long is asked again once a millisecond instead of without pause: a peer that stands
    /// still costs no processor here.
    private static let stuckNanoseconds: UInt64 = 1_000_000

    /// Sleeps until something is submitted, arrives or is due. Whoever brings something looks at `sleeping` after it has
    /// made its change visible; we look for changes after we have set `sleeping`. So one of the two sees the other.
    private func sleep(isStuck: Bool) -> Sleep {
        page.signals.sleeping.store(1, ordering: .sequentiallyConsistent)
        defer { page.signals.sleeping.store(0, ordering: .sequentiallyConsistent) }
        guard !hasTasks.load(ordering: .sequentiallyConsistent),
            !isStopping.load(ordering: .sequentiallyConsistent),
            group.maySleep(isStuck: isStuck)
        else { return .awake }
        group.checkDeadlines()
        let milliseconds = millisecondsToSleep
        let isWoken = unsafe filesToWaitFor.withUnsafeBufferPointer {
            unsafe te_wait_readable($0.baseAddress, Int32($0.count), milliseconds) != 0
        }
        if isWoken { _ = te_event_drain(wakeFile) }
        group.checkDeadlines()
        return isWoken ? .woken : .timePassed
    }

    /// How long nobody need look at what is due; at least 1.
    var millisecondsToSleep: Int32 {
        let milliseconds = group.hot.value.ready.isEmpty ? group.watchMilliseconds : 1
        let next = group.nextDeadline
        guard next != .max else { return milliseconds }
        let left = (next - min(next, group.hot.value.now)) / 1_000_000 + 1
        return min(milliseconds, Int32(clamping: left))
    }

    /// Files of which one is readable when somebody has brought something.
    var filesToWaitFor: [Int32] {
        [wakeFile]
            + (0..<group.domains.count).map { group.domains[$0].fabric.wakeDescriptor }.filter { $0 >= 0 }
    }

    /// Wakes the worker if it sleeps. The caller has made its change visible with a sequentially consistent operation.
    func wakeIfSleeping() {
        if page.signals.sleeping.load(ordering: .sequentiallyConsistent) != 0 {
            _ = te_event_signal(wakeFile)
        }
    }

    private func runTasks() {
        hasTasks.store(false, ordering: .sequentiallyConsistent)
        let tasks = control.withLock { control in
            defer { control.tasks = [] }
            return control.tasks
        }
        if !tasks.isEmpty { group.keepOwner() }
        for task in tasks { task() }
    }

    /// Whether this thread may touch `group`.
    @inline(__always) var isProgressThread: Bool {
        isManual || progressToken.load(ordering: .relaxed) == PlatformThread.token
    }

    /// Who makes progress.
    public var progressMode: Configuration.Progress { configuration.progress }

    /// Makes progress in manual mode. Returns whether anything happened. Call it often: it is the engine's only life.
    ///
    /// Of a closed engine nothing happens any more.
    @discardableResult public func progress() -> Bool {
        precondition(isManual, "progress() is for engines with manual progress")
        if isStopping.load(ordering: .relaxed) { return false }
        stirIfResting()
        return group.progress()
    }
}

/// What the worker's thread knows of its engine when the engine may be gone.
final class WorkerLifetime: Sendable {
    /// Whether the thread uses the engine, whether a callback has closed the engine, and whether that has ended on the thread.
    /// Nobody else looks.
    let isInPass = Atomic(false)
    let endsAfterPass = Atomic(false)
    let isOver = Atomic(false)
}

/// A reference that is handed to a thread which ends before its owner does.
struct UnsafeSendable<Value>: @unchecked Sendable {
    // SAFETY: see the uses; each says who keeps the value alive and who touches it.
    let value: Value
    init(_ value: Value) { self.value = value }
}
