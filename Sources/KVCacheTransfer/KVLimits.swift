/// Every bound of the module. What is beyond one is an error, also when a peer says it.
public enum KVLimits {
    /// Ranks of one instance.
    public static let ranks = 256
    /// Layers of a model.
    public static let layers = 1024
    /// Cache groups of a model.
    public static let groups = 64
    /// Heads of a group.
    public static let heads = 4096
    /// Bytes of one head and token.
    public static let headBytes = 1 << 24
    /// Tokens of one page.
    public static let pageTokens = 1 << 16
    /// Pages of a request in one group.
    public static let pages = 1 << 20
    /// Tokens of a request.
    public static let tokens = 1 << 26
    /// Regions of one rank.
    public static let regions = 2048
    /// Bytes of one protocol message in all its fragments.
    public static let messageBytes = 16 << 20
    /// Messages of one peer of which some fragments have not come yet.
    public static let openMessages = 64
    /// Requests of one decoder that one prefiller has at a time.
    public static let requests = 65536
    /// Writes in flight for one request; more wait.
    public static let writesInFlight = 256
    /// Bytes of a name or of a reason.
    public static let textBytes = 255
}
