import Synchronization
import Testing

@testable import KVCacheTransfer
@testable import TransferEngine

/// Requests of which the decoder compares what has arrived with what was sent.
@Suite(.serialized) struct DigestTests {
    typealias Setup = RoleTests.Setup

    /// Tensor ranks, page sizes and orders that cut pages into pieces.
    static var other: KVLayout {
        var layout = RoleTests.layout
        layout.tensorRanks = 2
        layout.formats = [PageFormat(pageTokens: 4, order: .tokensFirst)]
        return layout
    }

    /// Comparisons that wait until somebody lets them go on.
    final class Gate: Sendable {
        let waiting = Mutex<[@Sendable () -> Void]>([])
        var executor: RoleTests.Executor { { [self] body in waiting.withLock { $0.append(body) } } }
        var count: Int { waiting.withLock { $0.count } }
        func open() {
            let bodies = waiting.withLock { waiting in
                defer { waiting = [] }
                return waiting
            }
            for body in bodies { body() }
        }
    }

    private func offered(_ setup: Setup) async throws -> KVJob {
        try await setup.until { setup.job != nil }
        return try #require(setup.job)
    }

    /// Chunks that end inside of pages, other ranks and pages than the sender's, with a tail.
    @Test(.timeLimit(.minutes(1)), arguments: [false, true], [RoleTests.layout, other])
    func whatArrivesIsWhatWasSent(isLayerwise: Bool, target: KVLayout) async throws {
        let setup = try Setup(RoleTests.layout, target, digests: true)
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(
            TokenSpan(cached: 3, end: 24), [5, 1, 9, 2, 7, 4], peer, tail: true, layerwise: isLayerwise)
        let job = try await offered(setup)
        setup.accept(job, [2, 3, 7])
        for (pass, tokens) in [3..<10, 10..<11, 11..<24].enumerated() {
            setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: tokens)])
            setup.prefiller.computed(layers: UInt64(3 * (pass + 1)))
        }
        setup.prefiller.writeTail(job.id, rank: 0, region: 0, offset: setup.source.tail)
        try await setup.until { setup.has(.ready) && setup.events.jobEvents.withLock { $0 } == [.released] }
        #expect(setup.failure == nil)
        let events = setup.events.requests.withLock { $0 }
        #expect(events.count == (isLayerwise ? 4 : 1) && events.last == .ready)
    }

    /// One bit of one byte, after all has been counted.
    @Test(.timeLimit(.minutes(1)), arguments: [false, true])
    func whatIsDamagedIsNotHandedOver(isTail: Bool) async throws {
        let gate = Gate()
        let setup = try Setup(digests: true, executor: gate.executor)
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer, tail: true)
        let job = try await offered(setup)
        setup.accept(job, [2, 3, 7])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<24)])
        setup.prefiller.computed(layers: 3)
        setup.prefiller.writeTail(job.id, rank: 0, region: 0, offset: setup.source.tail)
        // The decoder would compare three layers and the tail.
        try await setup.until { gate.count == 4 }
        #expect(!setup.has(.ready))
        let rank = setup.target.ranks[0]
        let plane = rank.placement.layers[1][0]
        let place = isTail ? setup.target.tail + 99 : plane.offset + 9 * plane.stride + 77
        rank.regions[0].bytes[place] ^= 1
        gate.open()
        try await setup.until { setup.has(.pagesFree) }
        #expect(!setup.has(.ready))
        #expect(setup.failure?.code == .digestMismatch)
        #expect(
            setup.failure?.message.hasPrefix(
                "\(isTail ? "the tail" : "layer 1") at rank 0 is not what prefiller 0 sent") == true)
    }

    /// A layer is announced when it has been compared, and not when it has been counted.
    @Test(.timeLimit(.minutes(1))) func layersAreAnnouncedWhenTheyHaveBeenCompared() async throws {
        let gate = Gate()
        let setup = try Setup(digests: true, executor: gate.executor)
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer, layerwise: true)
        let job = try await offered(setup)
        setup.accept(job, [2, 3, 7])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<24)])
        setup.prefiller.computed(layers: 1)
        try await setup.until { gate.count == 1 }
        #expect(setup.events.requests.withLock { $0 } == [])
        gate.open()
        try await setup.until { setup.has(.layer(0)) }
        setup.prefiller.computed(layers: 3)
        try await setup.until { gate.count == 2 }
        gate.open()
        try await setup.until { setup.has(.ready) }
        #expect(setup.events.requests.withLock { $0.count } == 4)
    }

    /// While pages are compared they belong to nobody else, even if the prefiller's receipt is there.
    @Test(.timeLimit(.minutes(1))) func pagesThatAreComparedAreNotFree() async throws {
        let gate = Gate()
        let setup = try Setup(digests: true, executor: gate.executor)
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        let request = setup.request(TokenSpan(end: 24), [5, 1, 9], peer)
        let job = try await offered(setup)
        setup.accept(job, [2, 3, 7])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<24)])
        setup.prefiller.computed(layers: 3)
        try await setup.until { gate.count == 3 }
        setup.decoder.cancel(request)
        try await setup.until {
            setup.failure != nil && setup.events.jobEvents.withLock { $0 } == [.released]
        }
        for _ in 0..<20 { try await setup.untilDecoderTicks() }
        #expect(!setup.has(.pagesFree))
        gate.open()
        try await setup.until { setup.has(.pagesFree) }
        #expect(setup.failure?.code == .cancelled)
    }

    /// Nothing to transfer, nothing to compare.
    @Test(.timeLimit(.minutes(1))) func whatIsCachedWhollyIsReadyAtOnce() async throws {
        let setup = try Setup(digests: true)
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(cached: 24, end: 24), [5, 1, 9], peer)
        try await setup.until { setup.has(.ready) }
    }

    /// A library of before and this one, either way round: what both know works, and what the older one does not know is refused
    /// by name.
    @Test(
        .timeLimit(.minutes(1)),
        arguments: [
            (1...1, 1...2, false), (1...2, 1...1, false), (1...1, 1...2, true), (1...2, 1...2, true),
        ] as [(ClosedRange<UInt8>, ClosedRange<UInt8>, Bool)])
    func theVersionBefore(
        prefiller: ClosedRange<UInt8>, decoder: ClosedRange<UInt8>, digests: Bool
    ) async throws {
        let setup = try Setup(digests: digests, versions: (prefiller, decoder))
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer)
        try await setup.until { setup.job != nil || setup.failure != nil }
        guard !digests || prefiller.upperBound == 2 else {
            #expect(setup.failure?.code == .unsupportedVersion)
            #expect(setup.failure?.message.contains("1 here, 2 there") == true)
            return
        }
        setup.accept(try #require(setup.job), [2, 3, 7])
        setup.prefiller.begin(forward: [KVChunk(job: try #require(setup.job).id, tokens: 0..<24)])
        setup.prefiller.computed(layers: 3)
        try await setup.until { setup.has(.ready) }
        #expect(setup.isEqual(layer: 2, 7, 9))
    }

    /// A decoder of a later version is told that it is, and by whom.
    @Test(.timeLimit(.minutes(1))) func aStrangerIsRefusedByName() async throws {
        let setup = try Setup()
        let peer = try setup.target.ranks[0].engine.connect(to: setup.prefiller.address)
        let queue = SerialQueue()
        let refusal = Mutex<KVError?>(nil)
        let port = MessagePort(setup.target.ranks[0].engine, queue)
        try port.open { arrival, _ in
            if case .message(.refuse(77, let reason)) = arrival { refusal.withLock { $0 = reason } }
        }
        var bytes = KVMessage.hello(
            KVMessage.Hello(
                session: 77, name: "later", address: setup.target.ranks[0].engine.address,
                layout: RoleTests.layout, ranks: [])
        ).encoded()
        let versions = KVMessage.versions
        bytes[3] = versions.upperBound + 1
        for fragment in Fragments.cut(bytes, number: 1) {
            try setup.target.ranks[0].engine.send(fragment, to: peer) { _ in }
        }
        try await setup.until { refusal.withLock { $0 != nil } }
        let reason = try #require(refusal.withLock { $0 })
        #expect(reason.code == .unsupportedVersion)
        #expect(reason.message.contains("\(versions.upperBound) here, \(versions.upperBound + 1) there"))
    }
}
