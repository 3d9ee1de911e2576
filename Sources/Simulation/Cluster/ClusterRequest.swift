internal import KVCacheTransfer
internal import TransferCore
internal import TransferEngine

/// A request of a client, which asks until it has its answer or its time is up.
final class ClusterRequest: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    unowned let cluster: KVCluster
    private(set) var attempt: ClusterAttempt
    private var isOver = false
    private let arrival: UInt64
    /// Who does it now.
    private var decoder: ClusterDecoder?
    private var prefiller: ClusterPrefiller?
    /// Who has just failed, by the numbers of their nodes.
    private var excluded: Set<Int> = []
    /// When each layer was computed in this attempt.
    private var computed: [UInt64]
    private var hasBegun = false

    init(_ cluster: KVCluster, number: Int, tokens: Int) {
        self.cluster = cluster
        attempt = ClusterAttempt(request: number, number: 0, tokens: tokens)
        arrival = cluster.now
        computed = Array(repeating: 0, count: cluster.plan.shape.layers)
    }

    /// The client asks, and waits for so long.
    func begin() {
        cluster.after(KVCluster.patience) { [self] in
            guard !isOver else { return }
            isOver = true
            cluster.lost(self)
        }
        ask()
    }

    /// Asks for it, for the first time or again.
    private func ask() {
        guard !isOver else { return }
        guard let (prefiller, decoder) = cluster.choose(excluded) else { return later() }
        attempt.number += 1
        self.decoder = decoder
        self.prefiller = prefiller
        count(1)
        // Nobody is there, or has no room.
        guard decoder.node.isAlive, let table = decoder.node.take(tokens: attempt.tokens) else {
            return failed(excluding: decoder.node.number)
        }
        let damaged = decoder.node.damaged(table)
        if damaged > 0 { cluster.wrong(damaged, "\(decoder.node.name): free pages were written to") }
        decoder.open += 1
        let attempt = attempt
        // A decoder that was killed keeps its handlers.
        let isAsked = decoder.request(attempt, table, from: prefiller.node.number) {
            [self, weak decoder] event in
            if let decoder { take(event, attempt, table, decoder) }
        }
        guard isAsked else {
            give(table, decoder)
            return failed(excluding: prefiller.node.number)
        }
        if cluster.plan.mistake == .earlyFree, attempt.request % 10 == 0 { give(table, decoder) }
    }

    private func later() {
        cluster.after(KVCluster.pauseNanoseconds) { [self] in ask() }
    }

    /// This attempt is over: asks somebody else.
    private func failed(excluding number: Int) {
        count(-1)
        decoder = nil
        prefiller = nil
        excluded = [number]
        guard cluster.plan.mistake != .noRetry else { return }
        cluster.outcome.retries += 1
        later()
    }

    /// Tokens that are counted as those of who has them to do: of a prefiller until the decoder may begin.
    private func count(_ sign: Int) {
        for node in [prefiller?.node, decoder?.node].compactMap(\.self) {
            node.load += sign * attempt.tokens
            if sign > 0 { node.given += attempt.tokens }
        }
    }

    /// A model has computed a layer.
    func computed(_ attempt: ClusterAttempt, layer: Int) {
        if attempt == self.attempt { computed[layer] = cluster.now }
    }

    /// A node has died: whoever it was doing something for asks again.
    func lose(_ node: ClusterNode) {
        // A decoder finds out by itself that its prefiller has died.
        if decoder?.node === node, !isOver { failed(excluding: node.number) }
    }

    private func take(
        _ event: KVRequestEvent, _ attempt: ClusterAttempt, _ table: PageTable, _ decoder: ClusterDecoder
    ) {
        guard decoder.node.isAlive else { return }
        switch event {
        case .layer(let layer):
            if attempt == self.attempt { cluster.arrived(after: cluster.now - computed[layer]) }
        case .ready:
            check(attempt, table, decoder, "ready")
            if attempt == self.attempt { began() }
            let (low, high) = (cluster.plan.decodeSeconds.lowerBound, cluster.plan.decodeSeconds.upperBound)
            let seconds = Double.random(in: low...high, using: &cluster.random)
            cluster.after(UInt64(seconds * 1e9)) { [self] in decoded(attempt, table, decoder) }
        case .failed:
            if attempt == self.attempt, let prefiller { failed(excluding: prefiller.node.number) }
        case .pagesFree: give(table, decoder)
        }
    }

    /// The decoder may begin: that is what the client waits for.
    private func began() {
        prefiller?.node.load -= attempt.tokens
        prefiller = nil
        guard !hasBegun else { return }
        hasBegun = true
        cluster.began(total: cluster.now - arrival, transfer: cluster.now - (computed.max() ?? 0))
    }

    private func decoded(_ attempt: ClusterAttempt, _ table: PageTable, _ decoder: ClusterDecoder) {
        guard decoder.node.isAlive else { return }
        check(attempt, table, decoder, "decoded")
        give(table, decoder)
        guard attempt == self.attempt, !isOver else { return }
        count(-1)
        isOver = true
        cluster.completed(self)
    }

    private func check(
        _ attempt: ClusterAttempt, _ table: PageTable, _ decoder: ClusterDecoder, _ when: String
    ) {
        let wrong = decoder.node.wrong(attempt, table)
        if wrong > 0 { cluster.wrong(wrong, "\(decoder.node.name), \(when): pages of \(attempt)") }
    }

    private func give(_ table: PageTable, _ decoder: ClusterDecoder) {
        decoder.node.clear(table)
        decoder.node.give(table)
        decoder.open -= 1
    }
}
