/// How long dispatch and combine take on NICs that are not here: a formula, with the paper's measurements put in.
///
/// The paper's algorithm packs everything, then posts everything, then waits for everything, then sorts everything; each
/// (token, expert) travels by itself. Ours (`ExpertExchange`) posts to each rank as soon as that rank's rows are packed,
/// sends a token once to a rank, and sorts rows as they arrive; so packing, posting and sorting hide behind the wire but
/// for the first and the last rank. Everything is in microseconds. It is a model: nothing of it was run on such a NIC.
public struct MoELatency: Hashable, Sendable {
    /// A NIC as the paper measured it.
    public struct NIC: Hashable, Sendable {
        /// What it is called on the command line.
        public var name: String
        /// Bytes in a microsecond: 400 Gbit/s.
        public var bytesPerMicrosecond = 50_000.0
        /// Posting one write (paper, table 9).
        public var post: Double
        /// A small write from one host to another.
        public var base: Double
        /// Kernels of the paper's implementation over 64 ranks: dispatch send and receive, combine send and receive.
        public var kernels:
            (dispatchSend: Double, dispatchReceive: Double, combineSend: Double, combineReceive: Double)
        /// What is left of the paper's table when all of that is subtracted; the only number that was fitted.
        public var unexplained: Double

        public static func == (left: NIC, right: NIC) -> Bool { left.name == right.name }
        public func hash(into hasher: inout Hasher) { hasher.combine(name) }

        /// ConnectX-7.
        public static let cx7 = NIC(
            name: "cx7", post: 0.15, base: 4, kernels: (21.2, 18.0, 25.7, 13.7), unexplained: 0)
        /// AWS EFA.
        public static let efa = NIC(
            name: "efa", post: 0.5, base: 14, kernels: (20.5, 17.9, 24.5, 13.1), unexplained: 58)
    }

    /// Times of one step.
    public struct Times: Hashable, Sendable {
        /// From the call to sorted tokens.
        public var dispatch: Double
        /// From results to sums.
        public var combine: Double
    }

    /// The NIC of each rank.
    public var nic: NIC
    /// Ranks.
    public var ranks: Int
    /// Ranks of a node, which reach each other over NVLink.
    public var nodeSize = 8
    /// Tokens of a rank.
    public var tokens = 128
    /// Experts of a token.
    public var topK = 8
    /// Bytes of a token as it travels: 7168 of FP8, 56 scales, and what is known of it.
    public var tokenBytes = 7408.0
    /// Bytes of a result: 7168 of BF16.
    public var resultBytes = 14336.0
    /// NVLink, each direction, bytes in a microsecond.
    public var nvlink = 450_000.0

    /// DeepSeek-V3's shape, decode with 128 tokens.
    public init(nic: NIC, ranks: Int) {
        self.nic = nic
        self.ranks = ranks
    }

    /// Ranks on other nodes.
    private var far: Int { max(0, ranks - nodeSize) }
    /// Entries of the tokens' lists on other nodes, and on other ranks of this one.
    private var farEntries: Double { Double(tokens * topK * far) / Double(ranks) }
    private var nearEntries: Double { Double(tokens * topK * (min(nodeSize, ranks) - 1)) / Double(ranks) }
    /// Of a token's entries, the share that goes to a rank first.
    private var distinct: Double {
        var miss = 1.0
        for _ in 0..<topK { miss *= 1 - 1 / Double(ranks) }
        return Double(ranks) * (1 - miss) / Double(topK)
    }

    private func wire(_ far: Double, _ near: Double, _ bytes: Double) -> Double {
        max(far * bytes / nic.bytesPerMicrosecond, near * bytes / nvlink)
    }

    private var network: Double { far > 0 ? nic.base + nic.unexplained : 0 }

    /// The paper's algorithm.
    public var paper: Times {
        let posting = Double(far) * nic.post
        return Times(
            dispatch: nic.kernels.dispatchSend + posting + wire(farEntries, nearEntries, tokenBytes) + network
                + nic.kernels.dispatchReceive,
            combine: nic.kernels.combineSend + posting + wire(farEntries, nearEntries, resultBytes) + network
                + nic.kernels.combineReceive)
    }

    /// Ours. Half of the dispatch kernel counts, which comes before everything; the sums of a combine come after everything.
    public var ours: Times {
        let peers = Double(max(1, ranks - 1))
        let counting = nic.kernels.dispatchSend / 2
        let posting = Double(far) * nic.post
        let dispatchWire = wire(farEntries * distinct, nearEntries * distinct, tokenBytes)
        let combineWire = wire(farEntries, nearEntries, resultBytes)
        return Times(
            dispatch: counting + counting / peers + max(dispatchWire, posting, counting) + network
                + nic.kernels.dispatchReceive / peers,
            combine: nic.kernels.combineSend / peers + max(combineWire, posting, nic.kernels.combineSend)
                + network + nic.kernels.combineReceive)
    }

    /// What the paper measured (v2, figure 9; EFA, ConnectX-7 and DeepEP on ConnectX-7); nil for other numbers of ranks.
    public var measured: (paper: Times, deepEP: Times)? {
        let isEFA = nic == .efa
        switch ranks {
        case 64:
            return (
                isEFA ? Times(dispatch: 286, combine: 406) : Times(dispatch: 190, combine: 311),
                Times(dispatch: 180, combine: 327)
            )
        case 32:
            return (
                isEFA ? Times(dispatch: 236, combine: 342) : Times(dispatch: 155, combine: 267),
                Times(dispatch: 160, combine: 286)
            )
        case 16:
            return (
                isEFA ? Times(dispatch: 216, combine: 243) : Times(dispatch: 110, combine: 186),
                Times(dispatch: 124, combine: 203)
            )
        case 8:
            return (
                isEFA ? Times(dispatch: 53, combine: 64) : Times(dispatch: 52, combine: 65),
                Times(dispatch: 43, combine: 72)
            )
        default: return nil
        }
    }
}
