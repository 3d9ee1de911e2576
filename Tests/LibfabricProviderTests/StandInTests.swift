import CFabricStandIn
import CPlatform
import Glibc
@testable import LibfabricProvider
import Testing
import TransferCore

/// What libfabric does at once only now and then, and what would need much memory: over endpoints that are stand-ins.
@Suite("libfabric stand-in", .timeLimit(.minutes(1)))
struct StandInTests {
    /// A peer that takes questions over the first connection and refuses the second is asked ten times a second, not with
    /// every poll: each refusal begins another epoch, about which it has to be asked again.
    @Test func whoRefusesTheSecondConnectionIsNotFlooded() throws {
        let side = try StandInSide()
        let refusals: Int32 = 1_000_000
        te_fabric_standin_refuse(side.reverse, refusals, ECONNREFUSED)
        let begin = te_monotonic_nanoseconds()
        side.peer.pointee.provesSince = begin
        side.peer.pointee.provesReverse = true
        side.state.list(0)
        let output = UnsafeMutableBufferPointer<Completion>.allocate(capacity: 16)
        defer { output.deallocate() }
        var questions = 0
        for _ in 0..<50_000 {
            _ = side.state.poll(output)
            while te_fabric_standin_finish(side.fabric, 0) { questions += 1 }
        }
        let most = 2 + Int((te_monotonic_nanoseconds() - begin) / Tuning.greetAgainAfter)
        let refused = Int(refusals - te_fabric_standin_refusals(side.reverse))
        #expect(questions >= 1 && questions <= most)
        #expect(refused >= 1 && refused <= most)
    }

    /// A large write asks to be acknowledged when it is alone or half of the bytes on their way have not asked, at least 1 MiB
    /// and at most 4.
    @Test func halfOfWhatIsOnItsWayAsks() throws {
        let side = try StandInSide()
        side.peer.pointee.hasRing = true
        let source = UnsafeMutableRawPointer.allocate(byteCount: 16, alignment: 16)
        let key = UnsafeMutablePointer<ImportedKey>.allocate(capacity: 1)
        defer {
            source.deallocate()
            key.deallocate()
        }
        let nic = RemoteRegion.NIC(fabric: "tcp", address: [], megabitsPerSecond: 1, key: 2, base: 0)
        let remote = RemoteRegion(
            engine: EngineID(rawValue: 2), device: 0, index: 1, generation: 1, access: .remoteWrite,
            length: 1 << 20, base: 0, secret: 1, nics: [nic])
        key.initialize(to: ImportedKey(remote: remote, nic: 0, peer: 0, maximumWriteBytes: 1 << 30))
        // Nobody reads from the source.
        let request = WorkRequest(
            context: 7, source: UnsafeRawPointer(source), length: 1 << 18, localKey: 0,
            target: UnsafePointer(key), targetOffset: 0, immediate: 5, eighths: 8)
        var asking: [Int] = []
        for number in 1...70 {
            let result = withUnsafePointer(to: request) {
                side.state.post(UnsafeBufferPointer(start: $0, count: 1))
            }
            try #require(result.accepted == 1)
            if side.peer.pointee.countedAsked == side.peer.pointee.countedWrites { asking.append(number) }
        }
        #expect(asking == [1, 5, 9, 17, 33, 49, 65])
        side.state.lose(0, status: .peerLost, detail: 0)
        #expect(side.peer.pointee.countedBytes == 0)
    }
}

/// A domain with two endpoints that move nothing, and one peer.
private final class StandInSide {
    let fabric: OpaquePointer
    let reverse: OpaquePointer
    private let page: UnsafeMutableRawPointer
    var state: DomainState

    var peer: UnsafeMutablePointer<Peer> { state.peers }

    init() throws {
        fabric = try #require(te_fabric_standin_new())
        reverse = try #require(te_fabric_standin_new())
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        page = try #require(mmap(nil, TargetPage.byteCount, PROT_READ | PROT_WRITE, flags, -1, 0))
        try #require(page != MAP_FAILED)
        let handles = FabricHandles(
            info: try #require(te_fabric_standin_info(fabric)),
            fabric: try #require(te_fabric_standin_fabric(fabric)),
            domain: try #require(te_fabric_standin_domain(fabric)),
            completions: try #require(te_fabric_standin_completions(fabric)),
            addresses: try #require(te_fabric_standin_addresses(fabric)),
            endpoint: try #require(te_fabric_standin_endpoint(fabric)),
            reverse: te_fabric_standin_endpoint(reverse),
            reverseCompletions: te_fabric_standin_completions(reverse))
        let engine = EngineID(rawValue: 1)
        state = try DomainState(
            handles: handles, options: LibfabricOptions(provider: "tcp"),
            page: TargetPage.initialize(page, engine: engine), engine: engine, writeFlags: 0,
            countsWrites: true, address: [UInt8](repeating: 1, count: 16), nic: "stand-in")
        let found = [UInt8](repeating: 2, count: 16).withUnsafeBytes { address in
            address.baseAddress.map { state.findPeer(engine: 2, address: $0, length: 16).index } ?? -1
        }
        try #require(found == 0)
    }

    deinit {
        state.deallocate()
        munmap(page, TargetPage.byteCount)
        te_fabric_standin_free(reverse)
        te_fabric_standin_free(fabric)
    }
}
