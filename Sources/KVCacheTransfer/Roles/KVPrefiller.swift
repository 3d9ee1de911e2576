internal import Synchronization
public import TransferEngine

/// A request as the prefiller's application sees it.
public struct KVJob: Hashable, Sendable {
    /// Which job of the prefiller.
    public struct ID: Hashable, Sendable {
        let number: UInt64
    }

    /// For all calls about the job.
    public var id: ID
    /// The decoder's name.
    public var decoder: String
    /// The tokens; those that are cached need not be written, though they may have to be computed.
    public var span: TokenSpan
    /// What the decoder's application sent along.
    public var input: [UInt8]
    /// Bytes of the tail; nil when none is wanted.
    public var tailBytes: Int?
    /// How long the decoder waits from now on.
    public var timeout: Duration
}

/// What the application of a prefiller is told about a job that it has accepted: at most one `stop`, and one `released`.
public enum KVJobEvent: Hashable, Sendable {
    /// Compute no more for it.
    case stop(KVError)
    /// Nothing reads its pages any more.
    case released
}

/// Some tokens of a job that one forward pass computes.
public struct KVChunk: Hashable, Sendable {
    /// The job.
    public var job: KVJob.ID
    /// The tokens, from the beginning of the request on. The chunks of a job follow each other.
    public var tokens: Range<Int>

    /// Describes a chunk.
    public init(job: KVJob.ID, tokens: Range<Int>) {
        self.job = job
        self.tokens = tokens
    }
}

/// The prefiller's side: takes requests of any decoders, and writes each layer's pages as soon as the model has computed them.
///
/// The application is told of a job, accepts it with the pages that it will compute into, and announces what each forward pass
/// computes before it begins. The model counts finished layers in a 64-bit word, which `watch` looks at; or it calls
/// `computed`.
///
/// Threads are as for `KVDecoder`: it has none, none of its methods waits, and handlers are called one at a time.
public final class KVPrefiller: @unchecked Sendable {
    // SAFETY: all that is `var` is touched by closures of `queue` only, which run one at a time.
    let configuration: KVConfiguration
    let layout: KVLayout
    let queue = SerialQueue()
    let port: MessagePort
    let onJob: @Sendable (KVJob) -> Void
    var ranks: [KVRank]
    var sessions: [UInt64: DecoderSession] = [:]
    var jobs: [UInt64: JobEntry] = [:]
    /// The job of each request of each session.
    var numbers: [KVDecoder.SessionRequest: UInt64] = [:]
    var nextJob: UInt64 = 1
    /// Forward passes that have been announced and not finished, for each stage.
    var forwards: [ForwardQueue]
    /// Writes for which the engines had no room.
    var pending: [PendingWrite] = []
    /// Jobs whose source pages may still be read by a NIC.
    var quarantine: [JobEntry] = []
    var isDraining = false
    var now: UInt64 = 0
    /// Whether `tick` has been called.
    var hasClock = false
    private let isStopped = Atomic<Bool>(false)

    /// Opens a prefiller on its ranks. Messages come and go over the engine of rank 0, whose receive pool it takes.
    /// - Parameters:
    ///   - configuration: Name and times.
    ///   - layout: How the instance keeps the cache.
    ///   - ranks: One for each of the layout's ranks.
    ///   - onJob: Called for each request; the answer is `accept` or `refuse`, at once or later.
    /// - Throws: `KVError.Code.invalidLayout`.
    public init(
        _ configuration: KVConfiguration, layout: KVLayout, ranks: [KVRank],
        onJob: @escaping @Sendable (KVJob) -> Void
    ) throws(KVError) {
        try validate(ranks, layout)
        self.configuration = configuration
        self.layout = layout
        self.ranks = ranks
        self.onJob = onJob
        forwards = layout.stages.map { ForwardQueue(layers: $0.count) }
        port = MessagePort(ranks[0].engine, queue, configuration.versions)
        do throws(TransferError) {
            try port.open { [weak self] message, sender in self?.receive(message, sender) }
        } catch { throw KVError(error) }
    }

    /// How decoders reach it.
    public var address: EngineAddress { ranks[0].engine.address }

    /// Takes a job on.
    /// - Parameters:
    ///   - job: The job.
    ///   - sources: The pages that the model computes into, for each group.
    ///   - handler: Told when to stop, and when the pages may be used again.
    public func accept(
        _ job: KVJob.ID, sources: [PageTable], handler: @escaping @Sendable (KVJobEvent) -> Void
    ) {
        queue.run { [self] in begin(job.number, sources, handler) }
    }

    /// Tells which pages a job has by now, for a model that gets them from chunk to chunk: those of before and more.
    public func extend(_ job: KVJob.ID, sources: [PageTable]) {
        queue.run { [self] in extend(job.number, sources) }
    }

    /// Does not take a job on; its decoder is told why.
    public func refuse(_ job: KVJob.ID, _ reason: KVError) {
        queue.run { [self] in apply(.stop(reason), to: job.number) }
    }

    /// Gives a job up: preempted, or the model failed. Its decoder is told why, once nothing is written any more.
    public func abort(_ job: KVJob.ID, _ reason: KVError) {
        queue.run { [self] in apply(.stop(reason), to: job.number) }
    }

    /// Announces a forward pass of a stage before it begins: every pass, also one that computes nothing for a job. What is not
    /// announced when its layers are finished is not written.
    public func begin(forward chunks: [KVChunk], stage: Int = 0) {
        queue.run { [self] in announce(chunks, stage) }
    }

    /// Says how many layers a stage has finished in all, since the prefiller was made.
    public func computed(layers total: UInt64, stage: Int = 0) {
        queue.run { [self] in finish(total, stage) }
    }

    /// Looks at a word of a rank's region that the stage's model increments with each finished layer.
    /// - Throws: `KVError.Code.transferFailed` for a word that is not there.
    public func watch(rank: Int, _ region: MemoryRegion, at offset: Int) throws(KVError) -> Watcher {
        let stage = rank / layout.tensorRanks
        do throws(TransferError) {
            return try ranks[rank].engine.watch(region, at: offset) { [weak self] _, new in
                self?.computed(layers: new, stage: stage)
            }
        } catch { throw KVError(error) }
    }

    /// Writes the tail of a job, which ends it. Only for jobs with `tailBytes`.
    /// - Parameters:
    ///   - job: The job.
    ///   - rank: Who has the tail.
    ///   - region: Which of that rank's regions it lies in.
    ///   - offset: Bytes before it.
    public func writeTail(_ job: KVJob.ID, rank: Int, region: Int, offset: Int) {
        queue.run { [self] in tail(job.number, rank, region, offset) }
    }

    /// Takes no new jobs from now on. Decoders learn of it with the next heartbeat.
    public func drain() {
        queue.run { [self] in isDraining = true }
    }

    /// Calls `body` with the number of jobs and the tokens that they have left.
    public func status(_ body: @escaping @Sendable (_ jobs: Int, _ tokens: Int) -> Void) {
        queue.run { [self] in body(jobs.count + quarantine.count, load) }
    }

    /// Calls `body` with the regions of each rank as they are now: after a revocation they are new ones.
    public func regions(_ body: @escaping @Sendable ([[MemoryRegion]]) -> Void) {
        queue.run { [self] in body(ranks.map(\.regions)) }
    }

    /// Looks at the time: heartbeats, lost decoders. Several times a heartbeat.
    /// - Parameter nowNanoseconds: Of a clock that never goes back.
    public func tick(nowNanoseconds: UInt64) {
        queue.run { [self] in look(max(now, nowNanoseconds)) }
    }

    /// Calls `tick` until the task is cancelled or `stop` is called.
    public func run() async throws {
        let start = ContinuousClock.now
        while !isStopped.load(ordering: .relaxed) {
            tick(nowNanoseconds: (ContinuousClock.now - start).nanoseconds)
            try await Task.sleep(for: configuration.heartbeat / 8)
        }
    }

    /// Lets `run` return. Jobs are not waited for.
    public func stop() { isStopped.store(true, ordering: .relaxed) }
}
