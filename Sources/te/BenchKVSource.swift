internal import CPlatform
internal import Glibc
internal import KVCacheTransfer
internal import Platform
internal import TransferEngine

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
    /// The decoder's memory, for writes without the protocol.
    private let remotes: [RemoteMemory]
    private var prefiller: KVPrefiller?
    private var job: KVJob?
    private var isReleased = false
    private var total: UInt64 = 0
    /// Layers of plain page writes on their way.
    private static let rawLayers = 4

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
        let scratchBytes = ranks.reduce(0) { $0 + $1.regions[0].byteCount }
        scratch = .allocate(byteCount: scratchBytes, alignment: 4096)
        memset(scratch, 1, scratchBytes)
        for rank in ranks { memset(rank.regions[0].baseAddress, 3, rank.regions[0].byteCount) }
        remotes = try zip(ranks, child.receive().split(separator: " ")).map { rank, text in
            try rank.engine.attach(RemoteRegion(decoding: bytes(hexadecimal: text) ?? []))
        }
        prefiller = try KVPrefiller(KVBenchModel.configuration("prefiller"), layout: layout, ranks: ranks) {
            [weak self] in self?.job = $0
        }
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

    /// Seconds until the decoder has counted the same pages, written without the protocol: a paged write for each layer and
    /// rank, some layers at a time.
    private func raw() throws -> Double {
        let targets = KVBenchModel.pages(pageCount, seed: 2).pages
        var transfers: [(engine: TransferEngine, transfer: Transfer)] = []
        func finish(_ index: Int) throws {
            let (engine, transfer) = transfers[index]
            try progress(while: { engine.isPending(transfer) }, "a page write does not end")
            try engine.wait(for: transfer)
        }
        try child.send("raw")
        let start = te_monotonic_nanoseconds()
        for layer in 0..<layers {
            for (number, rank) in ranks.enumerated() {
                let before = transfers.count - Self.rawLayers * ranks.count
                if before >= 0 { try finish(before) }
                let plane = rank.placement.layers[layer][0]
                let transfer = try pages.pages.withUnsafeBufferPointer { from in
                    try targets.withUnsafeBufferPointer { to in
                        try rank.engine.write(
                            pageBytes: pageBytes, from: rank.regions[0],
                            pages: Pages(from, stride: plane.stride, offset: plane.offset),
                            to: remotes[number],
                            pages: Pages(to, stride: plane.stride, offset: plane.offset),
                            immediate: BenchKVTarget.rawImmediate)
                    }
                }
                transfers.append((rank.engine, transfer))
            }
        }
        for index in transfers.indices.suffix(Self.rawLayers * ranks.count) { try finish(index) }
        return Double((UInt64(try child.receive()) ?? 0) - start) * 1e-9
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
        _ = try raw()
        var raws: [Double] = []
        var pushes: [Double] = []
        var lasts: [Double] = []
        var copies: [Double] = []
        var lastRatios: [Double] = []
        for round in 0..<repeats {
            showProgress("\(model), \(tokens) tokens over \(provider): \(round)")
            let copy = median((0..<layers).map(copyLayer))
            copies.append(copy)
            raws.append(try raw())
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
            ("raw_gbps", .number(bytes / median(raws) / 1e9)),
            ("raw_ratio", .number(median(zip(pushes, raws).map { $1 / $0 }))),
            ("after_last_layer_us", .number(median(lasts) * 1e6)),
            ("after_last_layer_ratio", .number(median(lastRatios))),
        ])
    }
}
