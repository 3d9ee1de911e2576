internal import CPlatform
internal import Platform
public import TransferCore

// What the flight recorder knows, and where it is put.
extension TransferEngine {
    /// The last events of this engine, oldest first (`Configuration.traceEvents`).
    ///
    /// May be called from any thread, also while the engine's worker hangs: nothing is waited for. Events that are written
    /// over while they are copied are left out and counted as lost.
    /// - Complexity: O(`Configuration.traceEvents`).
    public func trace() -> Trace { group.trace() }

    /// Writes `trace()` to a new file, for `te trace`.
    /// - Parameter path: A file that does not exist yet; only this user will be able to read it.
    /// - Throws: `unavailable` when the file exists or cannot be written.
    public func writeTrace(to path: String) throws(TransferError) { try group.writeTrace(to: path) }
}

extension DomainGroup {
    func trace() -> Trace {
        let (events, lost) = recorder.snapshot()
        return Trace(
            engine: page.engine, name: engineName, nics: domainNames, clock: recorder.calibration(),
            lost: lost, events: events)
    }

    func writeTrace(to path: String) throws(TransferError) {
        let bytes = trace().encoded()
        let result = unsafe bytes.withUnsafeBytes {
            unsafe te_write_new_file(path, $0.baseAddress, $0.count)
        }
        guard result == 0 else {
            throw TransferError(.unavailable, "no trace in \(path): \(errorText(-result))")
        }
    }

    /// A stall report with the last events of the transfer, and the file that has all of them.
    func withHistory(
        _ report: TransferError, _ slot: borrowing TransferSlot, _ index: UInt32
    ) -> TransferError {
        recorder.tick()
        recorder.record(
            .stalled, context(index), UInt64(truncatingIfNeeded: slot.completed),
            UInt64(truncatingIfNeeded: slot.inFlight))
        let events = recorder.last(Limits.tracedEvents, of: context(index), at: hot.value.now)
        let clock = recorder.calibration()
        let now = clock.lastNanoseconds
        var message = report.message
        if !events.isEmpty { message += "; its last events:" }
        for event in events {
            let age = (now - min(now, clock.nanoseconds(event.time))) / 1000
            let nic = event.nic.map { "\(domainNames[$0]): " } ?? ""
            message += "\n  \(age / 1000).\(age / 100 % 10) ms ago: \(nic)\(event)"
        }
        if let path = writeTraceOfStall() { message += "\n  trace: \(path)" }
        return TransferError(report.code, message)
    }

    /// The file, if one is to be written and could be.
    private func writeTraceOfStall() -> String? {
        guard let directory = recorder.directory, let number = recorder.mayWriteFile(at: hot.value.now) else {
            return nil
        }
        let name = String(
            engineName.map { $0.isASCII && ($0.isLetter || $0.isNumber || "-_.".contains($0)) ? $0 : "_" })
        let path = "\(directory)/te-\(name)-\(page.engine)-\(number).trace"
        do throws(TransferError) {
            try writeTrace(to: path)
            return path
        } catch {
            return nil
        }
    }

    // MARK: Events, one line where they happen

    /// A slot begins.
    @inline(__always) func traceStart(_ slot: borrowing TransferSlot, _ index: UInt32) {
        recorder.tickUnlessFresh()
        guard slot.kind != .count else { return }
        let units = slot.kind == .paged ? slot.pages.count : slot.targetCount
        // By numbers: comparing kinds twice more costs 135 instructions.
        let kind = slot.kind.rawValue
        let attachment =
            kind == TransferSlot.Kind.scatter.rawValue || kind == TransferSlot.Kind.barrier.rawValue
            ? 0 : UInt64(slot.attachment) + 1
        recorder.record(
            .started, context(index), detail: kind,
            UInt64(truncatingIfNeeded: slot.length) | attachment << TraceEvent.lengthBits,
            UInt64(truncatingIfNeeded: units) << 32 | UInt64(slot.immediate))
    }

    /// A NIC has taken `accepted` of `offered` requests.
    @inline(__always) func tracePost(
        _ slot: borrowing TransferSlot, _ index: UInt32, _ nic: Int, _ accepted: Int, of offered: Int
    ) {
        let isNews = recorder.isNews(index, nic, isPushedBack: accepted == 0)
        guard accepted > 0 || isNews else { return }
        // Posting many bytes may have taken as long as copying them.
        if slot.length >= StripePlanner.granule || accepted >= 16 { recorder.tick() }
        recorder.record(
            accepted < offered ? .pushedBack : .posted, context(index), nic: nic,
            UInt64(truncatingIfNeeded: accepted) | UInt64(truncatingIfNeeded: offered) << 32,
            UInt64(truncatingIfNeeded: slot.inFlight))
    }

    /// A NIC has completed requests.
    @inline(__always) func traceCompletion(_ completion: Completion, _ inFlight: Int, _ nic: Int) {
        recorder.record(
            .completed, completion.context & 0xFFFF_FFFF_0000_FFFF, nic: nic,
            detail: completion.status.rawValue, UInt64(completion.count), UInt64(truncatingIfNeeded: inFlight)
        )
    }

    /// A transfer ends.
    @inline(__always) func traceEnd(
        _ slot: borrowing TransferSlot, _ index: UInt32, _ result: Result<Void, TransferError>
    ) {
        var status = slot.failure
        if status == .success, case .failure = result { status = .again }
        // A counter is raised by others, without an event that would have read the time.
        if slot.expectedEighths > 0 { recorder.tick() }
        recorder.record(
            .ended, context(index), detail: status.rawValue,
            UInt64(truncatingIfNeeded: slot.completed), UInt64(UInt32(bitPattern: slot.failureDetail)))
    }

    /// A NIC has taken a message, or not.
    @inline(__always) func traceSend(
        _ slot: borrowing TransferSlot, _ index: UInt32, _ nic: Int, _ status: WorkStatus
    ) {
        let isNews = recorder.isNews(index, nic, isPushedBack: status == .again)
        guard status != .again || isNews else { return }
        recorder.record(
            status == .again ? .pushedBack : .messageOut, context(index), nic: nic, detail: status.rawValue,
            status == .again
                ? 1 << 32
                : UInt64(truncatingIfNeeded: slot.length)
                    | UInt64(ControlMessage.number(of: slot.message.span)) << 32,
            status == .again ? UInt64(truncatingIfNeeded: slot.inFlight) : 0)
    }

    /// A message has come.
    func traceMessage(_ completion: Completion, _ nic: Int) {
        let message = unsafe completion.message.bindMemory(to: UInt8.self).span
        recorder.record(
            .messageIn, FlightRecorder.nothing, nic: nic,
            UInt64(message.count) | UInt64(ControlMessage.number(of: message)) << 32, completion.context)
    }

    /// A slot waits for a counter.
    @inline(__always) func traceWait(_ slot: borrowing TransferSlot, _ index: UInt32) {
        let counted = UInt64(truncatingIfNeeded: page.eighths(of: slot.immediate) >> 3) & 0xFFFF_FFFF
        recorder.record(
            .waitBegan, context(index),
            detail: (slot.kind == .barrier ? TraceEvent.Operation.barrier : .counterWait).rawValue,
            UInt64(truncatingIfNeeded: slot.expectedEighths >> 3), counted << 32 | UInt64(slot.immediate))
    }

    /// Something that belongs to no transfer.
    func traceEvent(
        _ kind: TraceEvent.Kind, nic: Int = FlightRecorder.noNIC, _ first: UInt64, _ second: UInt64
    ) {
        recorder.tick()
        recorder.record(kind, FlightRecorder.nothing, nic: nic, first, second)
    }
}
