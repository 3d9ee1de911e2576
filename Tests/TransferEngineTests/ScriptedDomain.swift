import TransferEngine

/// A NIC that does what a test says, so that the engine can be led into any corner. It moves no bytes.
final class ScriptedDomain: FabricDomain {
    /// Answers `post`; takes everything by default.
    var onPost: (UnsafeBufferPointer<WorkRequest>) -> PostResult = {
        PostResult(accepted: $0.count, isComplete: false, status: .success)
    }
    /// Answers `send`; takes every message, and is done with it, by default.
    var onSend: () -> PostResult = { PostResult(accepted: 1, isComplete: true, status: .success) }
    /// What the next polls return.
    var completions: [Completion] = []
    /// Requests that `post` was given and took.
    private(set) var taken = 0
    /// Messages that `send` was given.
    var sent: [[UInt8]] = []
    /// What their completions name.
    private(set) var contexts: [UInt64] = []
    private var lent: [UnsafeMutableRawBufferPointer] = []
    /// The regions registered at this moment.
    private(set) var registered: Set<UInt32> = []
    private let name: String
    private let megabitsPerSecond: UInt32

    private let maximumWriteBytes: UInt64

    init(_ name: String, megabitsPerSecond: UInt32 = 1000, maximumWriteBytes: UInt64 = 1 << 30) {
        self.maximumWriteBytes = maximumWriteBytes
        self.name = name
        self.megabitsPerSecond = megabitsPerSecond
    }

    var attributes: DomainAttributes {
        DomainAttributes(
            provider: "scripted", fabric: "scripted", name: name, megabitsPerSecond: megabitsPerSecond,
            maximumWriteBytes: maximumWriteBytes, countsMany: false)
    }
    var address: [UInt8] { Array(name.utf8) }
    var wakeDescriptor: Int32 { -1 }
    func prepareToSleep() -> Bool { completions.isEmpty }
    func close() {}

    func register(_ region: LocalRegion) -> DomainKey {
        registered.insert(region.index)
        return DomainKey(local: UInt64(region.index) + 1, remote: 0, base: 0)
    }
    func deregister(_ region: LocalRegion, key: DomainKey) { registered.remove(region.index) }
    func importRegion(_ remote: RemoteRegion, nic: Int) -> ImportedKey {
        ImportedKey(remote: remote, nic: nic, peer: nic, maximumWriteBytes: maximumWriteBytes)
    }
    func releaseImport(_ key: ImportedKey) {}

    func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        let result = onPost(requests)
        taken += result.accepted
        return result
    }
    func send(_ payload: UnsafeRawBufferPointer, to target: UnsafePointer<ImportedKey>, context: UInt64)
        -> PostResult
    {
        sent.append(Array(payload))
        contexts.append(context)
        return onSend()
    }
    /// Lets the next poll return a message.
    func deliver(_ message: [UInt8], from sender: EngineID) {
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: message.count, alignment: 8)
        copy.copyBytes(from: message)
        lent.append(copy)
        completions.append(Completion(message: UnsafeRawBufferPointer(copy), from: sender.rawValue))
    }
    deinit { for message in lent { message.deallocate() } }
    func poll(_ output: UnsafeMutableBufferPointer<Completion>) -> Int {
        let count = min(output.count, completions.count)
        for index in 0..<count { output[index] = completions[index] }
        completions.removeFirst(count)
        return count
    }
}

/// Time that stands still unless a test moves it.
final class ManualClock: TransferClock, @unchecked Sendable {
    // SAFETY: the tests that use it have one thread.
    var nowNanoseconds: UInt64 = 1
}

/// An engine in manual mode over scripted NICs.
func makeEngine(_ domains: [ScriptedDomain], clock: ManualClock = ManualClock()) throws -> TransferEngine {
    try TransferEngine(
        Configuration(name: "scripted", progress: .manual), clock: clock, random: SeededGenerator(seed: 1)
    ) { _ in domains }
}
