import KVCacheTransfer
import TransferEngine

/// A prefiller and a decoder in one process: the cache of a request goes from one to the other, layer by layer.
@main struct PrefillDecode {
    static let layout = KVLayout(
        model: KVModel(
            name: "tiny", elementType: "bf16",
            groups: [CacheGroup(layers: [0, 1, 2, 3], heads: 2, keyBytes: 128, valueBytes: 128)]),
        formats: [PageFormat(pageTokens: 16)])

    /// An engine with memory for 64 pages of each layer.
    static func rank(_ name: String) throws -> KVRank {
        let engine = try TransferEngine(Configuration(name: name))
        let placement = KVPlacement.contiguous(layout, rank: 0, pageCount: 64)
        let region = try engine.allocate(byteCount: placement.regionBytes(layout, rank: 0)[0])
        return KVRank(engine: engine, regions: [region], placement: placement)
    }

    static func main() async throws {
        // The prefiller takes jobs, computes them into pages of its own, and says when a layer is done.
        let (jobs, offer) = AsyncStream.makeStream(of: KVJob.self)
        let prefiller = try KVPrefiller(
            KVConfiguration(name: "prefiller"), layout: layout, ranks: [rank("prefiller")]
        ) { offer.yield($0) }
        let model = Task {
            var finished: UInt64 = 0
            for await job in jobs {
                prefiller.accept(job.id, sources: [PageTable(pages: [0, 1, 2])]) { print("prefiller:", $0) }
                prefiller.begin(forward: [KVChunk(job: job.id, tokens: job.span.cached..<job.span.end)])
                for _ in layout.model.groups[0].layers {
                    // Here the model computes the layer into pages 0, 1 and 2.
                    finished += 1
                    prefiller.computed(layers: finished)
                }
            }
        }
        let heart = Task { try await prefiller.run() }

        // The decoder has pages for 40 tokens, and begins when it has counted all writes.
        let decoder = try KVDecoder(
            KVConfiguration(name: "decoder"), layout: layout, ranks: [rank("decoder")])
        let otherHeart = Task { try await decoder.run() }
        let peer = try decoder.connect(to: prefiller.address)
        let (events, happened) = AsyncStream.makeStream(of: KVRequestEvent.self)
        decoder.request(
            KVRequest(
                span: TokenSpan(end: 40), tables: [PageTable(pages: [9, 4, 5])], input: Array("prompt".utf8),
                isLayerwise: true), from: peer
        ) { happened.yield($0) }
        for await event in events {
            print("decoder:", event)
            if event == .ready || event == .pagesFree { break }
        }
        for task in [heart, otherHeart] { task.cancel() }
        model.cancel()
    }
}
