internal import Synchronization
internal import TransferEngine

/// One attempt at a trainer's part of an update.
final class TrainerRun {
    let version: UInt64
    let attempt: UInt32
    private(set) var status = WeightMessage.Status.busy
    private(set) var failure = ""
    private unowned let trainer: WeightTrainer
    private let engine: TransferEngine
    private let plan: Plan
    private let index: PlanIndex
    private let receivers: Set<Int32>
    private let steps: [Int32]
    private var position = 0
    private var targets: [Int32: ReceiverSlot] = [:]
    private var active: [ActiveTask] = []
    private var staging: MemoryRegion
    private var space: StagingSpace
    private let lease: ImmediateLease
    private var freeImmediates: [Int]
    private var inFlight = 0
    private let signals = Signals()
    private var shards: ShardTable
    private var isCancelled = false
    /// When the controller begins another attempt; a run that is not over then is over.
    private let deadline: UInt64

    /// Tasks under way at a time.
    static let tasks = 64
    /// Of those, tasks whose pieces are here and that are not written yet. Few, so that their memory is used again soon.
    static let ready = 4
    /// What is prepared and written before the engine makes progress: it should stay in a core's cache until it is copied.
    static let batchBytes = 1 << 20
    /// Transfers under way at a time; the engine has room for more.
    static let transfers = 3000

    private struct ReceiverSlot {
        var memory: RemoteMemory
        var data: Immediate
        var entries: Immediate
        var activeVersion: UInt64
    }

    private struct ActiveTask {
        var number: Int32
        var place: Int
        var immediate: Int?
        var fetches = 0
        var transfers: [Transfer] = []
        var isWritten = false
        var record: WeightTrainer.ArrivalRecord?
    }

    private final class Signals: Sendable {
        let failure = Mutex<String?>(nil)
        let receipts = Mutex<(asked: Int, given: Int, unproven: Int)>((0, 0, 0))
    }

    var isOver: Bool { status != .busy }

    init(
        _ trainer: WeightTrainer, _ plan: Plan, _ index: PlanIndex, _ message: WeightMessage
    ) throws(TransferError) {
        self.trainer = trainer
        self.plan = plan
        self.index = index
        engine = trainer.engine
        version = message.version
        attempt = message.attempt
        deadline = trainer.endpoint.now &+ min(max(message.first, 1), 1 << 62)
        receivers = Set(message.others.map { Int32(truncatingIfNeeded: $0) })
        shards = trainer.shards
        steps = plan.sequences[trainer.rank].compactMap { step in
            if case .task(let number) = step { number } else { nil }
        }
        let largest = steps.map { plan.temporaryBytes(of: plan.tasks[Int($0)]) }.max() ?? 0
        let total = steps.reduce(0) { $0 + plan.temporaryBytes(of: plan.tasks[Int($1)]) }
        guard largest <= plan.watermarkBytes else {
            throw TransferError(
                .limitReached,
                "a task needs \(largest) bytes, the watermark is \(plan.watermarkBytes); plan with a higher one"
            )
        }
        space = StagingSpace(capacity: max(Staging.alignment, min(plan.watermarkBytes, total)))
        staging = try trainer.takeStaging(space.capacity)
        lease = try engine.lease(Self.tasks)
        freeImmediates = Array(0..<Self.tasks)
        trainer.letGo(except: receivers)
    }

    func isAbout(_ message: WeightMessage) -> Bool {
        message.version == version && message.attempt == attempt
    }

    func addTarget(_ message: WeightMessage) {
        let rank = Int32(truncatingIfNeeded: message.rank)
        guard targets[rank] == nil, let descriptor = try? RemoteRegion(decoding: message.bytes) else {
            return
        }
        do throws(TransferError) {
            targets[rank] = ReceiverSlot(
                memory: try trainer.attach(descriptor, of: rank),
                data: Immediate(truncatingIfNeeded: message.first),
                entries: Immediate(truncatingIfNeeded: message.first >> 32), activeVersion: message.second)
        } catch { fail("receiver \(rank): \(error)") }
    }

    /// Gives everything back. The run is over, and nothing of it is under way any more.
    func close() {
        trainer.giveBackStaging(staging, isQuiet: status == .done)
        try? engine.end(lease, isQuiet: true)
        for (rank, target) in targets.sorted(by: { $0.key < $1.key }) {
            trainer.keep(target.memory, of: rank)
        }
        targets = [:]
    }

    private func fail(_ reason: String) {
        if failure.isEmpty { failure = reason }
        cancel()
    }

    /// Ends the attempt: nothing more is begun, and what is under way is cancelled. It is over when all of that is quiet.
    func cancel() {
        guard !isCancelled, !isOver else { return }
        isCancelled = true
        let signals = signals
        for transfer in active.flatMap(\.transfers) where engine.isPending(transfer) {
            signals.receipts.withLock { $0.asked += 1 }
            do throws(TransferError) {
                try engine.cancel(transfer) { receipt in
                    signals.receipts.withLock { $0.given += 1 }
                    if receipt != .quiescent { signals.receipts.withLock { $0.unproven += 1 } }
                }
            } catch { signals.receipts.withLock { $0.given += 1 } }
        }
    }

    // MARK: Progress

    func poll() -> Bool {
        if isCancelled {
            let isQuiet = signals.receipts.withLock { $0.asked == $0.given }
            if isQuiet { status = .failed }
            return isQuiet
        }
        if let reason = signals.failure.withLock({ $0 }) {
            fail(reason)
            return true
        }
        guard trainer.endpoint.now < deadline else {
            fail("trainer \(trainer.rank) was not done in time; who leads has not ended the attempt")
            return true
        }
        guard targets.count == receivers.count else { return false }
        var isBusy = reap()
        if isCancelled { return true }
        var bytes = 0
        repeat {
            while !isCancelled, begin() { isBusy = true }
            guard let written = write() else { break }
            isBusy = true
            bytes += written
        } while !isCancelled && bytes < Self.batchBytes
        if !isCancelled, position == steps.count, active.isEmpty { status = .done }
        return isBusy
    }

    /// Forgets tasks whose writes have ended.
    private func reap() -> Bool {
        let before = active.count
        var left: [ActiveTask] = []
        var reason: String?
        for task in active {
            guard task.isWritten, !task.transfers.contains(where: engine.isPending) else {
                left.append(task)
                continue
            }
            inFlight -= task.transfers.count
            space.giveBack(task.place)
            if let immediate = task.immediate { freeImmediates.append(immediate) }
            let done = plan.tasks[Int(task.number)]
            if let error = failure(of: task) {
                reason = "task \(task.number), \(plan.target(of: done).name): \(error)"
            } else if let record = task.record {
                trainer.delivered[TaskName(done)] = record
            }
        }
        active = left
        if let reason { fail(reason) }
        return active.count != before
    }

    private func failure(of task: ActiveTask) -> TransferError? {
        for transfer in task.transfers {
            if case .failed(let error) = engine.status(of: transfer) { return error }
        }
        return nil
    }

    /// Takes temporary memory for the next task, and asks for what other ranks have of it.
    private func begin() -> Bool {
        guard position < steps.count, active.count < Self.tasks, inFlight < Self.transfers else {
            return false
        }
        guard active.count(where: { !$0.isWritten && $0.fetches == 0 }) < Self.ready else { return false }
        let number = steps[position]
        let task = plan.tasks[Int(number)]
        let isGathered = task.preparation.contains(.gather)
        if isGathered, freeImmediates.isEmpty { return false }
        guard let place = space.take(plan.temporaryBytes(of: task)) else { return false }
        position += 1
        var entry = ActiveTask(number: number, place: place)
        if isGathered, known(task) == nil {
            let immediate = freeImmediates.removeLast()
            entry.immediate = immediate
            entry.fetches = fetch(task, at: place, lease[immediate])
        }
        active.append(entry)
        return true
    }

    private func fetch(_ task: PlanTask, at place: Int, _ immediate: Immediate) -> Int {
        var offset = place
        var count = 0
        let descriptor = engine.descriptor(of: staging).encoded()
        let signals = signals
        for piece in plan.pieces[task.pieces.indices] where piece.rank != task.owner {
            let source = plan.target(of: task).parts[Int(piece.part)].source
            guard let address = trainer.address(of: Int(piece.rank)),
                let shard = shards.shards(of: source).first(where: { $0.box.contains(piece.box) })
            else {
                fail("trainer \(piece.rank) is not known here yet")
                return count
            }
            let bytes = plan.model.tensors[source].type.byteCount
            count += Strips.count(
                Strips(piece.box, in: shard.box, at: 0, elementBytes: bytes),
                Strips(packed: piece.box, at: 0, elementBytes: bytes))
            var message = WeightMessage(.pull)
            message.isTrainer = true
            message.version = version
            message.attempt = attempt
            message.first = UInt64(immediate.value)
            message.second = UInt64(offset)
            let box = piece.box
            message.ranks =
                [UInt32(source)]
                + [box.firstPlane, box.endPlane, box.firstRow, box.endRow, box.firstColumn, box.endColumn].map
            {
                UInt32(bitPattern: $0)
            }
            message.bytes = descriptor
            let rank = piece.rank
            trainer.endpoint.send(message, to: address) {
                signals.failure.withLock { $0 = $0 ?? "trainer \(rank) does not answer" }
            }
            offset += Staging.rounded(plan.bytes(of: piece, task))
        }
        return count
    }

    /// Prepares and writes one task whose pieces are all here; its bytes, or nil when there is none.
    private func write() -> Int? {
        guard inFlight < Self.transfers else { return nil }
        for position in active.indices where !active[position].isWritten {
            if let immediate = active[position].immediate, active[position].fetches > 0 {
                guard engine.consume(lease[immediate], count: active[position].fetches) else { continue }
                active[position].fetches = 0
            }
            do throws(TransferError) { try write(&active[position]) } catch { fail("\(error)") }
            return plan.outputBytes(of: plan.tasks[Int(active[position].number)])
        }
        return nil
    }

    /// What is known of a task that need not be written: it was in an earlier attempt, or its source has not changed.
    private func known(_ task: PlanTask) -> (mode: ArrivalEntry.Mode, record: WeightTrainer.ArrivalRecord)? {
        let key = TaskName(task)
        let engines = Set(
            plan.writes[task.writes.indices].compactMap { targets[$0.rank]?.memory.engine.rawValue })
        if let record = trainer.delivered[key], record.isWritten, engines.isSubset(of: record.receivers) {
            return (.already, record)
        }
        guard trainer.isDelta, let record = trainer.served.records[key], let source = record.source,
            targets.values.allSatisfy({ $0.activeVersion == trainer.served.version }),
            engines.isSubset(of: record.receivers), sourceDigest(task) == source
        else { return nil }
        var copied = record
        copied.isWritten = false
        return (.unchanged, copied)
    }

    private func sourceDigest(_ task: PlanTask) -> Digest? {
        if task.preparation.contains(.gather) { return nil }
        var sum = Digest.empty
        for (number, input) in inputs(task, at: 0).enumerated() {
            var place = input.strips
            // Where a piece lies in the sum, not in memory.
            place.first = number << 40
            sum += unsafe input.strips.digest(
                of: input.memory, base: 0, target: place, isWhole: input.strips.isContiguous)
        }
        return sum
    }

    /// Where each piece of a task lies.
    private func inputs(_ task: PlanTask, at place: Int) -> [PlacedStrips] {
        var offset = place
        let target = plan.target(of: task)
        return plan.pieces[task.pieces.indices].map { piece in
            let source = target.parts[Int(piece.part)].source
            let bytes = plan.model.tensors[source].type.byteCount
            if piece.rank == task.owner, let entry = trainer.layout.entries[source] {
                let strips = Strips(piece.box, in: entry.box, at: entry.offset, elementBytes: bytes)
                return unsafe PlacedStrips(trainer.memory.baseAddress, strips)
            }
            let strips = Strips(packed: piece.box, at: offset, elementBytes: bytes)
            offset += Staging.rounded(plan.bytes(of: piece, task))
            return unsafe PlacedStrips(staging.baseAddress, strips)
        }
    }

    private func write(_ entry: inout ActiveTask) throws(TransferError) {
        let task = plan.tasks[Int(entry.number)]
        let target = plan.target(of: task)
        let parts = plan.temporaryParts(of: task).map(Staging.rounded)
        let output = entry.place + parts[0] + parts[1]
        let scalePlace = output + parts[2]
        let entryPlace = scalePlace + parts[3]
        entry.isWritten = true
        var source = Strips(packed: task.box, at: output, elementBytes: target.type.byteCount)
        var region = staging
        let inputs = inputs(task, at: entry.place)
        if let known = known(task) {
            entry.record = known.record
            return try send(known.mode, known.record, task, &entry, entryPlace)
        }
        let first = plan.writes[Int(task.writes.first)]
        // The digest of what lies at the only receiver already.
        var made: Digest?
        if task.preparation.isEmpty {
            source = inputs[0].strips
            region = trainer.memory
        } else {
            let base = unsafe staging.baseAddress
            let work = target.hasBlockScales ? entry.place + parts[0] : output
            let box = unsafe Assembly.assemble(
                task, target, plan.pieces[task.pieces.indices], inputs, at: base + work)
            if target.hasBlockScales {
                made = try quantiseInPlace(task, target, box, first, scalePlace)
                if made == nil {
                    unsafe Assembly.quantise(
                        task.box, box, output: base + output, scales: base + scalePlace)
                }
            }
        }
        let scales =
            target.hasBlockScales ? Strips(packed: task.box.scaleBox, at: scalePlace, elementBytes: 4) : nil
        let record = record(task, target, first, source, region, scales, made)
        entry.record = record
        for write in plan.writes[task.writes.indices] {
            guard let slot = targets[write.rank] else { continue }
            if made == nil {
                entry.transfers.append(
                    try engine.write(
                        source, of: region, to: plan.strips(of: task, write), of: slot.memory,
                        immediate: slot.data))
            }
            if let scales, let place = plan.scaleStrips(of: task, write) {
                entry.transfers.append(
                    try engine.write(scales, of: staging, to: place, of: slot.memory, immediate: slot.data))
            }
            trainer.sentBytes += source.byteCount + (scales?.byteCount ?? 0)
        }
        try send(.written, record, task, &entry, entryPlace)
    }

    /// Quantises a task that goes to one receiver only, whose memory is mapped here, to where it is to lie: neither its
    /// bytes nor the lines that it will fill are read. Nil when that cannot be.
    private func quantiseInPlace(
        _ task: PlanTask, _ target: Target, _ box: PlacedStrips, _ write: PlanWrite, _ scalePlace: Int
    ) throws(TransferError) -> Digest? {
        guard task.writes.count == 1, let slot = targets[write.rank], Assembly.quantisesInPlace(task.box)
        else { return nil }
        let place = plan.strips(of: task, write)
        let scales = unsafe staging.baseAddress + scalePlace
        var digest: Digest?
        let isMade = try unsafe engine.write(
            byteCount: place.byteCount,
            spanBytes: place.offset(place.rowCount - 1) + place.rowBytes - place.first, to: slot.memory,
            targetOffset: place.first, immediate: slot.data
        ) { output in
            digest = unsafe Assembly.quantise(
                task.box, box, inPlace: output, place, scales: scales,
                base: write.offset - target.offset(of: task.box))
        }
        guard isMade, let digest else { return nil }
        trainer.inPlaceBytes += place.byteCount
        return digest
    }

    /// - Parameter made: The digest of an output that has been counted as one already.
    private func record(
        _ task: PlanTask, _ target: Target, _ first: PlanWrite, _ source: Strips, _ region: MemoryRegion,
        _ scales: Strips?, _ made: Digest?
    ) -> WeightTrainer.ArrivalRecord {
        let place = plan.strips(of: task, first)
        var count = made != nil ? 1 : Strips.count(source, place)
        let memory = unsafe UnsafeRawPointer(region.baseAddress)
        // Receivers digest by the rows of the target.
        var digest =
            unsafe made
            ?? source.digest(
                of: memory, base: first.offset - target.offset(of: task.box), target: place,
                isWhole: count == 1)
        if let scales, let place = plan.scaleStrips(of: task, first) {
            count += Strips.count(scales, place)
            digest += unsafe scales.digest(
                of: UnsafeRawPointer(staging.baseAddress),
                base: first.scaleOffset - target.scaleOffset(of: task.box),
                target: place, isWhole: place.isContiguous)
        }
        let engines = plan.writes[task.writes.indices].compactMap { targets[$0.rank]?.memory.engine.rawValue }
        return WeightTrainer.ArrivalRecord(
            source: trainer.isDelta ? sourceDigest(task) : nil, output: digest, count: count,
            receivers: Set(engines))
    }

    /// Leaves the entries that say what became of the task.
    private func send(
        _ mode: ArrivalEntry.Mode, _ record: WeightTrainer.ArrivalRecord, _ task: PlanTask,
        _ entry: inout ActiveTask,
        _ place: Int
    ) throws(TransferError) {
        let words = [record.output.low, record.output.high, mode.rawValue, UInt64(record.count)]
        for (number, word) in words.enumerated() {
            unsafe (staging.baseAddress + place).storeBytes(
                of: word.littleEndian, toByteOffset: 8 * number, as: UInt64.self)
        }
        for index in task.writes.indices {
            let rank = plan.writes[index].rank
            guard let slot = targets[rank] else { continue }
            let offset =
                plan.tableOffset(rank: Int(rank)) + Int(self.index.ordinals[index]) * ArrivalEntry.byteCount
            entry.transfers.append(
                try engine.write(
                    from: staging, sourceOffset: place, byteCount: ArrivalEntry.byteCount, to: slot.memory,
                    targetOffset: offset, immediate: slot.entries))
        }
        inFlight += entry.transfers.count
    }
}
