internal import Glibc
internal import KVCacheTransfer
internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// The nodes of a cluster, in one thread and in virtual time; who comes and goes, and the checks over it.
final class KVCluster: @unchecked Sendable {
    // SAFETY: a simulation has one thread. It is Sendable only because the handlers of the roles are.
    /// How long a client waits for all of its answer.
    static let patience: UInt64 = 180_000_000_000
    /// How long a decoder waits for a prefiller.
    static let attemptNanoseconds: UInt64 = 60_000_000_000
    /// Before somebody else is asked.
    static let pauseNanoseconds: UInt64 = 1_000_000
    /// After so long everybody knows that a node has died: its connections and its lease in the directory are gone.
    static let noticeNanoseconds: UInt64 = 200_000_000
    /// After the last request: longer than pages stay in quarantine.
    static let restNanoseconds: UInt64 = 12_000_000_000
    /// How often engines and roles look at the time: eight times a heartbeat.
    static let look: UInt64 = 125_000_000

    let plan: KVClusterPlan
    let network: SimulatedNetwork
    var random: SeededGenerator
    var outcome = KVClusterOutcome()
    private let sample: SimulatedSample
    private var scheduler = PrefixAffinityScheduler(weight: 0)
    private var prefillers: [ClusterPrefiller] = []
    private var decoders: [ClusterDecoder] = []
    private var nodes: [EngineID: ClusterNode] = [:]
    private var awake: [ClusterNode] = []
    private var requests: [Int: ClusterRequest] = [:]
    private var agenda = Agenda()
    /// Whether there are requests to come.
    private var isArriving = true
    private var nodeCount = 0
    private var times = Times()
    /// What nodes that have left had done.
    private var busyNanoseconds: UInt64 = 0
    private var sentBytes: UInt64 = 0

    private struct Times {
        var firstToken: [Double] = []
        var transfer: [Double] = []
        var share: [Double] = []
        var layer: [Double] = []
    }

    init(_ plan: KVClusterPlan) throws {
        self.plan = plan
        random = SeededGenerator(seed: plan.seed)
        sample = SimulatedSample(
            spacing: plan.shape.planes[0].stride, byteCount: ClusterNode.Tag.byteCount)
        network = SimulatedNetwork(seed: plan.seed, sample: sample)
        network.onReady = { [unowned self] engine in if let node = nodes[engine] { wake(node) } }
        for _ in 0..<plan.prefillers { try addPrefiller() }
        for _ in 0..<plan.decoders { try addDecoder() }
    }

    deinit { for node in prefillers.map(\.node) + decoders.map(\.node) { node.close() } }

    var now: UInt64 { network.nowNanoseconds }

    func after(_ nanoseconds: UInt64, _ action: @escaping () -> Void) {
        agenda.add(now + nanoseconds, action)
    }

    /// An engine of the node has something to do.
    func wake(_ node: ClusterNode) {
        guard !node.isAwake else { return }
        node.isAwake = true
        awake.append(node)
    }

    // MARK: The run

    func run() -> KVClusterOutcome {
        // Before the first request everybody has been introduced.
        let begin: UInt64 = 1_000_000_000
        let end = begin + UInt64(plan.seconds * 1e9)
        agenda.add(begin) { [unowned self] in
            let before = work()
            agenda.add(end) { [unowned self] in measure(since: before) }
            arrive(until: end)
            if plan.churn > 0 { churn(until: end) }
        }
        while isArriving || !requests.isEmpty { advance() }
        // Long enough for what is in quarantine to come back.
        let rest = now + Self.restNanoseconds
        while now < rest { advance() }
        agenda = Agenda()  // what is in it holds what holds it
        finish()
        return outcome
    }

    /// Lets happen what is due, and time go on to what is next.
    private func advance() {
        while let action = agenda.next(now) { action() }
        // Who is woken meanwhile has its turn, too.
        while !awake.isEmpty {
            let turn = awake
            awake.removeAll(keepingCapacity: true)
            for node in turn {
                node.isAwake = false
                guard node.isAlive else { continue }
                for rank in node.ranks { while rank.engine.progress() {} }
            }
        }
        let (next, event) = (agenda.nextTime ?? .max, network.nextEventNanoseconds ?? .max)
        if event <= next { network.step() } else { network.run(until: next) }
    }

    /// What all nodes have done so far.
    private func work() -> (busy: UInt64, sent: UInt64) {
        prefillers.reduce((busyNanoseconds, sentBytes)) {
            $1.node.isAlive ? ($0.0 + $1.busyNanoseconds, $0.1 + $1.node.sentBytes) : $0
        }
    }

    private func measure(since before: (busy: UInt64, sent: UInt64)) {
        let (busy, sent) = work()
        let speed = Double(plan.shape.megabitsPerSecond) * 1e6 * Double(plan.shape.nics)
        let ranks = Double(plan.prefillers * plan.shape.layout.rankCount)
        outcome.computing = Double(busy - before.busy) / 1e9 / (plan.seconds * Double(plan.prefillers))
        outcome.utilisation = Double(sent - before.sent) * 8 / (speed * ranks * plan.seconds)
    }

    private func finish() {
        for node in prefillers.map(\.node) + decoders.map(\.node) where node.isAlive && !node.isWhole {
            outcome.leaks += 1
            note("\(node.name): not all pages are back at the end")
        }
        for node in decoders.map(\.node) where node.isAlive && node.damaged > 0 {
            wrong(node.damaged, "\(node.name): free pages were written to")
        }
        outcome.firstToken = Distribution(times.firstToken)
        outcome.transfer = Distribution(times.transfer)
        outcome.share = Distribution(times.share)
        outcome.layer = Distribution(times.layer)
        outcome.nanoseconds = now
        outcome.events = network.eventCount
        outcome.hash = network.traceHash
    }

    private func note(_ problem: String) {
        if outcome.problems.count < 20 { outcome.problems.append("at \(now / 1000) us: \(problem)") }
    }

    // MARK: Requests

    private func arrive(until end: UInt64) {
        let pause = -log(1 - Double.random(in: 0..<1, using: &random)) / plan.rate
        let time = now + UInt64(pause * 1e9)
        isArriving = time < end && outcome.requests < plan.requestLimit ?? .max
        guard isArriving else { return }
        agenda.add(time) { [unowned self] in
            let (low, high) = (log(Double(plan.tokens.lowerBound)), log(Double(plan.tokens.upperBound)))
            let tokens = Int(exp(Double.random(in: low...high, using: &random)).rounded())
            outcome.requests += 1
            let request = ClusterRequest(self, number: outcome.requests, tokens: tokens)
            requests[outcome.requests] = request
            request.begin()
            arrive(until: end)
        }
    }

    /// What a router does: the least loaded of those that take requests; of several equal ones whoever had least so far.
    func choose(_ excluded: Set<Int>) -> (ClusterPrefiller, ClusterDecoder)? {
        func rank(_ left: ClusterNode, _ right: ClusterNode) -> Bool {
            (left.given, left.number) < (right.given, right.number)
        }
        func takes(_ node: ClusterNode) -> Bool { !node.isDraining && !excluded.contains(node.number) }
        func workers(_ nodes: [ClusterNode]) -> [KVWorker] {
            nodes.map { KVWorker(name: $0.name, load: $0.load) }
        }
        let sources = prefillers.filter { takes($0.node) }.sorted { rank($0.node, $1.node) }
        let targets = decoders.filter { takes($0.node) }.sorted { rank($0.node, $1.node) }
        let choice = scheduler.choose(
            [], prefillers: workers(sources.map(\.node)), decoders: workers(targets.map(\.node)))
        return choice.map { (sources[$0.prefiller], targets[$0.decoder]) }
    }

    /// A model has computed a layer of an attempt for the last of its tokens.
    func computed(_ attempt: ClusterAttempt, layer: Int) {
        requests[attempt.request]?.computed(attempt, layer: layer)
    }

    /// A layer has arrived.
    func arrived(after nanoseconds: UInt64) { times.layer.append(Double(nanoseconds) / 1e9) }

    /// A decoder may begin.
    func began(total: UInt64, transfer: UInt64) {
        times.firstToken.append(Double(total) / 1e9)
        times.transfer.append(Double(transfer) / 1e9)
        times.share.append(Double(transfer) / Double(total))
    }

    func completed(_ request: ClusterRequest) {
        outcome.completed += 1
        requests[request.attempt.request] = nil
    }

    func lost(_ request: ClusterRequest) {
        outcome.lost += 1
        note("lost: \(request.attempt)")
        requests[request.attempt.request] = nil
    }

    func wrong(_ pages: Int, _ problem: String) {
        outcome.wrong += pages
        note("\(pages) wrong: \(problem)")
    }

    // MARK: Nodes

    private func addNode(_ role: String) throws -> ClusterNode {
        nodeCount += 1
        let node = try ClusterNode(nodeCount, "\(role) \(nodeCount)", plan, network, sample)
        for rank in node.ranks { nodes[rank.engine.id] = node }
        return node
    }

    private func addPrefiller() throws {
        let prefiller = try ClusterPrefiller(self, addNode("prefiller"))
        prefillers.append(prefiller)
        for decoder in decoders where decoder.node.isAlive { decoder.connect(prefiller) }
        tend(prefiller.node) { [unowned self] in
            prefiller.role.tick(nowNanoseconds: now)
            return prefiller.jobs.isEmpty
        }
    }

    private func addDecoder() throws {
        let decoder = try ClusterDecoder(self, addNode("decoder"))
        decoders.append(decoder)
        for prefiller in prefillers where prefiller.node.isAlive { decoder.connect(prefiller) }
        tend(decoder.node) { [unowned self] in
            decoder.role.tick(nowNanoseconds: now)
            return decoder.open == 0
        }
    }

    /// Lets a node look at the time again and again; `tick` returns whether it has nothing to do. No two nodes do so at one
    /// moment.
    private func tend(_ node: ClusterNode, _ tick: @escaping () -> Bool) {
        func look() {
            guard node.isAlive else { return }
            for rank in node.ranks { _ = rank.engine.tick() }
            let isIdle = tick()
            wake(node)
            if node.isDraining, isIdle { return leave(node) }
            after(Self.look) { look() }
        }
        after(UInt64.random(in: 0..<Self.look, using: &random)) { look() }
    }

    private func churn(until end: UInt64) {
        let pause = UInt64(1e9 / plan.churn)
        guard now + pause < end else { return }
        after(pause) { [unowned self] in
            let leaving = (prefillers.map(\.node) + decoders.map(\.node)).filter {
                $0.isAlive && !$0.isDraining
            }
            if let node = leaving.randomElement(using: &random) {
                if outcome.killed == outcome.drained { kill(node) } else { drain(node) }
                do {
                    if isPrefiller(node) { try addPrefiller() } else { try addDecoder() }
                } catch { note("no node in the place of \(node.name): \(error)") }
            }
            churn(until: end)
        }
    }

    private func isPrefiller(_ node: ClusterNode) -> Bool { prefillers.contains { $0.node === node } }

    private func kill(_ node: ClusterNode) {
        outcome.killed += 1
        close(node)
        after(Self.noticeNanoseconds) { [unowned self] in forget(node) }
    }

    private func drain(_ node: ClusterNode) {
        outcome.drained += 1
        node.isDraining = true
        prefillers.first { $0.node === node }?.role.drain()
    }

    /// A node that was drained says goodbye, and goes.
    private func leave(_ node: ClusterNode) {
        decoders.first { $0.node === node }?.leave()
        for decoder in decoders where decoder.node.isAlive { decoder.disconnect(node.number) }
        after(Self.noticeNanoseconds) { [unowned self] in
            close(node)
            forget(node)
        }
    }

    private func close(_ node: ClusterNode) {
        if let prefiller = prefillers.first(where: { $0.node === node }) {
            busyNanoseconds += prefiller.busyNanoseconds
            sentBytes += node.sentBytes
        }
        node.close()
        for rank in node.ranks { nodes[rank.engine.id] = nil }
    }

    /// Everybody knows that a node has gone.
    private func forget(_ node: ClusterNode) {
        for decoder in decoders where decoder.node.isAlive { decoder.disconnect(node.number) }
        prefillers.removeAll { $0.node === node }
        decoders.removeAll { $0.node === node }
        for number in requests.keys.sorted() { requests[number]?.lose(node) }
    }
}
