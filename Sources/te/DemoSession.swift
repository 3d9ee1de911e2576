internal import CPlatform
internal import Glibc
internal import Platform
internal import SharedMemoryProvider
internal import TransferEngine

/// One way to move the file.
enum DemoTest: String, CaseIterable {
    /// The whole file in one write.
    case write
    /// The file as pages in random order, and its tail.
    case pages
    /// A slice to each of three receivers.
    case scatter

    static let pageBytes = 65536
    static let receiverCount = 3
}

/// A deliberate fault: a check that cannot fail checks nothing.
enum DemoSpoil: String, CaseIterable {
    case none
    /// One byte of the source changes after its digest was taken.
    case byte
    /// One immediate too many is sent.
    case surplus
}

/// One round of one test, as its receivers saw it.
struct DemoRound {
    var bytesPerSecond = 0.0
    /// Arrivals counted by all receivers.
    var counted = 0
    var expected = 0
    var digests: [String] = []
    /// Empty when all is well.
    var faults: [String] = []
}

/// This process and its receivers, for one transport and one number of NICs.
final class DemoSession {
    let engine: TransferEngine
    let source: MemoryRegion
    private let spoil: DemoSpoil
    private var receivers: [(child: ChildProcess, memory: RemoteMemory)] = []
    private let order: UnsafeMutableBufferPointer<UInt32>
    private let seconds: Int
    private var lastImmediate: UInt32 = 0

    /// - Parameter processors: of the sender, and of all receivers.
    init(
        transport: String, nicCount: Int, model: DemoModel, processors: (sender: Int, receivers: Int),
        spoil: DemoSpoil
    ) throws {
        self.spoil = spoil
        // Slow machines move 100 MB in a second.
        seconds = 30 + model.byteCount / 100_000_000
        let pages = (0..<UInt32(model.byteCount / DemoTest.pageBytes))
        var random = DemoRandom(seed: 2)
        order = .allocate(capacity: pages.count)
        _ = order.initialize(from: pages.shuffled(using: &random))
        let nics = try makeNICs(provider: transport, count: nicCount, nics: "", callerMemory: .automatic)
        engine = try TransferEngine(
            Configuration(name: "demo sender", nics: nics, progress: .manual, timeout: .seconds(seconds)))
        source = try engine.allocate(byteCount: model.byteCount)
        try model.load(into: UnsafeMutableRawBufferPointer(rebasing: source.bytes[..<model.byteCount]))
        for index in 0..<DemoTest.receiverCount {
            // Only the first one gets the whole file.
            let slice = Self.slice(DemoTest.receiverCount - 1, of: model.byteCount).count
            let child = try ChildProcess([
                "demo-receiver", "--transport", transport, "--nic-count", String(nicCount), "--region-bytes",
                String(index == 0 ? model.byteCount : slice), "--processor", String(processors.receivers),
            ])
            guard let descriptor = bytes(hexadecimal: try answer(of: child, "region")) else {
                throw TransferError(.malformedDescriptor, "a receiver sent no descriptor")
            }
            receivers.append((child, try engine.attach(decoding: descriptor)))
        }
    }

    deinit { order.deallocate() }

    func close() {
        for receiver in receivers { receiver.child.end() }
        engine.close()
    }

    /// The part of the file that receiver `index` gets in a scatter.
    static func slice(_ index: Int, of byteCount: Int) -> Range<Int> {
        let part = byteCount / DemoTest.receiverCount
        return index * part..<(index == DemoTest.receiverCount - 1 ? byteCount : (index + 1) * part)
    }

    /// Changes a byte when that is the fault to make. After the digests of the source were taken.
    func spoilSource() {
        if spoil == .byte { source.bytes[source.byteCount / 2] ^= 1 }
    }

    /// The digests of the file and of its slices.
    func sourceDigests() throws(TransferError) -> (whole: String, slices: [String]) {
        let whole = try digest(0..<source.byteCount)
        var slices: [String] = []
        for index in 0..<DemoTest.receiverCount {
            slices.append(try digest(Self.slice(index, of: source.byteCount)))
        }
        return (whole, slices)
    }

    private func digest(_ range: Range<Int>) throws(TransferError) -> String {
        try VerifyDigest.sha256(
            of: UnsafeRawBufferPointer(rebasing: source.bytes[range]), within: Double(seconds))
    }

    // MARK: Rounds

    /// Moves the file once. Failures of a transfer are errors; what arrived wrongly is in the round's faults.
    func run(_ test: DemoTest, expecting digests: [String]) throws -> DemoRound {
        lastImmediate += 1
        let immediate = Immediate(truncatingIfNeeded: lastImmediate)
        let count = test == .pages ? order.count + (tailBytes > 0 ? 1 : 0) : 1
        let used = test == .scatter ? receivers[...] : receivers.prefix(1)
        let sizes = used.indices.map { test == .scatter ? slice($0).count : source.byteCount }
        for (receiver, size) in zip(used, sizes) {
            try receiver.child.send("expect \(immediate) \(count) \(size) \(seconds)")
        }
        for receiver in used { _ = try answer(of: receiver.child, "ready") }
        let start = te_monotonic_nanoseconds()
        var transfers = try submit(test, immediate)
        if spoil == .surplus {
            transfers.append(try engine.send(immediate: immediate, to: receivers[0].memory))
        }
        var round = DemoRound()
        var end = start
        for receiver in used {
            let arrived = try arrival(of: receiver.child)
            end = max(end, arrived.moment)
            round.counted += arrived.counted
            round.expected += count
            if let fault = arrived.fault { round.faults.append(fault) }
        }
        for transfer in transfers { try engine.wait(for: transfer) }
        round.bytesPerSecond = Double(source.byteCount) * 1e9 / Double(end - start)
        for (receiver, size) in zip(used, sizes) { try receiver.child.send("digest \(size) \(seconds)") }
        for receiver in used { round.digests.append(try answer(of: receiver.child, "digest")) }
        if round.digests != digests { round.faults.append("other bytes arrived than were sent") }
        if round.counted != round.expected {
            round.faults.append("\(round.counted) immediates were counted, \(round.expected) expected")
        }
        return round
    }

    /// Arrivals that came after their round, of all rounds and receivers.
    func lateArrivals() throws(TransferError) -> Int {
        var late = 0
        for receiver in receivers {
            try receiver.child.send("finish")
            late += Int(try answer(of: receiver.child, "surplus")) ?? 0
        }
        return late
    }

    private var tailBytes: Int { source.byteCount % DemoTest.pageBytes }

    private func slice(_ index: Int) -> Range<Int> { Self.slice(index, of: source.byteCount) }

    private func submit(_ test: DemoTest, _ immediate: Immediate) throws(TransferError) -> [Transfer] {
        let target = receivers[0].memory
        switch test {
        case .write:
            return [
                try engine.write(from: source, byteCount: source.byteCount, to: target, immediate: immediate)
            ]
        case .pages:
            let pages = Pages(UnsafeBufferPointer(order), stride: DemoTest.pageBytes)
            let tail = source.byteCount - tailBytes
            var transfers = [
                try engine.write(
                    pageBytes: DemoTest.pageBytes, from: source, pages: pages, to: target, pages: pages,
                    immediate: immediate)
            ]
            if tailBytes > 0 {
                transfers.append(
                    try engine.write(
                        from: source, sourceOffset: tail, byteCount: tailBytes, to: target,
                        targetOffset: tail,
                        immediate: immediate))
            }
            return transfers
        case .scatter:
            let slices = receivers.indices.map { index in
                let range = slice(index)
                return ScatterSlice(sourceOffset: range.lowerBound, byteCount: range.count, targetOffset: 0)
            }
            let group = try PeerGroup(receivers.map(\.memory))
            return [try engine.scatter(from: source, slices, to: group, immediate: immediate)]
        }
    }

    // MARK: Lines

    /// Makes progress until a receiver has told what it counted: a receiver may need something of us until then.
    private func arrival(
        of child: ChildProcess
    ) throws(TransferError) -> (moment: UInt64, counted: Int, fault: String?) {
        let deadline = monotonicSeconds() + Double(seconds) + 10
        while true {
            for _ in 0..<64 where !engine.progress() { sched_yield() }
            do throws(TransferError) {
                let words = try answer(of: child, "arrived", within: 0)
                    .split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false)
                guard words.count >= 2, let moment = UInt64(words[0]), let counted = Int(words[1]) else {
                    throw TransferError(.invalidArgument, "a receiver's line is not understood")
                }
                return (moment, counted, words.count > 2 ? String(words[2]) : nil)
            } catch {
                guard error.code == .stalled, monotonicSeconds() < deadline else { throw error }
            }
        }
    }

    /// The rest of a line that begins with `word`; a line with an error is thrown.
    private func answer(
        of child: ChildProcess, _ word: String, within seconds: Int = 120
    ) throws(TransferError) -> String {
        let line = try child.receive(within: seconds)
        guard line.hasPrefix(word) else { throw TransferError(.providerFailed, "a receiver says: \(line)") }
        return String(line.dropFirst(word.count + 1))
    }
}
