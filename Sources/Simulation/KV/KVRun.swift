internal import KVCacheTransfer
internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// A decoder of a run, as its application uses it.
final class KVDecoding: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    unowned let world: KVWorld
    let node: KVNode
    let role: KVDecoder
    /// The prefillers, by their index.
    private(set) var peers: [Int: KVPeer] = [:]

    init(_ world: KVWorld, _ node: KVNode) throws(TransferError) {
        self.world = world
        self.node = node
        var configuration = KVConfiguration(
            name: "decoder \(node.index)", heartbeat: .milliseconds(40), cancelTimeout: .milliseconds(300),
            quarantine: .milliseconds(200))
        configuration.digests = world.plan.digests
        configuration.digestExecutor = world.compute
        do throws(KVError) {
            role = try KVDecoder(
                configuration,
                layout: node.layout, ranks: node.ranks, random: SeededGenerator(seed: world.random.next()))
        } catch { throw TransferError(.invalidArgument, error.description) }
    }

    func connect(_ prefiller: Int) {
        guard world.prefilling[prefiller].isAlive else { return }
        if let peer = peers[prefiller] { role.disconnect(peer) }
        do throws(KVError) {
            peers[prefiller] = try role.connect(to: world.prefilling[prefiller].role.address)
        } catch {
            peers[prefiller] = nil
        }
    }

    func tick() {
        role.tick(nowNanoseconds: world.network.nowNanoseconds)
        for prefiller in world.prefilling.indices {
            guard let peer = peers[prefiller] else {
                connect(prefiller)
                continue
            }
            // A prefiller that was lost, and is reached again by introducing oneself anew.
            role.status(of: peer) { [unowned self] _, lost in
                if lost != nil {
                    world.after(20_000_000) { [unowned self] in
                        if node.isAlive, peers[prefiller] == peer { connect(prefiller) }
                    }
                }
            }
        }
    }
}

/// One request, as the decoder's application sees it: tried again with another prefiller until it is there or time is up.
final class KVRun: @unchecked Sendable {
    // SAFETY: a simulation has one thread.
    enum State { case idle, waiting, ready, failed, cancelled, done, givenUp }

    unowned let world: KVWorld
    let decoding: KVDecoding
    let request: KVCase.Request
    private let content: UInt64
    private(set) var state = State.idle
    var isOver = false
    var isCheckUp = false
    /// The one to ask; nil is any.
    var prefiller: Int?
    private let deadline: UInt64
    private var rooms = 0
    private var current: KVRequestID?
    private var attempts = 0

    init(_ world: KVWorld, _ decoding: KVDecoding, _ request: KVCase.Request, content: UInt64) {
        self.world = world
        self.decoding = decoding
        self.request = request
        self.content = content
        deadline = world.network.nowNanoseconds + KVWorld.patience
    }

    private var node: KVNode { decoding.node }

    private func tokens(_ group: Int) -> Range<Int> {
        // What may have to be written, whatever the pages of the prefiller are.
        let window = node.layout.model.groups[group].window
        let first = max(request.span.cached, window.map { request.span.end - $0 - 16 } ?? 0)
        return min(first, request.span.end)..<request.span.end
    }

    func attempt() {
        guard !isOver, state != .cancelled, node.isAlive else { return }
        guard world.network.nowNanoseconds < deadline else { return over(.givenUp) }
        let index = prefiller ?? Int.random(in: 0..<world.prefilling.count, using: &world.random)
        guard let peer = decoding.peers[index], let room = node.take(tokens) else { return again() }
        rooms += 1
        attempts += 1
        state = .waiting
        let rank = node.layout.rankCount - 1
        let wanted = KVRequest(
            span: request.span, tables: room.tables,
            tail: request.hasTail
                ? KVMessage.Tail(
                    rank: rank, region: 1, offset: room.tail * KVNode.tailBytes, byteCount: KVNode.tailBytes)
                : nil,
            input: (0..<8).map { UInt8(truncatingIfNeeded: content >> (8 * $0)) },
            // Who got nothing in its time gives twice as much the next time.
            timeout: .nanoseconds(Int64(request.timeout << min(attempts - 1, 12))),
            isLayerwise: request.isLayerwise)
        let attempt = attempts
        current = decoding.role.request(wanted, from: peer) { [weak self] event in
            self?.take(event, room, index, attempt)
        }
        if let after = request.abortAfter, attempt == 1 {
            world.after(after) { [self] in world.prefilling[index].preempt(content) }
        }
    }

    private func again() {
        world.after(5_000_000) { [self] in attempt() }
    }

    private func take(_ event: KVRequestEvent, _ room: KVNode.Room, _ prefiller: Int, _ attempt: Int) {
        guard node.isAlive else { return }
        switch event {
        case .layer(let layer): check(layer, room, "layer \(layer)")
        case .ready:
            if state != .waiting || attempt != attempts { world.violate("ready twice: \(request)") }
            state = .ready
            checkAll(room)
            // The decoder uses the pages for a while; nobody else may.
            world.after(UInt64.random(in: 0...20_000_000, using: &world.random)) { [self] in
                guard node.isAlive else { return }
                checkAll(room)
                node.give(room)
                rooms -= 1
                over(.done)
            }
        case .failed(let reason):
            if isCheckUp { world.violate("after all was well again: \(reason)") }
            if reason.code == .digestMismatch {
                world.outcome.mismatches += 1
                if !world.mayBeDamaged { world.violate("nothing was damaged: \(reason)") }
            }
            if state == .waiting {
                state = .failed
                if reason.code == .peerLost { world.outcome.unproven += 1 }
                again()
            }
        case .pagesFree:
            world.outcome.quiescent += 1
            node.give(room)
            rooms -= 1
            finishIfQuiet()
        }
    }

    private func checkAll(_ room: KVNode.Room) {
        for layer in 0..<node.layout.model.layerCount { check(layer, room, "ready") }
        if request.hasTail, !node.holdsTail(content, rank: node.layout.rankCount - 1, room) {
            world.violate("the tail is wrong: \(request)")
        }
    }

    private func check(_ layer: Int, _ room: KVNode.Room, _ when: String) {
        let tokens = checkedTokens(node.layout.group(ofLayer: layer) ?? 0)
        if !tokens.isEmpty, !node.holds(content, layer: layer, tokens: tokens, room) {
            world.violate("\(when): layer \(layer) is not what was computed: \(request)")
        }
    }

    /// Tokens of a group that a model would read.
    private func checkedTokens(_ group: Int) -> Range<Int> {
        let window = node.layout.model.groups[group].window ?? request.span.end
        return max(request.span.cached, request.span.end - window)..<request.span.end
    }

    /// The client goes away.
    func cancel() {
        guard node.isAlive else { return }
        guard !isOver, state != .ready, state != .done else {
            if let current { decoding.role.cancel(current) }  // after the end: nothing happens
            return
        }
        state = .cancelled
        if let current {
            decoding.role.cancel(current)
            decoding.role.cancel(current)
        }
        finishIfQuiet()
    }

    private func over(_ end: State) {
        state = end
        if end == .done { world.outcome.completed += 1 }
        if end == .givenUp {
            world.outcome.failed += 1
            if world.plan.faults.isEmpty {
                world.violate("nothing goes wrong, and a request failed: \(request)")
            }
        }
        finishIfQuiet()
    }

    private func finishIfQuiet() {
        guard rooms == 0, state == .done || state == .cancelled || state == .givenUp else { return }
        isOver = true
    }
}
