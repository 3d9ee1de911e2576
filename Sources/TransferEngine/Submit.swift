internal import CPlatform
internal import Synchronization
internal import TransferCore

extension TransferSlot {
    /// Room for the targets of a scatter or a barrier.
    mutating func reserveTargets(_ count: Int) -> UnsafeMutablePointer<ScatterTarget> {
        let memory = reserveScratch(count * MemoryLayout<ScatterTarget>.stride)
            .bindMemory(to: ScatterTarget.self, capacity: count)
        targets = memory
        targetCount = count
        return memory
    }

    /// Copies the caller's page lists, of which only the next pages of the cursors' rails are still needed.
    mutating func keepPages() {
        guard kind == .paged, pageCount > 0, let sourcePages, let targetPages else { return }
        let bytes = pageCount * MemoryLayout<UInt32>.stride
        let memory = reserveScratch(2 * bytes)
        memory.copyMemory(from: sourcePages, byteCount: bytes)
        (memory + bytes).copyMemory(from: targetPages, byteCount: bytes)
        self.sourcePages = UnsafePointer(memory.assumingMemoryBound(to: UInt32.self))
        self.targetPages = UnsafePointer((memory + bytes).assumingMemoryBound(to: UInt32.self))
    }
}

extension TransferEngine {
    /// Takes a slot, lets `fill` describe the operation, and starts it here or hands it to the worker.
    @inline(__always)
    func submit(
        _ kind: TransferSlot.Kind, _ immediate: Immediate?, _ timeout: Duration?, _ onEnd: TransferCallback?,
        fill: (UnsafeMutablePointer<TransferSlot>) -> Void
    ) throws(TransferError) -> Transfer {
        guard let index = group.free.pop() else { throw .tooManyTransfers }
        let slot = group.slots + Int(index)
        let generation = UInt32(slot.pointee.status.load(ordering: .relaxed) >> 32)
        slot.pointee.kind = kind
        slot.pointee.immediate = immediate?.value ?? 0
        slot.pointee.eighths = immediate == nil ? 0 : Eighths.whole
        slot.pointee.failure = .success
        slot.pointee.isSilentStage = false
        slot.pointee.isPosting = false
        slot.pointee.inFlight = 0
        slot.pointee.completed = 0
        slot.pointee.expectedEighths = 0
        slot.pointee.callback = onEnd
        fill(slot)
        let now = group.clock.nowNanoseconds
        slot.pointee.submitted = now
        slot.pointee.deadline = now &+ (timeout?.nanoseconds ?? defaultTimeout)
        if slot.pointee.deadline < now { slot.pointee.deadline = .max }
        let pending = UInt64(generation) << 32 | TransferSlot.pending
        if isProgressThread {
            slot.pointee.status.store(pending, ordering: .releasing)
            group.start(slot, index)
            // The caller's lists are the caller's again when this returns.
            if kind == .paged, slot.pointee.isPosting || slot.pointee.isSilentStage {
                slot.pointee.keepPages()
            }
        } else {
            slot.pointee.keepPages()
            // pairs with the loads of the progress thread
            slot.pointee.status.store(pending, ordering: .releasing)
            let taken = group.submissions.push(index)
            precondition(taken, "the submission queue holds every slot")
            wakeIfSleeping()
        }
        return Transfer(index: index, generation: generation)
    }

    /// Posts a short write on one NIC without taking a slot. False when that NIC does not complete it at once or
    /// takes nothing now, or when others wait: then it goes the ordinary way.
    @inline(__always)
    func postAtOnce(
        _ source: MemoryRegion, _ sourceOffset: Int, _ byteCount: Int, _ target: RemoteMemory,
        _ targetOffset: Int,
        _ immediate: Immediate?
    ) -> Bool {
        let attachment = group.attachments + Int(target.index)
        guard attachment.pointee.completesAtOnce, UInt64(byteCount) <= attachment.pointee.maximumWriteBytes,
            byteCount < 2 * group.planner.stripeBytes || attachment.pointee.rails.count == 1,
            group.ready.pointee.isEmpty, let keys = attachment.pointee.keys
        else { return false }
        group.hot.pointee.sequence &+= 1
        let rails = attachment.pointee.rails
        var rail = 0
        while rail + 1 < rails.count,
            StripePlanner.start(
                ofRail: rail + 1, units: 1, rails: rails.span, sequence: group.hot.pointee.sequence) == 0
        { rail += 1 }
        let domain = rails[rail].local
        group.batch.initialize(
            to: WorkRequest(
                context: 0, source: UnsafeRawPointer(source.baseAddress + sourceOffset), length: byteCount,
                localKey: group.regions[Int(source.index)].localKeys[domain], target: keys + rail,
                targetOffset: UInt64(targetOffset), immediate: immediate?.value ?? 0,
                eighths: immediate == nil ? 0 : Eighths.whole))
        let result = group.domains[domain].post(UnsafeBufferPointer(start: group.batch, count: 1))
        return result.accepted == 1
    }

    // MARK: Validation

    @inline(__always)
    func check(_ source: MemoryRegion, _ offset: Int, _ byteCount: Int) throws(TransferError) {
        guard group.regions[Int(source.index)].generation == source.generation else { throw .staleLocal }
        guard offset >= 0, byteCount >= 0, byteCount <= source.byteCount,
            offset <= source.byteCount - byteCount
        else { throw .outOfRange("source", offset, byteCount, source.byteCount) }
    }

    @inline(__always)
    func check(_ target: RemoteMemory) throws(TransferError) {
        guard group.attachments[Int(target.index)].generation == target.generation else {
            throw .staleAttachment
        }
    }

    @inline(__always)
    func check(_ target: RemoteMemory, _ offset: Int, _ byteCount: Int) throws(TransferError) {
        try check(target)
        guard group.attachments[Int(target.index)].isWritable else {
            throw TransferError(.accessDenied, "the peer registered the region without remote writes")
        }
        guard offset >= 0, byteCount >= 0, byteCount <= target.byteCount,
            offset <= target.byteCount - byteCount
        else { throw .outOfRange("target", offset, byteCount, target.byteCount) }
    }

    /// All pages lie inside the region. Only the largest number matters.
    func check(
        _ pages: Pages, _ pageBytes: Int, _ regionBytes: Int, _ side: String
    ) throws(TransferError) {
        guard pages.stride >= 0, pages.offset >= 0, pageBytes >= 0 else {
            throw TransferError(.invalidArgument, "a negative page size, stride or offset")
        }
        if pages.indices.isEmpty { return }
        var largest: UInt32 = 0
        for index in pages.indices { largest = max(largest, index) }
        let (start, overflow) = Int(largest).multipliedReportingOverflow(by: pages.stride)
        let (first, overflow2) = start.addingReportingOverflow(pages.offset)
        guard !overflow, !overflow2, pageBytes <= regionBytes, first <= regionBytes - pageBytes else {
            throw TransferError(
                .outOfRange,
                "\(side) page \(largest) of \(pageBytes) bytes lies outside the region of \(regionBytes) bytes"
            )
        }
    }
}

extension TransferError {
    static let tooManyTransfers = TransferError(
        .backPressure, "\(Limits.transfers) transfers are in flight; make progress and submit again")

    @inline(never)
    static func outOfRange(_ side: String, _ offset: Int, _ byteCount: Int, _ length: Int) -> TransferError {
        TransferError(
            .outOfRange, "\(byteCount) bytes at \(offset) lie outside the \(side) region of \(length) bytes")
    }
}
