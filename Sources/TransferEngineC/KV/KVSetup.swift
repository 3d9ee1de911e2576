internal import CPlatform
internal import CTransferEngine
internal import KVCacheTransfer
internal import Synchronization
internal import TransferEngine

/// What a role is opened with: engines that have no other role, and regions that are lent to it.
struct KVSetup: Sendable {
    let configuration: KVConfiguration
    let layout: KVLayout
    private(set) var ranks: [KVRank] = []
    private var boxes: [EngineBox] = []
    private var regions: [[Handle]] = []
    /// Nanoseconds that `te_kv_close` waits for writes to end.
    let closeTimeout: UInt64

    /// Takes what the caller's structures name. `giveBack` returns it; when this throws nothing has been taken.
    init(
        _ config: UnsafePointer<te_kv_config>?, _ layout: UnsafePointer<te_kv_layout>?,
        _ ranks: UnsafePointer<te_kv_rank>?, _ rankCount: UInt64
    ) throws(Failure) {
        let config = try readSized(config, "config", as: te_kv_config.self, oldest: 40)
        configuration = try KVConfiguration(config)
        closeTimeout =
            (config.cancel_timeout_ns > 0 ? config.cancel_timeout_ns : 5_000_000_000) + 1_000_000_000
        let layout = try KVLayout(try readSized(layout, "layout", as: te_kv_layout.self, oldest: 56))
        self.layout = layout
        try kv { () throws(KVError) in try layout.validate() }
        guard rankCount == UInt64(layout.rankCount) else {
            throw Failure(TE_EINVALID, "\(rankCount) ranks; the layout has \(layout.rankCount)")
        }
        guard ranks != nil else { throw Failure.isNull("ranks") }
        do throws(Failure) {
            var next = UnsafeRawPointer(ranks)
            for rank in 0..<Int(rankCount) {
                let c = try readSized(next, "rank", as: te_kv_rank.self)
                try take(c, rank)
                next = next.map { $0 + Int(c.size) }
            }
        } catch {
            giveBack(self.ranks.map(\.regions), revoking: false)
            throw error
        }
    }

    private mutating func take(_ c: te_kv_rank, _ rank: Int) throws(Failure) {
        let box = try takeEngine(c.engine)
        boxes.append(box)
        regions.append([])
        ranks.append(KVRank(engine: box.engine, regions: [], placement: KVPlacement(layers: [])))
        for bits in try list(c.regions, c.region_count, "regions") {
            guard ranks[rank].regions.count < KVLimits.regions else {
                throw Failure(TE_ELIMIT, "rank \(rank) has more than \(KVLimits.regions) regions")
            }
            guard let handle = Handle(bits, .region), handle.slot == box.slot else {
                throw Failure.badHandle(bits, .region)
            }
            let memory = try box.objects.withLock { objects throws(Failure) in
                guard let found = objects.regions[handle] else { throw Failure.badHandle(bits, .region) }
                try objects.refuseUse(of: found, by: box.engine)
                objects.regions[handle]?.isLent = true
                return found.memory
            }
            regions[rank].append(handle)
            ranks[rank].regions.append(memory)
        }
        ranks[rank].placement = try placement(c, rank)
    }

    private func takeEngine(_ bits: UInt64) throws(Failure) -> EngineBox {
        try registry.withLock { registry throws(Failure) in
            guard let (box, _) = registry.enter(bits, .engine) else {
                throw Failure.badHandle(bits, .engine)
            }
            defer { box.leave() }
            guard !box.isManual else {
                throw Failure(
                    TE_EINVALID, "a role needs an engine with a progress thread: adaptive or busy")
            }
            try box.takeMessages()
            return box
        }
    }

    private func placement(_ c: te_kv_rank, _ rank: Int) throws(Failure) -> KVPlacement {
        var planes = try list(c.planes, c.plane_count, "planes")[...]
        var layers: [[KVPlacement.Plane]] = []
        for layer in layout.stages[rank / layout.tensorRanks] {
            let group = layout.group(ofLayer: layer) ?? 0
            let count =
                layout.formats[group].arrangement == .separate && layout.model.groups[group].valueBytes > 0
                ? 2 : 1
            guard planes.count >= count else {
                throw Failure(TE_EINVALID, "rank \(rank) has too few planes: none is left for layer \(layer)")
            }
            var own: [KVPlacement.Plane] = []
            for plane in planes.prefix(count) {
                own.append(
                    KVPlacement.Plane(
                        region: Int(plane.region), offset: try integer(plane.offset, "plane.offset"),
                        stride: try integer(plane.stride, "plane.stride"),
                        pageCount: try integer(plane.page_count, "plane.page_count")))
            }
            planes = planes.dropFirst(count)
            layers.append(own)
        }
        guard planes.isEmpty else {
            throw Failure(TE_EINVALID, "rank \(rank) has \(planes.count) planes too many")
        }
        return KVPlacement(layers: layers)
    }

    func box(_ rank: Int) -> EngineBox { boxes[rank] }

    /// The moment at which a wait of so many nanoseconds ends, by the timeout of the first engine where it names none.
    func deadline(_ timeout: Int64) -> UInt64 { boxes[0].deadline(timeout) }

    func nanoseconds(until deadline: UInt64) -> UInt64 {
        let now = te_monotonic_nanoseconds()
        return deadline > now ? deadline - now : 0
    }

    /// Returns regions and engines to the caller.
    /// - Parameters:
    ///   - current: The regions as they are now.
    ///   - revoking: Whether somebody may still use them.
    func giveBack(_ current: [[MemoryRegion]], revoking: Bool) {
        for (rank, box) in boxes.enumerated() {
            for (index, handle) in regions[rank].enumerated() {
                var memory: MemoryRegion? = current[rank][index]
                if revoking, let region = memory { memory = try? box.engine.revoke(region) }
                box.objects.withLock { objects in
                    objects.regions.suspend(handle)
                    objects.regions.resume(handle, memory.map { Objects.Region(memory: $0) })
                }
            }
            box.giveBackMessages()
        }
    }
}

extension KVConfiguration {
    fileprivate init(_ c: te_kv_config) throws(Failure) {
        guard let name = string(c.name), !name.isEmpty, name.utf8.count <= KVLimits.textBytes else {
            throw Failure(TE_EINVALID, "config.name is 1 to \(KVLimits.textBytes) bytes")
        }
        self.init(name: name)
        let day: UInt64 = 86_400_000_000_000
        guard c.heartbeats == 0 || (2...1000).contains(c.heartbeats), c.heartbeat_ns <= day,
            c.cancel_timeout_ns <= day, c.quarantine_ns <= day
        else { throw Failure(TE_EINVALID, "config: 2 to 1000 heartbeats, no time longer than a day") }
        if c.heartbeats > 0 { heartbeats = Int(c.heartbeats) }
        if c.heartbeat_ns > 0 { heartbeat = .nanoseconds(Int64(c.heartbeat_ns)) }
        if c.cancel_timeout_ns > 0 { cancelTimeout = .nanoseconds(Int64(c.cancel_timeout_ns)) }
        if c.quarantine_ns > 0 { quarantine = .nanoseconds(Int64(c.quarantine_ns)) }
        digests = c.digests != 0
    }
}

extension KVLayout {
    fileprivate init(_ c: te_kv_layout) throws(Failure) {
        func text(_ pointer: UnsafePointer<CChar>?, _ name: StaticString) throws(Failure) -> String {
            guard let text = string(pointer), text.utf8.count <= KVLimits.textBytes else {
                throw Failure(TE_EINVALID, "layout.\(name) is a text of at most \(KVLimits.textBytes) bytes")
            }
            return text
        }
        guard c.groups != nil, (1...UInt64(KVLimits.groups)).contains(c.group_count) else {
            throw Failure(TE_EINVALID, "layout.groups: 1 to \(KVLimits.groups)")
        }
        var groups: [CacheGroup] = []
        var formats: [PageFormat] = []
        var next = UnsafeRawPointer(c.groups)
        for _ in 0..<c.group_count {
            let group = try readSized(next, "group", as: te_kv_group.self)
            groups.append(try CacheGroup(group))
            formats.append(try PageFormat(group))
            next = next.map { $0 + Int(group.size) }
        }
        let model = KVModel(
            name: try text(c.model, "model"), elementType: try text(c.element_type, "element_type"),
            groups: groups)
        guard c.tensor_ranks <= UInt32(KVLimits.ranks), c.stage_count <= UInt64(KVLimits.ranks) else {
            throw Failure(TE_ELIMIT, "layout: at most \(KVLimits.ranks) ranks")
        }
        var stages: [Range<Int>] = []
        for end in try list(c.stage_ends, c.stage_count, "stage_ends") {
            let begin = stages.last?.upperBound ?? 0
            guard Int(end) >= begin else {
                throw Failure(TE_EINVALID, "layout.stage_ends: a stage ends before it begins")
            }
            stages.append(begin..<Int(end))
        }
        // All of them is no part; a first rank that is not the first of all has to be one, and is checked.
        let isAll = c.all_tensor_ranks == 0 || c.all_tensor_ranks == c.tensor_ranks
        let isPart = !isAll || c.first_tensor_rank != 0
        let part = KVLayout.Part(
            firstTensorRank: Int(c.first_tensor_rank), allTensorRanks: Int(c.all_tensor_ranks))
        self.init(
            model: model, tensorRanks: Int(c.tensor_ranks), part: isPart ? part : nil,
            stages: stages.isEmpty ? nil : stages, formats: formats)
    }
}

extension CacheGroup {
    fileprivate init(_ c: te_kv_group) throws(Failure) {
        guard c.layer_count <= UInt64(KVLimits.layers) else {
            throw Failure(TE_ELIMIT, "a group of \(c.layer_count) layers; at most \(KVLimits.layers)")
        }
        self.init(
            layers: try list(c.layers, c.layer_count, "layers").map { Int($0) }, heads: Int(c.heads),
            keyBytes: Int(c.key_bytes), valueBytes: Int(c.value_bytes),
            window: c.window == 0 ? nil : Int(c.window))
    }
}

extension PageFormat {
    fileprivate init(_ c: te_kv_group) throws(Failure) {
        guard let order = Order(rawValue: UInt8(clamping: c.order)),
            let arrangement = Arrangement(rawValue: UInt8(clamping: c.arrangement))
        else { throw Failure(TE_EINVALID, "group: order \(c.order), arrangement \(c.arrangement)") }
        self.init(pageTokens: Int(c.page_tokens), order: order, arrangement: arrangement)
    }
}

/// The page tables of a caller, one for each group.
func pageTables(_ tables: UnsafePointer<te_kv_table>?, _ count: UInt64) throws(Failure) -> [PageTable] {
    guard count <= UInt64(KVLimits.groups) else {
        throw Failure(TE_ELIMIT, "\(count) page tables; one for each group")
    }
    var result: [PageTable] = []
    for table in try list(tables, count, "tables") {
        guard table.count <= UInt64(KVLimits.pages), table.first <= UInt64(KVLimits.tokens) else {
            throw Failure(TE_ELIMIT, "a table of \(table.count) pages from \(table.first)")
        }
        result.append(
            PageTable(first: Int(table.first), pages: Array(try list(table.pages, table.count, "pages"))))
    }
    return result
}
