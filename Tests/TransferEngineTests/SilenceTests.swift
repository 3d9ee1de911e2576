import Synchronization
import Testing

@testable import TransferEngine

/// What is owed to a peer that is gone does not keep an engine busy for ever.
@Suite struct SilenceTests {
    private final class Hands: TransferClock {
        let time = Atomic<UInt64>(1_000_000_000)
        var nowNanoseconds: UInt64 { time.load(ordering: .relaxed) }
        func pass(_ nanoseconds: UInt64) { time.add(nanoseconds, ordering: .relaxed) }
    }

    private func open(_ domain: ScriptedDomain, _ clock: Hands) throws -> TransferEngine {
        try TransferEngine(
            Configuration(progress: .manual), clock: clock, random: SystemRandomNumberGenerator()
        ) { _ in [domain] }
    }

    /// Lets time pass until nothing is due any more. Returns how often the engine had to look.
    private func rest(_ engine: TransferEngine, _ clock: Hands) -> Int {
        for looks in 1...10_000 {
            engine.progress()
            let due = engine.tick()
            if due == .max { return looks }
            clock.pass(max(1_000_000, due - min(due, clock.nowNanoseconds)))
        }
        return .max
    }

    /// A stranger asks whether we live and dies. Its NIC takes no answer any more, or takes it, or takes it and never says what
    /// became of it, as a ring in shared memory that nobody reads.
    @Test(arguments: [(WorkStatus.targetBusy, false), (.success, true), (.success, false)])
    func anAnswerIsOwedForAWhile(_ status: WorkStatus, _ isComplete: Bool) throws {
        let clock = Hands()
        let (mine, theirs) = (ScriptedDomain("mine"), ScriptedDomain("theirs"))
        let engine = try open(mine, clock)
        let stranger = try open(theirs, clock)
        mine.onSend = {
            PostResult(accepted: status == .success ? 1 : 0, isComplete: isComplete, status: status)
        }
        let ping = ControlMessage.ping(.init(from: 0, to: 0), address: stranger.address.encoded())
        mine.deliver(ping.encoded, from: stranger.id)
        engine.progress()
        #expect(engine.group.links.peers[stranger.id] != nil, "it is known, to be answered")
        #expect(engine.group.links.outbox.count == (status == .success ? 0 : 1))
        #expect(rest(engine, clock) < 200)
        #expect(engine.group.links.outbox.isEmpty && engine.group.links.peers.isEmpty, "and forgotten")
        let index = engine.group.freeAttachments.pop()
        #expect(index.map { engine.group.attachments[$0].generation } == 0)
    }

    /// Whoever takes no answer for as long as a dead peer is waited for is owed none any more, long before it is forgotten.
    @Test func anAnswerThatNobodyTakesIsGivenUp() throws {
        let clock = Hands()
        let mine = ScriptedDomain("mine")
        let engine = try open(mine, clock)
        let stranger = try open(ScriptedDomain("theirs"), clock)
        mine.onSend = { PostResult(accepted: 0, isComplete: false, status: .targetBusy) }
        let ping = ControlMessage.ping(.init(from: 0, to: 0), address: stranger.address.encoded())
        mine.deliver(ping.encoded, from: stranger.id)
        engine.progress()
        let patience = engine.group.liveness.patience
        for _ in 0..<9 {
            clock.pass(patience / 10)
            _ = engine.tick()
            #expect(engine.group.links.outbox.count == 1)
        }
        clock.pass(patience / 5)
        _ = engine.tick()
        #expect(engine.group.links.outbox.isEmpty && engine.group.links.peers[stranger.id] != nil)
    }

    /// What became of a message to a peer that has been forgotten is not taken for a sign of life of the next one, whose link has
    /// the same place.
    @Test func aLateCompletionIsNobodyElses() throws {
        let clock = Hands()
        let mine = ScriptedDomain("mine")
        let engine = try open(mine, clock)
        mine.onSend = { PostResult(accepted: 1, isComplete: false, status: .success) }
        func meet(_ name: String) throws -> Link {
            let stranger = try open(ScriptedDomain(name), clock)
            let ping = ControlMessage.ping(.init(from: 0, to: 0), address: stranger.address.encoded())
            mine.deliver(ping.encoded, from: stranger.id)
            engine.progress()
            return try #require(engine.group.links.peers[stranger.id]?.links.first)
        }
        let first = try meet("first")
        let late = try #require(mine.contexts.last)
        #expect(rest(engine, clock) < 200)
        let second = try meet("second")
        #expect(second.index == first.index && second !== first)
        let alive = second.lastAlive
        clock.pass(100_000_000)
        _ = engine.tick()
        mine.completions = [Completion(context: late, count: 1, status: .success)]
        engine.progress()
        #expect(second.lastAlive == alive)
        mine.completions = [
            Completion(context: try #require(mine.contexts.last), count: 1, status: .success)
        ]
        engine.progress()
        #expect(second.lastAlive > alive, "its own is")
    }

    /// A receiver that does not look is asked about a connection less and less often: it has to keep every question.
    @Test func questionsBecomeRare() throws {
        let clock = Hands()
        let nics = [ScriptedDomain("s0"), ScriptedDomain("s1")]
        let engine = try TransferEngine(
            Configuration(progress: .manual), clock: clock, random: SystemRandomNumberGenerator()
        ) { _ in nics }
        let entry = RemoteRegion.NIC(
            fabric: "scripted", address: [1], megabitsPerSecond: 1000, key: 1, base: 0)
        let remote = try engine.attach(
            RemoteRegion(
                engine: EngineID(rawValue: 42), device: 0, index: 1, generation: 1, access: .remoteWrite,
                length: 64, base: 4096, secret: 1, nics: [entry, entry]))
        for (number, nic) in nics.enumerated() {
            nic.onPost = { [unowned nic] requests in
                nic.completions = requests.map {
                    var completion = Completion(context: $0.context, count: 1, status: .peerLost)
                    completion.tag = $0.tag
                    completion.peer = number
                    completion.delivery = .unsettled(connection: 7, ordinal: 0)
                    return completion
                }
                return PostResult(accepted: requests.count, isComplete: false, status: .success)
            }
        }
        let write = try engine.write(from: engine.allocate(byteCount: 64), byteCount: 8, to: remote)
        var questions = 0
        let end = clock.nowNanoseconds + 2_800_000_000
        while clock.nowNanoseconds < end {
            engine.progress()
            _ = engine.tick()
            for message in nics.flatMap(\.sent)
            where ControlMessage.kind(of: message.span) == .settle { questions += 1 }
            for nic in nics { nic.sent = [] }
            clock.pass(10_000_000)
        }
        #expect(engine.isPending(write), "somebody waits for the answer")
        #expect((4...8).contains(questions), "\(questions) questions in 2.8 s")
    }

    /// A link that is down is tried again at most every five intervals; the engine sleeps in between.
    @Test func linksThatAreDownAreTriedInTheirTurn() throws {
        let clock = Hands()
        let domain = ScriptedDomain("a")
        let engine = try open(domain, clock)
        let other = try open(ScriptedDomain("b"), clock)
        let peer = try engine.connect(to: other.address)
        let wait = try engine.expect(1, count: 1, from: [peer], timeout: .seconds(20))
        for _ in 0..<200 where engine.isPending(wait) {
            clock.pass(100_000_000)
            engine.progress()
            _ = engine.tick()
        }
        guard case .failed(let error) = engine.status(of: wait) else {
            Issue.record("nobody noticed")
            return
        }
        #expect(error.code == .peerLost)
        var looks = 0
        let end = clock.nowNanoseconds + 100_000_000_000
        while clock.nowNanoseconds < end {
            engine.progress()
            let due = engine.tick()
            clock.pass(max(1_000_000, due - min(due, clock.nowNanoseconds)))
            looks += 1
        }
        #expect(looks < 60, "\(looks) looks in 100 s")
        try engine.disconnect(peer)
        #expect(engine.tick() == .max, "and not at all when nobody wants it")
    }

    /// A peer that stands still costs no processor here, whether what is for it waits in its ring or found no room there: that
    /// has 258 of these messages.
    @Test(.timeLimit(.minutes(1)), arguments: [1, 262]) func aPeerThatStandsStillIsLookedAtNowAndThen(
        messages: Int
    ) async throws {
        let target = try TransferEngine(Configuration(name: "stands still", progress: .manual))
        defer { target.close() }
        let arrived = Mutex(0)
        try target.receive { _, _ in arrived.withLock { $0 += 1 } }
        var configuration = Configuration(name: "waits")
        configuration.liveness.interval = .seconds(30)
        let source = try TransferEngine(configuration)
        defer { source.close() }
        let peer = try source.connect(to: target.address)
        let sent = try (0..<messages).map { _ in
            try source.send([UInt8](repeating: 7, count: 4000), to: peer)
        }
        try await Task.sleep(for: .milliseconds(50))
        let isFull = try source.perform { !$0.hot.value.ready.isEmpty }
        #expect(isFull == (messages > 1))
        let before = try source.perform { $0.hot.value.rounds }
        try await Task.sleep(for: .milliseconds(200))
        let rounds = try source.perform { $0.hot.value.rounds } - before
        #expect(rounds < 1000, "some hundred looks in 0.2 s, and not some hundred thousand")
        #expect(source.status(of: sent[messages - 1]) == .pending)
        let end = ContinuousClock.now + .seconds(20)
        while sent.contains(where: { source.status(of: $0) == .pending }), ContinuousClock.now < end {
            target.progress()
        }
        #expect(sent.allSatisfy { source.status(of: $0) == .complete })
        #expect(arrived.withLock { $0 } == messages)
    }
}
