internal import CTransferEngine
internal import ExpertParallel
internal import Synchronization
internal import TransferEngine

/// An exchange as handles know it. It is used by one thread at a time, which `door` sees to.
final class MoEExchange: @unchecked Sendable {
    // SAFETY: `exchange` is touched by whoever is inside of `door` only.
    let exchange: any TokenExchange
    let box: EngineBox
    let door = Door("exchange")

    init(_ exchange: any TokenExchange, _ box: EngineBox) {
        self.exchange = exchange
        self.box = box
        box.exchanges.add(1, ordering: .relaxed)
    }

    deinit { box.exchanges.subtract(1, ordering: .releasing) }  // pairs with the load in te_engine_close
}

let moeExchanges = Standing<MoEExchange>(13, "te_moe_exchange")

/// Runs `body` with the exchange of a handle. All of them may wait, so that none is for callbacks.
func callExchange(
    _ bits: UInt64, _ body: (MoEExchange) throws(Failure) -> Void
) -> Int32 {
    do throws(Failure) {
        try refuseCallbacks()
        let known = try moeExchanges.find(bits)
        try known.door.alone(known.box) { () throws(Failure) in try body(known) }
        return Int32(TE_OK)
    } catch {
        return error.report()
    }
}

extension ExpertConfiguration {
    init(_ c: te_moe_config) throws(Failure) {
        func element(_ value: UInt32, _ name: StaticString) throws(Failure) -> ElementType {
            guard let element = ElementType(rawValue: UInt8(clamping: value)) else {
                throw Failure(TE_EINVALID, "config.\(name) is \(value); TE_MOE_FLOAT32 and so on")
            }
            return element
        }
        self.init(
            rank: Int(c.rank), ranks: Int(c.ranks), experts: Int(c.experts), topK: Int(c.top_k),
            hidden: Int(c.hidden), maximumTokens: Int(c.maximum_tokens))
        dispatchElement = try element(c.dispatch_element, "dispatch_element")
        combineElement = try element(c.combine_element, "combine_element")
        guard let reduction = Reduction(rawValue: UInt8(clamping: c.reduction)) else {
            throw Failure(TE_EINVALID, "config.reduction is \(c.reduction); at the receiver or the sender")
        }
        self.reduction = reduction
        if c.scale_block > 0 { scaleBlock = Int(c.scale_block) }
        if c.replicas > 0 { replicas = Int(c.replicas) }
        if c.padding > 0 { padding = Int(c.padding) }
        if c.micro_batches > 0 { microBatches = Int(c.micro_batches) }
        if c.private_rows > 0 { privateRows = Int(c.private_rows) }
        if c.spins > 0 { spins = Int(c.spins) }
        if c.memory_budget > 0 { memoryBudget = try integer(c.memory_budget, "config.memory_budget") }
        if c.deadline_ns > 0 {
            guard c.deadline_ns <= 86_400_000_000_000 else {
                throw Failure(TE_EINVALID, "config.deadline_ns is longer than a day")
            }
            deadline = .nanoseconds(Int64(c.deadline_ns))
        }
    }
}
