/// Every bound of the library in one place. Nothing grows past one of these: it fails with a typed error or
/// pushes back instead.
public enum Limits {
    /// NICs that one device may use, and that one descriptor may name.
    public static let nicsPerDevice = 8
    /// Pairs of a local and a remote NIC that one transfer may use (8 + 8 - 1 joins any two groups).
    public static let railsPerRoute = 15
    /// Regions that one engine may have registered at once.
    public static let regions = 4096
    /// Domains on the same host that may write into one engine at once.
    public static let writers = 4096
    /// Remote regions that one engine may have attached at once.
    public static let attachments = 65536
    /// Engines that one engine knows; beyond that it does not answer those that it has not attached itself.
    public static let peers = 16384
    /// Peers that an engine counts one by one; those beyond it are counted together.
    public static let countedPeers = 1024
    /// Transfers in flight on one device; submitting another is `TransferError.Code.backPressure`.
    public static let transfers = 4096
    /// Counter waits that one engine may have outstanding; they share the table of the transfers.
    public static let counterWaits = transfers
    /// Watched words of one engine.
    public static let watchers = 512
    /// Longest pause between two looks of an adaptive engine at its watched words, in milliseconds.
    public static let watchMilliseconds = 25
    /// Sets of NICs that an engine's regions may be registered on, besides all of them.
    public static let nicSets = 4
    /// Largest payload of a two-sided message, in bytes.
    public static let messageBytes = 16384
    /// Largest two-sided message that a provider carries: the payload, and what the engine puts before it.
    public static let packetBytes = messageBytes + 64
    /// Messages kept for a receive pool that has not been opened yet; after that senders are pushed back.
    public static let messageBacklog = 1024
    /// Pages in one paged write.
    public static let pages = 1 << 24
    /// Targets of one scatter, members of one peer group.
    public static let targets = 4096
    /// Work requests handed to a provider in one call.
    public static let requestsPerPost = 256
    /// Work requests that a transfer that was pushed back tries first; more follow when all of them were taken.
    public static let requestsPerRetry = 8
    /// Completions taken from a provider in one call.
    public static let completionsPerPoll = 128
    /// Bytes of one NIC's address in a descriptor.
    public static let addressBytes = 64
    /// Bytes of a fabric's or an engine's name in a descriptor.
    public static let nameBytes = 63
    /// Events of its flight recorder that a stall report quotes.
    public static let tracedEvents = 6
    /// Traces of stalls that one engine writes to `Configuration.traceDirectory`.
    public static let traceFiles = 16
    /// Results of failed transfers that are remembered after their slot went to somebody else.
    public static let rememberedFailures = 1024
}
