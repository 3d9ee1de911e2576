public import TransferEngine

/// The tokens of one step. The memory is the caller's and must stay unchanged until `combineReceive` has returned.
public struct TokenBatch {
    /// Tokens, 0 to `maximumTokens`.
    public var count: Int
    /// The first token: `hidden` values of `dispatchElement`.
    public var tokens: UnsafeRawPointer
    /// Bytes from one token to the next.
    public var stride: Int
    /// The registered region in which the tokens lie, if they do: to ranks on the same host they are then copied once.
    public var region: MemoryRegion?
    /// FP32 scales, `scaleCount` of each token behind each other; nil where tokens have none.
    public var scales: UnsafePointer<Float>?
    /// `topK` experts of each token; -1 is none.
    public var experts: UnsafePointer<Int32>
    /// `topK` weights of each token.
    public var weights: UnsafePointer<Float>

    /// Describes tokens that lie behind each other, or every `stride` bytes.
    public init(
        count: Int, tokens: UnsafeRawPointer, stride: Int, region: MemoryRegion? = nil,
        scales: UnsafePointer<Float>? = nil, experts: UnsafePointer<Int32>, weights: UnsafePointer<Float>
    ) {
        self.count = count
        self.tokens = tokens
        self.stride = stride
        self.region = region
        self.scales = scales
        self.experts = experts
        self.weights = weights
    }
}

/// What one pass brought: tokens in the order of this rank's experts, ready for a grouped matrix product.
public struct ReceivedTokens {
    /// Rows of `tokens`, padding included.
    public let rowCount: Int
    /// `rowCount` rows of `hidden` values of `dispatchElement`; rows that are padding are zero.
    public let tokens: UnsafeMutableRawPointer
    /// `scaleCount` scales of each row; nil where tokens have none.
    public let scales: UnsafeMutablePointer<Float>?
    /// Where results go: `rowCount` rows of `hidden` values of `combineElement`. Padding is not read.
    /// Nobody writes there from `combineSend` on: it is read until `combineReceive` has returned.
    public let outputs: UnsafeMutableRawPointer
    /// Rows of each of this rank's experts, without padding.
    public let counts: UnsafeBufferPointer<UInt32>
    /// The first row of each of this rank's experts; a multiple of `padding`.
    public let offsets: UnsafeBufferPointer<UInt32>
    /// Whether this is the step's last pass.
    public let isLast: Bool
}

/// What a step came to.
public struct StepResult: Hashable, Sendable {
    /// Entries of the tokens' lists that did not contribute to the sums, because the rank of their expert is missing.
    public var droppedEntries = 0
    /// Ranks that are missing; their experts are those of `ExpertPlacement`. Over nodes, ranks that may be missing for a part of
    /// the tokens only: `NodeExchange.droppedEntries(_:of:)` says for which.
    public var missingRanks: [Int] = []
    /// Whether every expert of every token contributed.
    public var isComplete: Bool { droppedEntries == 0 }
}
