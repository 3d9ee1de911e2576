internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import KVCacheTransfer
internal import Platform
internal import SharedMemoryProvider
internal import TransferEngine

/// `te bench kv`: the cache of one request, from a prefiller's process to a decoder's, each on a core of its own.
struct BenchKV: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kv", abstract: "Push the KV cache of a request from one process into another.",
        discussion: """
            push: all layers are computed at once; GB/s until the decoder may begin, beside memcpy of the \
            same pages and beside plain page writes of the engine (raw). last-layer: all layers but the \
            last have arrived; microseconds from its computation until the decoder may begin, and the ratio \
            to (memcpy of one layer + 20 us). protocol: requests without data, processor time of both sides.
            """)

    @Option(help: "llama-3.1-8b or qwen3-235b-tp4, one or several")
    var models = "llama-3.1-8b,qwen3-235b-tp4"
    @Option(help: "tokens of the request, one or several numbers")
    var tokens = "4096"
    @Option(help: "shm or tcp, one or several")
    var providers = "shm"
    @Option(help: "repetitions, each beside a memcpy; the median is printed")
    var repeats = 7
    @Flag(help: "one JSON object per line")
    var json = false

    func run() throws {
        var report = Report(json: json)
        for provider in providers.split(separator: ",").map(String.init) {
            for model in models.split(separator: ",").map(String.init) {
                for count in tokens.split(separator: ",").compactMap({ Int($0) }) {
                    let bench = try KVBenchSource(model: model, tokens: count, provider: provider)
                    defer { bench.close() }
                    try bench.measure(repeats, &report)
                }
            }
            showProgress("")
        }
        report.add(try KVProtocolCost.row(requests: 1000, repeats: repeats))
        report.finish()
    }
}

/// The models whose caches are pushed. Pages of one layer lie together, keys before values, heads first.
enum KVBenchModel {
    static func layout(_ name: String) throws -> KVLayout {
        switch name {
        case "llama-3.1-8b": layout(name, layers: 32, heads: 8, ranks: 1, pageTokens: 16)
        case "qwen3-235b-tp4": layout(name, layers: 94, heads: 4, ranks: 4, pageTokens: 128)
        default: throw ValidationError("no model '\(name)'; there are llama-3.1-8b and qwen3-235b-tp4")
        }
    }

    private static func layout(_ name: String, layers: Int, heads: Int, ranks: Int, pageTokens: Int)
        -> KVLayout
    {
        KVLayout(
            model: KVModel(
                name: name, elementType: "bf16",
                groups: [
                    CacheGroup(layers: Array(0..<layers), heads: heads, keyBytes: 256, valueBytes: 256)
                ]),
            tensorRanks: ranks, formats: [PageFormat(pageTokens: pageTokens)])
    }

    /// One engine with memory for all pages for each rank.
    static func ranks(
        _ layout: KVLayout, pageCount: Int, provider: String, name: String
    ) throws -> [KVRank] {
        try (0..<layout.rankCount).map { rank in
            let engine = try TransferEngine(
                Configuration(
                    name: "\(name) \(rank)",
                    nics: makeNICs(provider: provider, count: 1, nics: "", callerMemory: .automatic),
                    progress: .manual, traceEvents: 0))
            let placement = KVPlacement.contiguous(layout, rank: rank, pageCount: pageCount)
            let bytes = placement.regionBytes(layout, rank: rank)[0]
            return KVRank(
                engine: engine, regions: [try engine.allocate(byteCount: bytes)], placement: placement)
        }
    }

    /// Pages in an order as it comes about when requests come and go.
    static func pages(_ count: Int, seed: UInt64) -> PageTable {
        var random = SeededGenerator(seed: seed)
        return PageTable(pages: Array(0..<UInt32(count)).shuffled(using: &random))
    }

    /// Long enough that nobody is held to be lost while the other side measures something else.
    static func configuration(_ name: String) -> KVConfiguration {
        KVConfiguration(name: name, heartbeat: .seconds(3600), heartbeats: 3)
    }
}
