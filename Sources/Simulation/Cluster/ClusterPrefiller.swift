internal import KVCacheTransfer
internal import TransferCore
internal import TransferEngine

/// A prefiller of a cluster, with a model that computes one request after the other, layer by layer.
final class ClusterPrefiller: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    unowned let cluster: KVCluster
    let node: ClusterNode
    let role: KVPrefiller
    /// Requests that it has, in the order in which they came.
    private(set) var jobs: [Job] = []
    /// Virtual nanoseconds in which it has computed.
    private(set) var busyNanoseconds: UInt64 = 0
    private var isComputing = false
    /// Layers that have been computed in all.
    private var total: UInt64 = 0

    final class Job: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        let id: KVJob.ID
        let attempt: ClusterAttempt
        let table: PageTable
        /// Tokens that have been computed.
        var done = 0
        var isStopped = false
        var isReleased = false
        /// Whether a forward pass uses its pages.
        var isRunning = false

        init(_ job: KVJob, _ table: PageTable) {
            id = job.id
            attempt = ClusterAttempt(job)
            self.table = table
        }
    }

    /// Takes what the role says before it has an owner.
    private final class Inbox: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        weak var owner: ClusterPrefiller?
    }

    init(_ cluster: KVCluster, _ node: ClusterNode) throws(KVError) {
        self.cluster = cluster
        self.node = node
        let inbox = Inbox()
        role = try KVPrefiller(
            KVConfiguration(name: node.name), layout: node.shape.layout, ranks: node.ranks
        ) { inbox.owner?.offer($0) }
        inbox.owner = self
    }

    private func offer(_ job: KVJob) {
        guard let table = node.take(tokens: job.span.end) else {
            return role.refuse(job.id, KVError(.noPages, "\(node.name) has no pages"))
        }
        let entry = Job(job, table)
        jobs.append(entry)
        role.accept(job.id, sources: [table]) { [weak self] in self?.take($0, entry) }
        compute()
    }

    private func take(_ event: KVJobEvent, _ job: Job) {
        switch event {
        case .stop: job.isStopped = true
        case .released: job.isReleased = true
        }
        giveIfDone(job)
    }

    /// Pages go back when neither the network nor a forward pass uses them.
    private func giveIfDone(_ job: Job) {
        guard job.isReleased, !job.isRunning, node.isAlive,
            let place = jobs.firstIndex(where: { $0 === job })
        else { return }
        jobs.remove(at: place)
        node.give(job.table)
    }

    // MARK: Computing

    private func compute() {
        let next = jobs.first { !$0.isStopped && $0.done < $0.attempt.tokens }
        guard !isComputing, node.isAlive, let job = next else { return }
        isComputing = true
        job.isRunning = true
        let tokens = job.done..<min(job.attempt.tokens, job.done + cluster.plan.chunkTokens)
        role.begin(forward: [KVChunk(job: job.id, tokens: tokens)])
        step(job, tokens, layer: 0)
    }

    private func step(_ job: Job, _ tokens: Range<Int>, layer: Int) {
        // Of a job that was stopped the rest of the pass takes no time.
        if job.isStopped {
            total += UInt64(node.shape.layers - layer)
            role.computed(layers: total)
            return finish(job, tokens)
        }
        guard layer < node.shape.layers else { return finish(job, tokens) }
        let seconds = Double(tokens.count) / cluster.plan.tokensPerSecond / Double(node.shape.layers)
        let nanoseconds = UInt64(seconds * 1e9)
        cluster.after(nanoseconds) { [weak self] in
            guard let self, node.isAlive else { return }
            busyNanoseconds += nanoseconds
            cluster.wake(node)
            guard !job.isStopped else { return step(job, tokens, layer: layer) }
            computed(job, tokens, layer)
            step(job, tokens, layer: layer + 1)
        }
    }

    private func computed(_ job: Job, _ tokens: Range<Int>, _ layer: Int) {
        let pageTokens = node.shape.pageTokens
        let pages = tokens.lowerBound / pageTokens..<(tokens.upperBound + pageTokens - 1) / pageTokens
        node.compute(job.attempt, job.table, layer: layer, pages: pages)
        if cluster.plan.mistake == .wrongPage, job.attempt.request % 10 == 0, layer == 0 {
            node.spoil(job.table, layer: 0, page: 0)
        }
        if tokens.upperBound == job.attempt.tokens { cluster.computed(job.attempt, layer: layer) }
        total += 1
        role.computed(layers: total)
    }

    private func finish(_ job: Job, _ tokens: Range<Int>) {
        job.done = tokens.upperBound
        job.isRunning = false
        isComputing = false
        giveIfDone(job)
        compute()
    }
}
