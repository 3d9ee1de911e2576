internal import KVCacheTransfer
internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// One instance of a cluster: its engines, its pages, and what is in them.
///
/// Memory is sampled: of each page there are the first bytes only, and they hold a tag.
@safe final class ClusterNode {
    // SAFETY: `bases` point to regions that the engines unmap when they are closed; `isAlive` is false then, and nobody looks.
    /// Stands for what a page holds: whose it is, and which.
    struct Tag: Hashable {
        static let byteCount = 16
        /// Nobody's.
        static let free = Tag(request: 0, page: 0)

        var request: UInt64
        var page: UInt64

        /// The tag of a page of an attempt at a request, with so many tokens in it.
        init(_ attempt: ClusterAttempt, layer: Int, page: Int, tokens: Int) {
            request = attempt.word
            self.page = UInt64(layer) << 48 | UInt64(page) << 16 | UInt64(tokens)
        }

        private init(request: UInt64, page: UInt64) {
            self.request = request
            self.page = page
        }
    }

    let number: Int
    let name: String
    let shape: KVClusterPlan.Shape
    let ranks: [KVRank]
    /// Tokens of the requests that it has been given and that have not ended, and of all that it was ever given: what a
    /// router goes by.
    var load = 0
    var given = 0
    private(set) var isAlive = true
    var isDraining = false
    /// Whether it is in the list of those whose engines must be called.
    var isAwake = false
    private let pageCount: Int
    private let sample: SimulatedSample
    private let bases: [UnsafeMutableRawPointer]
    private var freePages: [UInt32]
    private var random: SeededGenerator

    init(
        _ number: Int, _ name: String, _ plan: KVClusterPlan, _ network: SimulatedNetwork,
        _ sample: SimulatedSample
    ) throws(TransferError) {
        self.number = number
        self.name = name
        self.sample = sample
        let shape = plan.shape
        self.shape = shape
        pageCount = plan.pages
        random = SeededGenerator(seed: plan.seed &+ UInt64(number))
        freePages = Array(0..<UInt32(plan.pages))
        var ranks: [KVRank] = []
        for rank in 0..<shape.layout.rankCount {
            var configuration = Configuration(name: "\(name).\(rank)", progress: .manual, traceEvents: 0)
            // A landing, a region, and those of peers that have left.
            configuration.attachmentLimit = 4 * (plan.prefillers + plan.decoders) + 1024
            let seed = plan.seed &* 0x9E37_79B9 &+ UInt64(number * 64 + rank)
            let engine = try TransferEngine(
                configuration, clock: network, random: SeededGenerator(seed: seed)
            ) { page in
                (0..<shape.nics).map { nic in
                    network.openDomain(
                        SimulatedNIC(
                            name: "\(name).\(rank).\(nic)", megabitsPerSecond: shape.megabitsPerSecond,
                            latencyNanoseconds: shape.latencyNanoseconds,
                            jitterNanoseconds: shape.latencyNanoseconds / 4, queueDepth: 1024,
                            cutsWrites: false, requestOverheadNanoseconds: shape.overheadNanoseconds),
                        page: page, engine: page.engine)
                }
            }
            let placement = KVPlacement.contiguous(shape.layout, rank: rank, pageCount: plan.pages)
            let region = try engine.allocate(
                byteCount: placement.regionBytes(shape.layout, rank: rank)[0], isPopulated: false)
            ranks.append(KVRank(engine: engine, regions: [region], placement: placement))
        }
        self.ranks = ranks
        unsafe bases = ranks.map { unsafe $0.regions[0].bytes.baseAddress.unsafelyUnwrapped }
    }

    /// Ends it, without a word to anybody.
    func close() {
        guard isAlive else { return }
        isAlive = false
        for rank in ranks { rank.engine.close() }
    }

    /// Bytes that its NICs have sent.
    var sentBytes: UInt64 {
        ranks.reduce(0) { $1.engine.statistics().nics.reduce($0) { $0 + $1.bytes } }
    }

    // MARK: Pages

    /// Takes pages for so many tokens, or nil when there are not enough: any of them, as when requests come and go for long.
    func take(tokens: Int) -> PageTable? {
        let count = (tokens + shape.pageTokens - 1) / shape.pageTokens
        guard count <= freePages.count else { return nil }
        return PageTable(
            pages: (0..<count).map { _ in
                freePages.swapAt(.random(in: freePages.indices, using: &random), freePages.count - 1)
                return freePages.removeLast()
            })
    }

    /// Whether all pages are free.
    var isWhole: Bool { freePages.count == pageCount }

    /// Gives pages back.
    func give(_ table: PageTable) { freePages += table.pages }

    // MARK: What is in them

    /// Writes tags of an attempt into some pages of a layer, which is all that there is of computing them.
    func compute(_ attempt: ClusterAttempt, _ table: PageTable, layer: Int, pages: Range<Int>) {
        for page in pages { set(tag(attempt, layer, page), layer, table.pages[page]) }
    }

    /// Spoils a page.
    func spoil(_ table: PageTable, layer: Int, page: Int) { set(.free, layer, table.pages[page]) }

    /// Makes pages nobody's: from now on they must not change.
    func clear(_ table: PageTable) {
        for layer in 0..<shape.layers { for page in table.pages { set(.free, layer, page) } }
    }

    /// How many pages do not hold what an attempt has computed.
    func wrong(_ attempt: ClusterAttempt, _ table: PageTable) -> Int {
        var count = 0
        for layer in 0..<shape.layers {
            for (page, place) in table.pages.enumerated() {
                if !holds(tag(attempt, layer, page), layer, place) { count += 1 }
            }
        }
        return count
    }

    /// How many pages have been written to since they were nobody's.
    func damaged(_ table: PageTable) -> Int { damaged(table.pages) }

    /// How many pages have been written to although they are free.
    var damaged: Int { damaged(freePages) }

    private func damaged(_ pages: [UInt32]) -> Int {
        var count = 0
        for layer in 0..<shape.layers { for page in pages where !holds(.free, layer, page) { count += 1 } }
        return count
    }

    private func tag(_ attempt: ClusterAttempt, _ layer: Int, _ page: Int) -> Tag {
        let tokens = min(shape.pageTokens, attempt.tokens - page * shape.pageTokens)
        return Tag(attempt, layer: layer, page: page, tokens: tokens)
    }

    private func set(_ tag: Tag, _ layer: Int, _ page: UInt32) {
        unsafe forEachPlace(layer, page) { unsafe $0.storeBytes(of: tag, as: Tag.self) }
    }

    private func holds(_ tag: Tag, _ layer: Int, _ page: UInt32) -> Bool {
        var isRight = true
        unsafe forEachPlace(layer, page) { if unsafe $0.load(as: Tag.self) != tag { isRight = false } }
        return isRight
    }

    /// Calls `body` with where the sample of a page lies, on every rank and in every plane.
    private func forEachPlace(_ layer: Int, _ page: UInt32, _ body: (UnsafeMutableRawPointer) -> Void) {
        for rank in ranks.indices {
            for plane in ranks[rank].placement.layers[layer] {
                let offset = plane.offset + Int(page) * plane.stride
                unsafe body(bases[rank] + sample.place(of: offset))
            }
        }
    }
}

/// One try at a request: what its pages are told apart by.
struct ClusterAttempt: Hashable {
    /// From 1 on.
    var request: Int
    /// From 1 on.
    var number: Int
    /// Tokens of the prompt.
    var tokens: Int

    /// Both numbers in one.
    var word: UInt64 { UInt64(request) << 16 | UInt64(number & 0xFFFF) }

    /// As the prefiller is told.
    var input: [UInt8] { (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64($0))) } }

    init(request: Int, number: Int, tokens: Int) {
        self.request = request
        self.number = number
        self.tokens = tokens
    }

    /// As the prefiller learns it.
    init(_ job: KVJob) {
        let word = job.input.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        self.init(request: Int(word >> 16), number: Int(word & 0xFFFF), tokens: job.span.end)
    }
}
