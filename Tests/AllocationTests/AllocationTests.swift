import CAllocationCounter
import SharedMemoryProvider
import Testing
import TransferEngine

#if Libfabric
    import LibfabricProvider
#endif

/// Contract, promise 12: once warm, no operation allocates. Counted by a replaced malloc, in the thread that makes
/// progress; a table may still grow once in a while, so the least of several rounds counts.
@Suite(.serialized) struct AllocationTests {
    enum Transport: String, CaseIterable, Sendable {
        case sharedMemory, processWrite, bounce
        #if Libfabric
            case tcp, tcpUnframed
        #endif

        static let hasLibfabric = allCases.contains { $0.isLibfabric }

        var isLibfabric: Bool { rawValue.hasPrefix("tcp") }

        var nic: Configuration.NIC {
            switch self {
            case .sharedMemory: .sharedMemory
            case .processWrite: .sharedMemory(SharedMemoryOptions(callerMemory: .processWrite))
            case .bounce: .sharedMemory(SharedMemoryOptions(callerMemory: .bounce))
            #if Libfabric
                case .tcp: .libfabric(LibfabricOptions(provider: "tcp", nic: "127.0.0.1"))
                case .tcpUnframed:
                    .libfabric(LibfabricOptions(provider: "tcp", nic: "127.0.0.1", framing: .never))
            #endif
            }
        }
    }

    /// Two engines of one thread, with 128 pages and everything that the operations need made beforehand.
    private struct Pair {
        let a: TransferEngine
        let b: TransferEngine
        let source: MemoryRegion
        let remote: RemoteMemory
        let peer: Peer
        let group: PeerGroup
        let pages: UnsafeBufferPointer<UInt32>

        init(_ transport: Transport) throws {
            a = try TransferEngine(Configuration(name: "a", nics: [transport.nic], progress: .manual))
            b = try TransferEngine(Configuration(name: "b", nics: [transport.nic], progress: .manual))
            source = try a.allocate(byteCount: 1 << 17)
            let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 17, alignment: 64)
            let target =
                transport == .sharedMemory ? try b.allocate(byteCount: 1 << 17) : try b.register(memory)
            remote = try a.attach(b.descriptor(of: target))
            peer = try a.connect(to: b.address)
            group = try PeerGroup([remote, remote])
            let list = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: 128)
            _ = list.initialize(from: (0..<128).map { UInt32($0 * 37 % 128) })
            pages = UnsafeBufferPointer(list)
            try b.receive { _, _ in }
        }

        func finish(_ transfer: Transfer) {
            while a.isPending(transfer) {
                a.progress()
                b.progress()
            }
        }

        func count(_ immediate: Immediate, _ count: Int) {
            while !b.consume(immediate, count: count) {
                a.progress()
                b.progress()
            }
        }
    }

    @Test(.timeLimit(.minutes(2)), arguments: Transport.allCases)
    func operationsDoNotAllocate(_ transport: Transport) throws {
        let pair = try Pair(transport)
        let slices = [ScatterSlice](
            repeating: ScatterSlice(sourceOffset: 3, byteCount: 900, targetOffset: 5), count: 2)
        let message: StaticString = "a small message"
        #if DEBUG
            // Without optimisation a closure inside an Optional is wrapped anew whenever it is passed on.
            let callback: TransferCallback? = nil
        #else
            let callback: TransferCallback? = { _ in }
        #endif
        func round() throws {
            pair.finish(try pair.a.write(from: pair.source, byteCount: 8, to: pair.remote, immediate: 1))
            pair.count(1, 1)
            pair.finish(
                try pair.a.write(
                    from: pair.source, byteCount: 100_000, to: pair.remote, immediate: 1, onEnd: callback))
            pair.count(1, 1)
            pair.finish(
                try pair.a.write(
                    pageBytes: 1000, from: pair.source, pages: Pages(pair.pages, stride: 1024),
                    to: pair.remote,
                    pages: Pages(pair.pages, stride: 1024), immediate: 2))
            pair.count(2, 128)
            pair.finish(try pair.a.scatter(from: pair.source, slices, to: pair.group, immediate: 3))
            pair.count(3, 2)
            pair.finish(try pair.a.send(immediate: 4, to: pair.remote))
            let wait = try pair.b.expect(4, count: 1, onReached: callback)
            while pair.b.isPending(wait) {
                pair.a.progress()
                pair.b.progress()
            }
            let bytes = UnsafeRawBufferPointer(start: message.utf8Start, count: message.utf8CodeUnitCount)
            pair.finish(try pair.a.send(bytes, to: pair.peer))
        }
        // What libfabric allocates by itself is its own affair.
        if transport.isLibfabric { try #require(allocation_tell_apart("libfabric.so") != 0) }
        for _ in 0..<50 { try round() }
        var least = UInt64.max
        for _ in 0..<200 {
            let before = allocation_count()
            try round()
            least = min(least, allocation_count() - before)
        }
        #if DEBUG
            // The unoptimised provider boxes values now and then; `make test` runs this suite optimised as well, where nothing
            // is allowed.
            let allowed: UInt64 = transport.isLibfabric ? 8 : 0
        #else
            let allowed: UInt64 = 0
        #endif
        #expect(least <= allowed, "\(transport): \(least) allocations in a round of operations")
        pair.a.close()
        pair.b.close()
    }

    /// Says in the report what was not counted.
    @Test(.enabled(if: Transport.hasLibfabric, "built without the trait Libfabric"))
    func libfabricIsBuilt() { #expect(Transport.hasLibfabric) }

    /// The gate itself: it would see one allocation.
    @Test func theCounterCounts() {
        let before = allocation_count()
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 100, alignment: 64)
        defer { memory.deallocate() }
        #expect(allocation_count() > before)
    }
}
