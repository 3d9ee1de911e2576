internal import TransferEngine

/// A request, and what it waits for.
struct DecoderEntry {
    let request: KVRequest
    let link: UInt64
    let handler: @Sendable (KVRequestEvent) -> Void
    var machine = DecoderRequest()
    var deadline: UInt64
    var session: UInt64 = 0
    var numberInSession: UInt64 = 0
    var isSent = false
    /// Whether it stays in quarantine until a late receipt: a writer may be inside of what has been revoked.
    var isStuck = false
    /// For each rank.
    var waits: [RankWait] = []
    /// Ranks that have not got everything.
    var missingRanks = 0
    /// Ranks that have not got a layer; only of requests that are layerwise.
    var missingLayers: [Int: Int] = [:]
    /// With digests: what is to be compared.
    var checks: DigestChecks?

    /// What one rank waits for: its steps one after the other.
    struct RankWait {
        var lease: ImmediateLease
        var steps: [Step]
        var step = 0
        var transfer: Transfer?
    }

    /// So many counts of one immediate.
    struct Step {
        var count: Int
        /// The layer that has arrived then.
        var layer: Int?
    }
}

extension KVDecoder {
    func begin(
        _ number: UInt64, _ request: KVRequest, _ link: UInt64,
        _ handler: @escaping @Sendable (KVRequestEvent) -> Void
    ) {
        let entry = DecoderEntry(
            request: request, link: link, handler: handler, deadline: now &+ request.timeout.nanoseconds)
        requests[number] = entry
        do throws(KVError) {
            if let failure { throw failure }
            guard request.span.cached >= 0, request.span.cached <= request.span.end,
                request.span.end <= KVLimits.tokens
            else { throw KVError(.invalidLayout, "tokens \(request.span.cached) to \(request.span.end)") }
            try layout.checkPages(request.tables, ranks.map(\.placement))
            if let tail = request.tail { try check(tail) }
            guard let known = links[link] else { throw KVError(.peerLost, "the prefiller is not connected") }
            if case .lost(let reason) = known.state { throw reason }
            links[link]?.waiting.append(number)
            sendWaiting(link)
        } catch {
            apply(.receipt(isQuiet: true, error), to: number)
        }
    }

    private func check(_ tail: KVMessage.Tail) throws(KVError) {
        guard ranks.indices.contains(tail.rank), ranks[tail.rank].regions.indices.contains(tail.region),
            tail.offset >= 0, tail.byteCount >= 0,
            tail.offset <= ranks[tail.rank].regions[tail.region].byteCount - tail.byteCount
        else { throw KVError(.invalidLayout, "the tail is not inside of a region: \(tail)") }
    }

    /// Sends what waits for the prefiller's answer, or for the regions to be revoked.
    func sendWaiting(_ link: UInt64) {
        guard case .open(let mapping)? = links[link]?.state, !isClosing else { return }
        let waiting = links[link]?.waiting ?? []
        links[link]?.waiting = []
        for number in waiting where requests[number]?.machine.state == .waiting {
            do throws(KVError) { try start(number, link, mapping) } catch {
                apply(.receipt(isQuiet: true, error), to: number)
            }
        }
    }

    private func start(_ number: UInt64, _ link: UInt64, _ mapping: KVMapping) throws(KVError) {
        guard var entry = requests[number], let session = links[link]?.session else { return }
        for group in entry.request.tables.indices {
            let tokens = mapping.tokens(ofGroup: group, entry.request.span)
            guard entry.request.tables[group].covers(tokens, pageTokens: layout.formats[group].pageTokens)
            else {
                throw KVError(
                    .invalidLayout, "group \(group): there is no page for some of the tokens \(tokens)")
            }
        }
        for rank in ranks.indices {
            entry.waits.append(try wait(rank, entry.request, mapping))
            requests[number] = entry
        }
        if configuration.digests { entry.checks = try DigestChecks(mapping, entry.request) }
        entry.session = session
        entry.numberInSession = links[link]?.nextRequest ?? 1
        links[link]?.nextRequest = entry.numberInSession + 1
        entry.isSent = true
        entry.missingRanks = ranks.count
        for wait in entry.waits {
            for layer in wait.steps.compactMap(\.layer) { entry.missingLayers[layer, default: 0] += 1 }
        }
        requests[number] = entry
        numbers[SessionRequest(session: session, request: entry.numberInSession)] = number
        let left = entry.deadline > now ? (entry.deadline - now) / 1_000_000 : 0
        send(
            .prefill(
                KVMessage.Prefill(
                    session: session, request: entry.numberInSession,
                    oldest: links[link]?.oldest ?? 1, span: entry.request.span,
                    isLayerwise: entry.request.isLayerwise,
                    immediates: entry.waits.map { $0.lease.first.value },
                    tables: entry.request.tables, tail: entry.request.tail,
                    timeoutMilliseconds: UInt32(clamping: left), input: entry.request.input)), to: link)
        for rank in ranks.indices { expect(number, rank) }
    }

    /// Leases immediates on a rank, and computes what will come: the prefiller says nothing about it.
    private func wait(
        _ rank: Int, _ request: KVRequest, _ mapping: KVMapping
    ) throws(KVError) -> DecoderEntry.RankWait {
        let layers = layout.stages[rank / layout.tensorRanks]
        var steps =
            request.isLayerwise
            ? layers.map { layer in
                DecoderEntry.Step(
                    count: mapping.count(request.span, targetRank: rank, layer: layer), layer: layer)
            } : [DecoderEntry.Step(count: mapping.count(request.span, targetRank: rank), layer: nil)]
        if request.tail?.rank == rank {
            if request.isLayerwise {
                steps.append(DecoderEntry.Step(count: 1, layer: nil))
            } else {
                steps[0].count += 1
            }
        }
        // A stage without layers still has a step, which is over at once. The tail's would be the first: the prefiller counts
        // layers only.
        if steps.isEmpty { steps = [DecoderEntry.Step(count: 0, layer: nil)] }
        do throws(TransferError) {
            return DecoderEntry.RankWait(lease: try ranks[rank].engine.lease(steps.count), steps: steps)
        } catch { throw KVError(error) }
    }

    /// Waits for a rank's next step.
    private func expect(_ number: UInt64, _ rank: Int) {
        guard let entry = requests[number], entry.machine.state == .waiting else { return }
        let wait = entry.waits[rank]
        let queue = queue
        do throws(TransferError) {
            // Ends by our own deadline, which cancels it; the engine's is only a net below it.
            let transfer = try ranks[rank].engine.expect(
                wait.lease[wait.step], count: wait.steps[wait.step].count, timeout: entry.request.timeout * 2
            ) { [weak self] result in
                guard case .success = result else { return }
                queue.run { [weak self] in self?.counted(number, rank) }
            }
            requests[number]?.waits[rank].transfer = transfer
        } catch {
            apply(.cancel(KVError(error)), to: number)
        }
    }

    private func counted(_ number: UInt64, _ rank: Int) {
        guard let entry = requests[number], entry.machine.state == .waiting else { return }
        let wait = entry.waits[rank]
        requests[number]?.waits[rank].transfer = nil
        requests[number]?.waits[rank].step += 1
        if let layer = wait.steps[wait.step].layer {
            requests[number]?.missingLayers[layer, default: 1] -= 1
            let isCompared = entry.checks?.open.contains(layer) == true
            if requests[number]?.missingLayers[layer] == 0, !isCompared { entry.handler(.layer(layer)) }
            compareIfThere(layer, number)
        }
        guard wait.step + 1 == wait.steps.count else { return expect(number, rank) }
        requests[number]?.missingRanks -= 1
        guard requests[number]?.missingRanks == 0 else { return }
        compareAll(number)
        endIfComplete(number)
    }

    /// Lets the state machine decide, and does what it says.
    func apply(_ event: DecoderRequest.Event, to number: UInt64) {
        guard var entry = requests[number] else { return }
        var event = event
        // Nobody knows of the pages of a request that was never sent.
        if !entry.isSent, case .cancel(let reason) = event { event = .receipt(isQuiet: true, reason) }
        if event.mayFreePages, entry.checks?.running.isEmpty == false {
            requests[number]?.checks?.postponed.append(event)
            return
        }
        let actions = entry.machine.handle(event)
        requests[number] = entry
        for action in actions { perform(action, number, entry) }
        if entry.machine.state == .cancelling, actions.contains(.sendCancel) {
            requests[number]?.deadline = now &+ configuration.cancelTimeout.nanoseconds
        }
        if !entry.machine.holdsPages {
            numbers[SessionRequest(session: entry.session, request: entry.numberInSession)] = nil
            requests[number] = nil
            if entry.session != links[entry.link]?.session { forgetSession(entry.session) }
        }
    }

    private func forgetSession(_ session: UInt64) {
        if !requests.values.contains(where: { $0.session == session }) { sessions[session] = nil }
    }

    private func perform(_ action: DecoderRequest.Action, _ number: UInt64, _ entry: DecoderEntry) {
        switch action {
        case .deliver: entry.handler(.ready)
        case .fail(let reason): entry.handler(.failed(reason))
        case .freePages: entry.handler(.pagesFree)
        case .sendCancel:
            if links[entry.link]?.peer != nil {
                send(.cancel(session: entry.session, request: entry.numberInSession), to: entry.link)
            }
        case .closeLease:
            for (rank, wait) in entry.waits.enumerated() {
                if let transfer = wait.transfer { try? ranks[rank].engine.cancel(transfer) { _ in } }
                try? ranks[rank].engine.end(wait.lease, isQuiet: false)
            }
        case .freeLease:
            for (rank, wait) in entry.waits.enumerated() { _ = try? ranks[rank].engine.reclaim(wait.lease) }
        }
    }

    /// Deadlines.
    func lookAtRequests() {
        for number in requests.keys.sorted() {
            guard let entry = requests[number], entry.deadline <= now else { continue }
            switch entry.machine.state {
            case .waiting: apply(.cancel(KVError(.deadline, stallReport(entry))), to: number)
            case .cancelling:
                apply(
                    .lost(KVError(.peerLost, "no receipt within \(configuration.cancelTimeout)")), to: number)
            case .ready, .quarantined, .freed: break
            }
        }
        for number in links.keys.sorted() { sendWaiting(number) }
    }

    /// Which rank misses how much.
    private func stallReport(_ entry: DecoderEntry) -> String {
        let name = links[entry.link]?.peer.name ?? "a prefiller"
        guard entry.isSent else { return "\(name) has not answered in \(entry.request.timeout)" }
        if entry.missingRanks == 0, let checks = entry.checks {
            let layers = checks.open.filter { checks.sent[$0] == nil }.count
            return
                "\(name) has written all, but not sent \(layers) of its digests in \(entry.request.timeout)"
        }
        let missing = entry.waits.enumerated().compactMap { (rank, wait) -> String? in
            guard wait.step < wait.steps.count else { return nil }
            let step = wait.steps[wait.step]
            let count = ranks[rank].engine.count(of: wait.lease[wait.step])
            return "rank \(rank) has \(count) of \(step.count) writes"
                + (step.layer.map { " of layer \($0)" } ?? "")
        }
        return "\(name) has not written all in \(entry.request.timeout): \(missing.joined(separator: "; "))"
    }
}
