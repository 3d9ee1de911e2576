import Testing
@testable import TransferEngine

/// What an engine counts of itself is what happened.
@Suite struct StatisticsTests {
    private func operation(_ name: String, _ engine: TransferEngine) throws -> EngineStatistics.Operation {
        try #require(engine.statistics().operations.first { $0.name == name })
    }

    /// Requests, bytes and what is in flight, on NICs that do what the test says.
    @Test func requestsOfEachNIC() throws {
        let nics = [ScriptedDomain("a"), ScriptedDomain("b")]
        var contexts: [UInt64] = []
        for nic in nics {
            nic.onPost = { requests in
                contexts += requests.map(\.context)
                return PostResult(accepted: requests.count, isComplete: false, status: .success)
            }
        }
        let engine = try makeEngine(nics)
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 1 << 20)
        let remote = try engine.attach(engine.descriptor(of: source))
        let transfer = try engine.write(from: source, byteCount: 1 << 20, to: remote, immediate: 1)
        var now = engine.statistics()
        #expect(now.nics.map(\.requests) == [1, 1] && now.nics.map(\.bytes) == [524_288, 524_288])
        #expect(now.nics.map(\.inFlight) == [1, 1])
        #expect(try operation("write", engine).inFlight == 1)
        #expect(now.peers.map(\.bytes) == [1 << 20] && now.peers.map(\.operations) == [1])
        for (nic, context) in zip(nics, contexts) {
            nic.completions = [Completion(context: context, count: 1)]
        }
        while engine.status(of: transfer) == .pending { engine.progress() }
        now = engine.statistics()
        #expect(now.nics.map(\.inFlight) == [0, 0] && now.nics.map(\.failed) == [0, 0])
        let write = try operation("write", engine)
        #expect(write.begun == 1 && write.inFlight == 0 && write.failed == 0 && write.bytes == 1 << 20)
    }

    /// Durations are counted where Prometheus' `le` wants them: at most the bound.
    @Test func placesOfDurations() {
        typealias Latency = EngineStatistics.Latency
        for (duration, place): (UInt64, Int) in [
            (0, 0), (1, 0), (1024, 0), (1025, 1), (2048, 1), (2049, 2), (4096, 2), (4097, 3), (.max, 25),
        ] { #expect(Latency.place(of: duration) == place, "\(duration)") }
        for (place, bound) in Latency.bounds.enumerated() {
            #expect(Latency.place(of: bound) == place && Latency.place(of: bound + 1) == place + 1)
        }
    }

    @Test func pushingBackAndFailing() throws {
        let nic = ScriptedDomain("a")
        var answers = 3
        var context: UInt64 = 0
        nic.onPost = { requests in
            answers -= 1
            if answers > 0 { return PostResult(accepted: 0, isComplete: false, status: .again) }
            context = requests[0].context
            return PostResult(accepted: requests.count, isComplete: false, status: .success)
        }
        let engine = try makeEngine([nic])
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 4096)
        let remote = try engine.attach(engine.descriptor(of: source))
        let transfer = try engine.write(from: source, byteCount: 8, to: remote, immediate: 1)
        while nic.taken == 0 { engine.progress() }
        #expect(engine.statistics().nics[0].pushedBack == 2)
        nic.completions = [Completion(context: context, count: 1, status: .providerFailed, detail: 5)]
        while engine.status(of: transfer) == .pending { engine.progress() }
        let now = engine.statistics()
        #expect(now.nics[0].failed == 1 && now.nics[0].requests == 1 && now.nics[0].bytes == 8)
        let write = try operation("write", engine)
        #expect(write.failed == 1 && write.stalled == 0 && write.inFlight == 0)
    }

    @Test func stallsAreCounted() throws {
        let clock = ManualClock()
        let engine = try makeEngine([ScriptedDomain("a")], clock: clock)
        defer { engine.close() }
        let wait = try engine.expect(3, count: 1, timeout: .milliseconds(1))
        clock.nowNanoseconds += 2_000_000
        while engine.status(of: wait) == .pending { engine.progress() }
        let waits = try operation("wait", engine)
        #expect(waits.begun == 1 && waits.failed == 1 && waits.stalled == 1 && waits.inFlight == 0)
    }

    /// Scatters count for each target, paged writes for all pages.
    @Test func bytesOfScattersAndPages() throws {
        let nic = ScriptedDomain("a")
        nic.onPost = { PostResult(accepted: $0.count, isComplete: true, status: .success) }
        let engine = try makeEngine([nic])
        defer { engine.close() }
        let source = try engine.allocate(byteCount: 65536)
        let remote = try engine.attach(engine.descriptor(of: source))
        let slice = ScatterSlice(sourceOffset: 0, byteCount: 100, targetOffset: 0)
        try engine.scatter(from: source, [(slice, remote), (slice, remote), (slice, remote)], immediate: 1)
        let pages: [UInt32] = [0, 2, 4]
        try pages.withUnsafeBufferPointer { list in
            _ = try engine.write(
                pageBytes: 4096, from: source, pages: Pages(list, stride: 4096), to: remote,
                pages: Pages(list, stride: 4096), immediate: 1)
        }
        #expect(try operation("scatter", engine).bytes == 300 && operation("pages", engine).bytes == 3 * 4096)
        let now = engine.statistics()
        #expect(now.nics[0].requests == 6 && now.nics[0].bytes == 300 + 3 * 4096 && now.nics[0].inFlight == 0)
        #expect(now.peers[0].operations == 4 && now.peers[0].bytes == 300 + 3 * 4096)
    }

    /// Short writes over shared memory take no slot; they are counted all the same. Peers have their names.
    @Test func sharedMemory() throws {
        let a = try TransferEngine(Configuration(name: "a", progress: .manual))
        let b = try TransferEngine(Configuration(name: "b", progress: .adaptive))
        defer {
            a.close()
            b.close()
        }
        let source = try a.allocate(byteCount: 4096)
        let target = try b.allocate(byteCount: 4096)
        let remote = try a.attach(b.descriptor(of: target))
        let peer = try a.connect(to: b.address)
        for _ in 0..<100 { try a.write(from: source, byteCount: 64, to: remote, immediate: 1) }
        try a.send(immediate: 2, to: peer)
        let now = a.statistics()
        #expect(now.nics[0].requests == 101 && now.nics[0].bytes == 6400 && now.nics[0].inFlight == 0)
        #expect(now.peers.map(\.name) == ["b"] && now.peers.map(\.engine) == [b.id])
        #expect(now.peers[0].bytes == 6400 && now.peers[0].operations == 101 && !now.peers[0].isLost)
        let write = try operation("write", a)
        #expect(write.begun == 101 && write.bytes == 6400)
        try a.detach(remote)
        try a.disconnect(peer)
        #expect(a.statistics().peers == [], "a peer that is not attached any more is not listed")
    }
}
