internal import KVCacheTransfer
internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// One instance of a run: its engines, its memory, and which of its pages are in use.
@safe final class KVNode {
    // SAFETY: `memories` and `tails` are allocated in `init` and freed in `close`, after the engines have been closed.
    /// What pages hold that belong to nobody.
    static let canary: UInt8 = 0xA5
    static let tailBytes = 48
    static let tailCount = 40

    let index: Int
    let layout: KVLayout
    private(set) var ranks: [KVRank] = []
    private(set) var isAlive = true
    private let pageCount: Int
    private var memories: [UnsafeMutableRawBufferPointer]
    private var tails: [UnsafeMutableRawBufferPointer]
    /// Pages of each group, and tail slots, that belong to nobody: the ones used longest ago first.
    private var freePages: [[UInt32]]
    private var freeTails: [Int]

    init(
        _ index: Int, incarnation: Int, _ node: KVCase.Node, _ seed: UInt64, _ network: SimulatedNetwork,
        _ adopt: (_ id: UInt64, _ nic: Int) -> Void
    ) throws(TransferError) {
        self.index = index
        layout = node.layout
        pageCount = node.pageCount
        unsafe memories = []
        unsafe tails = []
        freePages = node.layout.formats.map { _ in Array(0..<UInt32(node.pageCount)) }
        freeTails = Array(0..<Self.tailCount)
        for rank in 0..<node.layout.rankCount {
            var configuration = Configuration(
                name: "node \(index).\(incarnation) rank \(rank)", progress: .manual,
                timeout: .nanoseconds(Int64(KVWorld.timeout)))
            configuration.liveness = World.liveness
            let engine = try TransferEngine(
                configuration, clock: network,
                random: SeededGenerator(seed: seed &+ UInt64(index * 10_000 + incarnation * 100 + rank + 1))
            ) { page in
                (0..<node.nics).map { nic in
                    let domain = network.openDomain(
                        SimulatedNIC(
                            name: "\(index).\(rank).\(nic)", megabitsPerSecond: 10_000,
                            jitterNanoseconds: 20_000),
                        page: page, engine: page.engine)
                    adopt(domain.id, rank * node.nics + nic)
                    return domain
                }
            }
            let placement = KVPlacement.contiguous(node.layout, rank: rank, pageCount: node.pageCount)
            let bytes = placement.regionBytes(node.layout, rank: rank).first ?? 0
            unsafe memories.append(.allocate(byteCount: max(bytes, 64), alignment: 4096))
            unsafe tails.append(.allocate(byteCount: Self.tailCount * Self.tailBytes, alignment: 4096))
            unsafe memories[rank].initializeMemory(as: UInt8.self, repeating: Self.canary)
            unsafe tails[rank].initializeMemory(as: UInt8.self, repeating: Self.canary)
            ranks.append(
                KVRank(
                    engine: engine,
                    regions: [
                        try unsafe engine.register(memories[rank]), try unsafe engine.register(tails[rank]),
                    ],
                    placement: placement))
        }
    }

    func close() {
        guard isAlive else { return }
        isAlive = false
        for rank in ranks { rank.engine.close() }
        for rank in ranks.indices {
            unsafe memories[rank].deallocate()
            unsafe tails[rank].deallocate()
        }
    }

    // MARK: Pages

    /// Pages and a place for a tail: what a request has on one side.
    struct Room {
        var tables: [PageTable]
        var tail: Int
    }

    /// Takes room for a request, or nil when there is not enough.
    func take(_ tokens: (_ group: Int) -> Range<Int>) -> Room? {
        var firsts: [Int] = []
        var counts: [Int] = []
        for (group, format) in layout.formats.enumerated() {
            let tokens = tokens(group)
            let first = tokens.lowerBound / format.pageTokens
            firsts.append(first)
            counts.append(tokens.isEmpty ? 0 : (tokens.upperBound - 1) / format.pageTokens - first + 1)
            guard counts[group] <= freePages[group].count else { return nil }
        }
        guard let tail = freeTails.first else { return nil }
        freeTails.removeFirst()
        return Room(
            tables: layout.formats.indices.map { group in
                defer { freePages[group].removeFirst(counts[group]) }
                return PageTable(first: firsts[group], pages: Array(freePages[group].prefix(counts[group])))
            }, tail: tail)
    }

    /// Gives room back: from now on its bytes must not change.
    func give(_ room: Room) {
        guard isAlive else { return }
        for (group, table) in room.tables.enumerated() {
            for page in table.pages {
                unsafe forEachRange(group, page) {
                    unsafe $0.initializeMemory(as: UInt8.self, repeating: Self.canary)
                }
            }
            freePages[group] += table.pages
        }
        for rank in ranks.indices {
            for byte in 0..<Self.tailBytes {
                unsafe tails[rank][room.tail * Self.tailBytes + byte] = Self.canary
            }
        }
        freeTails.append(room.tail)
    }

    /// Whether everything that has been taken is back.
    var isWhole: Bool { freePages.allSatisfy { $0.count == pageCount } && freeTails.count == Self.tailCount }

    /// What has been written into pages that belong to nobody.
    func damage() -> String? {
        for (group, pages) in freePages.enumerated() {
            for page in pages {
                var isDamaged = false
                unsafe forEachRange(group, page) { range in
                    if unsafe range.contains(where: { $0 != Self.canary }) { isDamaged = true }
                }
                if isDamaged {
                    return "node \(index): page \(page) of group \(group) was written to while it was free"
                }
            }
        }
        return nil
    }

    private func forEachRange(_ group: Int, _ page: UInt32, _ body: (UnsafeMutableRawBufferPointer) -> Void) {
        for rank in ranks.indices {
            let memory = unsafe memories[rank]
            for (layer, planes) in zip(layout.stages[rank / layout.tensorRanks], ranks[rank].placement.layers)
            where layout.group(ofLayer: layer) == group {
                for plane in planes {
                    let begin = plane.offset + Int(page) * plane.stride
                    unsafe body(UnsafeMutableRawBufferPointer(rebasing: memory[begin..<begin + plane.stride]))
                }
            }
        }
    }

    // MARK: Content

    /// Calls `body` with every byte of some tokens of a layer: where it is, and what a request has there.
    private func forEachByte(
        layer: Int, tokens: Range<Int>, _ table: PageTable, _ content: UInt64,
        _ body: (UnsafeMutablePointer<UInt8>, UInt8) -> Void
    ) {
        guard let index = layout.group(ofLayer: layer), let stage = layout.stage(ofLayer: layer) else {
            return
        }
        let (group, format) = (layout.model.groups[index], layout.formats[index])
        for tensorRank in 0..<layout.tensorRanks {
            let rank = stage * layout.tensorRanks + tensorRank
            let planes = ranks[rank].placement.layers[layer - layout.stages[stage].lowerBound]
            let heads = layout.heads(ofGroup: index, tensorRank: tensorRank)
            for head in heads {
                for token in tokens {
                    let page = Int(table.pages[token / format.pageTokens - table.first])
                    let (h, t) = (head - heads.lowerBound, token % format.pageTokens)
                    for (part, bytes) in [group.keyBytes, group.valueBytes].enumerated() {
                        let plane = planes[part == 1 && planes.count == 2 ? 1 : 0]
                        let behind =
                            part == 1 && planes.count == 1
                            ? group.keyBytes * heads.count * format.pageTokens : 0
                        let place =
                            format.order == .headsFirst ? h * format.pageTokens + t : t * heads.count + h
                        let offset = plane.offset + page * plane.stride + behind + place * bytes
                        for byte in 0..<bytes {
                            let address = unsafe memories[rank].baseAddress.unsafelyUnwrapped + offset + byte
                            unsafe body(
                                address.assumingMemoryBound(to: UInt8.self),
                                Self.content(content, layer, head, token, part * 64 + byte))
                        }
                    }
                }
            }
        }
    }

    private static func content(_ content: UInt64, _ layer: Int, _ head: Int, _ token: Int, _ byte: Int)
        -> UInt8
    {
        var word =
            content &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(((layer * 64 + head) * 4096 + token) * 128 + byte)
        word = (word ^ word >> 29) &* 0xBF58_476D_1CE4_E5B9
        return UInt8(truncatingIfNeeded: word >> 32)
    }

    /// What a model does: fills in what a request keeps for some tokens in one layer.
    func compute(_ content: UInt64, layer: Int, tokens: Range<Int>, _ room: Room) {
        guard let group = layout.group(ofLayer: layer) else { return }
        unsafe forEachByte(layer: layer, tokens: tokens, room.tables[group], content) {
            unsafe $0.pointee = $1
        }
    }

    /// Whether a layer holds what the model of a request computes.
    func holds(_ content: UInt64, layer: Int, tokens: Range<Int>, _ room: Room) -> Bool {
        guard let group = layout.group(ofLayer: layer) else { return true }
        var isRight = true
        unsafe forEachByte(layer: layer, tokens: tokens, room.tables[group], content) {
            if unsafe $0.pointee != $1 { isRight = false }
        }
        return isRight
    }

    func computeTail(_ content: UInt64, rank: Int, _ room: Room) {
        for byte in 0..<Self.tailBytes {
            unsafe tails[rank][room.tail * Self.tailBytes + byte] = Self.content(content, 999, 0, 0, byte)
        }
    }

    func holdsTail(_ content: UInt64, rank: Int, _ room: Room) -> Bool {
        (0..<Self.tailBytes).allSatisfy {
            unsafe tails[rank][room.tail * Self.tailBytes + $0] == Self.content(content, 999, 0, 0, $0)
        }
    }
}
