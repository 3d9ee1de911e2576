/// What a request becomes on the wire: a pure function of the request, the rails and a sequence number, by the same rules as
/// the engine's.
public struct TransferPlan: Hashable, Sendable {
    /// What is asked for.
    public enum Request: Hashable, Sendable {
        /// One range of so many bytes.
        case write(byteCount: Int)
        /// Pages of so many bytes; neighbours on both sides may travel as one when pages lie side by side.
        case pages(byteCount: Int, sources: [UInt32], targets: [UInt32], areAdjacent: Bool)
        /// A range of so many bytes to each of so many peers that have the same NICs.
        case scatter(byteCount: Int, targets: Int)
    }

    /// What one rail carries.
    public struct Part: Hashable, Sendable {
        /// The rail, by its place in `rails`.
        public var rail: Int
        /// Work requests.
        public var requests: Int
        /// Those of them that carry no immediate; the others are posted when these have been completed.
        public var silentRequests: Int
        /// Bytes.
        public var byteCount: Int
        /// Eighths of counts that its immediates add up to.
        public var eighths: Int
    }

    /// The pairs of NICs.
    public var rails: [Rail]
    /// What each rail carries; rails that carry nothing are not here.
    public var parts: [Part]

    /// Work requests of all rails.
    public var requests: Int { parts.reduce(0) { $0 + $1.requests } }
    /// Immediates of all rails.
    public var immediates: Int { parts.reduce(0) { $0 + $1.requests - $1.silentRequests } }
    /// What the receivers count.
    public var counts: Int { parts.reduce(0) { $0 + $1.eighths } / Int(Eighths.whole) }
    /// Bytes of all rails.
    public var byteCount: Int { parts.reduce(0) { $0 + $1.byteCount } }
    /// Whether a part of the data has to be there before the counted requests are posted.
    public var hasTwoStages: Bool { parts.contains { $0.silentRequests > 0 } }

    /// - Parameters:
    ///   - request: What is asked for; it carries an immediate.
    ///   - rails: The pairs of NICs; `local` is a position in `domains`.
    ///   - domains: The local NICs.
    ///   - maximumWriteBytes: For each rail, the longest write.
    ///   - stripeBytes: `Configuration.stripeBytes`.
    ///   - sequence: The number of the transfer; it decides which NIC has its turn.
    /// - Complexity: O(work requests).
    public init(
        of request: Request, rails: [Rail], domains: [DomainAttributes], maximumWriteBytes: [UInt64],
        stripeBytes: Int, sequence: UInt32 = 1
    ) {
        self.rails = rails
        var made = rails.indices.map {
            Part(rail: $0, requests: 0, silentRequests: 0, byteCount: 0, eighths: 0)
        }
        let planner = StripePlanner(stripeBytes: max(stripeBytes, StripePlanner.granule))
        let limit = maximumWriteBytes.min() ?? .max
        switch request {
        case .write(let byteCount):
            Self.add(byteCount, planner, rails, limit, sequence, to: &made)
        case .scatter(let byteCount, let targets):
            for target in 0..<targets {
                Self.add(byteCount, planner, rails, limit, sequence &+ UInt32(target), to: &made)
            }
        case .pages(let byteCount, let sources, let targets, let areAdjacent):
            for rail in rails.indices {
                let domain = domains[rails[rail].local]
                let range = (0...1).map {
                    StripePlanner.start(
                        ofRail: rail + $0, units: sources.count, rails: rails.span, sequence: sequence)
                }
                let merge = StripePlanner.mergeLimit(
                    pageBytes: byteCount, areAdjacent: areAdjacent, counts: true,
                    countsManyBytes: domain.countsMany ? domain.countsManyBytes : 0,
                    maximumWriteBytes: maximumWriteBytes[rail])
                Self.add(byteCount, sources, targets, range[0]..<range[1], merge, limit, to: &made[rail])
            }
        }
        parts = made.filter { $0.requests > 0 }
    }

    private static func add(
        _ byteCount: Int, _ planner: StripePlanner, _ rails: [Rail], _ limit: UInt64, _ sequence: UInt32,
        to parts: inout [Part]
    ) {
        let pieces = Table(repeating: Piece(rail: 0, offset: 0, length: 0), count: max(1, rails.count))
        let count = planner.cut(length: byteCount, rails: rails.span, sequence: sequence, into: pieces)
        for piece in 0..<count { add(pieces[piece], limit, to: &parts[pieces[piece].rail]) }
    }

    private static func add(
        _ byteCount: Int, _ sources: [UInt32], _ targets: [UInt32], _ range: Range<Int>, _ merge: Int,
        _ limit: UInt64, to part: inout Part
    ) {
        if UInt64(byteCount) > limit {
            for _ in range {
                add(
                    Piece(rail: part.rail, offset: 0, length: byteCount, eighths: Eighths.whole), limit,
                    to: &part)
            }
            return
        }
        var page = range.lowerBound
        while page < range.upperBound {
            let first = page
            page += 1
            while page < range.upperBound, sources[page] == sources[page - 1] &+ 1,
                targets[page] == targets[page - 1] &+ 1, (page - first + 1) * byteCount <= merge
            { page += 1 }
            part.requests += 1
            part.byteCount += (page - first) * byteCount
            part.eighths += (page - first) * Int(Eighths.whole)
        }
    }

    /// The requests of a piece: silent ones first, then the one that counts.
    private static func add(_ piece: Piece, _ limit: UInt64, to part: inout Part) {
        for isSilent in [true, false] {
            var offset = 0
            while let chunk = piece.chunk(from: offset, limit: limit, counts: true, isSilent: isSilent) {
                part.requests += 1
                if chunk.eighths == 0 { part.silentRequests += 1 }
                part.byteCount += chunk.length
                part.eighths += Int(chunk.eighths)
                offset = chunk.offset + max(1, chunk.length)
            }
        }
    }
}

extension TransferPlan {
    /// What a fabric costs besides bytes. Rough: for comparing plans, not for promising times.
    public struct Cost: Hashable, Sendable {
        /// From posting to the moment at which the receiver has counted, for an empty write.
        public var latencyNanoseconds: Double
        /// For each work request, on its NIC.
        public var requestNanoseconds: Double

        public init(latencyNanoseconds: Double, requestNanoseconds: Double) {
            self.latencyNanoseconds = latencyNanoseconds
            self.requestNanoseconds = requestNanoseconds
        }

        /// What is usual for a fabric.
        public static func usual(of fabric: String) -> Cost {
            switch fabric {
            case "shm": Cost(latencyNanoseconds: 300, requestNanoseconds: 60)
            case "roce", "infiniband": Cost(latencyNanoseconds: 2500, requestNanoseconds: 100)
            case "efa": Cost(latencyNanoseconds: 15_000, requestNanoseconds: 300)
            default: Cost(latencyNanoseconds: 20_000, requestNanoseconds: 2000)
            }
        }
    }

    /// How long it takes when nothing else goes on: the busiest NIC of either side, and the latency of each stage.
    public func nanoseconds(
        local: [DomainAttributes], remote: [RemoteRegion.NIC], cost: Cost
    ) -> Double {
        func busiest(_ nic: (Rail) -> Int, _ speed: (Int) -> UInt32) -> Double {
            Dictionary(grouping: parts) { nic(rails[$0.rail]) }.map { nic, parts in
                let bytes = parts.reduce(0) { $0 + $1.byteCount }
                let requests = parts.reduce(0) { $0 + $1.requests }
                return Double(bytes) * 8000 / Double(max(1, speed(nic))) + Double(requests)
                    * cost.requestNanoseconds
            }.max() ?? 0
        }
        let stages = hasTwoStages ? 2.0 : 1
        let ours = busiest({ $0.local }, { local[$0].megabitsPerSecond })
        let theirs = busiest({ $0.remote }, { remote[$0].megabitsPerSecond })
        return stages * cost.latencyNanoseconds + max(ours, theirs)
    }
}
