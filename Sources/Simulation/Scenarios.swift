public import TransferCore

/// A family of runs: what is done and what goes wrong, drawn from a seed.
public struct Scenario: Sendable {
    /// What it is called on the command line.
    public let name: String
    /// What goes wrong in it.
    public let summary: String
    private let draw: @Sendable (inout SeededGenerator) -> [Fault]
    private var cancels = false
    private var revokes = false
    private var isSigned = false
    private var processes = 2...4
    private var operations = 5...40
    /// Operations begin in the first so many nanoseconds.
    private var span: UInt64 = 300_000_000

    /// The case of a seed.
    public func makeCase(seed: UInt64) -> Case {
        var random = SeededGenerator(
            seed: seed &* 0x9E37_79B9 &+ UInt64(name.utf8.reduce(0) { $0 &* 31 &+ Int($1) }))
        let count = Int.random(in: processes, using: &random)
        var plan = Case(
            seed: seed, nics: (0..<count).map { _ in Int.random(in: 1...4, using: &random) }, operations: [],
            faults: [])
        if name.hasPrefix("nic") { plan.nics = plan.nics.map { max(2, $0) } }
        plan.network.reorder = Bool.random(using: &random)
        plan.network.queueDepth = [2, 16, 64, 256].randomElement(using: &random) ?? 64
        plan.network.maximumWriteBytes = [4096, 20_000, 1 << 30].randomElement(using: &random) ?? 4096
        plan.network.isSigned = isSigned
        plan.faults = draw(&random).map { Self.fit($0, plan.nics, &random) }
        for _ in 0..<Int.random(in: operations, using: &random) {
            plan.operations.append(operation(count, &random))
        }
        plan.operations.sort { $0.time < $1.time }
        return plan
    }

    /// Processes and NICs of a fault are drawn as any number.
    private static func fit(_ fault: Fault, _ nics: [Int], _ random: inout SeededGenerator) -> Fault {
        var fault = fault
        switch fault.kind {
        case .nicDown(let process, let nic):
            fault.kind = .nicDown(process: process % nics.count, nic: nic % nics[process % nics.count])
        case .nicSlow(let process, let nic, let nanoseconds):
            fault.kind = .nicSlow(
                process: process % nics.count, nic: nic % nics[process % nics.count], nanoseconds: nanoseconds
            )
        case .partition(let from, let to):
            let from = from % nics.count
            let to = to % nics.count
            fault.kind = .partition(from: from, to: from == to ? (to + 1) % nics.count : to)
        case .pause(let process): fault.kind = .pause(process: process % nics.count)
        case .crash(let process): fault.kind = .crash(process: process % nics.count)
        case .loss, .acknowledgementLoss, .delay, .duplicates, .partialPosts, .slowCompletions, .damage: break
        }
        return fault
    }

    private func operation(_ processes: Int, _ random: inout SeededGenerator) -> Operation {
        let from = Int.random(in: 0..<processes, using: &random)
        let to = (from + Int.random(in: 1..<processes, using: &random)) % processes
        let kind: Operation.Kind
        switch Int.random(in: 0..<20, using: &random) {
        case 0..<6: kind = .write(bytes: Int.random(in: 0...60_000, using: &random))
        case 6..<8: kind = .write(bytes: Int.random(in: 0...64, using: &random))
        case 8..<13:
            let bytes = [1, 64, 1000, 4096].randomElement(using: &random) ?? 64
            kind = .pages(count: Int.random(in: 0...(60_000 / max(bytes, 600)), using: &random), bytes: bytes)
        case 13..<15: kind = .scatter(bytes: Int.random(in: 0...20_000, using: &random))
        case 15..<17: kind = .immediate
        case 17: kind = .message(bytes: Int.random(in: 0...10_000, using: &random))
        case 18: kind = .await
        default: kind = revokes ? .revoke : .immediate
        }
        var operation = Operation(
            time: UInt64.random(in: 0...span, using: &random), from: from, to: to, kind: kind)
        // Many at one moment, so that much is in flight when something goes wrong.
        if Bool.random(using: &random) { operation.time = operation.time / 50_000_000 * 50_000_000 }
        if cancels, Bool.random(using: &random) {
            operation.cancelAfter = UInt64.random(in: 0...200_000, using: &random)
        }
        return operation
    }

    /// A fault of up to 300 ms in the first 300.
    private static func at(_ random: inout SeededGenerator, _ kind: Fault.Kind) -> Fault {
        let begin = UInt64.random(in: 0...300_000_000, using: &random) / 50_000_000 * 50_000_000
        return Fault(
            kind, from: begin + UInt64.random(in: 0...100_000, using: &random),
            to: begin + UInt64.random(in: 200_000...300_000_000, using: &random))
    }

    private static func number(_ random: inout SeededGenerator) -> Int {
        Int.random(in: 0..<64, using: &random)
    }

    private static func several(
        _ most: Int, _ random: inout SeededGenerator, _ make: (inout SeededGenerator) -> Fault.Kind
    ) -> [Fault] {
        (0..<Int.random(in: 1...most, using: &random)).map { _ in
            let kind = make(&random)
            return at(&random, kind)
        }
    }

    /// All scenarios.
    public static let all: [Scenario] = [
        Scenario(name: "calm", summary: "nothing goes wrong", cancels: false, revokes: false) { _ in [] },
        Scenario(
            name: "cancel", summary: "transfers are cancelled at any moment", cancels: true, revokes: false
        ) {
            _ in []
        },
        Scenario(
            name: "revoke", summary: "regions are revoked under their writers", cancels: true, revokes: true
        ) {
            _ in []
        },
        Scenario(name: "nic-flap", summary: "NICs fail and come back", cancels: false, revokes: false) {
            several(3, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
        },
        Scenario(
            name: "nic-cancel", summary: "NICs fail under transfers that are cancelled", cancels: true,
            revokes: true
        ) {
            several(3, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
        },
        Scenario(name: "loss", summary: "packets are lost for good", cancels: false, revokes: false) {
            several(2, &$0) { .loss(perMillion: Int.random(in: 100...50_000, using: &$0)) }
        },
        Scenario(
            name: "ack-loss", summary: "data arrives, and the sender is not told", cancels: false,
            revokes: false
        ) {
            several(2, &$0) { .acknowledgementLoss(perMillion: Int.random(in: 100...100_000, using: &$0)) }
        },
        Scenario(name: "delay", summary: "packets come late, NICs are slow", cancels: true, revokes: true) {
            several(3, &$0) {
                .delay(perMillion: 100_000, nanoseconds: UInt64.random(in: 0...20_000_000, using: &$0))
            }
                + several(2, &$0) { .nicSlow(process: number(&$0), nic: number(&$0), nanoseconds: 5_000_000) }
        },
        Scenario(name: "crash", summary: "processes end and come back", cancels: false, revokes: false) {
            several(2, &$0) { .crash(process: number(&$0)) }
        },
        Scenario(name: "pause", summary: "processes stop for a while", cancels: false, revokes: false) {
            several(2, &$0) { .pause(process: number(&$0)) }
        },
        Scenario(
            name: "partition", summary: "one direction between two processes is cut", cancels: false,
            revokes: false
        ) {
            several(2, &$0) { .partition(from: number(&$0), to: number(&$0)) }
        },
        Scenario(
            name: "duplicate", summary: "control messages come again, while NICs fail", cancels: true,
            revokes: false
        ) {
            [duplicates(&$0)]
                + several(2, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
                + several(2, &$0) {
                    .acknowledgementLoss(perMillion: Int.random(in: 100...50_000, using: &$0))
                }
        },
        Scenario(
            name: "pressure", summary: "NICs take a part of what they are given, and hand over late",
            cancels: true, revokes: true
        ) {
            several(2, &$0) { .partialPosts(perMillion: Int.random(in: 10_000...700_000, using: &$0)) }
                + several(2, &$0) {
                    .slowCompletions(perMillion: Int.random(in: 10_000...700_000, using: &$0))
                }
                + several(1, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
        },
        Scenario(
            name: "signed", summary: "with a cluster key: everything that was sent comes again",
            isSigned: true
        ) {
            [duplicates(&$0)]
                + several(2, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
                + several(1, &$0) { .crash(process: number(&$0)) }
        },
        Scenario(
            name: "cluster", summary: "eight processes, now and then a fault", cancels: true, revokes: true,
            processes: 8...8, operations: 100...200, span: 20_000_000_000
        ) {
            several(2, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
                + several(1, &$0) { .crash(process: number(&$0)) }
                + several(1, &$0) { .loss(perMillion: Int.random(in: 100...20_000, using: &$0)) }
        },
        Scenario(name: "storm", summary: "all of it at once", cancels: true, revokes: true) {
            several(2, &$0) { .nicDown(process: number(&$0), nic: number(&$0)) }
                + several(1, &$0) { .loss(perMillion: Int.random(in: 100...20_000, using: &$0)) }
                + several(1, &$0) {
                    .acknowledgementLoss(perMillion: Int.random(in: 100...20_000, using: &$0))
                }
                + several(1, &$0) { .crash(process: number(&$0)) }
                + several(1, &$0) { .pause(process: number(&$0)) }
                + several(1, &$0) { .partition(from: number(&$0), to: number(&$0)) }
                + [duplicates(&$0)]
                + several(1, &$0) {
                    .slowCompletions(perMillion: Int.random(in: 10_000...200_000, using: &$0))
                }
                + several(1, &$0) { .partialPosts(perMillion: Int.random(in: 10_000...200_000, using: &$0)) }
        },
    ]

    /// From the beginning to the end of all faults.
    private static func duplicates(_ random: inout SeededGenerator) -> Fault {
        Fault(
            .duplicates(
                perMillion: Int.random(in: 50_000...700_000, using: &random),
                nanoseconds: UInt64.random(in: 0...400_000_000, using: &random)),
            from: 0, to: 600_000_000)
    }

    private init(
        name: String, summary: String, cancels: Bool = false, revokes: Bool = false, isSigned: Bool = false,
        processes: ClosedRange<Int> = 2...4, operations: ClosedRange<Int> = 5...40,
        span: UInt64 = 300_000_000,
        _ draw: @escaping @Sendable (inout SeededGenerator) -> [Fault]
    ) {
        self.name = name
        self.summary = summary
        self.cancels = cancels
        self.revokes = revokes
        self.isSigned = isSigned
        self.processes = processes
        self.operations = operations
        self.span = span
        self.draw = draw
    }
}

/// Runs a case in virtual time.
/// - Throws: what opening engines throws.
public func simulate(_ plan: Case) throws(TransferError) -> Outcome { try World(plan).run() }

/// The smallest case found that still breaks a promise: operations, faults and NICs are taken away while it does.
public func shrink(_ plan: Case) throws(TransferError) -> Case {
    try shrink(plan) { (plan) throws(TransferError) in try !simulate(plan).violations.isEmpty }
}

/// The smallest case found for which `isBad` holds.
func shrink(
    _ plan: Case, while isBad: (Case) throws(TransferError) -> Bool
) throws(TransferError) -> Case {
    var smallest = plan
    /// Takes the change over if the case stays bad.
    func takes(_ change: (inout Case) -> Void) throws(TransferError) -> Bool {
        var other = smallest
        change(&other)
        guard try isBad(other) else { return false }
        smallest = other
        return true
    }
    var isSmaller = true
    while isSmaller {
        isSmaller = false
        var step = max(1, smallest.operations.count / 2)
        while step >= 1 {
            var begin = 0
            while begin < smallest.operations.count {
                let end = min(begin + step, smallest.operations.count)
                if try takes({ $0.operations.removeSubrange(begin..<end) }) {
                    isSmaller = true
                } else {
                    begin += step
                }
            }
            step /= 2
        }
        for index in smallest.faults.indices.reversed() {
            if try takes({ $0.faults.remove(at: index) }) { isSmaller = true }
        }
        for index in smallest.nics.indices where smallest.nics[index] > 1 {
            while smallest.nics[index] > 1, try takes({ $0.nics[index] -= 1 }) { isSmaller = true }
        }
    }
    return smallest
}
