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
            same pages. last-layer: all layers but the last have arrived; microseconds from its computation \
            until the decoder may begin, and the ratio to (memcpy of one layer + 20 us). protocol: requests \
            without data, processor time of both sides.
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

/// The prefiller: this process. Its one thread is the model and makes progress.
final class KVBenchSource: @unchecked Sendable {
    // SAFETY: used by one thread; the engines make progress in it.
    private let model: String
    private let provider: String
    private let tokens: Int
    private let layout: KVLayout
    private let ranks: [KVRank]
    private let child: ChildProcess
    private let pages: PageTable
    private let scratch: UnsafeMutableRawPointer
    private var prefiller: KVPrefiller?
    private var job: KVJob?
    private var isReleased = false
    private var total: UInt64 = 0

    private var layers: Int { layout.model.layerCount }
    private var pageCount: Int { pages.pages.count }
    private var pageBytes: Int { ranks[0].placement.layers[0][0].stride }
    private var layerBytes: Int { pageCount * pageBytes * ranks.count }
    private static let processors = pairOfProcessors()

    init(model: String, tokens: Int, provider: String) throws {
        showProgress("starting \(model) with \(tokens) tokens over \(provider)")
        self.model = model
        self.provider = provider
        self.tokens = tokens
        layout = try KVBenchModel.layout(model)
        let pageTokens = layout.formats[0].pageTokens
        pages = KVBenchModel.pages((tokens + pageTokens - 1) / pageTokens, seed: 1)
        _ = te_pin_self(Int32(Self.processors[0]))
        child = try ChildProcess([
            "bench-kv-target", "--model", model, "--tokens", String(tokens), "--provider", provider,
            "--processor",
            String(Self.processors[1]),
        ])
        ranks = try KVBenchModel.ranks(
            layout, pageCount: pages.pages.count, provider: provider, name: "prefiller")
        // As much as is pushed, so that the copy does not stay in a cache either.
        let bytes = ranks.reduce(0) { $0 + $1.regions[0].byteCount }
        scratch = .allocate(byteCount: bytes, alignment: 4096)
        memset(scratch, 1, bytes)
        for rank in ranks { memset(rank.regions[0].baseAddress, 3, rank.regions[0].byteCount) }
        prefiller = try KVPrefiller(KVBenchModel.configuration("prefiller"), layout: layout, ranks: ranks) {
            [weak self] in self?.job = $0
        }
        _ = try child.receive()
        try child.send(hexadecimal(ranks[0].engine.address.encoded()))
    }

    func close() {
        child.end()
        for rank in ranks { rank.engine.close() }
        scratch.deallocate()
    }

    private func progress() { for rank in ranks { rank.engine.progress() } }

    private func progress(while condition: () -> Bool, _ what: String) throws {
        let deadline = monotonicSeconds() + 60
        while condition() {
            progress()
            guard monotonicSeconds() < deadline else { throw TransferError(.stalled, "\(what) for 60 s") }
        }
    }

    /// Lets the decoder ask; returns with the forward pass announced.
    private func begin() throws {
        job = nil
        isReleased = false
        try child.send("go")
        try progress(while: { job == nil }, "no request came")
        guard let job, let prefiller else { return }
        prefiller.accept(job.id, sources: [pages]) { [weak self] in
            if $0 == .released { self?.isReleased = true }
        }
        prefiller.begin(forward: [KVChunk(job: job.id, tokens: 0..<tokens)])
    }

    /// The model has finished some layers. Nanoseconds.
    private func compute(layers count: Int) -> UInt64 {
        total += UInt64(count)
        let now = te_monotonic_nanoseconds()
        prefiller?.computed(layers: total)
        return now
    }

    /// When the decoder was ready. Nanoseconds.
    private func ready() throws -> UInt64 {
        try progress(while: { !isReleased }, "the writes do not end")
        return UInt64(try child.receive()) ?? 0
    }

    /// Seconds until the decoder may begin, when all layers are computed at once.
    private func push() throws -> Double {
        try begin()
        let start = compute(layers: layers)
        return Double(try ready() - start) * 1e-9
    }

    /// Seconds from the last layer until the decoder may begin.
    private func lastLayer() throws -> Double {
        try begin()
        _ = compute(layers: layers - 1)
        let pause = monotonicSeconds() + Double(layerBytes * layers) / 1e9 + 0.01
        try progress(while: { monotonicSeconds() < pause }, "")
        let start = compute(layers: 1)
        return Double(try ready() - start) * 1e-9
    }

    /// Seconds to copy all pages of one layer, in the same order, to pages in another order.
    private func copyLayer(_ layer: Int) -> Double {
        let targets = KVBenchModel.pages(pageCount, seed: 2).pages
        let start = monotonicSeconds()
        for (number, rank) in ranks.enumerated() {
            let plane = rank.placement.layers[layer][0]
            let begin = scratch + (layer * ranks.count + number) * pageCount * pageBytes
            for (from, to) in zip(pages.pages, targets) {
                memcpy(
                    begin + Int(to) * pageBytes,
                    rank.regions[0].baseAddress + plane.offset + Int(from) * plane.stride, pageBytes)
            }
        }
        return monotonicSeconds() - start
    }

    func measure(_ repeats: Int, _ report: inout Report) throws {
        _ = try push()
        var pushes: [Double] = []
        var lasts: [Double] = []
        var copies: [Double] = []
        var lastRatios: [Double] = []
        for round in 0..<repeats {
            showProgress("\(model), \(tokens) tokens over \(provider): \(round)")
            let copy = median((0..<layers).map(copyLayer))
            copies.append(copy)
            pushes.append(try push())
            lasts.append(try lastLayer())
            lastRatios.append(lasts[round] / (copy + 20e-6))
        }
        let bytes = Double(layerBytes * layers)
        report.add([
            ("model", .text(model)), ("tokens", .integer(tokens)), ("transport", .text(provider)),
            ("MiB", .number(bytes / 1048576)), ("gbps", .number(bytes / median(pushes) / 1e9)),
            ("memcpy_gbps", .number(Double(layerBytes) / median(copies) / 1e9)),
            ("ratio", .number(median(zip(pushes, copies).map { $1 * Double(layers) / $0 }))),
            ("after_last_layer_us", .number(median(lasts) * 1e6)),
            ("after_last_layer_ratio", .number(median(lastRatios))),
        ])
    }
}

/// The decoder: the other process.
struct BenchKVTarget: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "bench-kv-target", shouldDisplay: false)

    @Option var model: String
    @Option var tokens: Int
    @Option var provider: String
    @Option var processor: Int

    private final class Ready: @unchecked Sendable {
        // SAFETY: used by one thread.
        var time: UInt64 = 0
        var failure: KVError?
    }

    func run() throws {
        _ = te_die_with_parent()
        _ = te_pin_self(Int32(processor))
        let layout = try KVBenchModel.layout(model)
        let pageTokens = layout.formats[0].pageTokens
        let table = KVBenchModel.pages((tokens + pageTokens - 1) / pageTokens, seed: 2)
        let ranks = try KVBenchModel.ranks(
            layout, pageCount: table.pages.count, provider: provider, name: "decoder")
        let decoder = try KVDecoder(KVBenchModel.configuration("decoder"), layout: layout, ranks: ranks)
        _ = writeLine("up", to: 1)
        guard let line = readLine(), let address = bytes(hexadecimal: line) else { return }
        let peer = try decoder.connect(to: EngineAddress(decoding: address))
        // The other side's last writes need this one's progress as well.
        let lines = ChildLines()
        while true {
            guard lines.next() != nil else {
                for rank in ranks { rank.engine.progress() }
                continue
            }
            let ready = Ready()
            decoder.request(
                KVRequest(span: TokenSpan(end: tokens), tables: [table], input: [], timeout: .seconds(60)),
                from: peer
            ) { event in
                if case .failed(let error) = event { ready.failure = error }
                if event == .ready { ready.time = te_monotonic_nanoseconds() }
            }
            while ready.time == 0, ready.failure == nil { for rank in ranks { rank.engine.progress() } }
            if let failure = ready.failure { throw failure }
            _ = writeLine(String(ready.time), to: 1)
        }
    }
}

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
