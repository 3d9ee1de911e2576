internal import ExpertParallel
internal import SimulatedProvider
public import TransferCore
internal import TransferEngine

/// Token dispatch and combine in virtual time, with faults: no hang, no wrong sum.
///
/// Every rank makes steps; NICs, packets and ranks fail meanwhile. A step must end in bounded time, and its sums must be those of
/// the experts whose ranks are not reported missing. At the end, when all is well, everybody makes a new exchange, in which
/// nothing may be missing.
public struct MoEScenario: Sendable {
    /// The run of a seed.
    /// - Parameter overNodes: Whether the ranks are on two or three nodes, over which tokens are exchanged.
    public static func run(seed: UInt64, overNodes: Bool = false) throws(TransferError) -> Outcome {
        try MoEWorld(seed: seed, overNodes: overNodes).run()
    }
}

/// The ranks of a run.
final class MoEWorld {
    /// A run that takes longer hangs.
    private static let limit: UInt64 = 300_000_000_000
    private static let steps = 4

    private let seed: UInt64
    private let network: SimulatedNetwork
    private var random: SeededGenerator
    private var shape: ExpertConfiguration
    /// Over how many nodes tokens are exchanged; nil is not over nodes.
    private var nodes: Int?
    private var ranks: [MoERankRun] = []
    private var faults: [Fault] = []
    private var owners: [UInt64: (process: Int, nic: Int)] = [:]
    private var incarnation = 0
    private var outcome = Outcome()
    private var nextTick: UInt64 = 0

    init(seed: UInt64, overNodes: Bool) throws(TransferError) {
        self.seed = seed
        network = SimulatedNetwork(seed: seed)
        random = SeededGenerator(seed: seed &* 0x9E37_79B9 &+ 7)
        let count = Int.random(in: 2...5, using: &random)
        shape = ExpertConfiguration(
            rank: 0, ranks: count, experts: Int.random(in: count...20, using: &random),
            topK: Int.random(in: 1...4, using: &random), hidden: Int.random(in: 4...40, using: &random),
            maximumTokens: Int.random(in: 1...40, using: &random))
        shape.reduction = Bool.random(using: &random) ? .sender : .receiver
        shape.privateRows = [nil, 2, 8].randomElement(using: &random) ?? nil
        shape.combineElement = .float32
        shape.dispatchElement = .float32
        shape.deadline = .seconds(5)
        if overNodes {
            let nodes = Int.random(in: 2...3, using: &random)
            self.nodes = nodes
            shape.ranks = nodes * Int.random(in: 1...3, using: &random)
            shape.experts += shape.ranks
            shape.reduction = .sender
        }
        faults = drawFaults(shape.ranks)
        for rank in 0..<shape.ranks {
            ranks.append(try open(rank, nics: Int.random(in: 1...2, using: &random)))
        }
        setFaults()
        try meet()
    }

    private func drawFaults(_ count: Int) -> [Fault] {
        (0..<Int.random(in: 0...3, using: &random)).map { _ in
            let begin = UInt64.random(in: 0..<3_000_000, using: &random)
            let end = begin + UInt64.random(in: 100_000..<400_000_000, using: &random)
            let process = Int.random(in: 0..<count, using: &random)
            let other = (process + Int.random(in: 1..<max(2, count), using: &random)) % count
            let kind: Fault.Kind =
                switch Int.random(in: 0..<8, using: &random) {
                case 0: .loss(perMillion: 20_000)
                case 1: .acknowledgementLoss(perMillion: 20_000)
                case 2: .delay(perMillion: 200_000, nanoseconds: 2_000_000)
                case 3: .nicDown(process: process, nic: 0)
                case 4: .nicSlow(process: process, nic: 0, nanoseconds: 1_000_000)
                case 5: .partition(from: process, to: other)
                case 6: .pause(process: process)
                default: .crash(process: process)
                }
            return Fault(kind, from: begin, to: end)
        }
    }

    private func setFaults() {
        network.faults = FaultRule(
            faults: faults, random: SeededGenerator(seed: seed &+ 77 &+ network.eventCount), owners: owners)
    }

    private func open(_ rank: Int, nics: Int) throws(TransferError) -> MoERankRun {
        incarnation += 1
        var options = Configuration(
            name: "rank \(rank).\(incarnation)", progress: .manual, timeout: .seconds(2))
        options.liveness = World.liveness
        let engine = try TransferEngine(
            options, clock: network, random: SeededGenerator(seed: seed &* 1000 &+ UInt64(incarnation))
        ) { page in
            (0..<nics).map { nic in
                let domain = network.openDomain(
                    SimulatedNIC(
                        name: "\(rank).\(nic)", megabitsPerSecond: 10_000, jitterNanoseconds: 20_000,
                        queueDepth: 64),
                    page: page, engine: page.engine)
                owners[domain.id] = (rank, nic)
                return domain
            }
        }
        return MoERankRun(rank, engine)
    }

    /// Everybody makes a new exchange and gives up the old one.
    private func meet() throws(TransferError) {
        var addresses: [[UInt8]] = []
        for rank in ranks {
            var shape = shape
            shape.rank = rank.rank
            addresses.append(try rank.renew(shape, nodes: nodes, clock: network))
        }
        for rank in ranks { try rank.exchange?.connect(addresses) }
    }

    // MARK: The run

    func run() throws(TransferError) -> Outcome {
        try makeSteps(Self.steps, mustBeWhole: false)
        // Everything is well again.
        let last = faults.map(\.end).max() ?? 0
        if network.nowNanoseconds < last { network.run(until: last) }
        faults = []
        for rank in ranks where !rank.isAlive {
            ranks[rank.rank] = try open(rank.rank, nics: 1)
        }
        setFaults()
        try settle()
        try meet()
        try makeSteps(1, mustBeWhole: true)
        for rank in ranks { rank.close() }
        outcome.hash = network.traceHash
        outcome.events = network.eventCount
        outcome.nanoseconds = network.nowNanoseconds
        return outcome
    }

    /// Lets links that were down be tried again.
    private func settle() throws(TransferError) {
        let end = network.nowNanoseconds + 30 * World.interval
        while network.nowNanoseconds < end {
            for rank in ranks where rank.isAlive { rank.engine.progress() }
            advance()
        }
    }

    private func makeSteps(_ count: Int, mustBeWhole: Bool) throws(TransferError) {
        let begin = network.nowNanoseconds
        for rank in ranks { rank.begin(steps: count, seed: seed &* 31 &+ (mustBeWhole ? 1 : 0)) }
        while ranks.contains(where: { $0.isAlive && !$0.isDone }) {
            for rank in ranks where rank.isAlive && !isPaused(rank.rank) {
                if isCrashed(rank.rank) {
                    rank.close()
                } else {
                    rank.engine.progress()
                    rank.advance { if outcome.violations.count < 20 { outcome.violations.append($0) } }
                }
            }
            advance()
            if network.nowNanoseconds > begin + Self.limit {
                let waiting = ranks.filter { $0.isAlive && !$0.isDone }.map { "rank \($0.rank) \($0.place)" }
                outcome.violations.append("a step hangs: \(waiting.joined(separator: "; "))")
                return
            }
        }
        for rank in ranks where rank.isAlive {
            outcome.completed += rank.wholeSteps
            outcome.failed += rank.partialSteps
            if mustBeWhole, rank.partialSteps > 0 {
                outcome.violations.append("after all was well again rank \(rank.rank) misses others")
            }
        }
    }

    private func isPaused(_ rank: Int) -> Bool { isNow { $0 == .pause(process: rank) } }
    private func isCrashed(_ rank: Int) -> Bool { isNow { $0 == .crash(process: rank) } }

    private func isNow(_ matches: (Fault.Kind) -> Bool) -> Bool {
        let now = network.nowNanoseconds
        return faults.contains { $0.begin <= now && now < $0.end && matches($0.kind) }
    }

    private func advance() {
        for _ in 0..<8 where !network.step() {
            network.advance(by: 500_000)
            break
        }
        guard network.nowNanoseconds >= nextTick else { return }
        nextTick = network.nowNanoseconds + World.interval / 8
        for rank in ranks where rank.isAlive && !isPaused(rank.rank) { _ = rank.engine.tick() }
    }
}
