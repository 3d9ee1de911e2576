import CPlatform
import Glibc
import Synchronization
import Testing
import TransferCore

@testable import SharedMemoryProvider
@testable import TransferEngine

/// What shared memory keeps of peers that come and go.
@Suite(.serialized, .timeLimit(.minutes(2))) struct SharedMemoryPeersTests {
    private func engine(_ name: String) throws -> TransferEngine {
        try TransferEngine(
            Configuration(
                name: name, nics: [.sharedMemory(SharedMemoryOptions(callerMemory: .bounce))],
                progress: .manual))
    }

    /// Writes into the survivor's memory through a ring, is written to, says something, and is closed or let go.
    private func meet(_ survivor: TransferEngine, _ target: MemoryRegion, round: UInt32, isKept: Bool) throws
    {
        let visitor = try engine("visitor")
        defer { visitor.close() }
        let own = try visitor.allocate(byteCount: 4096)
        own.baseAddress.storeBytes(of: round, as: UInt32.self)
        let there = try visitor.attach(survivor.descriptor(of: target))
        let back = try survivor.attach(visitor.descriptor(of: own))
        try visitor.write(from: own, byteCount: 4, to: there, immediate: 5)
        try survivor.write(from: target, byteCount: 0, to: back, immediate: 6)
        try drive([visitor, survivor]) { survivor.count(of: 5) == 1 && visitor.count(of: 6) == 1 }
        #expect(survivor.consume(5, count: 1))
        #expect(target.baseAddress.load(as: UInt32.self) == round)
        if !isKept { try visitor.detach(there) }
        try survivor.detach(back)
    }

    private func drive(_ engines: [TransferEngine], until done: () -> Bool) throws {
        let end = te_monotonic_nanoseconds() + 20_000_000_000
        while !done() {
            for engine in engines { engine.progress() }
            try #require(te_monotonic_nanoseconds() < end, "nothing happens")
        }
    }

    /// Bytes that the caller makes in a peer's memory arrive with one count, as written ones do; where that cannot be nothing is
    /// called and nothing is counted.
    @Test func bytesAreMadeInPlace() throws {
        let (owner, writer) = (try engine("owner"), try engine("writer"))
        defer {
            writer.close()
            owner.close()
        }
        let region = try owner.allocate(byteCount: 4096)
        let there = try writer.attach(owner.descriptor(of: region))
        let isMade = try writer.write(
            byteCount: 90, spanBytes: 100, to: there, targetOffset: 3996, immediate: 7
        ) { place in
            for half in [place, place + 55] { memset(half, 0xAB, 45) }
            #expect(owner.count(of: 7) == 0)
        }
        #expect(isMade)
        #expect(owner.count(of: 7) == 1)
        #expect(
            region.bytes.indices.allSatisfy { index in
                region.bytes[index] == ((3996..<4041).contains(index) || index >= 4051 ? 0xAB : 0)
            })
        // Rows with gaps between them: only they are sent.
        #expect(writer.statistics().nics[0].bytes == 90)
        var calls = 0
        // Behind the end, and before the beginning.
        for (count, offset) in [(101, 3996), (1, 4096), (1, -1), (-1, 0)] {
            let error = #expect(throws: TransferError.self) {
                try writer.write(
                    byteCount: count, spanBytes: count, to: there, targetOffset: offset, immediate: 7
                ) { _ in
                    calls += 1
                }
            }
            #expect(error?.code == .outOfRange)
        }
        // The caller's own memory is not mapped here.
        var own = [UInt8](repeating: 0, count: 64)
        try own.withUnsafeMutableBytes { bytes in
            let local = try owner.register(bytes)
            let other = try writer.attach(owner.descriptor(of: local))
            #expect(
                try !writer.write(byteCount: 8, spanBytes: 8, to: other, targetOffset: 0, immediate: 7) { _ in
                    calls += 1
                })
            try writer.detach(other)
            try owner.deregister(local)
        }
        // What has been revoked is not written into.
        _ = try owner.revoke(region)
        #expect(
            try !writer.write(byteCount: 8, spanBytes: 8, to: there, targetOffset: 0, immediate: 7) { _ in
                calls += 1
            })
        #expect(calls == 0 && owner.count(of: 7) == 1)
    }

    /// A thread that does not make progress is not in a peer's memory: its engine's worker may be there.
    @Test func anotherThreadMakesNothingInPlace() throws {
        let owner = try engine("owner")
        let writer = try TransferEngine(Configuration(name: "writer", nics: [.sharedMemory]))
        defer {
            writer.close()
            owner.close()
        }
        let region = try owner.allocate(byteCount: 4096)
        let there = try writer.attach(owner.descriptor(of: region))
        var calls = 0
        #expect(
            try !writer.write(byteCount: 8, spanBytes: 8, to: there, targetOffset: 0, immediate: 7) { _ in
                calls += 1
            })
        #expect(calls == 0 && owner.count(of: 7) == 0)
    }

    /// Mappings of this process that have a name.
    private func mappings(of name: String) -> Int {
        guard let file = fopen("/proc/self/maps", "r") else { return 0 }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 512)
        var count = 0
        while fgets(&line, 512, file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if text.contains(name) { count += 1 }
        }
        return count
    }

    /// What was revoked and granted anew is another region in the same memory: whoever still has the old one attached gets the
    /// mapping that there is, and can write into the new one only.
    @Test func memoryThatIsGrantedAnewStaysMapped() throws {
        let (owner, writer) = (try engine("owner"), try engine("writer"))
        defer {
            writer.close()
            owner.close()
        }
        let granted = try owner.allocate(byteCount: 1 << 20, access: .remoteWrite)
        let other = try owner.allocate(byteCount: 1 << 20, access: .remoteWrite)
        let source = try writer.allocate(byteCount: 4096)
        let before = mappings(of: "te-region")
        let old = try writer.attach(owner.descriptor(of: granted))
        #expect(mappings(of: "te-region") == before + 1)
        let anew = try owner.revoke(granted)
        let new = try writer.attach(owner.descriptor(of: anew))
        #expect(mappings(of: "te-region") == before + 1)
        // Another region is other memory.
        let elsewhere = try writer.attach(owner.descriptor(of: other))
        #expect(mappings(of: "te-region") == before + 2)
        source.baseAddress.storeBytes(of: 0x5EED, as: UInt32.self)
        let stale = try writer.write(from: source, byteCount: 4, to: old, immediate: 5)
        try drive([writer, owner]) { !writer.isPending(stale) }
        guard case .failed(let error) = writer.status(of: stale) else {
            Issue.record("a write into what was revoked")
            return
        }
        #expect(error.code == .staleRegion)
        try writer.detach(old)
        #expect(mappings(of: "te-region") == before + 2)
        try writer.write(from: source, byteCount: 4, to: new, immediate: 6)
        try drive([writer, owner]) { owner.count(of: 6) == 1 }
        #expect(anew.baseAddress.load(as: UInt32.self) == 0x5EED && owner.count(of: 5) == 0)
        try writer.detach(new)
        #expect(mappings(of: "te-region") == before + 1)
        try writer.detach(elsewhere)
        #expect(mappings(of: "te-region") == before)
    }

    /// What the owner sees of a process that is killed in the middle of a copy: the end of its connection.
    @Test func aWriterThatDiesInsideLeaves() throws {
        let survivor = try engine("survivor")
        defer { survivor.close() }
        let target = try survivor.allocate(byteCount: 4096, access: .remoteWrite)
        let state = RegionSlot.state(generation: target.generation, access: .remoteWrite)
        func visit() throws -> (SharedMemoryPeer, seat: UInt32) {
            let peer = try SharedMemoryPeer(connectingTo: survivor.page.engine, from: EngineID(rawValue: 7))
            let seat = try peer.takeSeat()
            #expect(peer.page.enter(target.index, expecting: state, seat: seat))
            return (peer, seat)
        }
        let (killed, killedSeat) = try visit()
        let (other, otherSeat) = try visit()
        defer { other.close() }
        #expect(killedSeat != otherSeat)
        other.page.leave(seat: otherSeat)
        #expect(!survivor.page.isQuiet(target.index))
        killed.close()
        try drive([survivor]) { survivor.page.isQuiet(target.index) }
        try survivor.deregister(target)
        let (next, nextSeat) = try {
            let peer = try SharedMemoryPeer(connectingTo: survivor.page.engine, from: EngineID(rawValue: 8))
            return (peer, try peer.takeSeat())
        }()
        defer { next.close() }
        #expect(nextSeat == killedSeat, "a seat is used again")
    }

    /// What a process that dies has not read ends, and gives back its place: nobody else would ever read it.
    @Test func whatADeadPeerHasNotReadEnds() throws {
        var configuration = Configuration(
            name: "survivor", nics: [.sharedMemory(SharedMemoryOptions(callerMemory: .bounce))],
            progress: .manual)
        configuration.liveness = Liveness(interval: .milliseconds(20))
        let survivor = try TransferEngine(configuration)
        defer { survivor.close() }
        let visitor = try engine("visitor")
        let peer = try survivor.connect(to: visitor.address)
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { memory.deallocate() }
        let remote = try survivor.attach(visitor.descriptor(of: try visitor.register(memory)))
        let source = try survivor.allocate(byteCount: 4096)
        let failed = Mutex(0)
        let note: TransferCallback = { result in
            if case .failure(let error) = result, error.code == .peerLost { failed.withLock { $0 += 1 } }
        }
        /// A message and a write through the ring.
        func send() throws {
            try survivor.send([1, 2, 3], to: peer, onEnd: note)
            try survivor.write(from: source, byteCount: 8, to: remote, immediate: 5, onEnd: note)
        }
        for _ in 0..<100 { try send() }
        for _ in 0..<10 { survivor.progress() }
        visitor.close()
        try drive([survivor]) { failed.withLock { $0 } == 200 }
        try drive([survivor]) { survivor.usage.pending == 0 && survivor.usage.abandoned == 0 }
        for _ in 0..<100 { try send() }
        for _ in 0..<10 { survivor.progress() }
        #expect(failed.withLock { $0 } == 400, "at once")
        #expect(survivor.usage.pending == 0 && survivor.usage.abandoned == 0)
    }

    @Test(arguments: [false, true]) func nothingIsKept(ofPeersThatAreClosedAttached isKept: Bool) throws {
        let survivor = try engine("survivor")
        defer { survivor.close() }
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer { memory.deallocate() }
        let target = try survivor.register(memory, access: .remoteWrite)
        try meet(survivor, target, round: 1, isKept: isKept)
        func settle() throws {
            // The service hears of the end in its own time.
            let end = te_monotonic_nanoseconds() + 100_000_000
            try drive([survivor]) { te_monotonic_nanoseconds() > end }
        }
        try settle()
        let before = (mappings(of: "te-ring"), mappings(of: "te-page"))
        for round in 2..<80 as Range<UInt32> {
            try meet(survivor, target, round: round, isKept: isKept)
        }
        try settle()
        // Other suites of this process have some, too, and let them go meanwhile.
        #expect(mappings(of: "te-ring") < before.0 + 40)
        #expect(mappings(of: "te-page") < before.1 + 40)
    }
}
