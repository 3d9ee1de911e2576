internal import TransferEngine

/// What a decoder has to compare before the pages of a request are the application's.
struct DigestChecks {
    /// Where everything lands; its pages of the sender are not the sender's.
    let plan: KVTransferPlan
    /// Layers, nil for the tail, that have not been compared.
    var open: Set<Int?>
    /// Those of them that are compared now: their pages are read.
    var running: Set<Int?> = []
    /// What the prefiller has sent.
    var sent: [Int?: [Digest]] = [:]
    /// What has to wait until nothing is compared any more, because it frees the pages.
    var postponed: [DecoderRequest.Event] = []

    init(_ mapping: KVMapping, _ request: KVRequest) throws(KVError) {
        let sources = mapping.source.formats.map { format in
            PageTable(pages: Array(0..<UInt32(request.span.end / format.pageTokens + 1)))
        }
        plan = try KVTransferPlan(mapping, request.span, sources: sources, targets: request.tables)
        let plan = plan
        open = Set((0..<mapping.target.model.layerCount).filter { !plan.isEmpty(layer: $0) })
        if request.tail != nil { open.insert(nil) }
    }
}

// Digests: what has been counted is compared with what was sent, before anybody may use it.
extension KVDecoder {
    /// The prefiller has told what it has written of a layer, or as the tail.
    func take(_ digests: KVMessage.Digests, _ number: UInt64) {
        guard let checks = requests[number]?.checks, checks.open.contains(digests.layer),
            checks.sent[digests.layer] == nil
        else { return }
        guard digests.ranks.count == (digests.layer == nil ? 1 : layout.tensorRanks) else {
            return apply(
                .cancel(KVError(.malformedMessage, "digests of \(digests.ranks.count) ranks")), to: number)
        }
        requests[number]?.checks?.sent[digests.layer] = digests.ranks
        compareIfThere(digests.layer, number)
    }

    /// All has arrived: compares what has not been, layer by layer and the tail last, so that one seed is one run.
    func compareAll(_ number: UInt64) {
        guard let open = requests[number]?.checks?.open else { return }
        for layer in open.sorted(by: { $0 ?? .max < $1 ?? .max }) { compareIfThere(layer, number) }
    }

    /// Compares a layer, or the tail, if it can be compared now.
    func compareIfThere(_ layer: Int?, _ number: UInt64) {
        guard let entry = requests[number], entry.machine.state == .waiting, let checks = entry.checks,
            let sent = checks.sent[layer], !checks.running.contains(layer), entry.hasArrived(layer)
        else { return }
        requests[number]?.checks?.running.insert(layer)
        let comparison = DigestComparison(
            layer: layer, sent: sent, plan: checks.plan, layout: layout, ranks: ranks,
            tail: entry.request.tail,
            prefiller: links[entry.link]?.peer.name ?? "its prefiller")
        let queue = queue
        configuration.digestExecutor { [weak self] in
            let failure = comparison.failure()
            queue.run { [weak self] in self?.compared(layer, failure, number) }
        }
    }

    private func compared(_ layer: Int?, _ failure: KVError?, _ number: UInt64) {
        guard let entry = requests[number], entry.checks?.running.contains(layer) == true else { return }
        requests[number]?.checks?.running.remove(layer)
        if entry.machine.state == .waiting {
            if let failure {
                // Others may still be on their way: the pages are free after the receipt.
                apply(.cancel(failure), to: number)
            } else {
                requests[number]?.checks?.open.remove(layer)
                if entry.request.isLayerwise, let layer { entry.handler(.layer(layer)) }
                endIfComplete(number)
            }
        }
        guard let checks = requests[number]?.checks, checks.running.isEmpty else { return }
        requests[number]?.checks?.postponed = []
        for event in checks.postponed { apply(event, to: number) }
    }

    /// All has been counted, and is what was sent.
    func endIfComplete(_ number: UInt64) {
        guard let entry = requests[number], entry.missingRanks == 0, entry.checks?.open.isEmpty != false
        else { return }
        apply(.counted, to: number)
    }
}

extension DecoderEntry {
    /// Whether all of a layer, or the tail, has been counted.
    fileprivate func hasArrived(_ layer: Int?) -> Bool {
        guard request.isLayerwise, let layer else { return missingRanks == 0 }
        return missingLayers[layer, default: 0] == 0
    }
}

/// One comparison, on any thread.
private struct DigestComparison: Sendable {
    let layer: Int?
    let sent: [Digest]
    let plan: KVTransferPlan
    let layout: KVLayout
    let ranks: [KVRank]
    let tail: KVMessage.Tail?
    let prefiller: String

    /// Why what is there cannot be used; nil if it is what was sent.
    func failure() -> KVError? {
        let found: [Digest]
        do throws(TransferError) { found = try digests() } catch { return KVError(error) }
        guard let index = zip(found, sent).enumerated().first(where: { $1.0 != $1.1 })?.offset else {
            return nil
        }
        let stage = layer.flatMap { layout.stage(ofLayer: $0) } ?? 0
        let what =
            layer.map { "layer \($0) at rank \(stage * layout.tensorRanks + index)" }
            ?? "the tail at rank \(tail?.rank ?? 0)"
        return KVError(
            .digestMismatch,
            "\(what) is not what \(prefiller) sent: \(found[index]) instead of \(sent[index]); ask again, and if it "
                + "happens again look for damaged memory, a damaged link, or somebody who writes into pages that are in use"
        )
    }

    private func digests() throws(TransferError) -> [Digest] {
        guard let layer else {
            guard let tail else { return [] }
            return [
                try ranks[tail.rank].engine.digest(
                    of: ranks[tail.rank].regions[tail.region], offset: tail.offset, byteCount: tail.byteCount)
            ]
        }
        return try plan.digests(layer: layer, tensorRanks: layout.tensorRanks) {
            (write, list) throws(TransferError) in
            let rank = ranks[write.targetRank]
            let plane = rank.placement.plane(layout, rank: write.targetRank, layer: layer, write.targetPlane)
            // SAFETY: the list outlives the call.
            let result = unsafe list.targets.withUnsafeBufferPointer {
                targets -> Result<Digest, TransferError> in
                do throws(TransferError) {
                    return .success(
                        try rank.engine.digest(
                            of: rank.regions[plane.region], pageBytes: write.byteCount,
                            pages: unsafe Pages(
                                targets, stride: plane.stride, offset: plane.offset + write.targetOffset)))
                } catch { return .failure(error) }
            }
            return try result.get()
        }
    }
}
