internal import CPlatform
internal import CTransferEngine
internal import KVCacheTransfer
internal import Platform
internal import Synchronization
internal import TransferEngine

/// What the handles of a role stand for. Apart from the role, because the handlers of requests and jobs hold it.
final class KVObjects: Sendable {
    struct Request {
        /// Nil while the decoder is being told.
        var id: KVRequestID?
        var isCancelled = false
    }

    struct Job {
        var job: KVJob
        var tag: UInt64 = 0
        var isAccepted = false
        /// What prompts `te_kv_abort` before and after `te_kv_accept`.
        var code: KVError.Code { isAccepted ? .aborted : .refused }
    }

    struct State {
        var last: UInt64 = 0
        var peers: [UInt64: KVPeer] = [:]
        var requests: [UInt64: Request] = [:]
        var jobs: [UInt64: Job] = [:]
    }

    let mailbox = Mailbox()
    let state = Mutex(State())
    let role: Int

    init(role: Int) { self.role = role }

    func bits(_ kind: KVHandle.Kind, _ number: UInt64) -> UInt64 {
        KVHandle(kind: kind, role: role, number: number).bits
    }

    func offer(_ job: KVJob) {
        let number = state.withLock { state in
            state.last += 1
            state.jobs[state.last] = Job(job: job)
            return state.last
        }
        mailbox.push(Mailbox.Event(kind: TE_KV_JOB, object: bits(.job, number)))
    }

    func happened(_ event: KVJobEvent, to number: UInt64, tag: UInt64) {
        let object = bits(.job, number)
        switch event {
        case .stop(let reason):
            mailbox.push(Mailbox.Event(TE_KV_STOP, tag, object, reason))
        case .released:
            state.withLock { $0.jobs[number] = nil }
            mailbox.push(Mailbox.Event(kind: TE_KV_RELEASED, tag: tag, object: object))
        }
    }

    func happened(_ event: KVRequestEvent, to number: UInt64, tag: UInt64) {
        let object = bits(.request, number)
        switch event {
        case .layer(let layer):
            mailbox.push(Mailbox.Event(kind: TE_KV_LAYER, tag: tag, object: object, layer: layer))
        case .ready:
            state.withLock { $0.requests[number] = nil }
            mailbox.push(Mailbox.Event(kind: TE_KV_READY, tag: tag, object: object))
        case .failed(let reason):
            mailbox.push(Mailbox.Event(TE_KV_FAILED, tag, object, reason))
        case .pagesFree:
            state.withLock { $0.requests[number] = nil }
            mailbox.push(Mailbox.Event(kind: TE_KV_PAGES_FREE, tag: tag, object: object))
        }
    }
}

extension Mailbox.Event {
    init(_ kind: Int, _ tag: UInt64, _ object: UInt64, _ reason: KVError) {
        self.init(
            kind: kind, tag: tag, object: object, code: UInt32(reason.code.rawValue), reason: reason.message)
    }
}

/// A prefiller or a decoder as handles know it.
final class KVRole: Sendable {
    enum Side: Sendable {
        case prefiller(KVPrefiller)
        case decoder(KVDecoder)
    }

    let side: Side
    let objects: KVObjects
    let setup: KVSetup
    let isClosing = Atomic<Bool>(false)
    /// Calls that are inside. Raised while the roles are locked, so that none comes in once the role has left them.
    let calls = Atomic<Int>(0)
    let watchers = Mutex<[(box: EngineBox, watcher: Watcher, region: Handle)]>([])
    private let forks = tei_forks()
    private let clock: KVClock

    init?(_ side: Side, _ objects: KVObjects, _ setup: KVSetup) {
        self.side = side
        self.objects = objects
        self.setup = setup
        let clock = KVClock(setup.configuration.heartbeat) { now in
            switch side {
            case .prefiller(let prefiller): prefiller.tick(nowNanoseconds: now)
            case .decoder(let decoder): decoder.tick(nowNanoseconds: now)
            }
        }
        guard let clock else { return nil }
        self.clock = clock
    }

    func admit() throws(Failure) {
        guard forks == tei_forks() else {
            throw Failure(
                TE_EWRONGTHREAD,
                "the role was opened before fork() and belongs to the parent process; open one in the child")
        }
    }

    func decoder(_ bits: UInt64) throws(Failure) -> KVDecoder {
        guard case .decoder(let decoder) = side else { throw Failure.badRoleHandle(bits, .decoder) }
        return decoder
    }

    func prefiller(_ bits: UInt64) throws(Failure) -> KVPrefiller {
        guard case .prefiller(let prefiller) = side else { throw Failure.badRoleHandle(bits, .prefiller) }
        return prefiller
    }

    /// Ends everything, and gives the regions back when nobody uses them any more.
    func end() {
        for watch in watchers.withLock({ $0 }) {
            try? watch.box.engine.unwatch(watch.watcher)
            watch.box.objects.withLock { $0.regions[watch.region]?.readers -= 1 }
        }
        switch side {
        case .prefiller(let prefiller):
            prefiller.drain()
            for job in objects.state.withLock({ $0.jobs.values.map(\.job.id) }) {
                prefiller.abort(job, KVError(.aborted, "the prefiller is closed"))
            }
        case .decoder(let decoder):
            // Requests that are under way are cancelled, and those that cannot be are revoked.
            for peer in objects.state.withLock({ $0.peers.values.map { $0 } }) { decoder.disconnect(peer) }
        }
        let deadline = te_monotonic_nanoseconds() &+ setup.closeTimeout
        while isBusy, te_monotonic_nanoseconds() < deadline { pauseBriefly() }
        clock.stop()
        let regions = Answer<[[MemoryRegion]]>()
        switch side {
        case .prefiller(let prefiller): prefiller.regions { regions.set($0) }
        case .decoder(let decoder): decoder.regions { regions.set($0) }
        }
        setup.giveBack(regions.value ?? setup.ranks.map(\.regions), revoking: isBusy)
        objects.mailbox.close()
    }

    private var isBusy: Bool {
        objects.state.withLock { !$0.requests.isEmpty || $0.jobs.values.contains { $0.isAccepted } }
    }
}

/// What a closure that may run on another thread says; for a thread that waits for at most a second.
final class Answer<Value: Sendable>: Sendable {
    private let gate = Gate()
    private let stored = Mutex<Value?>(nil)

    func set(_ value: Value) {
        stored.withLock { $0 = value }
        gate.open()
    }

    var value: Value? {
        var looks = 0
        while !gate.isOpen, looks < 1000 {
            gate.sleep(1_000_000)
            looks += 1
        }
        return stored.withLock { $0 }
    }
}

/// The thread that tells a role the time.
final class KVClock: Sendable {
    private let word: Word
    private let thread: PlatformThread

    private final class Word: Sendable { let value = Atomic<UInt32>(0) }

    init?(_ heartbeat: Duration, _ tick: @escaping @Sendable (UInt64) -> Void) {
        let word = Word()
        let (seconds, attoseconds) = heartbeat.components
        let length = UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
        // Often enough for heartbeats, and for what waits for room in an engine.
        let pause = max(1_000_000, min(length / 8, 20_000_000))
        let thread = PlatformThread(name: "te-kv") {
            while word.value.load(ordering: .acquiring) == 0 {  // pairs with the store in stop()
                tick(te_monotonic_nanoseconds())
                withUnsafePointer(to: word.value) { te_futex_wait($0, 0, pause) }
            }
        }
        guard let thread else { return nil }
        self.word = word
        self.thread = thread
    }

    /// Ends the thread, and waits for it. Once.
    func stop() {
        word.value.store(1, ordering: .releasing)  // pairs with the load of the thread
        withUnsafePointer(to: word.value) { te_futex_wake($0) }
        thread.join()
    }
}
