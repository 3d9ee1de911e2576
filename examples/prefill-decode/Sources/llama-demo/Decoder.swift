import Foundation
import KVCacheTransfer
import Synchronization
import TransferEngine

/// A process that asks prefillers for caches, and continues the texts.
final class DecoderProcess: Sendable {
    private struct Request: Sendable {
        var number: Int
        var tokens: [Int32]
        var wanted: Int
        var room: Cache.Room
        var begin: UInt64
    }

    private let model: Llama
    private let cache: Cache
    private let role: KVDecoder
    private let peers = Mutex<[Substring: KVPeer]>([:])
    private let ready = Queue<(Request, [UInt64])>()

    init(_ name: String, _ model: Llama) throws {
        self.model = model
        cache = try Cache(name, model.shape)
        role = try KVDecoder(Cache.configuration(name), layout: cache.layout, ranks: [cache.rank])
    }

    func run() throws {
        let role = role
        Task { try await role.run() }
        Thread.detachNewThread { [self] in
            while true { decode(ready.next()) }
        }
        say("up")
        while let line = readLine() { try obey(line.split(separator: " ")) }
        for peer in peers.withLock({ Array($0.values) }) { role.disconnect(peer) }
        Thread.sleep(forTimeInterval: 0.1)
    }

    /// `prefiller NAME ADDRESS`, or `request NUMBER PREFILLER WANTED TOKEN...`.
    private func obey(_ words: [Substring]) throws {
        if words.first == "prefiller", words.count == 3 {
            let peer = try role.connect(to: EngineAddress(decoding: bytes(hexadecimal: words[2])))
            peers.withLock { $0[words[1]] = peer }
        } else if words.first == "request", words.count > 4, let number = Int(words[1]),
            let wanted = Int(words[3])
        {
            ask(number, words[2], wanted, words[4...].compactMap { Int32($0) })
        }
    }

    private func ask(_ number: Int, _ prefiller: Substring, _ wanted: Int, _ tokens: [Int32]) {
        guard let peer = peers.withLock({ $0[prefiller] }),
            let room = cache.take(tokens: tokens.count + wanted)
        else { return say("failed \(number) no prefiller '\(prefiller)', or no pages") }
        let request = Request(number: number, tokens: tokens, wanted: wanted, room: room, begin: now())
        let arrived = Mutex([UInt64](repeating: 0, count: model.shape.layers))
        let used = (tokens.count + CacheMemory.pageTokens - 1) / CacheMemory.pageTokens
        role.request(
            KVRequest(
                span: TokenSpan(end: tokens.count),
                tables: [PageTable(pages: Array(room.pages.prefix(used)))],
                tail: KVMessage.Tail(
                    rank: 0, region: 1, offset: room.slot * Cache.slotBytes,
                    byteCount: Tail.byteCount(model.shape)),
                input: input(tokens), isLayerwise: true), from: peer
        ) { [self] event in
            switch event {
            case .layer(let layer): arrived.withLock { $0[layer] = now() }
            case .ready: ready.append((request, arrived.withLock { $0 }))
            case .failed(let error): say("failed \(number) \(error)")
            case .pagesFree: cache.give(room)
            }
        }
    }

    /// Continues a text from the cache that has arrived.
    private func decode(_ arrived: (Request, [UInt64])) {
        let (request, times) = arrived
        let tail = Tail(from: cache.tail(request.room.slot), model.shape)
        var token = model.choose(tail.hidden)
        let first = now() - request.begin
        var tokens: [Int32] = []
        while token != Tokenizer.end, tokens.count < request.wanted {
            tokens.append(token)
            guard tokens.count < request.wanted else { break }
            let place = request.tokens.count + tokens.count - 1
            token = model.choose(model.forward([token], first: place, cache.memory, request.room.pages))
        }
        cache.give(request.room)
        let transfers = zip(times, tail.computed).map { $0 > $1 ? Double($0 - $1) / 1000 : 0 }
        let (last, end) = (times.max() ?? 0, tail.computed[model.shape.layers])
        let exposed = last > end ? Double(last - end) / 1000 : 0
        say(
            "done \(request.number) \(first / 1000) \(Int(transfers.sorted()[transfers.count / 2])) "
                + "\(Int(transfers.reduce(0, +))) \(Int(exposed)) "
                + tokens.map(String.init).joined(separator: ","))
    }
}
