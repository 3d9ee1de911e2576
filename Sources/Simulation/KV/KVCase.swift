public import KVCacheTransfer
public import TransferCore

/// One simulated run of prefillers and decoders, as data.
public struct KVCase: Hashable, Sendable {
    /// One instance.
    public struct Node: Hashable, Sendable {
        /// How it keeps the cache.
        public var layout: KVLayout
        /// NICs of each rank.
        public var nics: Int
        /// Pages of each group.
        public var pageCount: Int
    }

    /// One request.
    public struct Request: Hashable, Sendable {
        /// Virtual nanoseconds.
        public var time: UInt64
        /// Which decoder gets it.
        public var decoder: Int
        /// Its tokens.
        public var span: TokenSpan
        /// When its client goes away, after its beginning; nil is never.
        public var cancelAfter: UInt64?
        /// When its prefiller preempts it, after its beginning; nil is never.
        public var abortAfter: UInt64?
        /// Whether layers are announced.
        public var isLayerwise: Bool
        /// Whether it wants a tail.
        public var hasTail: Bool
        /// How long its decoder waits before it gives up a prefiller.
        public var timeout: UInt64
    }

    /// Everything random in the run itself comes from this.
    public var seed: UInt64
    /// Prefillers, then decoders.
    public var nodes: [Node]
    /// How many of the nodes are prefillers.
    public var prefillers: Int
    /// Whether the decoders compare digests.
    public var digests = false
    /// What is asked, ordered by time.
    public var requests: [Request]
    /// What goes wrong; processes are nodes.
    public var faults: [Fault]

    /// The case of a seed: every third one without faults, so that it must be all well.
    public static func draw(seed: UInt64) -> KVCase {
        var random = SeededGenerator(seed: seed &* 0x9E37_79B9 &+ 17)
        let layers = Int.random(in: 1...4, using: &random)
        var groups = [CacheGroup(layers: Array(0..<layers), heads: 4, keyBytes: 8, valueBytes: 8)]
        if Bool.random(using: &random) { groups[0].heads = 1 }
        if layers > 1, Bool.random(using: &random) {
            groups[0].layers = (0..<layers).filter { $0 % 2 == 0 }
            groups.append(
                CacheGroup(
                    layers: (0..<layers).filter { $0 % 2 == 1 }, heads: 2, keyBytes: 12, valueBytes: 4,
                    window: 20))
        }
        let model = KVModel(name: "simulated", elementType: "u8", groups: groups)
        let prefillers = Int.random(in: 1...3, using: &random)
        let decoders = Int.random(in: 1...3, using: &random)
        let nodes = (0..<prefillers + decoders).map { _ in
            Node(
                layout: layout(model, &random), nics: Int.random(in: 1...2, using: &random),
                pageCount: Int.random(in: 24...40, using: &random))
        }
        var plan = KVCase(seed: seed, nodes: nodes, prefillers: prefillers, requests: [], faults: [])
        if seed % 3 != 0 { plan.faults = faults(nodes, &random) }
        for _ in 0..<Int.random(in: 4...30, using: &random) {
            plan.requests.append(request(decoders, isCalm: seed % 6 == 0, &random))
        }
        plan.requests.sort { $0.time < $1.time }
        plan.digests = seed % 5 < 2
        if plan.digests, seed % 3 == 1 {
            plan.faults.append(
                Fault(
                    .damage(perMillion: Int.random(in: 1000...20_000, using: &random)), from: 0,
                    to: 300_000_000))
        }
        return plan
    }

    private static func layout(_ model: KVModel, _ random: inout SeededGenerator) -> KVLayout {
        let layers = model.layerCount
        let cut = Int.random(in: 0...layers, using: &random)
        return KVLayout(
            model: model, tensorRanks: [1, 2, 4].randomElement(using: &random) ?? 1,
            stages: Int.random(in: 0..<4, using: &random) == 0 ? [0..<cut, cut..<layers] : nil,
            formats: model.groups.map { _ in
                PageFormat(
                    pageTokens: [4, 6, 8].randomElement(using: &random) ?? 4,
                    order: Bool.random(using: &random) ? .headsFirst : .tokensFirst,
                    arrangement: Bool.random(using: &random) ? .together : .separate)
            })
    }

    private static func request(_ decoders: Int, isCalm: Bool, _ random: inout SeededGenerator) -> Request {
        let end = Int.random(in: 1...60, using: &random)
        var request = Request(
            time: UInt64.random(in: 0...200_000_000, using: &random),
            decoder: Int.random(in: 0..<decoders, using: &random),
            span: TokenSpan(
                cached: Bool.random(using: &random) ? 0 : Int.random(in: 0...end, using: &random), end: end),
            isLayerwise: Bool.random(using: &random), hasTail: Bool.random(using: &random),
            timeout: 500_000_000)
        // Many at one moment.
        if Bool.random(using: &random) { request.time = request.time / 50_000_000 * 50_000_000 }
        guard !isCalm else { return request }
        if Int.random(in: 0..<3, using: &random) == 0 {
            request.cancelAfter = UInt64.random(in: 0...3_000_000, using: &random)
        }
        if Int.random(in: 0..<5, using: &random) == 0 {
            request.abortAfter = UInt64.random(in: 0...2_000_000, using: &random)
        }
        if Int.random(in: 0..<5, using: &random) == 0 {
            request.timeout = UInt64.random(in: 100_000...2_000_000, using: &random)
        }
        return request
    }

    private static func faults(_ nodes: [Node], _ random: inout SeededGenerator) -> [Fault] {
        (0..<Int.random(in: 1...3, using: &random)).map { _ in
            let node = Int.random(in: 0..<nodes.count, using: &random)
            let other = (node + Int.random(in: 1..<max(2, nodes.count), using: &random)) % nodes.count
            let begin = UInt64.random(in: 0...200_000_000, using: &random)
            let length = UInt64.random(in: 1_000_000...400_000_000, using: &random)
            let kind: Fault.Kind
            switch Int.random(in: 0..<7, using: &random) {
            case 0, 1: kind = .crash(process: node)
            case 2: kind = .loss(perMillion: Int.random(in: 100...20_000, using: &random))
            case 3: kind = .acknowledgementLoss(perMillion: Int.random(in: 100...50_000, using: &random))
            case 4: kind = .partition(from: node, to: other)
            case 5: kind = .pause(process: node)
            default:
                kind = .delay(
                    perMillion: 200_000, nanoseconds: UInt64.random(in: 0...10_000_000, using: &random))
            }
            return Fault(kind, from: begin, to: begin + length)
        }
    }
}

/// Runs a case of prefillers and decoders in virtual time.
/// - Throws: what opening engines throws.
public func simulate(_ plan: KVCase) throws(TransferError) -> Outcome { try KVWorld(plan).run() }

/// The smallest case found that still breaks a promise.
public func shrink(_ plan: KVCase) throws(TransferError) -> KVCase {
    var smallest = plan
    var isSmaller = true
    func takes(_ change: (inout KVCase) -> Void) throws(TransferError) -> Bool {
        var other = smallest
        change(&other)
        guard try !simulate(other).violations.isEmpty else { return false }
        smallest = other
        return true
    }
    while isSmaller {
        isSmaller = false
        for index in smallest.requests.indices.reversed() {
            if try takes({ $0.requests.remove(at: index) }) { isSmaller = true }
        }
        for index in smallest.faults.indices.reversed() {
            if try takes({ $0.faults.remove(at: index) }) { isSmaller = true }
        }
    }
    return smallest
}
