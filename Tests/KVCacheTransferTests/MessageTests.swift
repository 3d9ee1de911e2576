import Testing
import TransferEngine

@testable import KVCacheTransfer

@Suite struct MessageTests {
    static let layout = KVLayout(
        model: KVModel(
            name: "llama", elementType: "bf16",
            groups: [
                CacheGroup(layers: [0, 2], heads: 8, keyBytes: 256, valueBytes: 256),
                CacheGroup(layers: [1], heads: 4, keyBytes: 128, valueBytes: 0, window: 1024),
            ]),
        tensorRanks: 2, stages: [0..<2, 2..<3],
        formats: [
            PageFormat(pageTokens: 16),
            PageFormat(pageTokens: 32, order: .tokensFirst, arrangement: .separate),
        ])

    static let part: KVLayout = {
        var part = layout
        part.part = KVLayout.Part(firstTensorRank: 2, allTensorRanks: 4)
        return part
    }()

    /// A layout of a peer, or of a caller, is refused with a reason; numbers without bounds ended the process.
    @Test(arguments: [
        (256, 0, 512), (256, 0, 256), (300, 0, 300), (65535, 0, 65535), (Int.max, 0, 1), (2, 1, 4), (2, 2, 2),
        (2, 0, 3), (2, 4, 4), (2, -2, 4),
    ])
    func partsThatCannotBe(tensorRanks: Int, first: Int, all: Int) {
        for stages in [[0..<2, 2..<3], []] {
            var layout = Self.layout
            layout.tensorRanks = tensorRanks
            layout.stages = stages
            layout.part = KVLayout.Part(firstTensorRank: first, allTensorRanks: all)
            #expect(throws: KVError.self) { try layout.validate() }
        }
    }

    static let region = RemoteRegion(
        engine: EngineID(rawValue: 7), device: 0, index: 3, generation: 5, access: .remoteWrite, length: 4096,
        base: 1 << 20, secret: 99,
        nics: [RemoteRegion.NIC(fabric: "shm", address: [1, 2], megabitsPerSecond: 100, key: 1, base: 2)])

    static let messages: [KVMessage] = [
        .hello(
            KVMessage.Hello(
                session: 1 << 60, name: "decoder é", address: EngineAddress(name: "d", landing: region),
                layout: layout,
                ranks: (0..<4).map {
                    KVMessage.RankTarget(
                        placement: .contiguous(layout, rank: $0, pageCount: 10), regions: [region, region])
                })),
        .welcome(KVMessage.Welcome(session: 2, name: "prefiller", layout: layout)),
        .refuse(session: 3, reason: KVError(.incompatible, "model: a here, b there")),
        .prefill(
            KVMessage.Prefill(
                session: 4, request: 5, oldest: 2, span: TokenSpan(cached: 32, end: 100), isLayerwise: true,
                immediates: [1 << 29, 7, 8, 9],
                tables: [PageTable(first: 2, pages: [9, 10, 11, 3, 2, 1]), PageTable(pages: [])],
                tail: KVMessage.Tail(rank: 3, region: 1, offset: 64, byteCount: 8192),
                timeoutMilliseconds: 30_000,
                input: Array(0...255))),
        .prefill(
            KVMessage.Prefill(
                session: 4, request: 6, oldest: 6, span: TokenSpan(end: 1), isLayerwise: false,
                immediates: [],
                tables: [], tail: nil, timeoutMilliseconds: 0, input: [])),
        .cancel(session: 4, request: 5),
        .receipt(
            KVMessage.Receipt(
                session: 4, request: 5, isQuiet: true, reason: KVError(.cancelled, "by the decoder"))),
        .heartbeat(KVMessage.Heartbeat(session: 4, number: 12345, isDraining: true)),
        .goodbye(session: 4),
        .hello(
            KVMessage.Hello(
                session: 9, name: "d", address: EngineAddress(name: "d", landing: region), layout: layout,
                ranks: [], wantsDigests: true)),
        .digests(
            KVMessage.Digests(
                session: 4, request: 5, layer: 2, ranks: [Digest(low: 1, high: 2), Digest(low: 3, high: 4)])),
        .digests(KVMessage.Digests(session: 4, request: 5, layer: nil, ranks: [Digest(low: 1, high: 2)])),
        .welcome(KVMessage.Welcome(session: 2, name: "one of two", layout: part)),
        .hello(
            KVMessage.Hello(
                session: 9, name: "d", address: EngineAddress(name: "d", landing: region), layout: part,
                ranks: [], wantsDigests: true)),
    ]

    @Test(arguments: messages) func comesBackAsItWas(message: KVMessage) throws {
        #expect(try KVMessage(decoding: message.encoded()) == message)
    }

    /// Every prefix is an error, but where only input is missing; nothing traps.
    @Test(arguments: messages) func truncatedBytesAreErrors(message: KVMessage) {
        let bytes = message.encoded()
        var input = 0
        if case .prefill(let prefill) = message { input = prefill.input.count }
        for count in 0..<(bytes.count - input) {
            #expect(throws: KVError.self) { try KVMessage(decoding: Array(bytes[..<count])) }
        }
    }

    /// Damage gives an error or another message, and never a trap or a lot of memory.
    @Test func damagedBytesDoNoHarm() {
        for seed in 1...20_000 { damage(seed) }
    }

    private func damage(_ seed: Int) {
        var random = SeededGenerator(seed: UInt64(seed))
        var bytes = Self.messages[seed % Self.messages.count].encoded()
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            bytes[Int.random(in: 4..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
        }
        guard let message = try? KVMessage(decoding: bytes) else { return }
        if let again = try? KVMessage(decoding: message.encoded()) { #expect(again == message) }
    }

    @Test func anotherVersionIsRefusedByName() {
        var bytes = KVMessage.goodbye(session: 1).encoded()
        bytes[3] = 9
        let error = #expect(throws: KVError.self) { try KVMessage(decoding: bytes) }
        #expect(error?.code == .unsupportedVersion)
        #expect(error?.message.contains("9 there") == true)
    }

    /// Whoever introduces himself in a later version can be answered; nothing else of it is believed.
    @Test func aHelloOfALaterVersionSaysWhoItIs() throws {
        var bytes = Self.messages[0].encoded()
        bytes[3] = KVMessage.versions.upperBound + 1
        let stranger = try #require(KVMessage.stranger(bytes))
        #expect(stranger.session == 1 << 60)
        #expect(stranger.address == EngineAddress(name: "d", landing: Self.region))
        #expect(KVMessage.stranger(Array(bytes.prefix(20))) == nil)
        #expect(KVMessage.stranger(Self.messages[0].encoded()) == nil)
        var other = KVMessage.goodbye(session: 1).encoded()
        other[3] = KVMessage.versions.upperBound + 1
        #expect(KVMessage.stranger(other) == nil)
    }

    /// What a library of version 1 knows is said in version 1; there is one form of everything.
    @Test(arguments: messages) func aMessageHasTheLowestVersionThatKnowsIt(message: KVMessage) {
        var bytes = message.encoded()
        let lowest: UInt8 =
            switch message {
            case .digests: 2
            case .hello(let hello): hello.layout.part != nil ? 3 : hello.wantsDigests ? 2 : 1
            case .welcome(let welcome): welcome.layout.part != nil ? 3 : 1
            default: 1
            }
        #expect(bytes[3] == lowest)
        for version in KVMessage.versions where version != lowest {
            bytes[3] = version
            #expect(throws: KVError.self) { try KVMessage(decoding: bytes) }
        }
    }

    /// The bytes of all versions stay what they are.
    @Test func theWireFormatStays() {
        #expect(
            KVMessage.cancel(session: 0x0102, request: 3).encoded() == [
                0x54, 0x45, 0x4B, 1, 5, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0,
            ])
        #expect(
            KVMessage.heartbeat(KVMessage.Heartbeat(session: 1, number: 2, isDraining: false)).encoded() == [
                0x54, 0x45, 0x4B, 1, 7, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0,
            ])
        #expect(
            KVMessage.digests(
                KVMessage.Digests(
                    session: 1, request: 2, layer: 3, ranks: [Digest(low: 4, high: 5)])
            ).encoded() == [
                0x54, 0x45, 0x4B, 2, 9, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 1, 0,
                4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0,
            ])
        let part = KVLayout(
            model: KVModel(
                name: "m", elementType: "f",
                groups: [CacheGroup(layers: [0], heads: 4, keyBytes: 8, valueBytes: 0)]),
            part: KVLayout.Part(firstTensorRank: 1, allTensorRanks: 2), formats: [PageFormat(pageTokens: 16)])
        #expect(
            KVMessage.welcome(KVMessage.Welcome(session: 1, name: "p", layout: part)).encoded() == [
                0x54, 0x45, 0x4B, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0x70, 1, 0x6D, 1, 0x66, 1, 0, 1, 0, 0, 0,
                4, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1, 0, 1, 0,
                16, 0, 0, 0, 0, 1,
            ])
    }

    @Test(arguments: [0, 1, Fragments.payloadBytes, Fragments.payloadBytes + 1, 100_000])
    func fragmentsJoinInAnyOrder(byteCount: Int) {
        var random = SeededGenerator(seed: UInt64(byteCount))
        let message = (0..<byteCount).map { _ in UInt8.random(in: 0...255, using: &random) }
        var joiner = Fragments()
        var pieces = Fragments.cut(message, number: 1) + Fragments.cut([5], number: 2)
        for piece in pieces { #expect(piece.count <= Limits.messageBytes) }
        pieces.shuffle(using: &random)
        let whole = pieces.compactMap { joiner.join($0) }
        #expect(Set(whole) == [message, [5]])
    }

    @Test func fragmentsOfManyMessagesAreBounded() {
        var joiner = Fragments()
        let long = [UInt8](repeating: 1, count: Fragments.payloadBytes + 1)
        let first = Fragments.cut(long, number: 0)
        #expect(joiner.join(first[0]) == nil)
        for number in 1...UInt32(KVLimits.openMessages) {
            #expect(joiner.join(Fragments.cut(long, number: number)[0]) == nil)
        }
        #expect(joiner.join(first[1]) == nil)  // its beginning was forgotten
        for broken in [
            [], [1, 2, 3], [0, 0, 0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 255, 255],
        ] {
            #expect(joiner.join(broken.map { UInt8($0) }) == nil)
        }
    }
}

@Suite struct SchedulerTests {
    private func workers(_ loads: [Int]) -> [KVWorker] {
        loads.enumerated().map { KVWorker(name: "\($0)", load: $1) }
    }

    @Test func theLeastLoadedIsChosen() {
        var scheduler = PrefixAffinityScheduler()
        let choice = scheduler.choose([1], prefillers: workers([5, 3, 9]), decoders: workers([2, 1]))
        #expect(choice?.prefiller == 1)
        #expect(choice?.decoder == 1)
    }

    @Test func aKnownPrefixIsWorthItsTokens() {
        var scheduler = PrefixAffinityScheduler(blockTokens: 4)
        let prompt = Array(0..<UInt32(40))
        _ = scheduler.choose(prompt, prefillers: workers([0, 1]), decoders: workers([0, 1]))
        let again = scheduler.choose(prompt + [7], prefillers: workers([39, 0]), decoders: workers([41, 0]))
        #expect(again?.prefiller == 0)
        #expect(again?.decoder == 1)
        let other = scheduler.choose([9] + prompt, prefillers: workers([39, 0]), decoders: workers([1, 2]))
        #expect(other?.prefiller == 1)
    }

    @Test func whoDrainsIsNotChosen() {
        var scheduler = PrefixAffinityScheduler()
        let draining = [KVWorker(name: "a", load: 0, isDraining: true), KVWorker(name: "b", load: 100)]
        #expect(scheduler.choose([], prefillers: draining, decoders: draining)?.prefiller == 1)
        #expect(scheduler.choose([], prefillers: [draining[0]], decoders: draining) == nil)
        #expect(scheduler.choose([], prefillers: [], decoders: []) == nil)
    }

    @Test func oldPrefixesAreForgotten() {
        var scheduler = PrefixAffinityScheduler(blockTokens: 1, capacity: 8)
        _ = scheduler.choose([1], prefillers: workers([0, 1]), decoders: workers([0]))
        for token in 2..<UInt32(40) {
            _ = scheduler.choose([token], prefillers: workers([0, 1]), decoders: workers([0]))
        }
        // Equal but for the prefix, which nobody remembers.
        #expect(scheduler.choose([1], prefillers: workers([1, 1]), decoders: workers([0]))?.prefiller == 0)
        #expect(scheduler.choose([39], prefillers: workers([1, 1]), decoders: workers([0]))?.prefiller == 0)
    }
}
