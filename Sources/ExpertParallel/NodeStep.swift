internal import Glibc
internal import TransferEngine

/// One step of a `NodeExchange` in flight: what goes to nodes, what has come to this one, and how far it is.
final class NodeStep {
    /// The way of a step. Tokens cross to nodes, enter this one, are received and computed; the sums are added inside, leave
    /// the node, and are summed up.
    enum Phase { case idle, crossing, entering, receiving, computing, adding, leaving, summing }

    var phase = Phase.idle
    var batch: TokenBatch?
    /// Whether the pass at hand is the last one inside the node.
    var isLast = false
    /// The nodes of each token, in the order in which its list meets them; -1 is none.
    let nodes: Table<Int32>
    /// How many of those a token may have.
    let width: Int
    /// What travels with each token: its scales, its weights and the numbers of its experts, four bytes each.
    let cargo: Table<Float>
    let cargoCount: Int
    /// Sums of nodes are not weighted again.
    let ones: Table<Float>

    /// What came to this node.
    var arrived: ReceivedTokens?
    let scales: Table<Float>
    let weights: Table<Float>
    let experts: Table<Int32>

    /// Entries of each token that did not contribute; bit `k` is entry `k`.
    let dropped: Table<UInt64>
    let isMissing: Table<Bool>

    init(_ shape: ExpertConfiguration, nodes count: Int) {
        let rows = count * shape.maximumTokens
        width = min(shape.topK, count)
        cargoCount = shape.scaleCount + 2 * shape.topK
        nodes = Table(repeating: -1, count: shape.maximumTokens * width)
        cargo = Table(repeating: 0, count: shape.maximumTokens * cargoCount)
        ones = Table(repeating: 1, count: shape.maximumTokens * width)
        scales = Table(repeating: 0, count: max(1, rows * shape.scaleCount))
        weights = Table(repeating: 0, count: rows * shape.topK)
        experts = Table(repeating: -1, count: rows * shape.topK)
        dropped = Table(repeating: 0, count: shape.maximumTokens)
        isMissing = Table(repeating: false, count: shape.ranks)
    }
}

// From tokens to what goes to nodes, and from what came to what goes on.
extension NodeExchange {
    /// Writes down where tokens go and what goes with them.
    /// - Throws: `invalidArgument` for tokens that cannot be.
    /// - Complexity: O(tokens * topK).
    func pack(_ step: NodeStep, _ tokens: TokenBatch) throws(TransferError) -> TokenBatch {
        try between.check(tokens)
        let (topK, scales) = (configuration.topK, configuration.scaleCount)
        for token in 0..<tokens.count {
            let list = tokens.experts + token * topK
            let first = token * step.width
            var count = 0
            for entry in 0..<topK where list[entry] >= 0 {
                guard list[entry] < configuration.experts else {
                    throw TransferError(
                        .invalidArgument,
                        "an entry of a token's list is not one of \(configuration.experts) experts")
                }
                let node = Int32(owners[Int(list[entry])])
                var place = 0
                while place < count, step.nodes[first + place] != node { place += 1 }
                step.nodes[first + place] = node
                count = max(count, place + 1)
            }
            for place in count..<step.width { step.nodes[first + place] = -1 }
            let cargo = UnsafeMutableRawPointer(step.cargo.address(of: token * step.cargoCount))
            if let own = tokens.scales { memcpy(cargo, own + token * scales, scales * 4) }
            memcpy(cargo + scales * 4, tokens.weights + token * topK, topK * 4)
            memcpy(cargo + (scales + topK) * 4, list, topK * 4)
        }
        var batch = tokens
        batch.scales = UnsafePointer(step.cargo.address(of: 0))
        batch.experts = UnsafePointer(step.nodes.address(of: 0))
        batch.weights = UnsafePointer(step.ones.address(of: 0))
        return batch
    }

    /// What has come to this node, for its ranks: the entries whose experts they have.
    /// - Complexity: O(rows * topK).
    func unpack(_ step: NodeStep, _ arrived: ReceivedTokens) {
        let (topK, scales) = (configuration.topK, configuration.scaleCount)
        let first = Int32(nodeExperts.lowerBound)
        let count = UInt32(nodeExperts.count)
        step.arrived = arrived
        guard let received = arrived.scales else { return }
        for row in 0..<arrived.rowCount {
            let cargo = UnsafeRawPointer(received + row * step.cargoCount)
            if scales > 0 { memcpy(step.scales.address(of: row * scales), cargo, scales * 4) }
            memcpy(step.weights.address(of: row * topK), cargo + scales * 4, topK * 4)
            for entry in 0..<topK {
                let expert = cargo.load(fromByteOffset: (scales + topK + entry) * 4, as: Int32.self) &- first
                step.experts[row * topK + entry] = UInt32(bitPattern: expert) < count ? expert : -1
            }
        }
    }

    /// The tokens that have come to this node, as they go on inside.
    func forwarded(_ step: NodeStep, _ arrived: ReceivedTokens) -> TokenBatch {
        TokenBatch(
            count: arrived.rowCount, tokens: UnsafeRawPointer(arrived.tokens),
            stride: between.format.rowBytes,
            region: between.grouped,
            scales: configuration.scaleBlock == nil ? nil : UnsafePointer(step.scales.address(of: 0)),
            experts: UnsafePointer(step.experts.address(of: 0)),
            weights: UnsafePointer(step.weights.address(of: 0)))
    }

    /// Puts behind each sum of this node which entries it is without.
    func markDropped(_ step: NodeStep, _ arrived: ReceivedTokens, _ result: StepResult) {
        let topK = configuration.topK
        let placement = inside.placement
        for row in 0..<arrived.rowCount {
            var bits: UInt64 = 0
            for entry in 0..<topK where !result.missingRanks.isEmpty {
                let expert = step.experts[row * topK + entry]
                if expert >= 0, result.missingRanks.contains(placement.owner(of: Int(expert))) {
                    bits |= 1 << UInt64(entry)
                }
            }
            let end = row * between.configuration.resultBytes + configuration.hidden * 4
            arrived.outputs.storeBytes(of: bits.littleEndian, toByteOffset: end, as: UInt64.self)
        }
        for mate in result.missingRanks { step.isMissing[node * size + mate] = true }
    }

    /// Counts the entries that did not contribute, those of nodes that cannot be reached among them.
    func collect(_ index: Int, _ tokens: TokenBatch, _ lostNodes: [Int]) -> StepResult {
        let step = steps[index]
        var result = StepResult()
        for token in 0..<tokens.count {
            let bits = droppedBits(index, token, tokens)
            step.dropped[token] = bits
            for entry in 0..<configuration.topK where bits & 1 << UInt64(entry) != 0 {
                let expert = Int(tokens.experts[token * configuration.topK + entry])
                guard expert >= 0 else { continue }
                result.droppedEntries += 1
                step.isMissing[configuration.placement.owner(of: expert)] = true
            }
        }
        for node in lostNodes { for rank in node * size..<(node + 1) * size { step.isMissing[rank] = true } }
        for rank in 0..<configuration.ranks where step.isMissing[rank] {
            result.missingRanks.append(rank)
            step.isMissing[rank] = false
        }
        return result
    }

    private func droppedBits(_ index: Int, _ token: Int, _ tokens: TokenBatch) -> UInt64 {
        let step = steps[index]
        let batch = between.batches[index]
        let rowBytes = between.configuration.resultBytes
        let results = batch.receiveBase + between.plan.resultsOffset + configuration.hidden * 4
        var bits: UInt64 = 0
        for place in token * step.width..<(token + 1) * step.width where step.nodes[place] >= 0 {
            let row = Int(batch.routing.position[place])
            if row >= 0, batch.links[Int(step.nodes[place])].hasResults {
                bits |= UInt64(
                    littleEndian: results.loadUnaligned(fromByteOffset: row * rowBytes, as: UInt64.self))
                continue
            }
            for entry in 0..<configuration.topK {
                let expert = tokens.experts[token * configuration.topK + entry]
                if expert >= 0, Int32(owners[Int(expert)]) == step.nodes[place] { bits |= 1 << UInt64(entry) }
            }
        }
        return bits
    }
}
