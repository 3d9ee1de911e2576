public import TransferEngine

/// What `ExpertExchange` and `NodeExchange` have in common: the calls of a step, for code that works with either.
public protocol TokenExchange: AnyObject {
    /// The shape.
    var configuration: ExpertConfiguration { get }
    /// What the other ranks need, for `connect`.
    var address: [UInt8] { get }
    /// Ranks that are left out, because they were lost or too late.
    var missingRanks: [Int] { get }
    /// Why a rank is left out; nil when it is not.
    func failure(of rank: Int) -> TransferError?
    /// Meets the other ranks, whose addresses are in their order.
    /// - Throws: `invalidArgument` when a rank has another shape, `malformedDescriptor`, or what attaching throws.
    func connect(_ addresses: [[UInt8]]) throws(TransferError)
    /// Ends the exchange.
    /// - Throws: what deregistering throws.
    func close() throws(TransferError)

    /// Begins a step of a micro-batch.
    func dispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError)
    /// Waits for the tokens of the next pass, in the order of this rank's experts.
    func dispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens
    /// Sends the results of a pass.
    func combineSend(_ index: Int) throws(TransferError)
    /// Waits for the sums of this rank's tokens.
    func combineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int?
    ) throws(TransferError) -> StepResult

    /// `dispatchSend` that returns false where that would wait.
    func tryDispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError) -> Bool
    /// `dispatchReceive` that returns nil where that would wait.
    func tryDispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens?
    /// `combineSend` that returns false where that would wait.
    func tryCombineSend(_ index: Int) throws(TransferError) -> Bool
    /// `combineReceive` that returns nil where that would wait.
    func tryCombineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int?
    ) throws(TransferError) -> StepResult?
}
