/// One NIC, or what stands for one: the contract between the engine and the code that drives a fabric.
///
/// What an implementer must keep:
/// * **Threads.** The engine calls a domain from one thread at a time: the worker of its device. `importRegion`,
///   `register`, `deregister` and `close` may take long; `post`, `send` and `poll` never block and never allocate
///   once warm.
/// * **Delivery.** Reliable, in any order. A completion means that the source may be reused **and** that the data is
///   in the target's memory; nothing of that work request can happen afterwards.
/// * **Counting.** The immediate of a request is added to the target's `TargetPage` once, after all its data is there.
///   Who adds (the target's poll, or the writer through shared memory) is the provider's affair.
/// * **Errors.** What is known at once is returned by `post`; what comes later is a completion with a status. A provider
///   never traps on anything a peer sent.
/// * **Sleeping.** `prepareToSleep` returns false when there may be work; otherwise `wakeDescriptor` becomes
///   readable when there is.
public protocol FabricDomain: AnyObject {
    /// What this NIC is and can do; constant.
    var attributes: DomainAttributes { get }
    /// The address that peers connect to, at most `Limits.addressBytes`.
    var address: [UInt8] { get }

    /// Makes memory known to the NIC.
    func register(_ region: LocalRegion) throws(TransferError) -> DomainKey
    /// Ends a registration; afterwards no write of a peer through this NIC can land there.
    func deregister(_ region: LocalRegion, key: DomainKey)

    /// Resolves NIC `nic` of a peer's region: connects if that is needed, maps if that is possible.
    func importRegion(_ remote: RemoteRegion, nic: Int) throws(TransferError) -> ImportedKey
    /// Ends an import; no request uses the key any more.
    func releaseImport(_ key: ImportedKey)

    /// Starts requests in the order given. Returns how many were taken; the rest were not touched. A provider that has queues
    /// for each peer says `targetBusy` where one of them is full, so that nobody waits for somebody else's peer.
    func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult
    /// Lets `body` make the bytes of a write where they are to lie: it gets the address of the request's first byte at the
    /// target, and has `length` bytes there until it returns; the request's source is not read. Complete when this returns.
    ///
    /// Nil, and `body` is not called, where the target is not mapped in this process.
    func fill(_ request: UnsafeBufferPointer<WorkRequest>, _ body: (UnsafeMutableRawPointer) -> Void)
        -> WorkStatus?
    /// Starts a two-sided message of at most `Limits.packetBytes`; the payload is copied before this returns.
    func send(_ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64)
        -> PostResult

    /// Breaks the connection to a NIC: everything in flight to it ends as if the NIC had died, and is reported by `poll`.
    func sever(_ target: UnsafePointer<ImportedKey>)
    /// Closes a connection from a NIC of `sender`: nothing that was sent over it lands or counts after this. Returns which of
    /// its requests have been counted; nil where that is not known yet, so that the sender asks again.
    ///
    /// `connection` is what the sender's NIC named in `Delivery.unsettled`. Asking again gives the same answer.
    func settle(connection: UInt64, from sender: EngineID) -> DeliveryLedger?

    /// Makes progress and returns completions and messages. A message's bytes are valid until the next call.
    func poll(_ completions: UnsafeMutableBufferPointer<Completion>) -> Int

    /// Says in words what became of a request: what happened, to whom, and what to do; nil when there is nothing to say beside
    /// the status. Called only when somebody is told of a failure. `peer` is `ImportedKey.peer` when it is known whose it was.
    func describe(_ status: WorkStatus, detail: Int32, peer: Int?) -> String?

    /// Arms the wake-up; false when there may already be something to poll.
    func prepareToSleep() -> Bool
    /// A file descriptor that is readable when there is something to poll, or -1 when `TargetPage.sleeping` suffices.
    var wakeDescriptor: Int32 { get }
    /// When the domain is to be polled although nothing has happened, in nanoseconds of the monotonic clock; `.max` is never.
    var pollDue: UInt64 { get }

    /// Releases everything. Nothing is called afterwards.
    func close()
}

// For NICs that copy by themselves, and cannot say what became of a failed request: those fail their transfers.
extension FabricDomain {
    /// Nil: nothing is mapped.
    public func fill(
        _ request: UnsafeBufferPointer<WorkRequest>, _ body: (UnsafeMutableRawPointer) -> Void
    ) -> WorkStatus? { nil }
    /// Does nothing: what is in flight ends by itself.
    public func sever(_ target: UnsafePointer<ImportedKey>) {}
    /// Nil: such a NIC's requests are not asked about.
    public func settle(connection: UInt64, from sender: EngineID) -> DeliveryLedger? { nil }
    /// Nil: the status says it all.
    public func describe(_ status: WorkStatus, detail: Int32, peer: Int?) -> String? { nil }
    /// Never.
    public var pollDue: UInt64 { .max }
}

/// What a NIC is and can do.
public struct DomainAttributes: Hashable, Sendable {
    /// The provider, for people: `shm`, `libfabric`, `sim`.
    public var provider: String
    /// The fabric: two NICs can talk when these are equal.
    public var fabric: String
    /// The NIC, for people: an interface, a device, an address.
    public var name: String
    /// Link speed in Mbit/s; NICs of a device share its work in proportion.
    public var megabitsPerSecond: UInt32
    /// Largest single write in bytes; the engine cuts longer ones.
    public var maximumWriteBytes: UInt64
    /// Whether one request may carry more than one count, so that neighbouring pages can travel as one write.
    public var countsMany: Bool
    /// Largest request in bytes that may carry more than one count.
    public var countsManyBytes: UInt64

    public init(
        provider: String, fabric: String, name: String, megabitsPerSecond: UInt32, maximumWriteBytes: UInt64,
        countsMany: Bool, countsManyBytes: UInt64 = .max
    ) {
        self.provider = provider
        self.fabric = fabric
        self.name = name
        self.megabitsPerSecond = megabitsPerSecond
        self.maximumWriteBytes = maximumWriteBytes
        self.countsMany = countsMany
        self.countsManyBytes = countsManyBytes
    }
}

/// Local memory, as providers see it.
@safe public struct LocalRegion: @unchecked Sendable {
    // SAFETY: plain numbers; the caller of `register` promises that the memory stays until `deregister`.
    /// Place in the engine's region table.
    public var index: UInt32
    /// New with every registration.
    public var generation: UInt32
    /// What peers may do.
    public var access: Access
    /// Known to holders of the descriptor only.
    public var secret: UInt64
    /// First byte.
    public var base: UnsafeMutableRawPointer
    /// Bytes.
    public var length: Int
    /// The memory file behind engine-allocated memory, or -1; byte 0 of the file is `base`.
    public var memoryFile: Int32
    /// Whether all pages exist already, so that a peer may map them in one go.
    public var isPopulated: Bool

    public init(
        index: UInt32, generation: UInt32, access: Access, secret: UInt64, base: UnsafeMutableRawPointer,
        length: Int, memoryFile: Int32, isPopulated: Bool
    ) {
        self.index = index
        self.generation = generation
        self.access = access
        self.secret = secret
        unsafe self.base = base
        self.length = length
        self.memoryFile = memoryFile
        self.isPopulated = isPopulated
    }
}

/// What a registration is on one NIC.
public struct DomainKey: Sendable {
    /// What local requests carry (`WorkRequest.localKey`).
    public var local: UInt64
    /// What peers need (`RemoteRegion.NIC.key`).
    public var remote: UInt64
    /// The address of the first byte for peers (`RemoteRegion.NIC.base`).
    public var base: UInt64

    public init(local: UInt64, remote: UInt64, base: UInt64) {
        self.local = local
        self.remote = remote
        self.base = base
    }
}

/// A peer's region, resolved for one pair of NICs. The fields mean what the provider wants; plain data.
public struct ImportedKey {
    /// The peer in the provider's table.
    public var peer: Int
    /// The remote key.
    public var key: UInt64
    /// The address of the first byte.
    public var base: UInt64
    /// Where the region is mapped in this process, or 0.
    public var mapping: UInt
    /// Bytes of the mapping.
    public var mappedBytes: Int
    /// The region's place in its engine's table, for software transports.
    public var index: UInt32
    /// The region's generation.
    public var generation: UInt32
    /// The random number of the descriptor.
    public var secret: UInt64
    /// Largest write that this pair takes; the engine cuts longer ones.
    public var maximumWriteBytes: UInt64
    /// Whether `post` completes every request to this target that it accepts.
    public var completesAtOnce = false

    public init(remote: RemoteRegion, nic: Int, peer: Int, maximumWriteBytes: UInt64) {
        self.peer = peer
        key = remote.nics[nic].key
        base = remote.nics[nic].base
        mapping = 0
        mappedBytes = 0
        index = remote.index
        generation = remote.generation
        secret = remote.secret
        self.maximumWriteBytes = maximumWriteBytes
    }
}

/// One write for one NIC: plain data, valid only during `post`.
@safe public struct WorkRequest {
    /// Comes back in the completion.
    public var context: UInt64
    /// First byte of the source.
    public var source: UnsafeRawPointer
    /// Bytes; 0 is an immediate without data.
    public var length: Int
    /// `DomainKey.local` of the source's region.
    public var localKey: UInt64
    /// The target, which stays in place while requests to it are in flight.
    public var target: UnsafePointer<ImportedKey>
    /// Byte offset in the target region; validated by the engine against the descriptor's length.
    public var targetOffset: UInt64
    /// The caller's 30 bits.
    public var immediate: UInt32
    /// Eighths of a count to add; 0 is a write without an immediate.
    public var eighths: UInt32
    /// Comes back in the completion when the request fails.
    public var tag = RequestTag(rawValue: 0)

    @inlinable public init(
        context: UInt64, source: UnsafeRawPointer, length: Int, localKey: UInt64,
        target: UnsafePointer<ImportedKey>, targetOffset: UInt64, immediate: UInt32, eighths: UInt32
    ) {
        self.context = context
        unsafe self.source = source
        self.length = length
        self.localKey = localKey
        unsafe self.target = target
        self.targetOffset = targetOffset
        self.immediate = immediate
        self.eighths = eighths
    }
}

extension WorkRequest {
    /// A request for nothing, to fill tables with; it is not for posting.
    public init() {
        let nothing = unsafe UnsafePointer<ImportedKey>(bitPattern: MemoryLayout<ImportedKey>.stride)
        unsafe self.init(
            context: 0, source: UnsafeRawPointer(nothing.unsafelyUnwrapped), length: 0, localKey: 0,
            target: nothing.unsafelyUnwrapped, targetOffset: 0, immediate: 0, eighths: 0)
    }
}

/// How a work request ended.
public enum WorkStatus: UInt8, Error, Sendable {
    case success
    /// Nothing more is taken now, whoever it is for: the queue is full, poll and post again.
    case again
    /// The region at the target is gone or has another generation.
    case staleRegion
    /// The key is wrong, or the region does not allow it.
    case accessDenied
    case outOfRange
    case peerLost
    /// Something else; `detail` has the provider's number.
    case providerFailed
    /// Nothing more is taken now for the target of the next request, which is not connected yet or has no room; requests to
    /// others may be.
    case targetBusy
}

/// What `post` did.
public struct PostResult {
    /// Requests taken, from the front.
    public var accepted: Int
    /// Whether those taken are complete already and will not be reported by `poll`.
    public var isComplete: Bool
    /// Why the next one was not taken; `success` when all were.
    public var status: WorkStatus
    /// The provider's error number.
    public var detail: Int32

    @inlinable public init(accepted: Int, isComplete: Bool, status: WorkStatus, detail: Int32 = 0) {
        self.accepted = accepted
        self.isComplete = isComplete
        self.status = status
        self.detail = detail
    }
}

/// What `poll` returns: the end of requests, or a message.
@safe public struct Completion {
    /// The context of the requests, or for a message the sender's `EngineID`.
    public var context: UInt64
    /// How many requests of this context ended; 0 marks a message.
    public var count: UInt32
    /// How they ended.
    public var status: WorkStatus
    /// The provider's error number.
    public var detail: Int32
    /// A message's bytes, valid until the next poll.
    public var message: UnsafeRawBufferPointer
    /// Of a request that failed and whose `delivery` is known: which one. Such requests are reported one by one.
    public var tag = RequestTag(rawValue: 0)
    /// Of a request that failed: whether it may have been counted.
    public var delivery = Delivery.unknown
    /// Of a request that failed: the NIC that it was for, as `ImportedKey.peer` says it; -1 where that is not known.
    public var peer = -1

    @inlinable public init(context: UInt64, count: UInt32, status: WorkStatus = .success, detail: Int32 = 0) {
        self.context = context
        self.count = count
        self.status = status
        self.detail = detail
        unsafe message = UnsafeRawBufferPointer(start: nil, count: 0)
    }

    @inlinable public init(message: UnsafeRawBufferPointer, from sender: UInt64) {
        context = sender
        count = 0
        status = .success
        detail = 0
        unsafe self.message = message
    }
}
