import Testing

@testable import KVCacheTransfer

/// One request between one decoder and one prefiller, with everything that can be under way: what a small model checker walks
/// through.
///
/// Messages are a bag: any of them may be next. Writes fly until they land; the prefiller learns of it later, or is told of a
/// failure while they still fly. `mayFail` adds what only happens when something breaks: lost messages, lost peers, receipts
/// without proof.
struct Universe: Hashable {
    static let request: UInt64 = 1
    static let writes = 2

    enum Message: Hashable, Comparable {
        case prefill, cancel, mark, quiet, unproven
    }

    /// A write of the prefiller.
    struct Write: Hashable, Comparable {
        var isFlying = true
        /// Whether the prefiller has been told that it failed.
        var hasFailed = false

        static func < (a: Write, b: Write) -> Bool {
            (a.isFlying ? 0 : 1, a.hasFailed ? 0 : 1) < (b.isFlying ? 0 : 1, b.hasFailed ? 0 : 1)
        }
    }

    var decoder = DecoderRequest()
    var session = PrefillerSession()
    var prefiller: PrefillerRequest?
    var messages: [Message] = [.prefill]
    var inFlight: [Write] = []
    var submitted = 0
    var landed = 0
    var isCancelling = false
    var isRevoked = false
    var isLeaseOpen = true
    var isReleased = false
    var isMarked = false
    var broken: String?

    private static let reason = KVError(.cancelled, "")

    // MARK: What can happen next

    func successors(mayFail: Bool) -> [Universe] {
        var next: [Universe] = []
        func step(_ change: (inout Universe) -> Void) {
            var other = self
            change(&other)
            other.messages.sort()
            other.inFlight.sort()
            other.check()
            next.append(other)
        }
        for message in Set(messages) {
            step { $0.deliver(message) }
            if mayFail { step { $0.messages.removeOne(message) } }
        }
        if decoder.state == .waiting || decoder.state == .cancelling {
            step { $0.decide(.cancel(Self.reason)) }
            if mayFail { step { $0.decide(.lost(Self.reason)) } }
        }
        if decoder.state == .waiting, landed == Self.writes, isLeaseOpen { step { $0.decide(.counted) } }
        if mayFail, decoder.state == .quarantined, !isRevoked {
            step {
                $0.isRevoked = true
                $0.decide(.revoked)
            }
        }
        if !decoder.holdsPages, !isMarked {
            step {
                $0.isMarked = true
                $0.messages.append(.mark)
            }
        }
        for write in Set(inFlight) { flights(write, mayFail, step) }
        if let prefiller, prefiller.isActive {
            if submitted < Self.writes {
                step {
                    $0.submitted += 1
                    $0.inFlight.append(Write())
                    $0.act(.submitted)
                }
            } else {
                step { $0.act(.submittedAll) }
            }
            step { $0.act(.stop(Self.reason)) }
        }
        return next.filter { $0 != self }
    }

    private func flights(_ write: Write, _ mayFail: Bool, _ step: ((inout Universe) -> Void) -> Void) {
        func change(_ universe: inout Universe, _ body: (inout Write) -> Void) {
            universe.inFlight.changeOne(write, body)
        }
        func remove(_ universe: inout Universe) {
            universe.inFlight.removeOne(write)
        }
        if write.isFlying {
            step {
                change(&$0) { $0.isFlying = false }
                $0.land()
            }
            if mayFail {  // never arrives, and the prefiller does not know
                step { change(&$0) { $0.isFlying = false } }
            }
        } else if !write.hasFailed, prefiller?.isActive == true {
            step {
                remove(&$0)
                $0.act(.written)
            }
        }
        if !write.hasFailed, mayFail, prefiller?.isActive == true {
            step {
                change(&$0) { $0.hasFailed = true }
                $0.act(.failed(Self.reason))
            }
        }
        guard isCancelling else { return }
        if !write.isFlying {
            step {
                remove(&$0)
                $0.act(.receipt(isQuiet: true))
            }
        }
        if mayFail {
            // The flight goes on, and the prefiller gives up hope of a proof: nobody tells it more.
            step { $0.act(.receipt(isQuiet: false)) }
        }
    }

    private mutating func land() {
        if isRevoked { return }
        if !decoder.holdsPages { broken = "a write landed in pages that were free" }
        if isLeaseOpen { landed += 1 }
    }

    private mutating func deliver(_ message: Message) {
        messages.removeOne(message)
        switch message {
        case .prefill:
            if session.begin(Self.request, oldest: 0) { prefiller = PrefillerRequest() }
        case .cancel:
            if let isQuiet = session.cancel(Self.request) {
                messages.append(isQuiet ? .quiet : .unproven)
            } else {
                act(.stop(Self.reason))
            }
        case .mark: session.forget(below: Self.request + 1)
        case .quiet: decide(.receipt(isQuiet: true, Self.reason))
        case .unproven: decide(.receipt(isQuiet: false, Self.reason))
        }
    }

    private mutating func decide(_ event: DecoderRequest.Event) {
        for action in decoder.handle(event) {
            switch action {
            case .sendCancel: messages.append(.cancel)
            case .closeLease: isLeaseOpen = false
            case .deliver:
                if landed != Self.writes { broken = "delivered before everything had landed" }
            case .fail, .freeLease, .freePages: break
            }
        }
    }

    private mutating func act(_ event: PrefillerRequest.Event) {
        for action in prefiller?.handle(event) ?? [] {
            switch action {
            case .cancelWrites: isCancelling = true
            case .sendReceipt(let isQuiet, _):
                session.end(Self.request, isQuiet: isQuiet)
                messages.append(isQuiet ? .quiet : .unproven)
            case .release(let isQuiet):
                if isReleased { broken = "source pages were released twice" }
                isReleased = true
                if isQuiet, inFlight.contains(where: \.isFlying) {
                    broken = "source pages were released under a write"
                }
                if prefiller?.isActive == false { session.end(Self.request, isQuiet: isQuiet) }
            }
        }
    }

    private mutating func check() {
        if broken != nil || isRevoked || decoder.holdsPages { return }
        if inFlight.contains(where: \.isFlying) { broken = "pages are free and a write is under way" }
    }
}

extension Array where Element: Equatable {
    fileprivate mutating func removeOne(_ element: Element) {
        if let index = firstIndex(of: element) { remove(at: index) }
    }

    fileprivate mutating func changeOne(_ element: Element, _ body: (inout Element) -> Void) {
        if let index = firstIndex(of: element) { body(&self[index]) }
    }
}

@Suite struct ExplorationTests {
    /// All states that can be reached, and those in which nothing can happen any more.
    private func explore(mayFail: Bool) throws -> (reached: Set<Universe>, ends: [Universe]) {
        var reached: Set<Universe> = [Universe()]
        var frontier = [Universe()]
        var ends: [Universe] = []
        while let universe = frontier.popLast() {
            let next = universe.successors(mayFail: mayFail)
            if next.isEmpty { ends.append(universe) }
            for other in next where reached.insert(other).inserted {
                if let broken = other.broken {
                    Issue.record("\(broken): \(other) after \(universe)")
                    return (reached, ends)
                }
                frontier.append(other)
            }
            try #require(reached.count < 2_000_000)
        }
        return (reached, ends)
    }

    @Test func whileNothingBreaksEveryRequestEndsAndAllPagesComeBack() throws {
        let (reached, ends) = try explore(mayFail: false)
        #expect(reached.count > 100)
        #expect(!ends.isEmpty)
        for end in ends {
            #expect(!end.decoder.holdsPages)
            #expect(end.session.active.isEmpty)
            #expect(end.prefiller == nil || end.isReleased)
        }
        #expect(ends.contains { $0.decoder.state == .ready })
        #expect(ends.contains { $0.decoder.state == .freed })
        // The cancellation that overtook its request.
        #expect(ends.contains { $0.decoder.state == .freed && $0.prefiller == nil })
    }

    @Test func whateverBreaksNoPageIsFreeWhileAWriteCanLand() throws {
        let (reached, _) = try explore(mayFail: true)
        #expect(reached.count > 1000)
        #expect(reached.contains { $0.decoder.state == .quarantined })
        #expect(reached.contains { $0.isRevoked && $0.inFlight.contains { $0.isFlying } })
    }
}

@Suite struct PeerLivenessTests {
    @Test func beatsOnceAnIntervalAndEndsAfterSilence() {
        var liveness = PeerLiveness(intervalNanoseconds: 100, intervals: 3, now: 1000)
        #expect(liveness.tick(now: 1050) == .alive)
        #expect(liveness.tick(now: 1100) == .beat)
        #expect(liveness.tick(now: 1150) == .alive)
        liveness.hear(now: 1150)
        #expect(liveness.tick(now: 1250) == .beat)
        #expect(liveness.tick(now: 1350) == .beat)
        #expect(liveness.tick(now: 1449) == .alive)
        #expect(liveness.tick(now: 1450) == .lost)
    }

    @Test func whoStoodStillItselfTakesNobodyForDead() {
        var liveness = PeerLiveness(intervalNanoseconds: 100, intervals: 3, now: 1000)
        #expect(liveness.tick(now: 1100) == .beat)
        // A second later: one interval of silence more, not ten.
        #expect(liveness.tick(now: 2100) == .beat)
        #expect(liveness.tick(now: 2199) == .alive)
        #expect(liveness.tick(now: 2200) == .lost)
    }
}
