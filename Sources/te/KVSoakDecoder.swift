internal import CPlatform
internal import Glibc
internal import KVCacheTransfer
internal import Synchronization
internal import TransferEngine

/// Asks whomever it knows, again where that failed, cancels now and then, and looks at every byte.
final class KVSoakDecoder: @unchecked Sendable {
    // SAFETY: what is `var` and has no lock belongs to the thread of `run`.
    fileprivate struct State {
        var completed = 0
        var cancelled = 0
        var wrong = 0
        var damaged = 0
        var open = 0
        var abandoned: [String: Int] = [:]
        var retried: [String: Int] = [:]
        /// Requests that failed and have to be asked for again.
        var again: [Wanted] = []
        /// Why requests failed whose pages are not free yet.
        var reasons: [UInt64: KVError.Code] = [:]
        /// When a prefiller failed a request.
        var failures: [KVPeer: UInt64] = [:]
    }

    /// A request until it is complete.
    fileprivate struct Wanted {
        var content: UInt64
        var count: Int
        var attempts = 0
    }

    fileprivate static let attempts = 20

    private let pages: KVSoakPages
    private let role: KVDecoder
    private let state = Mutex(State())
    private var peers: [(peer: KVPeer, address: EngineAddress)] = []
    private let lost = Mutex<Set<KVPeer>>([])
    private var random: SeededGenerator
    private var content: UInt64

    init(_ name: String, _ pages: KVSoakPages, _ seed: UInt64) throws {
        self.pages = pages
        random = SeededGenerator(seed: seed)
        content = seed << 32
        // Every other one compares digests.
        role = try KVDecoder(
            KVSoakPages.configuration(name, digests: seed % 2 == 0), layout: KVSoakPages.layout,
            ranks: [pages.rank])
    }

    func run(_ lines: ChildLines) throws {
        _ = writeLine("up", to: 1)
        var isStopping = false
        var end = UInt64.max
        while te_monotonic_nanoseconds() < end {
            let now = te_monotonic_nanoseconds()
            role.tick(nowNanoseconds: now)
            while let line = lines.next() {
                if line == "stop" {
                    isStopping = true
                    end = now + 15_000_000_000
                } else if line.hasPrefix("-") {
                    leave(line.dropFirst())
                } else if let bytes = bytes(hexadecimal: line),
                    let address = try? EngineAddress(decoding: bytes)
                {
                    connect(address)
                    if peers.count > 4 { role.disconnect(peers.removeFirst().peer) }
                }
            }
            reconnect()
            let (open, again) = state.withLock { state in
                (state.open, state.again.isEmpty ? nil : state.again.removeFirst())
            }
            if isStopping, open == 0, pages.isWhole { break }
            if let again {
                ask(again)
            } else if !isStopping, open < 24, !peers.isEmpty {
                content += 1
                state.withLock { $0.open += 1 }
                ask(Wanted(content: content, count: Int.random(in: 1...16, using: &random)))
            }
            usleep(500)
        }
        report()
    }

    /// One that was killed meanwhile cannot be reached, and is left out.
    private func connect(_ address: EngineAddress) {
        if let peer = try? role.connect(to: address) { peers.append((peer, address)) }
    }

    /// Leaves a prefiller that the directory does not know any more.
    private func leave(_ text: Substring) {
        guard let bytes = bytes(hexadecimal: text), let address = try? EngineAddress(decoding: bytes) else {
            return
        }
        for (peer, _) in peers.filter({ $0.address == address }) { role.disconnect(peer) }
        peers.removeAll { $0.address == address }
    }

    /// Introduces itself again to those that were lost: slow ones come back, dead ones do not.
    private func reconnect() {
        let gone = lost.withLock { lost in
            defer { lost = [] }
            return lost
        }
        for (peer, address) in peers where gone.contains(peer) {
            peers.removeAll { $0.peer == peer }
            role.disconnect(peer)
            connect(address)
            guard let last = peers.last else { continue }
            state.withLock { $0.failures[last.peer] = $0.failures.removeValue(forKey: peer) }
        }
        for (peer, _) in peers {
            role.status(of: peer) { [unowned self] _, reason in
                if reason != nil { lost.withLock { _ = $0.insert(peer) } }
            }
        }
    }

    /// Anybody who has not failed a request lately, if there is such a one.
    private func choosePeer() -> KVPeer? {
        let now = te_monotonic_nanoseconds()
        let failures = state.withLock { $0.failures }
        let good = peers.filter { peer, _ in failures[peer].map { $0 + 1_000_000_000 < now } ?? true }
        return (good.isEmpty ? peers : good).randomElement(using: &random)?.peer
    }

    private func ask(_ wanted: Wanted) {
        guard let peer = choosePeer(), let taken = pages.take(wanted.count) else {
            state.withLock { $0.again.append(wanted) }
            return
        }
        var wanted = wanted
        wanted.attempts += 1
        let isBad = pages.damaged(taken)
        state.withLock { $0.damaged += isBad }
        let asked = wanted
        let id = role.request(
            KVRequest(
                span: TokenSpan(end: wanted.count * 16), tables: [PageTable(pages: taken)],
                input: (0..<8).map { UInt8(truncatingIfNeeded: asked.content >> (8 * $0)) },
                timeout: .seconds(3)), from: peer
        ) { [unowned self] in take($0, asked, peer, taken) }
        if Int.random(in: 0..<4, using: &random) == 0 {
            usleep(UInt32.random(in: 0...300, using: &random))
            role.cancel(id)
        }
    }

    private func take(_ event: KVRequestEvent, _ wanted: Wanted, _ peer: KVPeer, _ taken: [UInt32]) {
        switch event {
        case .ready:
            let isRight = pages.holds(wanted.content, taken)
            pages.give(taken)
            state.withLock {
                $0.completed += 1
                $0.wrong += isRight ? 0 : 1
                $0.open -= 1
            }
        case .failed(let error):
            state.withLock {
                $0.reasons[wanted.content] = error.code
                if error.code != .cancelled { $0.failures[peer] = te_monotonic_nanoseconds() }
            }
        case .pagesFree:
            pages.give(taken)
            state.withLock { $0.end(wanted) }
        case .layer: break
        }
    }

    /// The numbers, in the order of `KVSoak.Numbers`, and why requests had to be asked for again.
    private func report() {
        let state = state.withLock { $0 }
        let failed = state.abandoned.values.reduce(0, +)
        let damaged =
            state.damaged + pages.damaged(pages.take(pages.isWhole ? KVSoakPages.pageCount : 0) ?? [])
        let again = state.retried.values.reduce(0, +)
        let reasons =
            (state.retried.map { "again:" + $0.key + ":" + String($0.value) }
            + state.abandoned.map { "failed:" + $0.key + ":" + String($0.value) }).sorted()
        _ = writeLine(
            ([state.completed, state.cancelled, again, failed, state.wrong, damaged, state.open].map(
                String.init)
                + reasons).joined(separator: " "), to: 1)
    }
}

extension KVSoakDecoder.State {
    /// The pages of a request that was not delivered are free: it is asked for again unless it was cancelled.
    fileprivate mutating func end(_ wanted: KVSoakDecoder.Wanted) {
        let code = reasons.removeValue(forKey: wanted.content) ?? .cancelled
        if code != .cancelled, wanted.attempts < KVSoakDecoder.attempts {
            retried["\(code)", default: 0] += 1
            again.append(wanted)
            return
        }
        open -= 1
        if code == .cancelled { cancelled += 1 } else { abandoned["\(code)", default: 0] += 1 }
    }
}
