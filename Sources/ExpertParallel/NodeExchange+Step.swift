public import TransferEngine

// The calls of a step.
extension NodeExchange {
    /// Begins a step: sends each token to the nodes that have one of its experts.
    ///
    /// Waits only for earlier writes from the same memory.
    /// - Parameters:
    ///   - index: The micro-batch; its last step has ended.
    ///   - tokens: What to send. Nobody changes it until `combineReceive` has returned.
    /// - Throws: `invalidArgument` for tokens that cannot be; `limitReached` when too much memory is in quarantine since ranks
    ///   were lost: then make a new exchange.
    /// - Complexity: O(tokens * topK * hidden) bytes are copied.
    public func dispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError) {
        _ = try between.wait { () throws(TransferError) -> Bool? in
            try tryDispatchSend(index, tokens) ? true : nil
        }
    }

    /// Begins a step unless earlier writes from the same memory have not ended; then returns false.
    public func tryDispatchSend(_ index: Int, _ tokens: TokenBatch) throws(TransferError) -> Bool {
        let step = try step(index, .idle)
        forward(but: index)
        guard try between.tryDispatchSend(index, pack(step, tokens)) else { return false }
        step.batch = tokens
        step.phase = .crossing
        return true
    }

    /// Waits for the tokens of the next pass, which are in the order of this rank's experts.
    ///
    /// Within an expert they are in the order of (rank of this node, node, token, entry), whatever arrived when.
    /// - Returns: The tokens; valid until `combineSend`. With `isLast` unset another pass follows after that.
    /// - Throws: `invalidArgument` when the step has not been begun; `limitReached` as `dispatchSend`.
    /// - Complexity: O(rows * hidden).
    public func dispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens {
        try between.wait { () throws(TransferError) -> ReceivedTokens? in try tryDispatchReceive(index) }
    }

    /// The tokens of the next pass if all are there, nil otherwise.
    public func tryDispatchReceive(_ index: Int) throws(TransferError) -> ReceivedTokens? {
        let step = try step(index, .crossing, .entering, .receiving)
        forward(but: index)
        try advance(index)
        guard step.phase == .receiving, let received = try inside.tryDispatchReceive(index) else {
            return nil
        }
        step.phase = .computing
        step.isLast = received.isLast
        return received
    }

    /// Sends the results of a pass to the ranks of this node. When all have done so for the last pass, whatever is called next
    /// sends the sums on to other nodes.
    ///
    /// - Parameter index: The micro-batch whose `outputs` have been written.
    /// - Throws: `invalidArgument` when no pass is at hand.
    /// - Complexity: O(rows * hidden).
    public func combineSend(_ index: Int) throws(TransferError) {
        _ = try between.wait { () throws(TransferError) -> Bool? in try tryCombineSend(index) ? true : nil }
    }

    /// Goes on sending the results of a pass; true when all are on their way.
    public func tryCombineSend(_ index: Int) throws(TransferError) -> Bool {
        let step = try step(index, .computing)
        forward(but: index)
        try advance(index)
        guard try inside.tryCombineSend(index) else { return false }
        step.phase = step.isLast ? .adding : .receiving
        return true
    }

    /// Waits for the sums of this rank's tokens from all nodes, and adds them up.
    ///
    /// - Parameters:
    ///   - index: The micro-batch; the results of its last pass have been sent.
    ///   - sums: One row of `hidden` values of `combineElement` for each token, in their order; zero for a token without
    ///     experts.
    ///   - stride: Bytes from one row to the next; nil is no gap.
    /// - Returns: Which ranks are missing, and how many entries of the tokens' lists did therefore not contribute.
    /// - Throws: `invalidArgument` when a pass is left.
    /// - Complexity: O((tokens + rows) * topK * hidden).
    public func combineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int? = nil
    ) throws(TransferError) -> StepResult {
        try between.wait { () throws(TransferError) -> StepResult? in
            try tryCombineReceive(index, into: sums, stride: stride)
        }
    }

    /// Adds up the sums of this rank's tokens if all are there, nil otherwise.
    public func tryCombineReceive(
        _ index: Int, into sums: UnsafeMutableRawPointer, stride: Int? = nil
    ) throws(TransferError) -> StepResult? {
        let step = try step(index, .adding, .leaving, .summing)
        forward(but: index)
        try advance(index)
        guard step.phase == .summing, let tokens = step.batch,
            let result = try between.tryCombineReceive(index, into: sums, stride: stride)
        else { return nil }
        step.phase = .idle
        step.batch = nil
        step.arrived = nil
        return collect(index, tokens, result.missingRanks)
    }

    /// The entries of a token's list that did not contribute to its sum in the last step of a micro-batch: bit `k` is entry `k`.
    /// Valid from `combineReceive` to the next one.
    public func droppedEntries(_ index: Int, of token: Int) -> UInt64 { steps[index].dropped[token] }

    // MARK: Internals

    private func step(_ index: Int, _ phases: NodeStep.Phase...) throws(TransferError) -> NodeStep {
        try between.expectOpen()
        guard steps.indices.contains(index) else {
            throw TransferError(.invalidArgument, "micro-batch \(index) of \(steps.count)")
        }
        guard phases.contains(steps[index].phase) else {
            throw TransferError(
                .invalidArgument,
                "micro-batch \(index) is \(steps[index].phase): the calls of a step come in order")
        }
        return steps[index]
    }

    /// Moves the other micro-batches on. What fails there is told to the one who calls for them: it fails again.
    private func forward(but index: Int) {
        for other in steps.indices where other != index { try? advance(other) }
    }

    /// Moves a micro-batch on as far as it goes without its caller.
    private func advance(_ index: Int) throws(TransferError) {
        let step = steps[index]
        between.pump(between.batches[index])
        inside.pump(inside.batches[index])
        if step.phase == .crossing, let arrived = try between.tryDispatchReceive(index) {
            unpack(step, arrived)
            step.phase = .entering
        }
        guard let arrived = step.arrived else { return }
        if step.phase == .entering, try inside.tryDispatchSend(index, forwarded(step, arrived)) {
            step.phase = .receiving
        }
        if step.phase == .adding,
            let result = try inside.tryCombineReceive(
                index, into: arrived.outputs, stride: between.configuration.resultBytes)
        {
            markDropped(step, arrived, result)
            step.phase = .leaving
        }
        if step.phase == .leaving, try between.tryCombineSend(index) { step.phase = .summing }
    }
}
