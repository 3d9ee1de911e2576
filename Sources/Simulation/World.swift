internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// The real engines of many processes in one thread and in virtual time, what they do, what goes wrong, and the checks over it.
final class World {
    /// Fifty virtual milliseconds, three times.
    static let liveness = Liveness(interval: .milliseconds(50))
    static let interval: UInt64 = 50_000_000
    /// Deadline of every operation.
    static let timeout: UInt64 = 2_000_000_000
    /// How often the engines look at the clock.
    private static let look = interval / 8

    let plan: Case
    let network: SimulatedNetwork
    var processes: [SimulatedProcess] = []
    var outcome = Outcome()
    private var graves: [SimulatedProcess] = []
    private var incarnations: [Int]
    private var owners: [UInt64: (process: Int, nic: Int)] = [:]
    private var live: [Running] = []
    private var script: [(time: UInt64, action: Action)] = []
    private var scripted = 0
    private var paused: Set<Int> = []
    private var nextLook: UInt64 = 0
    /// When the first engine has something to do by itself; 0 when something has happened since they were asked.
    private var due: UInt64 = 0
    /// Whether NICs hold back what they have, so that engines must look again although nothing has happened.
    private let isPressed: Bool

    private enum Action {
        case operate(Int)
        case cancel(Int)
        case pause(Int)
        case goOn(Int)
        case crash(Int)
        case restart(Int)
        case checkUp
    }

    init(_ plan: Case) throws(TransferError) {
        self.plan = plan
        network = SimulatedNetwork(seed: plan.seed)
        incarnations = plan.nics.map { _ in 0 }
        isPressed = plan.faults.contains(where: \.isPressing)
        for index in plan.nics.indices { processes.append(try open(index)) }
        for (index, operation) in plan.operations.enumerated() {
            script.append((operation.time, .operate(index)))
            if let after = operation.cancelAfter { script.append((operation.time &+ after, .cancel(index))) }
        }
        for fault in plan.faults {
            switch fault.kind {
            case .pause(let process):
                script += [(fault.begin, .pause(process)), (fault.end, .goOn(process))]
            case .crash(let process):
                script += [(fault.begin, .crash(process)), (fault.end, .restart(process))]
            default: break
            }
        }
        // Long enough for every deadline to pass and every link to be tried again.
        let last = max(script.map(\.time).max() ?? 0, plan.faults.map(\.end).max() ?? 0)
        script.append((last + Self.timeout + 20 * Self.interval, .checkUp))
        script.sort { $0.time < $1.time }
    }

    deinit { for process in processes + graves { process.close() } }

    private func open(_ index: Int) throws(TransferError) -> SimulatedProcess {
        let process = try SimulatedProcess(
            index, incarnation: incarnations[index], nics: plan.nics[index], plan, network
        ) { id, nic in owners[id] = (index, nic) }
        network.faults = FaultRule(
            faults: plan.faults, random: SeededGenerator(seed: plan.seed &+ 77 &+ network.eventCount),
            owners: owners)
        return process
    }

    func violate(_ text: String) {
        if outcome.violations.count < 20 {
            outcome.violations.append("at \(network.nowNanoseconds / 1000) us: \(text)")
        }
    }

    // MARK: The run

    /// Runs to the end. The answer to the question of every test: which promises were broken.
    func run() -> Outcome {
        while true {
            while scripted < script.count, script[scripted].time <= network.nowNanoseconds {
                scripted += 1
                perform(script[scripted - 1].action)
            }
            var isBusy = false
            for process in processes where process.isAlive && !paused.contains(process.index) {
                if process.engine.progress() { isBusy = true }
            }
            check()
            if isBusy {
                due = 0
                continue
            }
            guard advance() else { break }
        }
        finish()
        outcome.hash = network.traceHash
        outcome.events = network.eventCount
        outcome.nanoseconds = network.nowNanoseconds
        return outcome
    }

    /// Lets time go on to whatever is next; false when nothing is.
    private func advance() -> Bool {
        if scripted == script.count, live.isEmpty { return false }
        let scriptDue = scripted < script.count ? script[scripted].time : UInt64.max
        let next = min(
            scriptDue, isPressed ? nextLook : max(nextLook, due), network.nextEventNanoseconds ?? .max)
        if next == .max || network.nowNanoseconds > 3_600_000_000_000 {
            violate("nothing is left that could end \(live.count) operations")
            return false
        }
        if network.nextEventNanoseconds == next { network.step() } else { network.run(until: next) }
        if network.nowNanoseconds >= nextLook {
            nextLook = network.nowNanoseconds + Self.look
            due = .max
            for process in processes where process.isAlive && !paused.contains(process.index) {
                due = min(due, process.engine.tick())
            }
        }
        return true
    }

    private func perform(_ action: Action) {
        due = 0
        switch action {
        case .operate(let number): begin(number, plan.operations[number])
        case .cancel(let number): cancel(number)
        case .pause(let process): paused.insert(process)
        case .goOn(let process): paused.remove(process)
        case .crash(let process):
            guard processes[process].isAlive else { return }
            if let damage = processes[process].damage() { violate(damage) }
            live.removeAll { $0.owner === processes[process] }
            processes[process].close()
        case .restart(let index):
            guard !processes[index].isAlive else { return }
            incarnations[index] += 1
            graves.append(processes[index])
            do throws(TransferError) { processes[index] = try open(index) } catch {
                violate("restart: \(error)")
            }
        case .checkUp: checkUp()
        }
    }

    // MARK: Operations

    private func begin(_ number: Int, _ operation: Operation) {
        let from = processes[operation.from]
        guard from.isAlive, processes[operation.to].isAlive, operation.from != operation.to else { return }
        do throws(TransferError) {
            if operation.kind == .revoke {
                try processes[operation.to].revoke()
            } else {
                let now = network.nowNanoseconds
                if let running = try Running(number, operation, from, processes, plan.seed, now) {
                    live.append(running)
                }
            }
        } catch {
            // A peer that is held to be lost may be refused at once.
            if error.code != .unreachable { violate("operation \(number): \(error)") }
        }
    }

    private func cancel(_ number: Int) {
        guard let running = live.first(where: { $0.number == number }), !running.isEnded else { return }
        running.cancel(timeout: .nanoseconds(Int64(Self.timeout)))
    }

    /// Looks at everything that may have ended.
    private func check() {
        live.removeAll { running in
            guard !running.owner.isAlive || running.look(self) else { return false }
            return true
        }
    }

    /// Everything is well again: every process reaches every other one, over all its NICs.
    private func checkUp() {
        for running in live { violate("operation \(running.number) has not ended: \(running.operation)") }
        live.removeAll { !$0.isCheckUp }
        var number = plan.operations.count
        for from in processes where from.isAlive {
            for to in processes where to.isAlive && from !== to {
                let operation = Operation(
                    time: network.nowNanoseconds, from: from.index, to: to.index, kind: .write(bytes: 1000))
                do throws(TransferError) {
                    let running = try Running(
                        number, operation, from, processes, plan.seed, network.nowNanoseconds)
                    running?.isCheckUp = true
                    if let running { live.append(running) }
                } catch {
                    violate("process \(to.index) is not reached again by process \(from.index): \(error)")
                }
                number += 1
            }
        }
    }

    private func finish() {
        for process in processes where process.isAlive {
            if let damage = process.damage() { violate(damage) }
            if process.inbox.isDamaged { violate("process \(process.index): a message was damaged") }
            if process.inbox.counts.values.contains(where: { $0 > 1 }) {
                violate("process \(process.index): a message came twice")
            }
            let usage = process.engine.usage
            if usage.pending > 0 {
                violate("process \(process.index): \(usage.pending) transfers are pending")
            }
            if usage.abandoned > 0 {
                violate("process \(process.index): \(usage.abandoned) cancelled transfers are not quiet")
            }
        }
    }
}
