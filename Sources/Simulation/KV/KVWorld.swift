internal import KVCacheTransfer
internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// Prefillers and decoders over real engines, in one thread and in virtual time; what goes wrong, and the checks over it.
final class KVWorld: @unchecked Sendable {
    // SAFETY: a simulation has one thread. It is Sendable only because the handlers of the roles are.
    static let look: UInt64 = 10_000_000
    /// How long the decoder's application tries.
    static let patience: UInt64 = 1_000_000_000
    /// Deadline of the engines' own operations.
    static let timeout: UInt64 = 400_000_000

    let plan: KVCase
    let network: SimulatedNetwork
    var random: SeededGenerator
    var outcome = Outcome()
    var nodes: [KVNode] = []
    var prefilling: [KVPrefilling] = []
    var decoding: [KVDecoding] = []
    var runs: [KVRun] = []
    private var graves: [KVNode] = []
    private var incarnations: [Int]
    private var owners: [UInt64: (process: Int, nic: Int)] = [:]
    private var paused: Set<Int> = []
    private var agenda = Agenda()
    private var nextLook: UInt64 = 0
    private var end: UInt64 = 0

    init(_ plan: KVCase) throws(TransferError) {
        self.plan = plan
        network = SimulatedNetwork(seed: plan.seed)
        random = SeededGenerator(seed: plan.seed &+ 5)
        incarnations = plan.nodes.map { _ in 0 }
        for index in plan.nodes.indices { nodes.append(try open(index)) }
        for index in 0..<plan.prefillers { prefilling.append(try KVPrefilling(self, nodes[index])) }
        for index in plan.prefillers..<nodes.count { decoding.append(try KVDecoding(self, nodes[index])) }
        for decoding in decoding { for index in prefilling.indices { decoding.connect(index) } }
        for request in plan.requests { at(request.time) { [unowned self] in begin(request) } }
        for fault in plan.faults { schedule(fault) }
        let last = max(plan.requests.last?.time ?? 0, plan.faults.map(\.end).max() ?? 0)
        at(last + 2 * Self.patience) { [unowned self] in checkUp() }
        end = last + 3 * Self.patience + 2 * Self.timeout
    }

    deinit { for node in nodes + graves { node.close() } }

    private func open(_ index: Int) throws(TransferError) -> KVNode {
        let node = try KVNode(index, incarnation: incarnations[index], plan.nodes[index], plan.seed, network)
        {
            owners[$0] = (index, $1)
        }
        network.faults = FaultRule(
            faults: plan.faults, random: SeededGenerator(seed: plan.seed &+ 77 &+ network.eventCount),
            owners: owners)
        return node
    }

    func violate(_ text: String) {
        if outcome.violations.count < 20 {
            outcome.violations.append("at \(network.nowNanoseconds / 1000) us: \(text)")
        }
    }

    /// Digests take a moment, in which other things happen.
    var compute: @Sendable (@escaping @Sendable () -> Void) -> Void {
        { [unowned self] body in after(UInt64.random(in: 0...20_000, using: &random)) { body() } }
    }

    /// Whether the network damages what it carries.
    var mayBeDamaged: Bool {
        plan.faults.contains {
            guard case .damage = $0.kind else { return false }
            return true
        }
    }

    /// Lets something happen later.
    func at(_ time: UInt64, _ action: @escaping () -> Void) { agenda.add(time, action) }

    func after(_ nanoseconds: UInt64, _ action: @escaping () -> Void) {
        at(network.nowNanoseconds + nanoseconds, action)
    }

    // MARK: The run

    func run() -> Outcome {
        while network.nowNanoseconds < end {
            var isBusy = false
            while let action = agenda.next(network.nowNanoseconds) {
                action()
                isBusy = true
            }
            for node in nodes where node.isAlive && !paused.contains(node.index) {
                for rank in node.ranks where rank.engine.progress() { isBusy = true }
            }
            if !isBusy { advance() }
        }
        finish()
        agenda = Agenda()  // what is in it holds what holds it
        outcome.hash = network.traceHash
        outcome.events = network.eventCount
        outcome.nanoseconds = network.nowNanoseconds
        return outcome
    }

    private func advance() {
        let next = min(agenda.nextTime ?? .max, nextLook, network.nextEventNanoseconds ?? .max)
        if network.nextEventNanoseconds == next { network.step() } else { network.run(until: next) }
        guard network.nowNanoseconds >= nextLook else { return }
        nextLook = network.nowNanoseconds + Self.look
        for node in nodes where node.isAlive && !paused.contains(node.index) {
            for rank in node.ranks { _ = rank.engine.tick() }
            // At the end nobody says anything more, so that whatever is still pending has been forgotten.
            if network.nowNanoseconds > end - 2 * Self.timeout { continue }
            if node.index < plan.prefillers {
                prefilling[node.index].role.tick(nowNanoseconds: network.nowNanoseconds)
            } else {
                decoding[node.index - plan.prefillers].tick()
            }
        }
    }

    private func schedule(_ fault: Fault) {
        switch fault.kind {
        case .pause(let node):
            at(fault.begin) { [unowned self] in paused.insert(node) }
            at(fault.end) { [unowned self] in paused.remove(node) }
        case .crash(let node):
            at(fault.begin) { [unowned self] in crash(node) }
            at(fault.end) { [unowned self] in restart(node) }
        default: break
        }
    }

    private func crash(_ index: Int) {
        guard nodes[index].isAlive else { return }
        if let damage = nodes[index].damage() { violate(damage) }
        for run in runs where run.decoding.node === nodes[index] { run.isOver = true }
        if index < plan.prefillers { prefilling[index].isAlive = false }
        nodes[index].close()
    }

    private func restart(_ index: Int) {
        guard !nodes[index].isAlive else { return }
        incarnations[index] += 1
        graves.append(nodes[index])
        do throws(TransferError) {
            nodes[index] = try open(index)
            if index < plan.prefillers {
                prefilling[index] = try KVPrefilling(self, nodes[index])
                for decoding in decoding where decoding.node.isAlive { decoding.connect(index) }
            } else {
                decoding[index - plan.prefillers] = try KVDecoding(self, nodes[index])
                for prefiller in prefilling.indices { decoding[index - plan.prefillers].connect(prefiller) }
            }
        } catch { violate("restart: \(error)") }
    }

    private func begin(_ request: KVCase.Request) {
        let decoding = decoding[request.decoder]
        guard decoding.node.isAlive else { return }
        let run = KVRun(self, decoding, request, content: UInt64(runs.count + 1))
        runs.append(run)
        run.attempt()
        if let after = request.cancelAfter { self.after(after) { run.cancel() } }
    }

    /// Everything is well again: every decoder gets a request from every prefiller, and everything is back.
    private func checkUp() {
        for run in runs where !run.isOver { violate("a request has not ended: \(run.request), \(run.state)") }
        for node in nodes where node.isAlive {
            if !node.isWhole { violate("node \(node.index): not all pages are back") }
        }
        for index in decoding.indices {
            for prefiller in prefilling.indices {
                let request = KVCase.Request(
                    time: network.nowNanoseconds, decoder: index, span: TokenSpan(end: 30),
                    isLayerwise: false,
                    hasTail: true, timeout: 500_000_000)
                let run = KVRun(self, decoding[index], request, content: UInt64(runs.count + 1))
                run.isCheckUp = true
                run.prefiller = prefiller
                runs.append(run)
                run.attempt()
            }
        }
    }

    private func finish() {
        for run in runs where !run.isOver { violate("a request has not ended: \(run.request), \(run.state)") }
        for node in nodes where node.isAlive {
            if let damage = node.damage() { violate(damage) }
            if !node.isWhole { violate("node \(node.index): not all pages are back at the end") }
            for rank in node.ranks {
                let usage = rank.engine.usage
                if usage.pending > 0 { violate("node \(node.index): \(usage.pending) transfers are pending") }
            }
        }
    }
}
