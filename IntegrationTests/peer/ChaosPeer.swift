internal import Glibc
internal import Synchronization
internal import TransferEngine

/// One incarnation of another process: the rounds that we write to it, and those that it writes to us.
///
/// A round: *want*; *grant* with a descriptor and a leased immediate; the write; *done*, and how it ended. Numbers of rounds come
/// from the clock, so that no incarnation repeats one.
final class ChaosPeer {
    let engine: EngineID
    private let node: ChaosNode
    private let mine: Int
    private let index: Int
    private let peer: Peer
    private let source: MemoryRegion
    private var target: MemoryRegion

    /// What we write.
    private var sending: (round: UInt64, since: Double, transfer: Transfer?, isCancelled: Bool)?
    private var remote: RemoteMemory?
    /// What is written to us.
    private var receiving:
        (round: UInt64, lease: ImmediateLease, wait: Transfer, isReached: Bool, isDone: Bool, since: Double)?
    /// The bytes of the target since nobody may write there.
    private var frozen: [UInt8] = []
    private var lastRound: UInt64 = 0

    private let messages = Messages()
    /// Whether nothing more is begun, because another incarnation has taken its place.
    private var isLeaving = false

    /// Messages to the peer that have not ended.
    private final class Messages: Sendable { let pending = Atomic<Int>(0) }

    private static let untouched = [UInt8](repeating: 0xA5, count: ChaosPattern.longest + 4096)

    private enum Kind: UInt8 { case want, grant, done, undone, doubtful }

    init(_ node: ChaosNode, _ mine: Int, _ index: Int, _ address: EngineAddress) throws {
        self.node = node
        self.mine = mine
        self.index = index
        engine = address.engine
        let own = node.engine
        peer = try own.connect(to: address)
        source = try own.allocate(byteCount: ChaosPattern.longest)
        target = try own.allocate(byteCount: ChaosPattern.longest + 4096)
        clear()
    }

    var isIdle: Bool { sending == nil && receiving == nil }

    /// Gives everything back. False while something of it is in flight: then later.
    func leave() -> Bool {
        isLeaving = true
        cancel()
        if let round = receiving?.round { finish(round, isQuiet: false) }
        guard sending == nil, messages.pending.load(ordering: .relaxed) == 0 else { return false }
        let own = node.engine
        if let remote { try? own.detach(remote) }
        try? own.disconnect(peer)
        try? own.deregister(source)
        try? own.deregister(target)
        return true
    }

    private func send(_ kind: Kind, _ round: UInt64, _ rest: [UInt8] = []) {
        let number = (0..<8).map { UInt8(truncatingIfNeeded: round >> (8 * UInt64($0))) }
        let messages = messages
        messages.pending.add(1, ordering: .relaxed)
        do {
            try node.engine.send([kind.rawValue] + number + rest, to: peer) { _ in
                messages.pending.subtract(1, ordering: .relaxed)
            }
        } catch { messages.pending.subtract(1, ordering: .relaxed) }
    }

    func receive(_ bytes: [UInt8]) {
        guard bytes.count >= 9, let kind = Kind(rawValue: bytes[0]) else {
            return node.violate("a damaged message")
        }
        let round = bytes[1..<9].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        switch kind {
        case .want: grant(round)
        case .grant: write(round, Array(bytes[9...]))
        case .done: written(round)
        case .undone: finish(round, isQuiet: true)
        case .doubtful: finish(round, isQuiet: false)
        }
    }

    // MARK: Writing

    /// Gives up what the peer does not answer.
    func expire() {
        let now = monotonicSeconds()
        if let sending, sending.transfer == nil, now - sending.since > 2 { self.sending = nil }
        if let receiving, now - receiving.since > 12 { finish(receiving.round, isQuiet: false) }
    }

    /// Asks for a round, if none is on its way.
    func begin() {
        guard sending == nil, !isLeaving else { return }
        let now = monotonicSeconds()
        let round = UInt64(now * 1e9)
        sending = (round, now, nil, false)
        send(.want, round)
    }

    private func write(_ round: UInt64, _ grant: [UInt8]) {
        guard let current = sending, current.round == round, current.transfer == nil, grant.count > 4 else {
            return
        }
        let number = grant[..<4].reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
        let immediate = Immediate(truncatingIfNeeded: number)
        let pattern = ChaosPattern(from: mine, round: round)
        pattern.fill(source.bytes)
        let (inbox, index) = (node.inbox, index)
        let onEnd: TransferCallback = { result in
            var isComplete = false
            if case .success = result { isComplete = true }
            inbox.add(.transferEnded(peer: index, round: round, isComplete: isComplete))
        }
        do {
            let fresh = try node.engine.attach(decoding: grant[4...])
            if let remote, remote != fresh { try? node.engine.detach(remote) }
            remote = fresh
            sending?.transfer =
                round & 1 == 0
                ? try node.engine.write(
                    from: source, byteCount: pattern.bytes, to: fresh, immediate: immediate, onEnd: onEnd)
                : try writePages(pattern, fresh, immediate, onEnd)
        } catch {
            node.failed += 1
            sending = nil
            send(.undone, round)
            return
        }
        if round % 7 == 0 { cancel() }
    }

    private func writePages(
        _ pattern: ChaosPattern, _ remote: RemoteMemory, _ immediate: Immediate,
        _ onEnd: @escaping TransferCallback
    ) throws -> Transfer {
        let pages = (0..<UInt32(pattern.pages)).map { $0 }.shuffled()
        let result = pages.withUnsafeBufferPointer { indices in
            Result {
                let pages = Pages(indices, stride: ChaosPattern.pageBytes)
                return try node.engine.write(
                    pageBytes: ChaosPattern.pageBytes, from: source, pages: pages, to: remote, pages: pages,
                    immediate: immediate, onEnd: onEnd)
            }
        }
        return try result.get()
    }

    func cancel() {
        guard let current = sending, let transfer = current.transfer, !current.isCancelled else {
            if sending?.transfer == nil { sending = nil }
            return
        }
        sending?.isCancelled = true
        let (inbox, index, round) = (node.inbox, index, current.round)
        try? node.engine.cancel(transfer, timeout: .seconds(2)) { receipt in
            inbox.add(.receipt(peer: index, round: round, isQuiescent: receipt == .quiescent))
        }
    }

    func transferEnded(_ round: UInt64, _ isComplete: Bool) {
        guard let current = sending, current.round == round else { return }
        if current.isCancelled { return }  // the receipt says more
        if isComplete {
            sending = nil
            send(.done, round)
        } else {
            node.failed += 1
            // Whether something of it can still land is what its receipt says.
            cancel()
        }
    }

    func receipt(_ round: UInt64, _ isQuiescent: Bool) {
        guard let current = sending, current.round == round else { return }
        sending = nil
        node.cancelled += 1
        if !isQuiescent { node.unproven += 1 }
        // It may have been complete before it was cancelled; then it is as good as undone.
        send(isQuiescent ? .undone : .doubtful, round)
    }

    // MARK: Being written to

    private func clear() { memset(target.baseAddress, 0xA5, target.byteCount) }

    private func grant(_ round: UInt64) {
        guard round > lastRound, !isLeaving else { return }
        if let old = receiving?.round { finish(old, isQuiet: false) }
        if !frozen.isEmpty, memcmp(target.baseAddress, frozen, frozen.count) != 0 {
            node.violate("bytes of node \(index) changed after its round had ended")
        }
        lastRound = round
        frozen = []
        clear()
        let pattern = ChaosPattern(from: index, round: round)
        let (inbox, index) = (node.inbox, index)
        do {
            let lease = try node.engine.lease()
            let count = round & 1 == 0 ? 1 : pattern.pages
            let wait = try node.engine.expect(lease[0], count: count, from: [peer], timeout: .seconds(8)) {
                result in
                var isReached = false
                if case .success = result { isReached = true }
                inbox.add(.waitEnded(peer: index, round: round, isReached: isReached))
            }
            receiving = (round, lease, wait, false, false, monotonicSeconds())
            let number = (0..<4).map { UInt8(truncatingIfNeeded: lease[0].value >> (8 * UInt32($0))) }
            send(.grant, round, number + node.engine.descriptor(of: target).encoded())
        } catch { node.violate("no grant: \(error)") }
    }

    func waitEnded(_ round: UInt64, _ isReached: Bool) {
        guard let current = receiving, current.round == round else { return }
        guard isReached else { return finish(round, isQuiet: false) }
        receiving?.isReached = true
        check(round, current.lease)
        if current.isDone { finish(round, isQuiet: true) }
    }

    private func check(_ round: UInt64, _ lease: ImmediateLease) {
        let pattern = ChaosPattern(from: index, round: round)
        let rest = target.byteCount - pattern.bytes
        let isRight =
            pattern.matches(target.bytes)
            && memcmp(target.baseAddress + pattern.bytes, Self.untouched, rest) == 0
        if !isRight {
            node.violate("wrong bytes from node \(index), \(pattern.bytes) of them, round \(round)")
        }
        let surplus = node.engine.count(of: lease[0])
        if surplus != 0 { node.violate("\(surplus) counts too many from node \(index)") }
        node.rounds += 1
    }

    /// The writer says that all is there: then all must have been counted.
    private func written(_ round: UInt64) {
        guard let current = receiving, current.round == round else { return }
        receiving?.isDone = true
        if current.isReached { return finish(round, isQuiet: true) }
        if !node.engine.isPending(current.wait) { return }  // its end is in the inbox
        for _ in 0..<200 where node.engine.isPending(current.wait) { usleep(5000) }
        if node.engine.isPending(current.wait) {
            node.violate("node \(index) is done, and not everything was counted")
        }
    }

    /// Ends a round. Where something may still land the right to write is taken back first.
    private func finish(_ round: UInt64, isQuiet: Bool) {
        guard let current = receiving, current.round == round else { return }
        receiving = nil
        let own = node.engine
        try? own.cancel(current.wait) { _ in }
        do {
            try own.end(current.lease, isQuiet: isQuiet)
            if !isQuiet {
                try revokeTarget()
                _ = try own.reclaim(current.lease)
            }
        } catch { node.violate("a round did not end: \(error)") }
        frozen = Array(target.bytes)
    }

    private func revokeTarget() throws(TransferError) {
        do throws(TransferError) {
            target = try node.engine.revoke(target)
        } catch {
            // A writer that was stopped while it copied keeps the memory: that is said, and it is not used again.
            guard error.code == .stalled else { throw error }
            node.stalls += 1
            target = try node.engine.allocate(byteCount: ChaosPattern.longest + 4096)
        }
    }

    /// Takes back the right to write in the middle of a round.
    func revoke() {
        if let round = receiving?.round, receiving?.isReached == false { finish(round, isQuiet: false) }
    }
}
