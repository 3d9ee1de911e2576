internal import ArgumentParser
internal import CPlatform
internal import ExpertParallel
internal import Glibc
internal import Platform
internal import TransferEngine

/// One rank of `te bench moe`.
struct BenchMoERank: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "bench-moe-rank", shouldDisplay: false)

    @OptionGroup var shape: MoEShape
    @Option var rank: Int
    @Option var tokens: Int

    func run() throws {
        _ = te_die_with_parent()
        // Before this process is pinned to one of the processors that it may use.
        let configuration = shape.configuration(rank: rank, tokens: tokens)
        let processors = allowedProcessors()
        if !processors.isEmpty { _ = te_pin_self(Int32(processors[rank % processors.count])) }
        let side = try MoERank(configuration, nodes: shape.nodes)
        _ = writeLine(hexadecimal(side.exchange.address), to: 1)
        var addresses: [[UInt8]] = []
        for _ in 0..<shape.ep {
            guard let line = readLine(), let address = bytes(hexadecimal: line) else { return }
            addresses.append(address)
        }
        try side.exchange.connect(addresses)
        while let line = readLine() {
            let numbers = line.split(separator: " ").dropFirst().compactMap { Int($0) }
            guard line.hasPrefix("run "), numbers.count == 2 else { break }
            _ = writeLine(try side.run(warmUp: numbers[0], steps: numbers[1]), to: 1)
        }
        try side.close()
    }
}

/// The engine, the exchange and the tokens of a rank.
private final class MoERank {
    /// Tokens choose their experts anew in each of so many steps.
    private static let choices = 4

    let exchange: any TokenExchange
    private let nodes: Int
    private let engine: TransferEngine
    private let shape: ExpertConfiguration
    private let region: MemoryRegion
    private let sums: UnsafeMutableRawPointer
    private let scales: UnsafeMutablePointer<Float>
    private let weights: UnsafeMutablePointer<Float>
    private let experts: [UnsafeMutablePointer<Int32>]

    init(_ shape: ExpertConfiguration, nodes: Int) throws {
        self.shape = shape
        self.nodes = nodes
        let engine = try TransferEngine(Configuration(name: "rank \(shape.rank)", progress: .manual))
        self.engine = engine
        exchange =
            nodes > 0
            ? try NodeExchange(engine, shape, nodes: nodes) : try ExpertExchange(engine, shape)
        let tokens = shape.maximumTokens
        region = try engine.allocate(byteCount: tokens * shape.hidden, access: .localOnly)
        memset(region.baseAddress, 0x38, region.byteCount)
        sums = .allocate(byteCount: tokens * shape.hidden * 2, alignment: 4096)
        scales = .allocate(capacity: tokens * shape.scaleCount)
        scales.initialize(repeating: 1, count: tokens * shape.scaleCount)
        weights = .allocate(capacity: tokens * shape.topK)
        weights.initialize(repeating: 1 / Float(shape.topK), count: tokens * shape.topK)
        var random = SeededGenerator(seed: UInt64(shape.rank + 1))
        var pool = (0..<Int32(shape.experts)).map { $0 }
        experts = (0..<Self.choices).map { _ in
            let list = UnsafeMutablePointer<Int32>.allocate(capacity: tokens * shape.topK)
            for token in 0..<tokens {
                // The first k of a shuffle: all different.
                for entry in 0..<shape.topK {
                    pool.swapAt(entry, Int.random(in: entry..<pool.count, using: &random))
                    list[token * shape.topK + entry] = pool[entry]
                }
            }
            return list
        }
    }

    func close() throws {
        try exchange.close()
        engine.close()
        for list in experts { list.deallocate() }
        sums.deallocate()
        scales.deallocate()
        weights.deallocate()
    }

    /// Writes and bytes so far, on both levels where there are two.
    private var done: (writes: Int, bytes: Int) {
        let levels =
            (exchange as? NodeExchange).map { [$0.statisticsBetweenNodes, $0.statisticsInsideNode] }
            ?? (exchange as? ExpertExchange).map { [$0.statistics] } ?? []
        return levels.reduce((0, 0)) {
            ($0.0 + $1.dispatchWrites + $1.chunkWrites + $1.resultWrites, $0.1 + $1.bytes)
        }
    }

    /// Seconds of a step, bytes that it copies, memcpy's bytes per second, seconds of the dispatch and of the combine, and
    /// writes for each peer; medians.
    func run(warmUp: Int, steps: Int) throws -> String {
        var times: [(whole: Double, dispatch: Double)] = []
        var copied: [Double] = []
        for step in 0..<warmUp { _ = try self.step(step) }
        let before = done.writes
        for step in 0..<steps {
            let (time, bytes) = try self.step(step)
            times.append(time)
            copied.append(bytes)
        }
        let writes = done.writes - before
        let limit = copyLimit()
        let figures = [
            median(times.map(\.whole)), median(copied), limit, median(times.map(\.dispatch)),
            median(times.map { $0.whole - $0.dispatch }),
            Double(writes) / Double(steps) / Double(max(1, shape.ranks - 1)),
        ]
        return figures.map { String($0) }.joined(separator: " ")
    }

    private func step(_ number: Int) throws -> (time: (whole: Double, dispatch: Double), bytes: Double) {
        let start = monotonicSeconds()
        let written = done.bytes
        try exchange.dispatchSend(
            0,
            TokenBatch(
                count: shape.maximumTokens, tokens: region.baseAddress, stride: shape.hidden, region: region,
                scales: scales, experts: experts[number % Self.choices], weights: weights))
        var copies = 0
        var middle = 0.0
        while true {
            let received = try exchange.dispatchReceive(0)
            copies += received.rowCount
            middle += monotonicSeconds() - start
            try exchange.combineSend(0)
            if received.isLast { break }
        }
        let result = try exchange.combineReceive(0, into: sums, stride: nil)
        let whole = monotonicSeconds() - start
        guard result.isComplete else {
            throw TransferError(.peerLost, "ranks \(result.missingRanks) are missing")
        }
        return ((whole, middle), bytes(copies, written: done.bytes - written))
    }

    /// What a step copies: rows and results to others, rows to their places; sums count half of what they read and write.
    private func bytes(_ copies: Int, written: Int) -> Double {
        let row = shape.hidden + shape.scaleCount * 4
        let placed = copies * row
        let tokens = shape.maximumTokens
        let results = shape.hidden * 2
        if shape.reduction == .receiver {
            return Double(written + placed + tokens * (shape.topK + 1) * results / 2)
        }
        // Rows that travel or stay: one for each token and rank that has one of its experts, on average.
        func pairs(_ groups: Int) -> Double {
            Double(tokens * groups) * (1 - pow(1 - 1 / Double(groups), Double(shape.topK)))
        }
        let rows = pairs(shape.ranks)
        let senders = (Double(copies * results) + rows * Double(2 * results)) / 2
        let receivers = (rows * Double(2 * results) + Double(tokens * results)) / 2
        // Over nodes all of that once more, but for experts' results.
        let again = nodes > 0 ? pairs(nodes) * Double(row + 2 * results) : 0
        return Double(written + placed) + senders + receivers + again
    }

    /// What memcpy copies while the other ranks do the same.
    private func copyLimit() -> Double {
        let size = 64 << 20
        let from = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
        let to = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
        defer {
            from.deallocate()
            to.deallocate()
        }
        memset(from, 1, size)
        memset(to, 2, size)
        return BenchLimits.copy(from: from, to: to, regionBytes: size, size: 1 << 20, seconds: 0.5)
    }
}
