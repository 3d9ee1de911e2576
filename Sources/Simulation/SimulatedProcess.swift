internal import SimulatedProvider
internal import TransferCore
internal import TransferEngine

/// One engine of a run, its memory, and what others may write there.
@safe final class SimulatedProcess {
    // SAFETY: `sourceMemory` and `targetMemory` are allocated in `init` and freed in `close`, after the engine has been closed.
    static let sourceBytes = 128 << 10
    static let targetBytes = 512 << 10
    /// What untouched memory holds.
    static let canary: UInt8 = 0xA5

    let index: Int
    let engine: TransferEngine
    let source: MemoryRegion
    private(set) var target: MemoryRegion
    private(set) var descriptor: RemoteRegion
    private let sourceMemory: UnsafeMutableRawBufferPointer
    private let targetMemory: UnsafeMutableRawBufferPointer
    private(set) var isAlive = true
    /// How often each message has come, by its operation.
    let inbox = Inbox()

    /// What an operation may write: bytes of the target region.
    struct Grant {
        var range: Range<Int>
        /// When the right was taken back, the bytes of that moment.
        var frozen: [UInt8]?
    }
    private(set) var grants: [Grant] = []
    private var next = 0

    final class Inbox: @unchecked Sendable {
        // SAFETY: a simulation has one thread.
        var counts: [UInt32: Int] = [:]
        var isDamaged = false
    }

    init(
        _ index: Int, incarnation: Int, nics: Int, _ plan: Case, _ network: SimulatedNetwork,
        _ adopt: (_ id: UInt64, _ nic: Int) -> Void
    ) throws(TransferError) {
        self.index = index
        var configuration = Configuration(
            name: "process \(index)" + (incarnation > 0 ? ".\(incarnation)" : ""), progress: .manual,
            timeout: .seconds(2))
        configuration.liveness = World.liveness
        configuration.attachmentLimit = 1024
        if plan.network.isSigned { configuration.clusterKey = try? ClusterKey(bytes: 0..<32) }
        engine = try TransferEngine(
            configuration, clock: network,
            random: SeededGenerator(seed: plan.seed &+ UInt64(index * 1000 + incarnation + 1))
        ) { page in
            (0..<nics).map { nic in
                let domain = network.openDomain(
                    SimulatedNIC(
                        name: "\(index).\(nic)", megabitsPerSecond: 10_000,
                        jitterNanoseconds: plan.network.jitterNanoseconds,
                        maximumWriteBytes: plan.network.maximumWriteBytes,
                        queueDepth: plan.network.queueDepth, reorder: plan.network.reorder),
                    page: page, engine: page.engine)
                adopt(domain.id, nic)
                return domain
            }
        }
        unsafe sourceMemory = .allocate(byteCount: Self.sourceBytes, alignment: 4096)
        unsafe targetMemory = .allocate(byteCount: Self.targetBytes, alignment: 4096)
        var generator = SeededGenerator(seed: UInt64(index + 1))
        for place in stride(from: 0, to: Self.sourceBytes, by: 8) {
            unsafe sourceMemory.storeBytes(of: generator.next(), toByteOffset: place, as: UInt64.self)
        }
        unsafe targetMemory.initializeMemory(as: UInt8.self, repeating: Self.canary)
        source = try unsafe engine.register(sourceMemory, access: .localOnly)
        target = try unsafe engine.register(targetMemory)
        descriptor = engine.descriptor(of: target)
        let inbox = inbox
        try unsafe engine.receive { bytes, _ in unsafe Self.note(bytes, inbox) }
    }

    private static func note(_ bytes: UnsafeRawBufferPointer, _ inbox: Inbox) {
        guard bytes.count >= 4 else {
            inbox.isDamaged = true
            return
        }
        let operation = unsafe bytes.loadUnaligned(as: UInt32.self)
        inbox.counts[operation, default: 0] += 1
        if unsafe !bytes.dropFirst(4).allSatisfy({ $0 == UInt8(truncatingIfNeeded: operation) }) {
            inbox.isDamaged = true
        }
    }

    /// Ends the process without a word to anybody.
    func close() {
        guard isAlive else { return }
        isAlive = false
        engine.close()
        unsafe sourceMemory.deallocate()
        unsafe targetMemory.deallocate()
    }

    // MARK: Memory

    /// A range that nothing else writes to, with untouched bytes behind it; nil when there is no room left.
    func grant(_ bytes: Int) -> Int? {
        guard next + bytes + 64 <= Self.targetBytes else { return nil }
        grants.append(Grant(range: next..<next + bytes))
        next += bytes + 64
        return grants.count - 1
    }

    /// Takes back everybody's right to write here, and grants it anew to those who ask from now on.
    func revoke() throws(TransferError) {
        target = try engine.revoke(target)
        descriptor = engine.descriptor(of: target)
        for index in grants.indices where grants[index].frozen == nil { freeze(index) }
    }

    /// From now on the bytes of a grant must not change.
    func freeze(_ grant: Int) { grants[grant].frozen = bytes(grants[grant].range) }

    func bytes(_ range: Range<Int>) -> [UInt8] { unsafe Array(targetMemory[range]) }
    func sourceBytes(_ range: Range<Int>) -> [UInt8] { unsafe Array(sourceMemory[range]) }

    /// What has been written where nothing may be written.
    func damage() -> String? {
        var end = 0
        for grant in grants {
            if let frozen = grant.frozen, bytes(grant.range) != frozen {
                return
                    "process \(index): bytes \(grant.range) changed after the writer was quiet or had lost its right"
            }
            if !isUntouched(end..<grant.range.lowerBound) { return outside(end..<grant.range.lowerBound) }
            end = grant.range.upperBound
        }
        return isUntouched(end..<Self.targetBytes) ? nil : outside(end..<Self.targetBytes)
    }

    private func outside(_ range: Range<Int>) -> String {
        "process \(index): bytes were written outside of what was granted, in \(range)"
    }

    private func isUntouched(_ range: Range<Int>) -> Bool {
        for place in range where unsafe targetMemory[place] != Self.canary { return false }
        return true
    }
}
