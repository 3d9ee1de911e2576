internal import Glibc
internal import KVCacheTransfer
internal import TransferEngine

/// What requests without data cost: a prefiller and a decoder in one thread.
enum KVProtocolCost {
    private final class Count: @unchecked Sendable {
        // SAFETY: used by one thread.
        var ready = 0
        var released = 0
        weak var prefiller: KVPrefiller?
    }

    static func row(requests: Int, repeats: Int) throws -> Report.Row {
        let layout = try KVBenchModel.layout("llama-3.1-8b")
        let sides = try ["prefiller", "decoder"].map {
            try KVBenchModel.ranks(layout, pageCount: 4, provider: "shm", name: $0)
        }
        defer { for side in sides { side[0].engine.close() } }
        let count = Count()
        let prefiller = try KVPrefiller(
            KVBenchModel.configuration("prefiller"), layout: layout, ranks: sides[0]
        ) { job in
            count.prefiller?.accept(job.id, sources: [PageTable(pages: [0])]) { _ in count.released += 1 }
            count.prefiller?.begin(forward: [KVChunk(job: job.id, tokens: 16..<16)])
        }
        count.prefiller = prefiller
        let decoder = try KVDecoder(KVBenchModel.configuration("decoder"), layout: layout, ranks: sides[1])
        let peer = try decoder.connect(to: prefiller.address)
        var layers: UInt64 = 0
        var samples: [Double] = []
        let request = KVRequest(
            span: TokenSpan(cached: 16, end: 16), tables: [PageTable(pages: [0])],
            input: Array(repeating: 1, count: 64))
        for _ in 0...repeats {
            count.ready = 0
            count.released = 0
            let start = processSeconds()
            for _ in 0..<requests {
                decoder.request(request, from: peer) { if $0 == .ready { count.ready += 1 } }
            }
            while count.ready < requests || count.released < requests {
                for side in sides { side[0].engine.progress() }
                layers += 32 * UInt64(requests)
                prefiller.computed(layers: layers)
            }
            samples.append((processSeconds() - start) / Double(2 * requests))
        }
        return [
            ("model", .text("protocol")), ("requests", .integer(requests)), ("transport", .text("shm")),
            ("us_of_each_side", .number(median(samples) * 1e6)),
        ]
    }

    private static func processSeconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) * 1e-9
    }
}
