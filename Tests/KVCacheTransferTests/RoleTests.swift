import Synchronization
import Testing

@testable import KVCacheTransfer
@testable import TransferEngine

/// A prefiller and a decoder over shared memory, each engine with a thread of its own.
@Suite(.serialized) struct RoleTests {
    static let layout = KVLayout(
        model: KVModel(
            name: "m", elementType: "bf16",
            groups: [CacheGroup(layers: [0, 1, 2], heads: 4, keyBytes: 32, valueBytes: 32)]),
        formats: [PageFormat(pageTokens: 8)])
    static let pageCount = 16

    final class Instance: Sendable {
        let ranks: [KVRank]

        init(_ name: String, _ layout: KVLayout, timeout: Duration = .seconds(30)) throws {
            ranks = try (0..<layout.rankCount).map { rank in
                let engine = try TransferEngine(Configuration(name: "\(name) \(rank)", timeout: timeout))
                let placement = KVPlacement.contiguous(layout, rank: rank, pageCount: RoleTests.pageCount)
                let bytes = placement.regionBytes(layout, rank: rank).first ?? 0
                // The pages, then a word for the model and a place for the tail.
                return KVRank(
                    engine: engine, regions: [try engine.allocate(byteCount: bytes + 4096)],
                    placement: placement)
            }
        }

        var word: Int { ranks[0].regions[0].byteCount - 4096 }
        var tail: Int { tail(0) }
        func tail(_ rank: Int) -> Int { ranks[rank].regions[0].byteCount - 2048 }

        func close() { for rank in ranks { rank.engine.close() } }
    }

    typealias Executor = @Sendable (@escaping @Sendable () -> Void) -> Void

    /// What came from the roles, and a way to wait for it.
    final class Events: Sendable {
        let requests = Mutex<[KVRequestEvent]>([])
        let jobs = Mutex<[KVJob]>([])
        let jobEvents = Mutex<[KVJobEvent]>([])
    }

    final class Setup {
        let source: Instance
        let target: Instance
        let prefiller: KVPrefiller
        let decoder: KVDecoder
        let events = Events()
        fileprivate var time: UInt64 = 0
        var decoderTime: UInt64 = 0

        init(
            _ sourceLayout: KVLayout = RoleTests.layout, _ targetLayout: KVLayout = RoleTests.layout,
            timeout: Duration = .seconds(30), digests: Bool = false, executor: Executor? = nil,
            versions: (prefiller: ClosedRange<UInt8>, decoder: ClosedRange<UInt8>)? = nil
        ) throws {
            source = try Instance("prefiller", sourceLayout)
            target = try Instance("decoder", targetLayout, timeout: timeout)
            let events = events
            var before = KVConfiguration(name: "prefiller", heartbeat: .milliseconds(50))
            if let versions { before.versions = versions.prefiller }
            prefiller = try KVPrefiller(before, layout: sourceLayout, ranks: source.ranks) { job in
                events.jobs.withLock { $0.append(job) }
            }
            var configuration = KVConfiguration(
                name: "decoder", heartbeat: .milliseconds(50), cancelTimeout: .milliseconds(500))
            configuration.digests = digests
            if let executor { configuration.digestExecutor = executor }
            if let versions { configuration.versions = versions.decoder }
            decoder = try KVDecoder(configuration, layout: targetLayout, ranks: target.ranks)
        }

        deinit {
            source.close()
            target.close()
        }

        func request(
            _ span: TokenSpan, _ pages: [UInt32], _ peer: KVPeer, tail: Bool = false, layerwise: Bool = false,
            tailRank: Int = 0
        ) -> KVRequestID {
            let events = events
            return decoder.request(
                KVRequest(
                    span: span, tables: [PageTable(pages: pages)],
                    tail: tail
                        ? KVMessage.Tail(
                            rank: tailRank, region: 0, offset: target.tail(tailRank), byteCount: 100) : nil,
                    input: [1, 2, 3], timeout: .seconds(20), isLayerwise: layerwise), from: peer
            ) { event in events.requests.withLock { $0.append(event) } }
        }

        /// Lets time go on until something holds, for at most 20 seconds.
        func until(_ condition: () -> Bool, _ place: SourceLocation = #_sourceLocation) async throws {
            for _ in 0..<4000 {
                if condition() { return }
                time += 5_000_000
                decoder.tick(nowNanoseconds: time)
                prefiller.tick(nowNanoseconds: time)
                try await Task.sleep(for: .milliseconds(5))
            }
            Issue.record("waited in vain; \(events.requests.withLock { $0 })", sourceLocation: place)
        }

        func has(_ event: KVRequestEvent) -> Bool { events.requests.withLock { $0.contains(event) } }
        var failure: KVError? {
            events.requests.withLock { events in
                for case .failed(let error) in events { return error }
                return nil
            }
        }
        var job: KVJob? { events.jobs.withLock { $0.first } }

        func accept(_ job: KVJob, _ pages: [UInt32]) {
            let events = events
            prefiller.accept(job.id, sources: [PageTable(pages: pages)]) { event in
                events.jobEvents.withLock { $0.append(event) }
            }
        }

        func fillSource() {
            let bytes = source.ranks[0].regions[0].bytes
            for index in 0..<source.word {
                bytes[index] = UInt8(truncatingIfNeeded: index &* 31 ^ index >> 8)
            }
            for index in 0..<100 { bytes[source.tail + index] = UInt8(index) }
        }

        /// Whether a page of the target holds what a page of the source does, in one layer of equal layouts.
        func isEqual(layer: Int, _ from: UInt32, _ to: UInt32) -> Bool {
            let plane = source.ranks[0].placement.layers[layer][0]
            let a = plane.offset + Int(from) * plane.stride
            let b = plane.offset + Int(to) * plane.stride
            return source.ranks[0].regions[0].bytes[a..<a + plane.stride].elementsEqual(
                target.ranks[0].regions[0].bytes[b..<b + plane.stride])
        }
    }

    @Test(.timeLimit(.minutes(1))) func layersAreWrittenAsTheWatchedWordSaysAndTheTailEndsIt() async throws {
        let setup = try Setup()
        setup.fillSource()
        let region = setup.source.ranks[0].regions[0]
        let watcher = try setup.prefiller.watch(rank: 0, region, at: setup.source.word)
        let word = (region.baseAddress + setup.source.word).assumingMemoryBound(to: Atomic<UInt64>.self)
        word.pointee.store(0, ordering: .releasing)
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer, tail: true, layerwise: true)
        try await setup.until { setup.job != nil }
        let job = try #require(setup.job)
        #expect(job.input == [1, 2, 3])
        #expect(job.tailBytes == 100)
        setup.accept(job, [2, 3, 7])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<24)])
        word.pointee.store(1, ordering: .releasing)
        try await setup.until { setup.has(.layer(0)) }
        #expect(
            setup.isEqual(layer: 0, 2, 5) && setup.isEqual(layer: 0, 3, 1) && setup.isEqual(layer: 0, 7, 9))
        #expect(!setup.isEqual(layer: 1, 2, 5))
        word.pointee.store(3, ordering: .releasing)  // one value is skipped
        try await setup.until { setup.has(.layer(2)) }
        #expect(!setup.has(.ready))
        setup.prefiller.writeTail(job.id, rank: 0, region: 0, offset: setup.source.tail)
        try await setup.until { setup.has(.ready) && setup.events.jobEvents.withLock { $0 } == [.released] }
        #expect(setup.events.requests.withLock { $0 } == [.layer(0), .layer(1), .layer(2), .ready])
        #expect(setup.isEqual(layer: 2, 7, 9))
        #expect(
            (0..<100).allSatisfy {
                setup.target.ranks[0].regions[0].bytes[setup.target.tail + $0] == UInt8($0)
            })
        try setup.source.ranks[0].engine.unwatch(watcher)
    }

    @Test(.timeLimit(.minutes(1))) func chunksAndOtherRanksArrive() async throws {
        var four = Self.layout
        four.tensorRanks = 4
        let setup = try Setup(four)
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(cached: 3, end: 21), [0, 1, 2], peer)
        try await setup.until { setup.job != nil }
        let job = try #require(setup.job)
        setup.accept(job, [4, 5, 6])
        for (pass, tokens) in [3..<10, 10..<21].enumerated() {
            setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: tokens)])
            setup.prefiller.computed(layers: UInt64(3 * (pass + 1)))
        }
        try await setup.until { setup.has(.ready) }
    }

    @Test(.timeLimit(.minutes(1)), arguments: [false, true])
    func theTailReachesARankWithoutLayers(isLayerwise: Bool) async throws {
        var staged = Self.layout
        staged.stages = [0..<3, 3..<3]
        let setup = try Setup(Self.layout, staged)
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [4], peer, tail: true, layerwise: isLayerwise, tailRank: 1)
        try await setup.until { setup.job != nil }
        let job = try #require(setup.job)
        setup.accept(job, [1])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<8)])
        setup.prefiller.computed(layers: 3)
        setup.prefiller.writeTail(job.id, rank: 0, region: 0, offset: setup.source.tail)
        try await setup.until { setup.has(.ready) }
        let tail = setup.target.ranks[1].regions[0].bytes[setup.target.tail(1)...]
        #expect(tail.prefix(100).elementsEqual(0..<100))
    }

    @Test(.timeLimit(.minutes(1))) func aModelGetsItsPagesFromChunkToChunk() async throws {
        let setup = try Setup()
        setup.fillSource()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer)
        try await setup.until { setup.job != nil }
        let job = try #require(setup.job)
        setup.accept(job, [2])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<8)])
        setup.prefiller.computed(layers: 3)
        setup.prefiller.extend(job.id, sources: [PageTable(pages: [2, 3, 7])])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 8..<24)])
        setup.prefiller.computed(layers: 6)
        try await setup.until { setup.has(.ready) }
        #expect(
            setup.isEqual(layer: 2, 2, 5) && setup.isEqual(layer: 2, 3, 1) && setup.isEqual(layer: 2, 7, 9))
        // Without its pages a job is stopped, and more pages after its end are no pages of anybody.
        setup.events.requests.withLock { $0 = [] }
        setup.events.jobs.withLock { $0 = [] }
        _ = setup.request(TokenSpan(end: 24), [5, 1, 9], peer)
        try await setup.until { setup.job != nil }
        setup.accept(try #require(setup.job), [2])
        setup.prefiller.begin(forward: [KVChunk(job: try #require(setup.job).id, tokens: 0..<24)])
        try await setup.until { setup.has(.pagesFree) }
        #expect(setup.failure?.code == .invalidLayout)
        setup.prefiller.extend(try #require(setup.job).id, sources: [PageTable(pages: [2, 3, 7])])
    }

    @Test(.timeLimit(.minutes(1))) func aMismatchIsRefusedWithTheField() async throws {
        var other = Self.layout
        other.model.elementType = "fp8_e4m3"
        let setup = try Setup(other)
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.has(.pagesFree) }
        #expect(setup.failure?.code == .incompatible)
        #expect(setup.failure?.message.contains("elementType") == true)
        #expect(setup.job == nil)
    }

    @Test(.timeLimit(.minutes(1))) func whatIsCancelledIsFreeOnlyAfterTheReceipt() async throws {
        let setup = try Setup()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        let request = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.job != nil }
        let job = try #require(setup.job)
        setup.accept(job, [0])
        setup.prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<8)])
        setup.prefiller.computed(layers: 1)
        setup.decoder.cancel(request)
        setup.decoder.cancel(request)
        try await setup.until { setup.has(.pagesFree) }
        setup.prefiller.computed(layers: 3)
        #expect(setup.failure?.code == .cancelled)
        #expect(setup.events.requests.withLock { $0.count } == 2)
        try await setup.until { setup.events.jobEvents.withLock { $0.count } == 2 }
        setup.decoder.cancel(request)  // after the end
        #expect(setup.events.jobEvents.withLock { $0.last } == .released)
    }

    @Test(.timeLimit(.minutes(1))) func aJobThatIsGivenUpOrRefusedSaysWhy() async throws {
        let setup = try Setup()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.job != nil }
        setup.accept(try #require(setup.job), [0])
        setup.prefiller.abort(try #require(setup.job).id, KVError(.aborted, "preempted"))
        try await setup.until { setup.has(.pagesFree) }
        #expect(setup.failure == KVError(.aborted, "preempted"))
        setup.prefiller.drain()
        setup.events.requests.withLock { $0 = [] }
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.has(.pagesFree) }
        #expect(setup.failure?.code == .refused)
    }

    @Test(.timeLimit(.minutes(1))) func aDeadPrefillerIsAnErrorAndThePagesComeBack() async throws {
        let setup = try Setup()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.job != nil }
        setup.source.close()
        for _ in 0..<4000 where !setup.has(.pagesFree) {
            try await setup.untilDecoderTicks()
        }
        #expect(setup.failure?.code == .peerLost)
        #expect(setup.failure?.message.contains("prefiller") == true)
    }

    /// A writer that stands still while it copies does not leave, so that the region cannot be revoked.
    @Test(.timeLimit(.minutes(1))) func aWriterThatStaysInsideKeepsThePagesOfItsRequestOnly() async throws {
        let setup = try Setup(timeout: .milliseconds(200))
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.job != nil }
        let (engine, region) = (setup.target.ranks[0].engine, setup.target.ranks[0].regions[0])
        // At a seat that no connection owns: nobody notices the death.
        let seat = UInt32(Limits.writers) - 1
        let state = RegionSlot.state(generation: region.generation, access: .remoteWrite)
        engine.page.openSeats(seat + 1)
        #expect(engine.page.enter(region.index, expecting: state, seat: seat))
        setup.source.close()
        for _ in 0..<4000 where setup.failure == nil { try await setup.untilDecoderTicks() }
        for _ in 0..<100 { try await setup.untilDecoderTicks() }
        #expect(!setup.has(.pagesFree))

        let other = try Instance("other prefiller", Self.layout)
        defer { other.close() }
        let offered = Mutex<KVJob?>(nil)
        let prefiller = try KVPrefiller(
            KVConfiguration(name: "other prefiller", heartbeat: .milliseconds(50)), layout: Self.layout,
            ranks: other.ranks
        ) { job in offered.withLock { $0 = job } }
        let newPeer = try setup.decoder.connect(to: prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [1], newPeer)
        for _ in 0..<4000 where !setup.has(.ready) {
            if let job = offered.withLock({ $0.take() }) {
                prefiller.accept(job.id, sources: [PageTable(pages: [0])]) { _ in }
                prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<8)])
                prefiller.computed(layers: 3)
            }
            try await setup.untilDecoderTicks()
            prefiller.tick(nowNanoseconds: setup.decoderTime)
        }
        #expect(setup.has(.ready) && !setup.has(.pagesFree))
    }

    @Test(.timeLimit(.minutes(1))) func aDeadDecoderGivesTheSourcePagesBack() async throws {
        let setup = try Setup()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        _ = setup.request(TokenSpan(end: 8), [0], peer)
        try await setup.until { setup.job != nil }
        setup.accept(try #require(setup.job), [0])
        setup.target.close()
        var time: UInt64 = 1 << 40
        for _ in 0..<400 where setup.events.jobEvents.withLock({ $0.last }) != .released {
            time += 25_000_000
            setup.prefiller.tick(nowNanoseconds: time)
            try await Task.sleep(for: .milliseconds(5))
        }
        let events = setup.events.jobEvents.withLock { $0 }
        #expect(events.count == 2 && events.last == .released)
    }

    @Test(.timeLimit(.minutes(1))) func whatCannotBeIsAnErrorBeforeAnythingIsSent() async throws {
        let setup = try Setup()
        let peer = try setup.decoder.connect(to: setup.prefiller.address)
        for (span, pages) in [
            (TokenSpan(end: 8), [UInt32(Self.pageCount)]), (TokenSpan(end: 9), [0]),
            (TokenSpan(cached: 9, end: 8), [0]),
        ] {
            setup.events.requests.withLock { $0 = [] }
            _ = setup.request(span, pages, peer)
            try await setup.until { setup.has(.pagesFree) }
            #expect(setup.failure?.code == .invalidLayout)
        }
        #expect(setup.job == nil)
    }
}

extension RoleTests.Setup {
    /// Lets time go on for the decoder only.
    func untilDecoderTicks() async throws {
        decoderTime = max(decoderTime, time) + 25_000_000
        decoder.tick(nowNanoseconds: decoderTime)
        try await Task.sleep(for: .milliseconds(5))
    }
}
