import Testing
import TransferEngine

/// Regions that are registered on some of the device's NICs.
@Suite struct ChosenNICsTests {
    private func engine(_ count: Int) throws -> (TransferEngine, [ScriptedDomain]) {
        let nics = (0..<count).map { ScriptedDomain("nic\($0)") }
        return (try makeEngine(nics), nics)
    }

    @Test func onlyThoseNICsKnowTheRegion() throws {
        let (engine, nics) = try engine(4)
        defer { engine.close() }
        let before = nics.map(\.registered.count)
        let region = try engine.allocate(byteCount: 4096, nics: [1, 3])
        #expect(zip(nics, before).map { $0.registered.count - $1 } == [0, 1, 0, 1])
        #expect(engine.descriptor(of: region).nics.map(\.address) == [nics[1].address, nics[3].address])
        try engine.deregister(region)
        #expect(nics.map(\.registered.count) == before)
    }

    /// The target was attached before the region on fewer NICs was registered, or after.
    @Test(arguments: [true, false]) func writesLeaveThroughThoseNICs(_ isAttachedFirst: Bool) throws {
        let (engine, nics) = try engine(4)
        defer { engine.close() }
        let target = try engine.allocate(byteCount: 1 << 20)
        let early = isAttachedFirst ? try engine.attach(engine.descriptor(of: target)) : nil
        let source = try engine.allocate(byteCount: 1 << 20, nics: [0, 2])
        let remote = try early ?? engine.attach(engine.descriptor(of: target))
        try engine.write(from: source, byteCount: 1 << 20, to: remote, immediate: 1)
        #expect(nics.map { $0.taken > 0 } == [true, false, true, false])
        let pages = (0..<64).map { UInt32($0) }
        try pages.withUnsafeBufferPointer { pages in
            _ = try engine.write(
                pageBytes: 64, from: source, pages: Pages(pages, stride: 4096), to: remote,
                pages: Pages(pages, stride: 4096), immediate: 1)
        }
        let slice = ScatterSlice(sourceOffset: 0, byteCount: 100, targetOffset: 0)
        for _ in 0..<8 { try engine.scatter(from: source, [slice], to: PeerGroup([remote])) }
        for _ in 0..<8 { try engine.write(from: source, byteCount: 8, to: remote) }
        #expect(nics[1].taken == 0 && nics[3].taken == 0)
        #expect(nics[0].taken > 30 && nics[2].taken > 30)
        // A region on all NICs still uses them all.
        let all = try engine.allocate(byteCount: 1 << 20)
        try engine.write(from: all, byteCount: 1 << 20, to: remote, immediate: 1)
        #expect(nics[1].taken > 0 && nics[3].taken > 0)
        try engine.detach(remote)
        #expect(throws: TransferError.self) { try engine.write(from: source, byteCount: 8, to: remote) }
    }

    @Test func mistakesAreErrors() throws {
        let (engine, _) = try engine(2)
        defer { engine.close() }
        for nics in [[], [2], [-1], [0, 5]] {
            let error = #expect(throws: TransferError.self) {
                try engine.allocate(byteCount: 4096, nics: nics)
            }
            #expect(error?.code == .invalidArgument)
        }
    }

    @Test func noCommonNICIsUnreachable() throws {
        let nics = [ScriptedDomain("nic0"), ScriptedDomain("nic1")]
        let engine = try makeEngine(nics)
        defer { engine.close() }
        // The target is on one slow NIC, which the first NIC of ours is joined with alone.
        let target = try engine.allocate(byteCount: 4096)
        let source = try engine.allocate(byteCount: 4096, nics: [1])
        var descriptor = engine.descriptor(of: target)
        descriptor.nics.removeLast()
        let remote = try engine.attach(descriptor)
        try engine.write(from: source, byteCount: 8, to: remote)
        #expect(nics[0].taken == 0 && nics[1].taken == 1)
    }
}
