import SimulatedProvider
import Synchronization
import Testing
import TransferCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// Registered memory of a node.
final class Memory {
    /// The bytes.
    let bytes: UnsafeMutableRawBufferPointer
    /// As the provider sees it.
    let region: LocalRegion
    /// On the node's NIC.
    let key: DomainKey
    /// As peers see it.
    var remote: RemoteRegion

    /// Takes over what `Node.memory` made.
    init(bytes: UnsafeMutableRawBufferPointer, region: LocalRegion, key: DomainKey, remote: RemoteRegion) {
        self.bytes = bytes
        self.region = region
        self.key = key
        self.remote = remote
    }

    deinit { bytes.deallocate() }
}

/// An engine's bare minimum: a page, a NIC, regions, and a place that keeps imported keys where they are.
final class Node {
    /// Where the node is written to.
    let page: TargetPage
    /// Its NIC.
    let domain: SimulatedDomain
    private let mapping: UnsafeMutableRawPointer
    private let engine: EngineID
    private var keys: [UnsafeMutablePointer<ImportedKey>] = []
    private var memories: [Memory] = []  // lives as long as the NIC that reads it

    /// Opens a node with one NIC.
    init(_ network: SimulatedNetwork, _ nic: SimulatedNIC, engine: UInt64 = 1) throws {
        let flags = MAP_PRIVATE | MAP_ANON | MAP_NORESERVE
        let mapped = mmap(nil, TargetPage.byteCount, PROT_READ | PROT_WRITE, flags, -1, 0)
        mapping = try #require(mapped)
        try #require(Int(bitPattern: mapping) != -1, "there is address space for a page")
        self.engine = EngineID(rawValue: engine)
        page = TargetPage.initialize(mapping, engine: self.engine)
        domain = network.openDomain(nic, page: page, engine: self.engine)
    }

    deinit {
        domain.close()
        for key in keys { key.deallocate() }
        munmap(mapping, TargetPage.byteCount)
    }

    /// Allocates zeroed memory and registers it.
    func memory(_ count: Int, access: Access = .remoteWrite) throws -> Memory {
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 64)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        let base = try #require(bytes.baseAddress)
        let region = LocalRegion(
            index: UInt32(memories.count), generation: 1, access: access,
            secret: UInt64(memories.count) + 1000, base: base,
            length: count, memoryFile: -1, isPopulated: true)
        page.publish(region)
        let key = try domain.register(region)
        let nic = RemoteRegion.NIC(
            fabric: domain.attributes.fabric, address: domain.address,
            megabitsPerSecond: domain.attributes.megabitsPerSecond, key: key.remote, base: key.base)
        let remote = RemoteRegion(
            engine: engine, device: 0, index: region.index, generation: 1, access: access,
            length: UInt64(count), base: key.base, secret: region.secret, nics: [nic])
        let memory = Memory(bytes: bytes, region: region, key: key, remote: remote)
        memories.append(memory)
        return memory
    }

    /// Ends a region in the page, as an engine does before it deregisters.
    func revoke(_ memory: Memory) {
        page.withdraw(memory.region.index)
    }

    /// Imports a peer's region to a place that stays.
    func key(_ remote: RemoteRegion) throws -> UnsafeMutablePointer<ImportedKey> {
        let place = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        place.initialize(to: try domain.importRegion(remote, nic: 0))
        keys.append(place)
        return place
    }

    /// Posts one write of the first `length` bytes at `from` of `source`.
    @discardableResult func write(
        _ source: Memory, from: Int = 0, _ length: Int, to target: UnsafeMutablePointer<ImportedKey>,
        at offset: UInt64 = 0, immediate: UInt32 = 0, eighths: UInt32 = 8, context: UInt64 = 1
    ) throws -> PostResult {
        let base = try #require(source.bytes.baseAddress)
        let request = WorkRequest(
            context: context, source: base + from, length: length, localKey: source.key.local, target: target,
            targetOffset: offset, immediate: immediate, eighths: eighths)
        return withUnsafePointer(to: request) {
            domain.post(UnsafeBufferPointer(start: $0, count: 1))
        }
    }

    /// Sends one message.
    @discardableResult func send(
        _ payload: [UInt8], to target: UnsafeMutablePointer<ImportedKey>, context: UInt64 = 1
    ) -> PostResult {
        payload.withUnsafeBytes { domain.send($0, to: target, context: context) }
    }

    /// What one poll returns.
    struct Polled {
        /// Ends of requests.
        var completions: [Completion] = []
        /// Copies of messages.
        var messages: [[UInt8]] = []
        /// Who sent each.
        var senders: [UInt64] = []
        /// Requests that ended.
        var requests: Int { completions.reduce(0) { $0 + Int($1.count) } }
    }

    /// Polls once.
    func poll(limit: Int = Limits.completionsPerPoll) -> Polled {
        withUnsafeTemporaryAllocation(of: Completion.self, capacity: limit) { buffer in
            var result = Polled()
            for item in buffer[..<domain.poll(buffer)] {
                if item.count == 0 {
                    result.messages.append([UInt8](item.message))
                    result.senders.append(item.context)
                } else {
                    result.completions.append(item)
                }
            }
            return result
        }
    }
}

extension Memory {
    /// Fills the memory with bytes that differ from place to place.
    func fill(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: random.next() >> 32) | 1 }
    }
}

/// Two nodes on a network, each with memory of the same size, the right one's imported by the left one.
struct Pair {
    /// The network.
    let network: SimulatedNetwork
    /// Who writes.
    let left: Node
    /// Who is written to.
    let right: Node
    /// The left node's memory.
    let source: Memory
    /// The right node's memory.
    let target: Memory
    /// The right node's memory for the left one.
    let key: UnsafeMutablePointer<ImportedKey>

    /// Opens both.
    init(
        seed: UInt64 = 1, bytes: Int = 1 << 20, left: SimulatedNIC = SimulatedNIC(name: "left"),
        right: SimulatedNIC = SimulatedNIC(name: "right"), sample: SimulatedSample? = nil
    ) throws {
        network = SimulatedNetwork(seed: seed, sample: sample)
        self.left = try Node(network, left, engine: 11)
        self.right = try Node(network, right, engine: 22)
        source = try self.left.memory(bytes, access: .localOnly)
        target = try self.right.memory(bytes)
        key = try self.left.key(target.remote)
        source.fill(seed: seed)
    }

    /// Lets everything happen.
    func settle() { while network.step() {} }
}
