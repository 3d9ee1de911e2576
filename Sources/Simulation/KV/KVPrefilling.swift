internal import KVCacheTransfer
internal import TransferCore
internal import TransferEngine

/// A prefiller of a run, with an application that computes: a queue of jobs, chunked forward passes, stage after stage.
final class KVPrefilling: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    unowned let world: KVWorld
    let node: KVNode
    private(set) var role: KVPrefiller
    var isAlive = true
    private var jobs: [Job] = []
    private var isComputing = false
    private var totals: [UInt64]

    private final class Job: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        let job: KVJob
        let content: UInt64
        let room: KVNode.Room
        var next: Int
        var isStopped = false
        var isReleased = false
        /// Whether a forward pass uses its pages.
        var isRunning = false
        var isGiven = false

        init(_ job: KVJob, _ content: UInt64, _ room: KVNode.Room) {
            self.job = job
            self.content = content
            self.room = room
            next = job.span.cached
        }
    }

    /// Takes what the role says before it exists.
    private final class Inbox: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        weak var owner: KVPrefilling?
    }

    init(_ world: KVWorld, _ node: KVNode) throws(TransferError) {
        self.world = world
        self.node = node
        totals = node.layout.stages.map { _ in 0 }
        let inbox = Inbox()
        var configuration = KVConfiguration(
            name: "prefiller \(node.index)", heartbeat: .milliseconds(40), cancelTimeout: .milliseconds(200))
        configuration.digestExecutor = world.compute
        do throws(KVError) {
            role = try KVPrefiller(
                configuration, layout: node.layout, ranks: node.ranks
            ) { job in inbox.owner?.offer(job) }
        } catch { throw TransferError(.invalidArgument, error.description) }
        inbox.owner = self
    }

    private func offer(_ job: KVJob) {
        let content = job.input.enumerated().reduce(UInt64(0)) {
            $0 | UInt64($1.element) << (8 * UInt64($1.offset))
        }
        guard let room = node.take({ _ in 0..<job.span.end }) else {
            return role.refuse(job.id, KVError(.refused, "no pages"))
        }
        let entry = Job(job, content, room)
        jobs.append(entry)
        role.accept(job.id, sources: room.tables) { [weak self] event in self?.take(event, entry) }
        compute()
    }

    private func take(_ event: KVJobEvent, _ job: Job) {
        switch event {
        case .stop: job.isStopped = true
        case .released:
            if job.isReleased { world.violate("released twice: \(job.job)") }
            job.isReleased = true
        }
        giveIfDone(job)
    }

    /// Pages go back when neither the network nor a forward pass uses them.
    private func giveIfDone(_ job: Job) {
        guard job.isReleased, !job.isRunning, !job.isGiven, node.isAlive else { return }
        job.isGiven = true
        node.give(job.room)
        jobs.removeAll { $0 === job }
    }

    /// Gives a job up, if it is here.
    func preempt(_ content: UInt64) {
        guard let job = jobs.first(where: { $0.content == content && !$0.isStopped }) else { return }
        role.abort(job.job.id, KVError(.aborted, "preempted"))
    }

    // MARK: Computing

    private func compute() {
        guard !isComputing, isAlive else { return }
        let ready = jobs.filter {
            !$0.isStopped && !$0.isReleased && ($0.next < $0.job.span.end || isEmpty($0))
        }.prefix(2)
        guard !ready.isEmpty else { return }
        isComputing = true
        let chunks = ready.map { job in
            let end = min(job.job.span.end, job.next + Int.random(in: 1...40, using: &world.random))
            defer { job.next = max(end, job.next + 1) }
            job.isRunning = true
            return (job: job, tokens: min(job.next, end)..<end)
        }
        run(chunks, stage: 0)
    }

    /// A request whose tokens the decoder has all.
    private func isEmpty(_ job: Job) -> Bool {
        job.next == job.job.span.end && job.job.span.cached == job.next
    }

    private func run(_ chunks: [(job: Job, tokens: Range<Int>)], stage: Int) {
        guard stage < node.layout.stages.count else { return finish(chunks) }
        role.begin(forward: chunks.map { KVChunk(job: $0.job.job.id, tokens: $0.tokens) }, stage: stage)
        step(chunks, stage, layer: node.layout.stages[stage].lowerBound)
    }

    private func step(_ chunks: [(job: Job, tokens: Range<Int>)], _ stage: Int, layer: Int) {
        guard layer < node.layout.stages[stage].upperBound else { return run(chunks, stage: stage + 1) }
        world.after(UInt64.random(in: 1000...200_000, using: &world.random)) { [self] in
            guard isAlive else { return }
            for chunk in chunks {
                node.compute(chunk.job.content, layer: layer, tokens: chunk.tokens, chunk.job.room)
            }
            totals[stage] += 1
            // A watcher may miss values.
            if Bool.random(using: &world.random) || layer + 1 == node.layout.stages[stage].upperBound {
                role.computed(layers: totals[stage], stage: stage)
            }
            step(chunks, stage, layer: layer + 1)
        }
    }

    private func finish(_ chunks: [(job: Job, tokens: Range<Int>)]) {
        isComputing = false
        for chunk in chunks {
            chunk.job.isRunning = false
            if chunk.tokens.upperBound >= chunk.job.job.span.end, chunk.job.job.tailBytes != nil,
                !chunk.job.isStopped
            {
                let rank = node.layout.rankCount - 1
                node.computeTail(chunk.job.content, rank: rank, chunk.job.room)
                role.writeTail(
                    chunk.job.job.id, rank: rank, region: 1,
                    offset: chunk.job.room.tail * KVNode.tailBytes)
            }
            giveIfDone(chunk.job)
        }
        compute()
    }
}
