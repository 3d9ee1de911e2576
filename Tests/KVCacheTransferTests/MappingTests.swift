import Testing
import TransferEngine

@testable import KVCacheTransfer

/// Two layouts, a span and page tables drawn from a seed.
struct DrawnMapping: CustomTestStringConvertible {
    let seed: UInt64
    let mapping: KVMapping
    let span: TokenSpan
    let sources: [PageTable]
    let targets: [PageTable]
    var testDescription: String { "seed \(seed)" }

    static func draw(seed: UInt64) throws -> DrawnMapping {
        var random = SeededGenerator(seed: seed)
        let heads = [1, 2, 4, 12, 24].randomElement(using: &random) ?? 1
        let layers = Int.random(in: 1...6, using: &random)
        var groups = [
            CacheGroup(
                layers: Array(0..<layers), heads: heads, keyBytes: 4,
                valueBytes: [0, 4, 8].randomElement(using: &random) ?? 0)
        ]
        if layers > 1, Bool.random(using: &random) {
            groups[0].layers = (0..<layers).filter { $0 % 2 == 0 }
            groups.append(
                CacheGroup(
                    layers: (0..<layers).filter { $0 % 2 == 1 }, heads: heads, keyBytes: 6, valueBytes: 6,
                    window: [1, 7, 40].randomElement(using: &random)))
        }
        let model = KVModel(name: "m", elementType: "bf16", groups: groups)
        let end = Int.random(in: 1...150, using: &random)
        let span = TokenSpan(cached: Int.random(in: 0...end, using: &random), end: end)
        func layout() -> KVLayout {
            let ranks = [1, 2, 3, 4, 6, 8].filter { heads % $0 == 0 || $0 % heads == 0 }
            let cut = Int.random(in: 0...layers, using: &random)
            return KVLayout(
                model: model, tensorRanks: ranks.randomElement(using: &random) ?? 1,
                stages: Bool.random(using: &random) ? nil : [0..<cut, cut..<layers],
                formats: groups.map { _ in
                    PageFormat(
                        pageTokens: [1, 4, 6, 16, 32].randomElement(using: &random) ?? 1,
                        order: Bool.random(using: &random) ? .headsFirst : .tokensFirst,
                        arrangement: Bool.random(using: &random) ? .separate : .together)
                })
        }
        let mapping = try KVMapping(source: layout(), target: layout())
        func tables(_ layout: KVLayout) -> [PageTable] {
            groups.indices.map { group in
                let tokens = mapping.tokens(ofGroup: group, span)
                let page = layout.formats[group].pageTokens
                let first = tokens.lowerBound / page
                let count = tokens.isEmpty ? 0 : (tokens.upperBound - 1) / page - first + 1
                return PageTable(
                    first: first, pages: Array((0..<UInt32(count + 3)).shuffled(using: &random).prefix(count))
                )
            }
        }
        return DrawnMapping(
            seed: seed, mapping: mapping, span: span, sources: tables(mapping.source),
            targets: tables(mapping.target))
    }
}

/// Where a byte of the cache is, computed the slow way: one byte at a time, from the definition of the formats.
struct Byte: Hashable {
    var rank: Int
    var plane: Int
    var page: UInt32
    var offset: Int

    init(
        _ layout: KVLayout, layer: Int, tensorRank: Int, head: Int, part: Int, token: Int, byte: Int,
        _ table: PageTable
    ) {
        let index = layout.group(ofLayer: layer) ?? 0
        let group = layout.model.groups[index]
        let format = layout.formats[index]
        let heads = layout.heads(ofGroup: index, tensorRank: tensorRank)
        let bytes = part == 0 ? group.keyBytes : group.valueBytes
        let (h, t) = (head - heads.lowerBound, token % format.pageTokens)
        rank = (layout.stage(ofLayer: layer) ?? 0) * layout.tensorRanks + tensorRank
        plane = format.arrangement == .separate ? part : 0
        page = table.pages[token / format.pageTokens - table.first]
        offset =
            format.order == .headsFirst ? (h * format.pageTokens + t) * bytes : (t * heads.count + h) * bytes
        offset += byte
        if plane == 0, part == 1 { offset += group.keyBytes * heads.count * format.pageTokens }
    }
}

@Suite struct MappingTests {
    /// What every rank of the target must get for one layer: each byte, and the places that may send it.
    private func expectation(_ drawn: DrawnMapping, layer: Int) -> [Byte: Set<Byte>] {
        let (source, target) = (drawn.mapping.source, drawn.mapping.target)
        guard let group = source.group(ofLayer: layer) else { return [:] }
        var result: [Byte: Set<Byte>] = [:]
        let parts = [source.model.groups[group].keyBytes, source.model.groups[group].valueBytes]
        for tensorRank in 0..<target.tensorRanks {
            for head in target.heads(ofGroup: group, tensorRank: tensorRank) {
                let senders = (0..<source.tensorRanks).filter {
                    source.heads(ofGroup: group, tensorRank: $0).contains(head)
                }
                for token in drawn.mapping.tokens(ofGroup: group, drawn.span) {
                    for part in 0..<2 {
                        for byte in 0..<parts[part] {
                            func place(_ layout: KVLayout, _ rank: Int, _ tables: [PageTable]) -> Byte {
                                Byte(
                                    layout, layer: layer, tensorRank: rank, head: head, part: part,
                                    token: token,
                                    byte: byte, tables[group])
                            }
                            result[place(target, tensorRank, drawn.targets)] = Set(
                                senders.map { place(source, $0, drawn.sources) })
                        }
                    }
                }
            }
        }
        return result
    }

    /// The writes of a plan, with ranks counted in the whole instances.
    private struct Piece {
        var plan: KVTransferPlan
        var mapping: KVMapping

        func forEachWrite(layer: Int, _ body: (PageWrite) -> Void) {
            func whole(_ rank: Int, _ layout: KVLayout) -> Int {
                guard let part = layout.part else { return rank }
                let (stage, tensorRank) = rank.quotientAndRemainder(dividingBy: layout.tensorRanks)
                return stage * part.allTensorRanks + part.firstTensorRank + tensorRank
            }
            plan.forEachWrite(layer: layer) {
                var write = $0
                write.sourceRank = whole(write.sourceRank, mapping.source)
                write.targetRank = whole(write.targetRank, mapping.target)
                body(write)
            }
        }
    }

    private func check(_ plans: [KVTransferPlan], _ drawn: DrawnMapping, layer: Int) {
        check(plans.map { Piece(plan: $0, mapping: drawn.mapping) }, drawn, layer: layer)
    }

    private func check(_ pieces: [Piece], _ drawn: DrawnMapping, layer: Int) {
        var missing = expectation(drawn, layer: layer)
        var counts: [Int: Int] = [:]
        for piece in pieces {
            let plan = piece.plan
            piece.forEachWrite(layer: layer) { write in
                for (from, to) in zip(plan.lists[write.list].sources, plan.lists[write.list].targets) {
                    counts[write.targetRank, default: 0] += 1
                    for byte in 0..<write.byteCount {
                        var target = Byte(rank: write.targetRank, plane: write.targetPlane, page: to)
                        target.offset = write.targetOffset + byte
                        var source = Byte(rank: write.sourceRank, plane: write.sourcePlane, page: from)
                        source.offset = write.sourceOffset + byte
                        // Once, and from where the same byte lies.
                        #expect(missing.removeValue(forKey: target)?.contains(source) == true)
                    }
                }
            }
        }
        #expect(missing.isEmpty)
        for rank in 0..<drawn.mapping.target.rankCount {
            let stage = drawn.mapping.target.stages[rank / drawn.mapping.target.tensorRanks]
            let expected =
                stage.contains(layer) ? drawn.mapping.count(drawn.span, targetRank: rank, layer: layer) : 0
            #expect(counts[rank, default: 0] == expected)
        }
    }

    @Test(arguments: 1...120) func everyByteArrivesOnceAndIsCounted(seed: Int) throws {
        let drawn = try DrawnMapping.draw(seed: UInt64(seed))
        let plan = try KVTransferPlan(
            drawn.mapping, drawn.span, sources: drawn.sources, targets: drawn.targets, salt: UInt64(seed))
        for layer in 0..<drawn.mapping.source.model.layerCount { check([plan], drawn, layer: layer) }
    }

    /// Every rank, or some together, a role of its own: whoever asks all that have some of its heads, of equal ones one, gets
    /// what a role with all ranks gets, in as many writes.
    @Test(arguments: 1...120) func partsTogetherAreTheWhole(seed: Int) throws {
        let drawn = try DrawnMapping.draw(seed: UInt64(seed))
        var random = SeededGenerator(seed: UInt64(seed))
        func parts(_ layout: KVLayout) -> [KVLayout] {
            let sizes = (1..<layout.tensorRanks + 1).filter { layout.tensorRanks % $0 == 0 }
            let candidates = sizes.map { size in
                stride(from: 0, to: layout.tensorRanks, by: size).map { first in
                    var part = layout
                    part.tensorRanks = size
                    if size < layout.tensorRanks {
                        part.part = KVLayout.Part(
                            firstTensorRank: first, allTensorRanks: layout.tensorRanks)
                    }
                    return part
                }
            }
            return candidates.filter { (try? $0[0].validate()) != nil }.randomElement(using: &random)
                ?? [layout]
        }
        func heads(_ layout: KVLayout) -> [Range<Int>] {
            (0..<layout.tensorRanks).map { layout.heads(ofGroup: 0, tensorRank: $0) }
        }
        var sources: [KVLayout] = []
        for part in parts(drawn.mapping.source) where !sources.contains(where: { heads($0) == heads(part) }) {
            sources.append(part)
        }
        var pieces: [Piece] = []
        for target in parts(drawn.mapping.target) {
            for source in sources {
                let mapping: KVMapping
                do throws(KVError) { mapping = try KVMapping(source: source, target: target) } catch {
                    #expect(error.code == .incompatible)
                    #expect(!heads(source).contains { mine in heads(target).contains { mine.overlaps($0) } })
                    continue
                }
                let plan = try KVTransferPlan(
                    mapping, drawn.span, sources: drawn.sources, targets: drawn.targets, salt: UInt64(seed))
                pieces.append(Piece(plan: plan, mapping: mapping))
                for rank in 0..<target.rankCount {
                    let sum = target.stages[rank / target.tensorRanks].reduce(0) {
                        $0 + plan.count(layer: $1, targetRank: rank)
                    }
                    #expect(mapping.count(drawn.span, targetRank: rank) == sum)
                }
            }
        }
        for layer in 0..<drawn.mapping.source.model.layerCount { check(pieces, drawn, layer: layer) }
    }

    @Test(arguments: 1...60) func chunksAddUpToTheSameBytesAndCounts(seed: Int) throws {
        let drawn = try DrawnMapping.draw(seed: UInt64(seed))
        var random = SeededGenerator(seed: UInt64(seed))
        var plans: [KVTransferPlan] = []
        var begin = drawn.span.cached
        while begin < drawn.span.end {
            let end = min(begin + Int.random(in: 1...40, using: &random), drawn.span.end)
            plans.append(
                try KVTransferPlan(
                    drawn.mapping, drawn.span, chunk: begin..<end, sources: drawn.sources,
                    targets: drawn.targets,
                    salt: UInt64(seed)))
            begin = end
        }
        for layer in 0..<drawn.mapping.source.model.layerCount { check(plans, drawn, layer: layer) }
    }

    @Test(arguments: 1...200) func theCountOfAllLayersIsTheSumOverThem(seed: Int) throws {
        let drawn = try DrawnMapping.draw(seed: UInt64(seed))
        let target = drawn.mapping.target
        for rank in 0..<target.rankCount {
            let sum = target.stages[rank / target.tensorRanks].reduce(0) {
                $0 + drawn.mapping.count(drawn.span, targetRank: rank, layer: $1)
            }
            #expect(drawn.mapping.count(drawn.span, targetRank: rank) == sum)
        }
    }

    private func layout(
        _ ranks: Int, heads: Int = 8, page: Int = 16, _ order: PageFormat.Order = .headsFirst,
        _ arrangement: PageFormat.Arrangement = .together
    ) -> KVLayout {
        KVLayout(
            model: KVModel(
                name: "m", elementType: "bf16",
                groups: [CacheGroup(layers: Array(0..<64), heads: heads, keyBytes: 256, valueBytes: 256)]),
            tensorRanks: ranks,
            formats: [PageFormat(pageTokens: page, order: order, arrangement: arrangement)])
    }

    /// Writes of one layer that arrive at one rank for 160 tokens, 10 pages of 16.
    @Test func wholePagesAreWholeWrites() throws {
        let span = TokenSpan(end: 160)
        func count(_ source: KVLayout, _ target: KVLayout) throws -> Int {
            try KVMapping(source: source, target: target).count(span, targetRank: 0, layer: 0)
        }
        #expect(try count(layout(1), layout(1)) == 10)
        #expect(try count(layout(1, .headsFirst, .separate), layout(1)) == 20)
        // Keys and values of a slice of the heads lie apart in the longer page.
        #expect(try count(layout(4), layout(1)) == 4 * 2 * 10)
        #expect(try count(layout(1), layout(4)) == 2 * 10)
        #expect(try count(layout(6, heads: 12), layout(4, heads: 12)) == 2 * 2 * 10)
        #expect(try count(layout(1, .tokensFirst), layout(1, .tokensFirst)) == 10)
        // Tokens first and other ranks: one piece for each token. The other order as well: one for each token and head.
        #expect(try count(layout(4, .tokensFirst), layout(1, .tokensFirst)) == 4 * 2 * 160)
        #expect(try count(layout(1), layout(1, .tokensFirst)) == 2 * 8 * 160)
        // A page of 16 tokens is a piece of each head of a page of 32.
        #expect(try count(layout(1), layout(1, page: 32)) == 2 * 8 * 10)
        #expect(try count(layout(1, .tokensFirst), layout(1, page: 32, .tokensFirst)) == 2 * 10)
    }

    @Test func longRequestsHaveAsManyPageNumbersAsPages() throws {
        let tokens = 128 << 10
        let pages = Array(0..<UInt32(tokens / 16))
        for target in [layout(1), layout(4), layout(1, .tokensFirst)] {
            let plan = try KVTransferPlan(
                KVMapping(source: layout(4), target: target), TokenSpan(end: tokens),
                sources: [PageTable(pages: pages)], targets: [PageTable(pages: pages)])
            #expect(plan.lists.reduce(0) { $0 + $1.sources.count } == pages.count)
        }
    }

    /// All ranks that hold the latent send, each about as much.
    @Test func replicasShareTheLoad() throws {
        let model = KVModel(
            name: "mla", elementType: "bf16",
            groups: [CacheGroup(layers: Array(0..<60), heads: 1, keyBytes: 1152, valueBytes: 0)])
        let layout = KVLayout(model: model, tensorRanks: 4, formats: [PageFormat(pageTokens: 64)])
        let plan = try KVTransferPlan(
            KVMapping(source: layout, target: layout), TokenSpan(end: 640),
            sources: [PageTable(pages: Array(0..<10))], targets: [PageTable(pages: Array(0..<10))], salt: 7)
        var sent: [Int: Int] = [:]
        for layer in 0..<60 { plan.forEachWrite(layer: layer) { sent[$0.sourceRank, default: 0] += 1 } }
        #expect(sent == [0: 60, 1: 60, 2: 60, 3: 60])
    }

    @Test func aPageThatIsNotThereIsAnError() throws {
        let mapping = try KVMapping(source: layout(1), target: layout(1))
        let nine = [PageTable(pages: Array(0..<9))]
        let ten = [PageTable(pages: Array(0..<10))]
        #expect(throws: KVError.self) {
            try KVTransferPlan(mapping, TokenSpan(end: 160), sources: nine, targets: ten)
        }
        #expect(throws: KVError.self) {
            try KVTransferPlan(mapping, TokenSpan(end: 160), sources: ten, targets: nine)
        }
        #expect(throws: Never.self) {
            try KVTransferPlan(mapping, TokenSpan(end: 160), sources: ten, targets: ten)
        }
    }
}

extension Byte {
    fileprivate init(rank: Int, plane: Int, page: UInt32) {
        self.rank = rank
        self.plane = plane
        self.page = page
        offset = 0
    }
}

@Suite struct LayoutTests {
    private func layout(_ change: (inout KVLayout) -> Void = { _ in }) -> KVLayout {
        var layout = KVLayout(
            model: KVModel(
                name: "llama", elementType: "bf16",
                groups: [CacheGroup(layers: [0, 1], heads: 8, keyBytes: 256, valueBytes: 256)]),
            formats: [PageFormat(pageTokens: 16)])
        change(&layout)
        return layout
    }

    @Test func aMismatchNamesTheField() {
        let changes: [(String, (inout KVLayout) -> Void)] = [
            ("model", { $0.model.name = "qwen" }),
            ("elementType", { $0.model.elementType = "fp8_e4m3" }),
            ("groups[0].heads", { $0.model.groups[0].heads = 4 }),
            ("groups[0].keyBytes", { $0.model.groups[0].keyBytes = 128 }),
            ("groups[0].valueBytes", { $0.model.groups[0].valueBytes = 0 }),
            ("groups[0].window", { $0.model.groups[0].window = 4096 }),
        ]
        for (field, change) in changes {
            let error = #expect(throws: KVError.self) { try layout().checkCompatible(with: layout(change)) }
            #expect(error?.code == .incompatible)
            #expect(error?.message.hasPrefix(field + ":") == true)
        }
        #expect(throws: Never.self) {
            try layout().checkCompatible(
                with: layout {
                    $0.tensorRanks = 4
                    $0.formats = [PageFormat(pageTokens: 64, order: .tokensFirst, arrangement: .separate)]
                })
        }
    }

    @Test func layoutsThatDescribeNothingAreErrors() {
        let changes: [(inout KVLayout) -> Void] = [
            { $0.tensorRanks = 3 }, { $0.tensorRanks = 0 }, { $0.formats = [] },
            { $0.stages = [0..<1] }, { $0.stages = [1..<2, 0..<1] }, { $0.formats[0].pageTokens = 0 },
            { $0.model.groups[0].layers = [0, 0] }, { $0.model.groups[0].keyBytes = 0 },
            { $0.model.groups[0].window = 0 }, { $0.model.groups[0].heads = 0 },
            { $0.model.groups[0].layers = [1, 0] },
        ]
        for change in changes {
            let error = #expect(throws: KVError.self) { try layout(change).validate() }
            #expect(error?.code == .invalidLayout)
        }
    }

    @Test func planesStayInsideOfTheirRegions() throws {
        let layout = layout { $0.stages = [0..<1, 1..<2] }
        let placement = KVPlacement.contiguous(layout, rank: 1, pageCount: 10)
        let bytes = placement.regionBytes(layout, rank: 1)
        #expect(bytes == [10 * 16 * 8 * 512])
        try placement.validate(layout, rank: 1, regionBytes: bytes)
        for change: (inout KVPlacement) -> Void in [
            { $0.layers[0][0].pageCount += 1 }, { $0.layers[0][0].offset = 1 },
            { $0.layers[0][0].offset = -1 },
            { $0.layers[0][0].stride -= 1 }, { $0.layers[0][0].region = 1 }, { $0.layers = [] },
            { $0.layers[0] = [] }, { $0.layers[0][0].stride = .max },
        ] {
            var broken = placement
            change(&broken)
            #expect(throws: KVError.self) { try broken.validate(layout, rank: 1, regionBytes: bytes) }
        }
    }
}
