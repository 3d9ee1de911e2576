internal import KVCacheTransfer
internal import TransferCore
internal import TransferEngine

/// A decoder of a cluster.
final class ClusterDecoder: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    unowned let cluster: KVCluster
    let node: ClusterNode
    let role: KVDecoder
    /// The prefillers, by the numbers of their nodes.
    private var peers: [Int: KVPeer] = [:]
    /// Requests whose pages it has.
    var open = 0

    init(_ cluster: KVCluster, _ node: ClusterNode) throws(KVError) {
        self.cluster = cluster
        self.node = node
        role = try KVDecoder(
            KVConfiguration(name: node.name), layout: node.shape.layout, ranks: node.ranks,
            random: SeededGenerator(seed: cluster.random.next()))
    }

    func connect(_ prefiller: ClusterPrefiller) {
        // Who cannot be reached is no peer, and is asked for nothing.
        peers[prefiller.node.number] = try? role.connect(to: prefiller.role.address)
        cluster.wake(node)
    }

    /// Who has gone is not needed any more.
    func disconnect(_ number: Int) {
        guard let peer = peers.removeValue(forKey: number) else { return }
        role.disconnect(peer)
        cluster.wake(node)
    }

    /// Leaves all prefillers.
    func leave() { for number in peers.keys.sorted() { disconnect(number) } }

    /// Asks a prefiller for the cache of an attempt; false when it cannot be asked.
    func request(
        _ attempt: ClusterAttempt, _ table: PageTable, from prefiller: Int,
        _ handler: @escaping @Sendable (KVRequestEvent) -> Void
    ) -> Bool {
        guard let peer = peers[prefiller] else { return false }
        role.request(
            KVRequest(
                span: TokenSpan(end: attempt.tokens), tables: [table], input: attempt.input,
                timeout: .nanoseconds(Int64(KVCluster.attemptNanoseconds)), isLayerwise: true),
            from: peer, handler: handler)
        cluster.wake(node)
        return true
    }
}
