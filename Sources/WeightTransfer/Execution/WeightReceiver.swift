internal import Synchronization
public import TransferEngine

/// An inference rank: two slots for the weights of two versions, one of which is served.
///
/// Passive: trainers write, and this looks only at counts. Then it compares what has arrived with the trainers'
/// digests, and serves it when
/// the controller says so. All but `read` belong to the thread that polls the endpoint.
public final class WeightReceiver: @unchecked Sendable {
    // SAFETY: `serving` is a mutex; everything else is touched by the polling thread only.
    private let endpoint: WeightEndpoint
    private let rank: Int
    private let base: Plan
    private let controller: () -> EngineAddress
    private let serving: Mutex<Serving>
    private var phase = Phase.idle
    /// What is being received, and by which plan.
    private var version: UInt64 = 0
    private(set) var attempt: UInt32 = 0
    private var plan: Plan
    private var index: PlanIndex
    private var lease: ImmediateLease?
    /// The attempt that decided what is served.
    private var decision: UInt32 = 0
    private var failure = ""
    /// Tasks that are not what their trainers sent.
    private var damaged: [(name: TaskName, owner: Int32)] = []
    private var isVerifying: Int = 0
    private let engine: TransferEngine
    /// Damaged tasks that are named in one attempt; more wait for the next one.
    private static let reported = 16
    /// For tests: called with the spare slot when everything has arrived, before it is looked at.
    var spoil: ((MemoryRegion) -> Void)?

    private struct Serving {
        var slots: [MemoryRegion]
        /// Which slot is served; nil before the first version.
        var active: Int?
        var versions: [UInt64?] = [nil, nil]
        var readers = [0, 0]
    }

    private enum Phase: Equatable {
        case idle
        /// Entries are being counted.
        case opened
        /// All entries are there; this many immediates of data are to come.
        case counting(Int)
        case verifying
        case prepared
        case failed
    }

    /// - Parameters:
    ///   - endpoint: Of this process.
    ///   - rank: The inference rank.
    ///   - plan: The plan of an update of everything.
    ///   - controller: Where the controller is now.
    /// - Throws: what the engine says when there is no memory.
    public init(
        _ endpoint: WeightEndpoint, rank: Int, plan: Plan, controller: @escaping () -> EngineAddress
    ) throws(TransferError) {
        guard (0..<plan.inference.worldSize).contains(rank) else {
            throw TransferError(.invalidArgument, "inference rank \(rank) of \(plan.inference.worldSize)")
        }
        self.endpoint = endpoint
        self.rank = rank
        base = plan
        self.plan = plan
        self.controller = controller
        engine = endpoint.engine
        index = PlanIndex(plan)
        let bytes = plan.slotBytes(rank: rank, entries: index.arrivals[rank].count)
        let slots = [try engine.allocate(byteCount: bytes), try engine.allocate(byteCount: bytes)]
        serving = Mutex(Serving(slots: slots))
        endpoint.receiver = self
    }

    /// The version that is served; nil before the first.
    public var activeVersion: UInt64? {
        serving.withLock { serving in serving.active.flatMap { serving.versions[$0] } }
    }

    /// Lends the weights that are served. The version does not change and its bytes stay as they are until `body`
    /// returns, whatever is
    /// being updated meanwhile; a version is not overwritten while somebody reads it. Any thread.
    /// - Returns: What `body` returns; nil before the first version.
    public func read<Result>(
        _ body: (_ version: UInt64, _ weights: UnsafeRawBufferPointer) throws -> Result
    ) rethrows -> Result? {
        guard let reading = beginReading() else { return nil }
        defer { end(reading) }
        return try unsafe body(reading.version, reading.weights)
    }

    /// What `beginReading` lends.
    @safe package struct Reading: @unchecked Sendable {
        // SAFETY: the bytes stay as they are until the reading is ended, which whoever has it does.
        /// The version that is lent.
        package let version: UInt64
        /// Its bytes.
        package let weights: UnsafeRawBufferPointer
        fileprivate let slot: Int
    }

    /// The two halves of `read`, for callers that cannot be inside of it meanwhile. Each reading is ended once. Any thread.
    package func beginReading() -> Reading? {
        serving.withLock { serving in
            guard let active = serving.active, let version = serving.versions[active] else { return nil }
            serving.readers[active] += 1
            // Not that of the present plan, which another thread may be changing; they are the same.
            let bytes = unsafe UnsafeRawBufferPointer(serving.slots[active].bytes)
            return unsafe Reading(
                version: version,
                weights: UnsafeRawBufferPointer(rebasing: bytes[..<base.inference.regionBytes[rank]]),
                slot: active)
        }
    }

    /// See `beginReading`.
    package func end(_ reading: Reading) { serving.withLock { $0.readers[reading.slot] -= 1 } }

    /// Gives the memory back: nobody writes into it any more. No reading may be under way.
    func close() {
        phase = .idle
        if let lease { try? engine.end(lease, isQuiet: true) }
        lease = nil
        for slot in serving.withLock({ $0.slots }) { try? engine.deregister(slot) }
    }

    // MARK: Messages

    func join() {
        var message = WeightMessage(.join)
        message.rank = UInt32(rank)
        message.first = activeVersion ?? 0
        message.attempt = decision
        message.bytes = engine.address.encoded()
        endpoint.send(message, to: controller())
    }

    func handle(_ message: WeightMessage) {
        guard message.rank == UInt32(rank) || message.kind == .abort else { return }
        let isPresent = message.version == version && message.attempt == attempt
        switch message.kind {
        case .open: open(message, isPresent)
        case .verify where isPresent: answerVerify()
        case .commit:
            if isPresent, phase == .prepared { flip() }
            answerCommitted(message, isDone: activeVersion == message.version)
        // Whatever is older than this, and comes later, must change nothing.
        case .recall where message.attempt >= attempt, .rollback where message.attempt >= attempt:
            (attempt, phase) = (message.attempt, .idle)
            returnTo(message)
        case .abort where isPresent: phase = .idle
        default: break
        }
    }

    /// The slot that is not served.
    private var spare: Int { serving.withLock { $0.active == 0 ? 1 : 0 } }

    /// The memory of a slot; only the thread that polls changes which it is.
    private func slot(_ number: Int) -> MemoryRegion { serving.withLock { $0.slots[number] } }

    /// Ends everybody's right to write into the spare slot, and grants it anew: what an earlier attempt still has
    /// under way can neither land nor be counted.
    private func open(_ message: WeightMessage, _ isPresent: Bool) {
        if isPresent, phase != .idle { return answerOpened(message) }
        // Attempts rise: a question of an earlier one that was held up does not undo a later one.
        guard message.attempt > attempt, message.version != activeVersion else { return }
        let spare = spare
        let mayWrite = serving.withLock { serving in
            guard serving.readers[spare] == 0 else { return false }
            serving.versions[spare] = nil
            return true
        }
        guard mayWrite else {
            return answerOpened(message, obstacle: "the version before is still being read")
        }
        phase = .idle
        do throws(TransferError) {
            let fresh = try engine.revoke(slot(spare))
            serving.withLock { $0.slots[spare] = fresh }
            if let lease { try engine.end(lease, isQuiet: true) }
            lease = nil
            lease = try engine.lease(2)
            plan = try Planner.replan(
                base, without: Set(message.ranks.map { Int($0) }), for: Set(message.others.map { Int($0) }))
            index = PlanIndex(plan)
            version = message.version
            attempt = message.attempt
            (failure, damaged) = ("", [])
            phase = .opened
            answerOpened(message)
        } catch { answerOpened(message, obstacle: error.description) }
    }

    private func answer(_ kind: WeightMessage.Kind, _ message: WeightMessage) -> WeightMessage {
        var answer = WeightMessage(kind)
        answer.rank = UInt32(rank)
        answer.version = message.version
        answer.attempt = message.attempt
        return answer
    }

    private func answerOpened(_ message: WeightMessage, obstacle: String? = nil) {
        var answer = answer(.opened, message)
        if let obstacle {
            answer.bytes = Array(obstacle.utf8.prefix(1000))
        } else if let lease {
            answer.status = .done
            answer.first = UInt64(lease[0].value) | UInt64(lease[1].value) << 32
            answer.second = activeVersion ?? 0
            answer.bytes = engine.descriptor(of: slot(spare)).encoded()
        }
        endpoint.send(answer, to: controller())
    }

    private func answerVerify() {
        var answer = WeightMessage(.prepared)
        answer.rank = UInt32(rank)
        answer.version = version
        answer.attempt = attempt
        answer.status = phase == .prepared ? .done : phase == .failed ? .failed : .busy
        answer.bytes = Array(failure.utf8.prefix(1000))
        answer.tasks = damaged.flatMap { $0.name.words }
        answer.ranks = damaged.last.map { [UInt32($0.owner)] } ?? []
        endpoint.send(answer, to: controller())
    }

    private func flip() {
        let spare = spare
        serving.withLock { serving in
            serving.versions[spare] = version
            serving.active = spare
        }
        decision = attempt
        phase = .idle
    }

    /// Says whether a version is still here, and serves it if that was asked.
    private func returnTo(_ message: WeightMessage) {
        let hasVersion = serving.withLock { serving in
            guard let slot = serving.versions.firstIndex(of: message.version) else { return false }
            if message.kind == .rollback { serving.active = slot }
            return true
        }
        if hasVersion, message.kind == .rollback { decision = message.attempt }
        answerCommitted(message, isDone: hasVersion)
    }

    private func answerCommitted(_ message: WeightMessage, isDone: Bool) {
        var answer = answer(.committed, message)
        answer.version = activeVersion ?? 0
        answer.status = isDone ? .done : .failed
        endpoint.send(answer, to: controller())
    }

    // MARK: Arrivals

    func poll() -> Bool {
        guard let lease else { return false }
        switch phase {
        case .opened:
            guard engine.consume(lease[1], count: index.arrivals[rank].count) else { return false }
            phase = .counting(
                index.arrivals[rank].indices.reduce(0) { sum, number in
                    let entry = entry(number)
                    return entry.mode == .written ? sum + entry.count : sum
                })
        case .counting(let count):
            guard engine.consume(lease[0], count: count) else { return false }
            isVerifying = 0
            phase = .verifying
            if let spoil { spoil(slot(spare)) }
        case .verifying: verifyNext()
        case .idle, .prepared, .failed: return false
        }
        return true
    }

    private func entry(_ number: Int) -> ArrivalEntry {
        let place =
            unsafe UnsafeRawPointer(slot(spare).baseAddress) + plan.tableOffset(rank: rank) + number
            * ArrivalEntry.byteCount
        let words = (0..<4).map {
            UInt64(littleEndian: unsafe place.loadUnaligned(fromByteOffset: 8 * $0, as: UInt64.self))
        }
        return ArrivalEntry(
            digest: Digest(low: words[0], high: words[1]),
            mode: ArrivalEntry.Mode(rawValue: words[2]) ?? .written,
            count: Int(clamping: min(words[3], 1 << 32)))
    }

    /// Compares one task with its trainer's digest; a task that has not changed is copied from the slot that is served before.
    private func verifyNext() {
        guard isVerifying < index.arrivals[rank].count, damaged.count < Self.reported else {
            phase = damaged.isEmpty ? .prepared : .failed
            return answerVerify()
        }
        let entry = entry(isVerifying)
        let (number, write) = index.arrivals[rank][isVerifying]
        isVerifying += 1
        let task = plan.tasks[Int(number)]
        let place = plan.writes[Int(write)]
        let target = plan.inference.targets[Int(task.target)]
        let spare = spare
        let memory = unsafe slot(spare).baseAddress
        let strips = plan.strips(of: task, place)
        let scales = plan.scaleStrips(of: task, place)
        if entry.mode == .unchanged {
            let served = unsafe slot(1 - spare).baseAddress
            unsafe Assembly.copy(served, strips, memory, strips)
            if let scales { unsafe Assembly.copy(served, scales, memory, scales) }
        }
        let offset = place.offset - target.offset(of: task.box)
        let scaleCount = scales.map { Strips.count($0, $0) } ?? 0
        var digest = unsafe strips.digest(
            of: memory, base: offset, target: strips,
            isWhole: entry.count == scaleCount + 1 && strips.isContiguous)
        if let scales {
            let base = place.scaleOffset - target.scaleOffset(of: task.box)
            digest += unsafe scales.digest(
                of: memory, base: base, target: scales, isWhole: scales.isContiguous)
        }
        if digest != entry.digest {
            failure = "'\(target.name)' \(task.box) from trainer \(task.owner) is not what that trainer sent"
            damaged.append((TaskName(task), task.owner))
        }
    }
}
