public import TransferEngine

/// One rank of an instance: its engine, and where its cache lies.
public struct KVRank: Sendable {
    /// The engine of the rank's device.
    public var engine: TransferEngine
    /// The regions that hold the cache; on a decoder peers may write into them.
    public var regions: [MemoryRegion]
    /// Where the pages lie in the regions.
    public var placement: KVPlacement

    /// Describes a rank.
    public init(engine: TransferEngine, regions: [MemoryRegion], placement: KVPlacement) {
        self.engine = engine
        self.regions = regions
        self.placement = placement
    }
}

/// How a prefiller or a decoder behaves.
public struct KVConfiguration: Sendable {
    /// Appears in errors, and tells a decoder that has come back.
    public var name: String
    /// How often a peer is told that we live.
    public var heartbeat: Duration
    /// After the silence of so many heartbeats a peer is lost.
    public var heartbeats: Int
    /// How long a prefiller's receipt may take before the pages go into quarantine.
    public var cancelTimeout: Duration
    /// How long pages stay in quarantine while other requests go on. Then new ones wait until those have ended, and the
    /// regions are revoked. Without other requests that is done at once.
    public var quarantine: Duration
    /// Whether a decoder compares what arrives with digests of what was sent. A request is ready only when they agree, and fails
    /// with `digestMismatch` when they do not. Both sides read all bytes once more for it; prefillers do so for decoders that
    /// want it.
    public var digests = false
    /// Runs the computation of digests, which takes as long as reading the bytes of a layer: by default on other threads.
    public var digestExecutor: @Sendable (@escaping @Sendable () -> Void) -> Void = { body in
        Task.detached { body() }
    }

    /// What is understood: less only to be, in tests, what was there before.
    var versions = KVMessage.versions

    /// The defaults suit a cluster.
    public init(
        name: String, heartbeat: Duration = .seconds(1), heartbeats: Int = 3,
        cancelTimeout: Duration = .seconds(5),
        quarantine: Duration = .seconds(5)
    ) {
        precondition(heartbeat > .zero && heartbeats >= 2, "liveness needs time to tell and to hear")
        self.name = name
        self.heartbeat = heartbeat
        self.heartbeats = heartbeats
        self.cancelTimeout = cancelTimeout
        self.quarantine = quarantine
    }
}

extension Duration {
    /// Nanoseconds, saturating; negative durations are 0.
    var nanoseconds: UInt64 {
        let (seconds, attoseconds) = components
        guard seconds >= 0, attoseconds >= 0 else { return 0 }
        let (product, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
        return overflow ? .max : product &+ UInt64(attoseconds / 1_000_000_000)
    }
}

/// Checks that ranks are what a layout says.
func validate(_ ranks: [KVRank], _ layout: KVLayout) throws(KVError) {
    try layout.validate()
    guard ranks.count == layout.rankCount else {
        throw KVError(.invalidLayout, "\(ranks.count) ranks; the layout has \(layout.rankCount)")
    }
    for (index, rank) in ranks.enumerated() {
        try rank.placement.validate(layout, rank: index, regionBytes: rank.regions.map(\.byteCount))
    }
}

extension KVLayout {
    /// Checks that all pages of some tables exist on every rank.
    func checkPages(_ tables: [PageTable], _ placements: [KVPlacement]) throws(KVError) {
        guard tables.count == formats.count else {
            throw KVError(
                .invalidLayout, "\(tables.count) page tables; one for each of \(formats.count) groups")
        }
        let largest = tables.map { $0.pages.max() }
        for (rank, placement) in placements.enumerated() {
            for (layer, planes) in zip(stages[rank / tensorRanks], placement.layers) {
                let group = group(ofLayer: layer) ?? 0
                let count = planes.reduce(.max) { min($0, $1.pageCount) }
                if let page = largest[group], Int(page) >= count {
                    throw KVError(.invalidLayout, "page \(page) of group \(group); rank \(rank) has \(count)")
                }
            }
        }
    }
}
