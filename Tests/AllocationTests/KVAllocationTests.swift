import CAllocationCounter
import KVCacheTransfer
import Testing
import TransferEngine

/// Pushing a layer allocates as often for many pages as for few: nothing is allocated for a page.
@Suite(.serialized) struct KVAllocationTests {
    private final class State: @unchecked Sendable {
        // SAFETY: the engines make progress in the thread of the test.
        var job: KVJob?
        var isReady = false
        var isReleased = false
    }

    private func allocations(pages: Int) throws -> UInt64 {
        let layout = KVLayout(
            model: KVModel(
                name: "m", elementType: "bf16",
                groups: [CacheGroup(layers: [0, 1], heads: 1, keyBytes: 64, valueBytes: 64)]),
            formats: [PageFormat(pageTokens: 1)])
        func rank(_ name: String) throws -> KVRank {
            let engine = try TransferEngine(Configuration(name: name, progress: .manual))
            let placement = KVPlacement.contiguous(layout, rank: 0, pageCount: pages)
            let region = try engine.allocate(byteCount: placement.regionBytes(layout, rank: 0)[0])
            return KVRank(engine: engine, regions: [region], placement: placement)
        }
        let (source, target) = (try rank("prefiller"), try rank("decoder"))
        defer {
            source.engine.close()
            target.engine.close()
        }
        let state = State()
        let prefiller = try KVPrefiller(KVConfiguration(name: "prefiller"), layout: layout, ranks: [source]) {
            state.job = $0
        }
        let decoder = try KVDecoder(KVConfiguration(name: "decoder"), layout: layout, ranks: [target])
        let peer = try decoder.connect(to: prefiller.address)
        func progress(while condition: () -> Bool) {
            while condition() {
                source.engine.progress()
                target.engine.progress()
            }
        }
        let table = PageTable(pages: (0..<UInt32(pages)).map { $0 ^ 1 })
        var least = UInt64.max
        for round in 1...30 {
            state.job = nil
            state.isReady = false
            state.isReleased = false
            decoder.request(
                KVRequest(span: TokenSpan(end: pages), tables: [table], input: []), from: peer
            ) { if $0 == .ready { state.isReady = true } }
            progress { state.job == nil }
            let job = try #require(state.job)
            prefiller.accept(job.id, sources: [table]) { if $0 == .released { state.isReleased = true } }
            prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<pages)])
            let before = allocation_count()
            prefiller.computed(layers: UInt64(2 * round))
            progress { !state.isReady || !state.isReleased }
            least = min(least, allocation_count() - before)
        }
        return least
    }

    @Test(.timeLimit(.minutes(2))) func pagesAllocateNothing() throws {
        let few = try allocations(pages: 16)
        let many = try allocations(pages: 4096)
        // Tables may grow once in a while; 8160 pages more do not show.
        #expect(many <= few + 16, "\(many) allocations for 4096 pages of two layers, \(few) for 16")
    }
}
