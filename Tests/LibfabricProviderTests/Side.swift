import CLibfabric
import CPlatform
import Glibc
@testable import LibfabricProvider
import Synchronization
import TransferCore

/// One engine's worth of state around a domain, as an engine would keep it: a target page, regions,
/// completions.
final class Side {
    let engine: EngineID
    let page: TargetPage
    let domain: LibfabricDomain
    let memory: UnsafeMutableRawPointer
    let length: Int
    private(set) var key = DomainKey(local: 0, remote: 0, base: 0)
    private var region: LocalRegion
    private var pageMemory: UnsafeMutableRawPointer
    private let output = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 16)

    /// Requests that ended, by context, and how the last of each ended.
    var ended: [UInt64: Int] = [:]
    var statuses: [UInt64: WorkStatus] = [:]
    /// Requests that failed and whose fate can be known.
    var lost: [(tag: RequestTag, delivery: Delivery)] = []
    var messages: [(bytes: [UInt8], sender: UInt64)] = []

    init(_ number: UInt64, _ options: LibfabricOptions, length: Int = 4 << 20) throws {
        engine = EngineID(rawValue: number)
        pageMemory = Self.map(TargetPage.byteCount)
        page = TargetPage.initialize(pageMemory, engine: engine)
        memory = Self.map(length)
        self.length = length
        domain = try LibfabricDomain(options, page: page, engine: engine)
        region = LocalRegion(
            index: 3, generation: 5, access: .remoteWrite, secret: number &* 31, base: memory, length: length,
            memoryFile: -1, isPopulated: false)
        key = try domain.register(region)
        page.publish(region)
    }

    deinit {
        domain.deregister(region, key: key)
        domain.close()
        munmap(memory, length)
        munmap(pageMemory, TargetPage.byteCount)
        output.deallocate()
    }

    private static func map(_ bytes: Int) -> UnsafeMutableRawPointer {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let place = mmap(nil, bytes, PROT_READ | PROT_WRITE, flags, -1, 0), place != MAP_FAILED else {
            fatalError("mmap of \(bytes) bytes")
        }
        return place
    }

    /// What a peer is sent.
    var descriptor: RemoteRegion {
        RemoteRegion(
            engine: engine, device: 0, index: region.index, generation: region.generation,
            access: .remoteWrite,
            length: UInt64(length), base: UInt64(UInt(bitPattern: memory)), secret: region.secret,
            nics: [
                .init(
                    fabric: domain.attributes.fabric, address: domain.address, megabitsPerSecond: 1,
                    key: key.remote, base: key.base)
            ])
    }

    func poll() {
        let count = domain.poll(output)
        for entry in output.prefix(count) {
            if entry.count == 0 {
                messages.append((Array(entry.message), entry.context))
            } else {
                ended[entry.context, default: 0] += Int(entry.count)
                statuses[entry.context] = entry.status
                if entry.delivery != .unknown { lost.append((entry.tag, entry.delivery)) }
            }
        }
    }

    /// Fills the memory with numbers that tell places apart.
    func fill(seed: UInt64) {
        var generator = SeededGenerator(seed: seed)
        let words = memory.assumingMemoryBound(to: UInt64.self)
        for index in 0..<(length / 8) { words[index] = generator.next() }
    }
}

/// Two sides in one process, polled by turns.
final class Pair {
    let a: Side
    let b: Side
    let target: UnsafeMutablePointer<ImportedKey>
    /// A's region, for what B sends back.
    lazy var back: UnsafePointer<ImportedKey> = {
        do {
            let key = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
            key.initialize(to: try b.domain.importRegion(a.descriptor, nic: 0))
            return UnsafePointer(key)
        } catch {
            fatalError("\(error)")
        }
    }()

    init(_ options: LibfabricOptions) throws {
        a = try Side(11, options)
        b = try Side(22, options)
        a.fill(seed: 1)
        target = .allocate(capacity: 1)
        target.initialize(to: try a.domain.importRegion(b.descriptor, nic: 0))
    }

    deinit { target.deallocate() }

    /// Polls both until `done`, or gives up after some seconds.
    func run(seconds: UInt64 = 20, until done: () -> Bool) -> Bool {
        let end = te_monotonic_nanoseconds() + seconds * 1_000_000_000
        while !done() {
            a.poll()
            b.poll()
            if te_monotonic_nanoseconds() > end { return false }
        }
        return true
    }

    func request(
        _ context: UInt64, length: Int, from: Int = 0, to: Int = 0, immediate: UInt32 = 1,
        eighths: UInt32 = 8,
        target other: UnsafeMutablePointer<ImportedKey>? = nil
    ) -> WorkRequest {
        WorkRequest(
            context: context, source: a.memory + from, length: length, localKey: a.key.local,
            target: UnsafePointer(other ?? target), targetOffset: UInt64(to), immediate: immediate,
            eighths: eighths)
    }

    /// Posts all, polling both sides whenever the domain pushes back; the status of the last refusal
    /// otherwise.
    @discardableResult func post(_ requests: [WorkRequest]) -> WorkStatus {
        var accepted = 0
        while accepted < requests.count {
            let result = requests.withUnsafeBufferPointer {
                a.domain.post(UnsafeBufferPointer(rebasing: $0[accepted...]))
            }
            accepted += result.accepted
            if result.status == .success { continue }
            if result.status != .again, result.status != .targetBusy { return result.status }
            a.poll()
            b.poll()
        }
        return .success
    }

    func isEqual(from: Int, to: Int, length: Int) -> Bool {
        memcmp(a.memory + from, b.memory + to, length) == 0
    }
}
