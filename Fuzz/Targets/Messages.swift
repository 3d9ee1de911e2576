import TransferCore

@testable import ExpertParallel
@testable import KVCacheTransfer
@testable import TransferEngine
@testable import WeightTransfer

// What peers say to each other: the engines, the roles of the KV protocol, the members of an update of weights, the ranks of an
// exchange of experts. The first byte of an input says which of them it is for.
extension Target {
    /// Holds that what was decoded is, once encoded, decoded to the same again.
    private static func settles<Form>(
        _ form: Form, _ encode: (Form) -> [UInt8], _ decode: ([UInt8]) -> Form?, _ what: String
    ) {
        let bytes = encode(form)
        guard let again = decode(bytes) else {
            return require(false, "\(what): nobody reads what was written")
        }
        require(encode(again) == bytes, "\(what) changes when it is sent on")
    }

    private static func engine(_ bytes: [UInt8]) {
        func decode(_ bytes: [UInt8]) -> ControlMessage? { try? ControlMessage(decoding: bytes.span) }
        if let message = decode(bytes) { settles(message, { $0.encoded }, decode, "a control message") }
    }

    private static func caches(_ bytes: [UInt8]) {
        do throws(KVError) {
            let message = try KVMessage(decoding: bytes)
            settles(message, { $0.encoded() }, { try? KVMessage(decoding: $0) }, "a message of caches")
        } catch {
            require(
                error.code == .malformedMessage || error.code == .unsupportedVersion,
                "decoding ended with \(error)")
            if let stranger = KVMessage.stranger(bytes) {
                require(stranger.address.encoded().count < bytes.count, "an address from nowhere")
            }
        }
    }

    /// Fragments of several messages, in any order, of a peer that invents their numbers.
    private static func fragments(_ bytes: [UInt8]) {
        var choices = Choices(bytes)
        var joiner = Fragments()
        while !choices.isEmpty {
            if let message = joiner.join(choices.take(Int(choices.byte()))) {
                require(message.count <= bytes.count, "more bytes than there were")
            }
        }
    }

    private static func weights(_ bytes: [UInt8]) {
        if let message = WeightMessage(decoding: bytes) {
            settles(message, { $0.encoded() }, { WeightMessage(decoding: $0) }, "a message of weights")
        }
    }

    private static func experts(_ bytes: [UInt8]) {
        do throws(TransferError) {
            // Over nodes an address is two of them.
            if let both = try? NodeAddress(decoding: bytes) {
                settles(both, { $0.encoded() }, { try? NodeAddress(decoding: $0) }, "an address over nodes")
                return
            }
            let address = try ExpertAddress(decoding: bytes)
            settles(address, { $0.encoded() }, { try? ExpertAddress(decoding: $0) }, "an address of experts")
        } catch {
            require(
                error.code == .malformedDescriptor || error.code == .unsupportedVersion,
                "decoding ended with \(error)")
        }
    }

    private static let decoders: [@Sendable ([UInt8]) -> Void] = [
        engine, caches, fragments, weights, experts,
    ]

    private static var samples: [[UInt8]] {
        let layout = KVLayout(
            model: KVModel(
                name: "m", elementType: "bf16",
                groups: [
                    CacheGroup(layers: [0, 2], heads: 8, keyBytes: 256, valueBytes: 256),
                    CacheGroup(layers: [1], heads: 4, keyBytes: 128, valueBytes: 0, window: 1024),
                ]),
            tensorRanks: 2, stages: [0..<2, 2..<3],
            formats: [
                PageFormat(pageTokens: 16),
                PageFormat(pageTokens: 32, order: .tokensFirst, arrangement: .separate),
            ])
        let region = RemoteRegion(
            engine: EngineID(rawValue: 7), device: 0, index: 3, generation: 5, access: .remoteWrite,
            length: 4096, base: 1 << 20, secret: 99,
            nics: [RemoteRegion.NIC(fabric: "shm", address: [1, 2], megabitsPerSecond: 100, key: 1, base: 2)])
        let address = EngineAddress(name: "d", landing: region)
        var start = WeightMessage(.start)
        start.ranks = [1, 2]
        start.tasks = [3, 4, 5]
        start.bytes = [6]
        let route = ControlMessage.Route(from: 1, to: 2)
        let caches: [KVMessage] = [
            .hello(
                KVMessage.Hello(
                    session: 1, name: "d", address: address, layout: layout,
                    ranks: [
                        KVMessage.RankTarget(
                            placement: .contiguous(layout, rank: 0, pageCount: 10), regions: [region])
                    ], wantsDigests: true)),
            .welcome(KVMessage.Welcome(session: 2, name: "p", layout: layout)),
            .refuse(session: 3, reason: KVError(.incompatible, "model: a here, b there")),
            .prefill(
                KVMessage.Prefill(
                    session: 4, request: 5, oldest: 2, span: TokenSpan(cached: 32, end: 100),
                    isLayerwise: true, immediates: [1 << 29, 7],
                    tables: [PageTable(first: 2, pages: [9, 10, 11, 3]), PageTable(pages: [])],
                    tail: KVMessage.Tail(rank: 3, region: 1, offset: 64, byteCount: 8192),
                    timeoutMilliseconds: 30_000, input: [1, 2, 3])),
            .cancel(session: 4, request: 5),
            .receipt(
                KVMessage.Receipt(session: 4, request: 5, isQuiet: true, reason: KVError(.cancelled, "x"))),
            .heartbeat(KVMessage.Heartbeat(session: 4, number: 12345, isDraining: true)),
            .goodbye(session: 4),
            .digests(KVMessage.Digests(session: 4, request: 5, layer: 2, ranks: [Digest(low: 1, high: 2)])),
        ]
        let engines: [ControlMessage] = [
            .ping(route, address: address.encoded()), .pong(route),
            .settle(route, connection: 9, address: [1, 2, 3]),
            .settled(route, connection: 9, DeliveryLedger(base: 5, bits: [1, 2])),
        ]
        let experts = ExpertAddress(
            fingerprint: 1, rank: 2, firstImmediate: 3, engine: address, region: region)
        let overNodes = NodeAddress(
            fingerprint: 1, rank: 2, between: experts.encoded(), inside: experts.encoded())
        let pieces = Fragments.cut([1, 2, 3], number: 1).map { [UInt8($0.count)] + $0 }
        let parts: [[UInt8]] = [[0, 0, 0, 0, 0, 0, 2, 0, 7], [0, 0, 0, 0, 1, 0, 2, 0, 8]].map { [9] + $0 }
        return engines.map { [0] + $0.encoded } + caches.map { [1] + $0.encoded() }
            + [[2] + pieces.joined(), [2] + parts.joined(), [3] + start.encoded(), [4] + experts.encoded()]
            + [[4] + overNodes.encoded()]
    }

    /// `ControlMessage`, `KVMessage`, `Fragments`, `WeightMessage`, `ExpertAddress`.
    static let messages = Target(
        name: "messages", seeds: { samples },
        run: { bytes in
            guard let first = bytes.first else { return }
            decoders[Int(first) % decoders.count](Array(bytes.dropFirst()))
        })
}
