public import SharedMemoryProvider

#if Libfabric
    public import LibfabricProvider
#endif
#if Verbs
    public import VerbsProvider
#endif

/// How an engine is set up.
public struct Configuration: Sendable {
    /// Who makes progress.
    public enum Progress: Hashable, Sendable {
        /// A thread of the engine spins for `spinNanoseconds` after the last event and then sleeps in the kernel.
        case adaptive(spinNanoseconds: UInt64)
        /// A thread of the engine spins for ever: lowest latency, one core.
        case busy
        /// The caller calls `progress()`. All calls come from one thread at a time, and nothing happens in between.
        case manual
        /// As `manual`, and NICs tell of arrivals by files, for `TransferEngine.openWaitFile`; that costs them a little time.
        case eventLoop

        /// Adaptive, with 20 microseconds of spinning.
        public static let adaptive = Progress.adaptive(spinNanoseconds: 20_000)

        /// Whether the caller makes progress: there is no thread for it.
        public var isManual: Bool { self == .manual || self == .eventLoop }
    }

    /// One NIC of the engine's device.
    public enum NIC: Hashable, Sendable {
        /// Peers on the same host.
        case sharedMemory(SharedMemoryOptions)
        #if Libfabric
            /// A NIC driven through libfabric.
            case libfabric(LibfabricOptions)
        #endif
        #if Verbs
            /// A port of an RDMA NIC driven through libibverbs.
            case verbs(VerbsOptions)
        #endif

        /// Shared memory with default options.
        public static let sharedMemory = NIC.sharedMemory(SharedMemoryOptions())
    }

    /// Appears in errors and reports; at most 63 bytes of UTF-8 are kept.
    public var name: String
    /// The NICs of the device, 1 to 8. Where several fabrics reach a peer, the one that comes first here is used.
    public var nics: [NIC]
    /// Who makes progress.
    public var progress: Progress
    /// The processor that the engine's thread is pinned to.
    public var processor: Int?
    /// Writes of at least twice as many bytes are striped over several NICs.
    public var stripeBytes: Int
    /// How long a transfer or a wait may take when it names no time of its own.
    public var timeout: Duration
    /// When silent NICs and peers are asked whether they live, and when they count as lost.
    public var liveness = Liveness()
    /// How far transfers hold themselves back for more urgent ones (`TrafficClass`).
    public var yielding = Yielding()
    /// Events that the flight recorder keeps, 32 bytes each, up to a power of two; 0 is none.
    public var traceEvents: Int
    /// A directory that gets the flight recorder's content, for `te trace`, when a transfer stalls: at most once a second and
    /// `Limits.traceFiles` times. Written by the progress thread.
    public var traceDirectory: String?
    /// With it the engine signs its descriptors and messages, and takes none that are not signed with the same key: all engines
    /// of a cluster have it or none. Costs some microseconds for each message and nothing on writes.
    public var clusterKey: ClusterKey?
    /// Remote regions that may be attached, at most `Limits.attachments`: fewer for engines that live for an instant.
    package var attachmentLimit = Limits.attachments

    public init(
        name: String = "engine", nics: [NIC] = [.sharedMemory], progress: Progress = .adaptive,
        processor: Int? = nil, stripeBytes: Int = 65536, timeout: Duration = .seconds(30),
        traceEvents: Int = 8192, traceDirectory: String? = nil, clusterKey: ClusterKey? = nil
    ) {
        self.name = name
        self.nics = nics
        self.progress = progress
        self.processor = processor
        self.stripeBytes = stripeBytes
        self.timeout = timeout
        self.traceEvents = traceEvents
        self.traceDirectory = traceDirectory
        self.clusterKey = clusterKey
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
