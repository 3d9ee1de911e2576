internal import CPlatform
public import CTransferEngine
internal import Platform
internal import Synchronization
internal import TransferEngine

/// An engine as handles know it: with its objects, its events, and the number of calls that are inside.
final class EngineBox: Sendable {
    let engine: TransferEngine
    let events: EventQueue
    let slot: Int
    let epoch: Int
    let serial: UInt32
    let isManual: Bool
    let timeoutNanoseconds: UInt64
    let objects = Mutex(Objects())
    /// Leases that have not ended, by their epoch.
    let leases = Mutex<[UInt64: ImmediateLease]>([:])
    let isClosing = Atomic<Bool>(false)
    /// Whether something that stands on the engine has taken its messages. Written while the registry is locked.
    let hasRole = Atomic<Bool>(false)
    /// Exchanges of experts that stand on the engine.
    let exchanges = Atomic<Int>(0)
    /// Calls that are inside. Raised while the registry is locked, so that none comes in once the engine has left it.
    let calls = Atomic<Int>(0)
    private let forks = tei_forks()
    /// With manual progress: the thread that is inside, and how deep.
    private let owner = Atomic<UInt>(0)
    private let depth = Atomic<Int>(0)

    init(
        _ engine: TransferEngine, _ events: EventQueue, slot: Int, epoch: Int, serial: UInt32,
        timeoutNanoseconds: UInt64
    ) {
        self.engine = engine
        self.events = events
        self.slot = slot
        self.epoch = epoch
        self.serial = serial
        self.timeoutNanoseconds = timeoutNanoseconds
        isManual = engine.progressMode.isManual
    }

    var handle: UInt64 { Handle(.engine, slot: slot, index: 0, serial: serial).bits }

    /// Gives the engine's messages to something that stands on it. While the registry is locked.
    func takeMessages() throws(Failure) {
        // pairs with the exchange in te_engine_close
        guard !isClosing.load(ordering: .acquiring) else { throw Failure.badHandle(handle, .engine) }
        guard hasRole.exchange(true, ordering: .relaxed) == false else {
            throw Failure(TE_EBUSY, "the engine has a role already; open an engine for each")
        }
    }

    /// Messages are the interface's again.
    func giveBackMessages() {
        try? engine.receive(while: { [events] in events.hasRoomForMessages }) { [events] bytes, sender in
            events.push(message: Array(bytes), from: sender.rawValue)
        }
        hasRole.store(false, ordering: .relaxed)
    }

    /// Refuses child processes.
    func refuseChildren() throws(Failure) {
        guard forks == tei_forks() else {
            throw Failure(
                TE_EWRONGTHREAD,
                "the engine was opened before fork() and belongs to the parent process; open one in the child"
            )
        }
    }

    /// Refuses child processes, and with manual progress a second thread.
    func admit() throws(Failure) {
        try refuseChildren()
        guard isManual else { return }
        let me = PlatformThread.token
        if owner.load(ordering: .relaxed) != me {
            // pairs with the store in leave()
            guard owner.compareExchange(expected: 0, desired: me, ordering: .acquiring).exchanged else {
                throw Failure(
                    TE_EWRONGTHREAD, "another thread is inside this engine, which has manual progress")
            }
        }
        depth.store(depth.load(ordering: .relaxed) + 1, ordering: .relaxed)
    }

    func dismiss() {
        guard isManual else { return }
        let left = depth.load(ordering: .relaxed) - 1
        depth.store(left, ordering: .relaxed)
        if left == 0 { owner.store(0, ordering: .releasing) }  // pairs with the exchange in admit()
    }

    /// A file that is readable when `te_poll` has something to do.
    func openFile() throws(Failure) -> Int32 {
        let queue = try events.openFile()
        guard isManual else { return queue }
        do throws(TransferError) { return try engine.openWaitFile(with: [queue]) } catch {
            throw Failure(error)
        }
    }

    func leave() {
        // pairs with the load in Registry.close
        calls.subtract(1, ordering: .releasing)
    }

    /// The moment at which a wait of so many nanoseconds ends.
    func deadline(_ timeout: Int64) -> UInt64 {
        let now = te_monotonic_nanoseconds()
        let length = timeout < 0 ? timeoutNanoseconds : UInt64(timeout)
        let (end, overflow) = now.addingReportingOverflow(length)
        return overflow ? .max : end
    }
}

/// The engines of this process by their handles.
struct Registry: ~Copyable {
    private static let capacity = 255
    private var boxes: [EngineBox?] = Array(repeating: nil, count: capacity)
    private var epochs: [Int] = Array(repeating: 0, count: capacity)
    private var reserved: Set<Int> = []
    private var next = 0
    private var serial: UInt32 = 0

    /// A place for an engine that is about to be opened.
    mutating func reserve() throws(Failure) -> (slot: Int, epoch: Int) {
        for _ in 0..<Self.capacity {
            next = (next + 1) % Self.capacity
            guard boxes[next] == nil, reserved.insert(next).inserted else { continue }
            epochs[next] = (epochs[next] + 1) & 0x7F
            return (next, epochs[next])
        }
        throw Failure(TE_ELIMIT, "\(Self.capacity) engines are open in this process; close some")
    }

    mutating func settle(_ slot: Int, _ box: EngineBox?) {
        reserved.remove(slot)
        boxes[slot] = box
    }

    mutating func nextSerial() -> UInt32 {
        serial &+= 1
        if serial == 0 { serial = 1 }
        return serial
    }

    /// The engine of a handle, whatever it is for; one more call is inside of it.
    func enter(_ bits: UInt64, _ kind: Handle.Kind) -> (EngineBox, Handle)? {
        guard let handle = Handle(bits, kind), handle.slot < Self.capacity, let box = boxes[handle.slot],
            kind != .engine || handle.serial == box.serial && handle.index == 0,
            kind != .transfer || handle.epoch == box.epoch
        else { return nil }
        box.calls.add(1, ordering: .relaxed)
        return (box, handle)
    }
}

let registry = Mutex(Registry())

/// Runs `body` with the engine of a handle, which stays open meanwhile. `waits`: not from callbacks.
@inline(__always)
func call(
    _ bits: UInt64, _ kind: Handle.Kind, waits: Bool = false,
    _ body: (EngineBox, Handle) throws(Failure) -> Int32
) -> Int32 {
    do throws(Failure) {
        if waits { try refuseCallbacks() }
        guard let (box, handle) = registry.withLock({ $0.enter(bits, kind) }) else {
            throw Failure.badHandle(bits, kind)
        }
        defer { box.leave() }
        try box.admit()
        defer { box.dismiss() }
        return try body(box, handle)
    } catch {
        return error.report()
    }
}

func refuseCallbacks() throws(Failure) {
    guard tei_callback_depth() == 0 else {
        throw Failure(TE_EWRONGTHREAD, "a callback must not wait, make progress or close")
    }
}

@c @implementation public func te_engine_close(_ engine: te_engine) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        guard let (box, handle) = registry.withLock({ $0.enter(engine, .engine) }) else {
            throw Failure.badHandle(engine, .engine)
        }
        defer { box.leave() }
        try box.admit()
        defer { box.dismiss() }
        try registry.withLock { registry throws(Failure) in
            guard !box.hasRole.load(ordering: .relaxed) else {
                throw Failure(
                    TE_EBUSY, "a te_kv role or a te_weights endpoint stands on the engine; close that first")
            }
            // pairs with the subtraction of the last exchange
            guard box.exchanges.load(ordering: .acquiring) == 0 else {
                throw Failure(TE_EBUSY, "an exchange stands on the engine; te_moe_close it first")
            }
            let isFirst = box.isClosing.compareExchange(
                // pairs with the waits' loads
                expected: false, desired: true, ordering: .acquiringAndReleasing
            ).exchanged
            guard isFirst else { throw Failure.badHandle(engine, .engine) }
            registry.settle(handle.slot, nil)
        }
        box.events.wakeAll()
        // pairs with the subtraction in leave(); this call is inside too
        while box.calls.load(ordering: .acquiring) > 1 { pauseBriefly() }
        box.engine.close()
        box.events.close()
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

/// Sleeps for 50 microseconds.
func pauseBriefly() {
    var word: UInt32 = 0
    te_futex_wait(&word, 0, 50_000)
}
