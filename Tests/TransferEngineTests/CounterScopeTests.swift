import Synchronization
import Testing

@testable import TransferEngine

/// Small scopes, exhaustively: one counter, one write at a time over two NICs, and everything that can happen to them, in every
/// order up to a bound. The sender and the receiver are real engines; the NICs between them do what the sequence says.
@Suite struct CounterScopeTests {
    /// What can happen. Arrivals before and after `set` are early and late ones.
    enum Step: CaseIterable {
        case set, send
        /// The write arrives; arrives without its sender's knowing; is lost, and nobody knows; was certainly not sent.
        case arrive, arriveUnheard, lose, refuse
        /// The receiver says what it has counted.
        case settle
        case cancelWrite, cancelWait
        /// NICs that failed are well again.
        case failBack
        /// The lease of the counter ends and another one begins.
        case epoch
    }

    /// Every sequence of so many steps that can each happen where they stand.
    @Test func everyInterleavingCountsOnce() throws {
        let world = try ScopeWorld()
        var sequences = 0
        var steps: [Step] = []
        func extend() throws {
            for step in Step.allCases {
                steps.append(step)
                if try world.play(steps) {
                    sequences += 1
                    if steps.count < 6 { try extend() }
                }
                steps.removeLast()
            }
        }
        try extend()
        #expect(sequences > 10_000, "\(sequences) sequences")
        #expect(world.reposts > 1000 && world.lateArrivals > 100 && world.unproven > 10)
    }
}

/// Sender, receiver, and what must be true of them.
private final class ScopeWorld {
    private typealias Request = (domain: Int, request: WorkRequest)
    private typealias Doubt = (domain: Int, connection: UInt64, isCounted: Bool)

    /// One write from its beginning to its end.
    private struct Write {
        var transfer: Transfer
        var immediate: UInt32
        var arrivals = 0
        var isCancelled = false
        var isEnded = false
        /// Whether it ended although something of it may have been counted.
        var isDoubtful = false
    }

    private static let peer = EngineID(rawValue: 42)
    private let nics = [ScriptedDomain("s0"), ScriptedDomain("s1")]
    private let sender: TransferEngine
    private let receiver: TransferEngine
    private let source: MemoryRegion
    private let remote: RemoteMemory
    private var connections: UInt64 = 0
    private(set) var reposts = 0
    private(set) var lateArrivals = 0
    private(set) var unproven = 0

    // The state of one sequence.
    private var lease: ImmediateLease
    private var old: [(lease: ImmediateLease, late: Int)] = []
    private var counted = 0
    private var wait: Transfer?
    private var write: Write?
    private var request: Request?
    private var doubt: Doubt?
    private var isUp = [true, true]
    private let received = Receipts()
    private var receipts: [CancelReceipt] { received.all.withLock { $0 } }

    private final class Receipts: Sendable { let all = Mutex<[CancelReceipt]>([]) }

    init() throws {
        let nics = nics
        func open(_ domains: [ScriptedDomain]) throws -> TransferEngine {
            try TransferEngine(
                Configuration(progress: .manual, traceEvents: 0), clock: Still(),
                random: SeededGenerator(seed: UInt64(domains.count))
            ) { _ in domains }
        }
        sender = try open(nics)
        receiver = try open([ScriptedDomain("r")])
        source = try sender.allocate(byteCount: 64)
        let entry = RemoteRegion.NIC(
            fabric: "scripted", address: [1], megabitsPerSecond: 1000, key: 1, base: 0)
        remote = try sender.attach(
            RemoteRegion(
                engine: Self.peer, device: 0, index: 1, generation: 1, access: .remoteWrite, length: 64,
                base: 4096, secret: 1, nics: [entry, entry]))
        lease = try receiver.lease()
        for (number, nic) in nics.enumerated() {
            nic.onPost = { [unowned self] requests in
                // One write of eight bytes is one request.
                self.request = requests.first.map { (number, $0) }
                return PostResult(accepted: requests.count, isComplete: false, status: .success)
            }
        }
    }

    private struct Still: TransferClock { var nowNanoseconds: UInt64 { 1_000 } }

    /// Plays a sequence from the beginning. Returns whether its last step can happen there.
    func play(_ steps: [CounterScopeTests.Step]) throws -> Bool {
        var didHappen = false
        for step in steps {
            didHappen = try happen(step)
            if didHappen { try check("\(steps), at \(step)") }
        }
        try end("\(steps), at the end")
        return didHappen
    }

    // MARK: Steps

    private func happen(_ step: CounterScopeTests.Step) throws -> Bool {
        switch step {
        case .set:
            guard wait == nil else { return false }
            wait = try receiver.expect(lease[0], count: 1)
        case .send:
            guard write.map(\.isEnded) ?? true, request == nil, doubt == nil else { return false }
            let transfer = try sender.write(from: source, byteCount: 8, to: remote, immediate: lease[0])
            write = Write(transfer: transfer, immediate: lease[0].value)
            if !isUp.contains(true) { write?.isEnded = true }
        case .arrive: return try endRequest(isCounted: true, .success, nil)
        case .arriveUnheard: return try endRequest(isCounted: true, .peerLost, isUnsettled: true)
        case .lose: return try endRequest(isCounted: false, .peerLost, isUnsettled: true)
        case .refuse: return try endRequest(isCounted: false, .peerLost, .never)
        case .settle: return settle()
        case .cancelWrite:
            guard let transfer = write?.transfer, write?.isCancelled == false else { return false }
            try cancel(transfer)
        case .cancelWait:
            guard let pending = wait else { return false }
            try receiver.cancel(pending) { _ in }
            wait = nil
        case .failBack:
            guard isUp.contains(false) else { return false }
            for (number, nic) in nics.enumerated() where !isUp[number] {
                deliver(.pong(.init(from: UInt8(number), to: UInt8(number))), to: nic)
            }
            isUp = [true, true]
        case .epoch:
            if let pending = wait { try receiver.cancel(pending) { _ in } }
            wait = nil
            let isQuiet = request == nil && doubt == nil && write?.isDoubtful != true
            try receiver.end(lease, isQuiet: isQuiet)
            if !isQuiet { old.append((lease, 0)) }
            lease = try receiver.lease()
            counted = 0
        }
        return true
    }

    private func endRequest(
        isCounted: Bool, _ status: WorkStatus, _ delivery: Delivery? = nil, isUnsettled: Bool = false
    ) throws -> Bool {
        guard let (domain, ended) = request, var current = write else { return false }
        request = nil
        if isCounted { arrive(ended.immediate, ended.eighths, &current) }
        var completion = Completion(context: ended.context, count: 1, status: status)
        let other = 1 - domain
        if status != .success {
            connections += 1
            completion.tag = ended.tag
            completion.peer = domain
            completion.delivery = delivery ?? .unsettled(connection: connections, ordinal: 5)
            if current.isCancelled || isUp[other] {
                isUp[domain] = false
                if isUnsettled { doubt = (domain, connections, isCounted) }
            } else {
                // The last way: it fails.
                current.isEnded = true
                current.isDoubtful = true
            }
        } else {
            current.isEnded = true
        }
        write = current
        nics[domain].completions.append(completion)
        return true
    }

    private func arrive(_ immediate: UInt32, _ eighths: UInt32, _ current: inout Write) {
        receiver.page.add(eighths: eighths, to: immediate)
        current.arrivals += 1
        if immediate == lease[0].value {
            counted += 1
        } else if let place = old.firstIndex(where: { $0.lease[0].value == immediate }) {
            old[place].late += 1
            lateArrivals += 1
        }
    }

    private func settle() -> Bool {
        guard let (domain, connection, isCounted) = doubt else { return false }
        doubt = nil
        if isCounted || !isUp.contains(true) || write?.isCancelled == true { write?.isEnded = true }
        deliver(
            .settled(
                .init(from: UInt8(domain), to: UInt8(domain)), connection: connection,
                DeliveryLedger(base: isCounted ? 6 : 5)), to: nics[1 - domain])
        return true
    }

    private func deliver(_ message: ControlMessage, to nic: ScriptedDomain) {
        nic.deliver(message.encoded, from: Self.peer)
    }

    private func cancel(_ transfer: Transfer) throws {
        let wasEnded = write?.isEnded == true
        let isDoubtful = write?.isDoubtful == true
        received.all.withLock { $0 = [] }
        try sender.cancel(transfer) { [received] receipt in received.all.withLock { $0.append(receipt) } }
        if wasEnded {
            try #require(receipts.count == 1, "one that has ended is answered at once")
            if isDoubtful { unproven += 1 }
            try #require((receipts.last == .quiescent) == !isDoubtful)
        }
        write?.isCancelled = true
        if !wasEnded { write?.isEnded = request == nil && doubt == nil }
    }

    // MARK: What must be true

    private func check(_ place: String) throws {
        let before = request == nil
        for _ in 0..<3 {
            sender.progress()
            receiver.progress()
        }
        if before, request != nil { reposts += 1 }
        if wait != nil, counted > 0 {
            try #require(
                receiver.status(of: try #require(wait)) == .complete, "\(place): what arrived is credited")
            counted -= 1
            wait = nil
        }
        if let wait { try #require(receiver.isPending(wait), "\(place): nothing has arrived for it") }
        try #require(receiver.count(of: lease[0]) == counted, "\(place): the counter")
        for entry in old {
            try #require(try receiver.lateArrivals(of: entry.lease) == entry.late, "\(place): late")
        }
        guard let write else { return }
        try #require(write.arrivals <= 1, "\(place): a write is counted once")
        let status = sender.status(of: write.transfer)
        if status == .complete { try #require(write.arrivals == 1, "\(place): complete means counted") }
        let isOnItsWay = request != nil || doubt != nil
        if write.isCancelled {
            try #require(status != .pending, "\(place): cancelled at once")
            let isQuiet = !isOnItsWay && !write.isDoubtful
            try #require(
                (receipts.first == .quiescent) == isQuiet, "\(place): quiet means that nothing is on its way")
        } else {
            try #require((status == .pending) == !write.isEnded, "\(place): it ends when it should")
            try #require(write.isEnded != isOnItsWay, "\(place): something is on its way until the end")
        }
    }

    /// Everything that is open comes to its end, and nothing is left.
    private func end(_ place: String) throws {
        for _ in 0..<3 {
            if doubt != nil { _ = try happen(.settle) }
            try check(place)
            if request != nil { _ = try happen(.arrive) }
            try check(place)
        }
        if isUp.contains(false) { _ = try happen(.failBack) }
        if wait != nil { _ = try happen(.cancelWait) }
        try check(place)
        try #require(sender.usage == .init() && receiver.usage == .init(), "\(place): nothing is left")
        try receiver.end(lease, isQuiet: true)
        for entry in old { try #require(try receiver.reclaim(entry.lease) == entry.late) }
        old = []
        lease = try receiver.lease()
        try #require(receiver.count(of: lease[0]) == 0)
        counted = 0
        write = nil
        received.all.withLock { $0 = [] }
        for nic in nics { nic.sent = [] }
    }
}
