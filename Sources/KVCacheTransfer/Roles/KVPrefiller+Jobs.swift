internal import TransferEngine

/// A request, and what has been written of it.
struct JobEntry {
    let prefill: KVMessage.Prefill
    var machine = PrefillerRequest()
    /// What the application gave with `accept`.
    var sources: [PageTable] = []
    var handler: (@Sendable (KVJobEvent) -> Void)?
    /// Writes that have begun and not ended.
    var transfers: [UInt64: (rank: Int, transfer: Transfer)] = [:]
    var nextTransfer: UInt64 = 0
    /// Writes that wait for room.
    var waiting = 0
    /// Stages that have not computed the last token.
    var missingStages: Int
    var isTailWritten: Bool
    /// For decoders that want them, by layer; nil is the tail.
    var digests: [Int?: DigestSum] = [:]
}

extension KVPrefiller {
    /// A request has come.
    func offer(_ prefill: KVMessage.Prefill) {
        guard let session = sessions[prefill.session], session.end == nil,
            sessions[prefill.session]?.memory.begin(prefill.request, oldest: prefill.oldest) == true
        else { return }
        let number = nextJob
        nextJob += 1
        jobs[number] = JobEntry(
            prefill: prefill, missingStages: layout.stages.count { !$0.isEmpty },
            isTailWritten: prefill.tail == nil)
        numbers[KVDecoder.SessionRequest(session: prefill.session, request: prefill.request)] = number
        do throws(KVError) { try check(prefill, session) } catch { return apply(.stop(error), to: number) }
        onJob(
            KVJob(
                id: KVJob.ID(number: number), decoder: session.hello.name, span: prefill.span,
                input: prefill.input,
                tailBytes: prefill.tail?.byteCount, timeout: .milliseconds(Int64(prefill.timeoutMilliseconds))
            ))
    }

    private func check(_ prefill: KVMessage.Prefill, _ session: DecoderSession) throws(KVError) {
        if isDraining { throw KVError(.refused, "\(configuration.name) drains; ask another prefiller") }
        guard jobs.count <= KVLimits.requests else {
            throw KVError(
                .refused, "\(configuration.name) has \(KVLimits.requests) requests; ask another prefiller")
        }
        guard prefill.immediates.count == session.hello.ranks.count,
            prefill.immediates.allSatisfy({ $0 < 1 << 30 })
        else { throw KVError(.malformedMessage, "immediates: one of 30 bits for each rank") }
        try session.hello.layout.checkPages(prefill.tables, session.hello.ranks.map(\.placement))
        if let tail = prefill.tail {
            guard session.hello.ranks.indices.contains(tail.rank),
                session.hello.ranks[tail.rank].regions.indices.contains(tail.region),
                tail.byteCount <= Int(clamping: session.hello.ranks[tail.rank].regions[tail.region].length),
                tail.offset
                    <= Int(clamping: session.hello.ranks[tail.rank].regions[tail.region].length)
                    - tail.byteCount
            else { throw KVError(.invalidLayout, "the tail is not inside of a region: \(tail)") }
        }
    }

    /// The decoder wants a request no more.
    func cancel(_ session: UInt64, _ request: UInt64) {
        let reason = KVError(.cancelled, "cancelled by its decoder")
        if let isQuiet = sessions[session]?.memory.cancel(request) {
            return send(
                .receipt(
                    KVMessage.Receipt(session: session, request: request, isQuiet: isQuiet, reason: reason)),
                to: session)
        }
        guard let number = numbers[KVDecoder.SessionRequest(session: session, request: request)] else {
            return
        }
        apply(.stop(reason), to: number)
    }

    /// The application takes a job on.
    func begin(_ number: UInt64, _ sources: [PageTable], _ handler: @escaping @Sendable (KVJobEvent) -> Void)
    {
        guard jobs[number] != nil else {
            // It has ended meanwhile, and nothing reads the pages.
            handler(.stop(KVError(.cancelled, "the job had ended before it was accepted")))
            return handler(.released)
        }
        jobs[number]?.sources = sources
        jobs[number]?.handler = handler
        do throws(KVError) { try layout.checkPages(sources, ranks.map(\.placement)) } catch {
            apply(.stop(error), to: number)
        }
    }

    /// The application has got more pages for a job.
    func extend(_ number: UInt64, _ sources: [PageTable]) {
        guard jobs[number]?.machine.isActive == true else { return }
        jobs[number]?.sources = sources
        do throws(KVError) { try layout.checkPages(sources, ranks.map(\.placement)) } catch {
            apply(.stop(error), to: number)
        }
    }

    /// Lets the state machine decide, and does what it says.
    func apply(_ event: PrefillerRequest.Event, to number: UInt64) {
        guard var entry = jobs[number] else { return }
        let wasActive = entry.machine.isActive
        let actions = entry.machine.handle(event)
        jobs[number]?.machine = entry.machine
        if wasActive, case .draining(let reason) = entry.machine.state {
            stop(number, entry, reason)
        } else if wasActive, entry.machine.state == .ended, actions.count > 1 {
            if case .sendReceipt(_, let reason) = actions[0] { stop(number, entry, reason) }
        }
        for action in actions { perform(action, number, entry) }
    }

    private func stop(_ number: UInt64, _ entry: JobEntry, _ reason: KVError) {
        pending.removeAll { $0.job == number }
        entry.handler?(.stop(reason))
    }

    private func perform(_ action: PrefillerRequest.Action, _ number: UInt64, _ entry: JobEntry) {
        switch action {
        case .cancelWrites: cancelWrites(number, entry)
        case .sendReceipt(let isQuiet, let reason):
            send(
                .receipt(
                    KVMessage.Receipt(
                        session: entry.prefill.session, request: entry.prefill.request, isQuiet: isQuiet,
                        reason: reason)), to: entry.prefill.session)
        case .release(let isQuiet):
            let key = KVDecoder.SessionRequest(session: entry.prefill.session, request: entry.prefill.request)
            sessions[entry.prefill.session]?.memory.end(entry.prefill.request, isQuiet: isQuiet)
            numbers[key] = nil
            jobs[number] = nil
            if isQuiet { entry.handler?(.released) } else { quarantine.append(entry) }
            forgetIfDone(entry.prefill.session)
        }
    }

    private func cancelWrites(_ number: UInt64, _ entry: JobEntry) {
        let queue = queue
        for (token, write) in entry.transfers.sorted(by: { $0.key < $1.key }) {
            jobs[number]?.transfers[token] = nil
            do throws(TransferError) {
                try ranks[write.rank].engine.cancel(write.transfer, timeout: configuration.cancelTimeout) {
                    [weak self] receipt in
                    let isQuiet = receipt == .quiescent
                    queue.run { [weak self] in self?.apply(.receipt(isQuiet: isQuiet), to: number) }
                }
            } catch {
                apply(.receipt(isQuiet: false), to: number)
            }
        }
    }
}
