import TransferEngine

/// Several peers: scatters, immediates, barriers, messages.
enum GroupChecks {
    /// One slice to each of `count` peers with different numbers of NICs, small and large, and a barrier of all.
    static func scatter(_ make: MakeCluster, peers count: Int, nics: (Int) -> Int) throws -> Findings {
        var findings = Findings()
        let cluster = try make((0...count).map(nics))
        let slice = 3001
        let source = try cluster.memory(0, count * slice + 200_000)
        fill(source, seed: 19)
        var targets: [MemoryRegion] = []
        var members: [RemoteMemory] = []
        for peer in 1...count {
            targets.append(try cluster.memory(peer, 210_000))
            members.append(try cluster.attach(targets[peer - 1], of: peer, to: 0))
        }
        let slices = (0..<count).map { peer in
            ScatterSlice(
                sourceOffset: peer * slice, byteCount: peer == 0 ? 200_000 : peer == 1 ? 0 : slice,
                targetOffset: peer * 5)
        }
        let transfer = try cluster.engines[0].scatter(
            from: source, slices, to: PeerGroup(members), immediate: 31)
        findings.require(cluster.finish(transfer, of: 0), "scatter to \(count)")
        for peer in 1...count {
            findings.require(
                cluster.run(seconds: 30) { cluster.engines[peer].consume(31, count: 1) },
                "peer \(peer) not counted")
            let one = slices[peer - 1]
            findings.require(
                isEqual(
                    source.baseAddress + one.sourceOffset, targets[peer - 1].baseAddress + one.targetOffset,
                    one.byteCount),
                "peer \(peer): data")
        }
        cluster.settle()
        for peer in 1...count {
            findings.require(cluster.engines[peer].count(of: 31) == 0, "peer \(peer): a surplus count")
        }
        return findings
    }

    /// Everybody meets everybody, several times with one immediate; and an empty group, and an empty scatter.
    static func barrier(_ make: MakeCluster, peers count: Int) throws -> Findings {
        var findings = Findings()
        let cluster = try make(Array(repeating: 1, count: count))
        let groups = try (0..<count).map { me in
            try PeerGroup((0..<count).filter { $0 != me }.map { try cluster.connect(me, to: $0) })
        }
        for round in 0..<3 {
            var transfers: [Transfer] = []
            for me in 0..<count - 1 {
                transfers.append(try cluster.engines[me].barrier(groups[me], immediate: 12))
            }
            cluster.settle()
            findings.require(
                transfers.enumerated().allSatisfy { cluster.engines[$0.offset].isPending($0.element) },
                "round \(round): a barrier ended before everybody had come")
            transfers.append(try cluster.engines[count - 1].barrier(groups[count - 1], immediate: 12))
            for me in 0..<count {
                findings.require(cluster.finish(transfers[me], of: me), "barrier of \(me)")
            }
        }
        let nobody = try PeerGroup([RemoteMemory]())
        findings.require(
            cluster.finish(try cluster.engines[0].barrier(nobody, immediate: 13), of: 0), "empty barrier")
        let source = try cluster.memory(0, 64)
        findings.require(
            cluster.finish(
                try cluster.engines[0].scatter(from: source, [], to: nobody, immediate: 13), of: 0),
            "empty scatter")
        return findings
    }

    /// Immediates without data, to a region and to a peer; all 30 bits; early ones are credited.
    static func immediates(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([2, 2])
        let target = try cluster.memory(1, 64)
        let remote = try cluster.attach(target, of: 1, to: 0)
        let peer = try cluster.connect(0, to: 1)
        for immediate in [0, 1, Immediate.max, 0x2AAA_AAAA] as [Immediate] {
            for _ in 0..<3 {
                findings.require(
                    cluster.finish(try cluster.engines[0].send(immediate: immediate, to: remote), of: 0),
                    "immediate")
                findings.require(
                    cluster.finish(try cluster.engines[0].send(immediate: immediate, to: peer), of: 0),
                    "immediate")
            }
            // All have arrived before anybody waits.
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].count(of: immediate) == 6 }, "early arrivals")
            let first = try cluster.engines[1].expect(immediate, count: 2)
            let second = try cluster.engines[1].expect(immediate, count: 4)
            findings.require(cluster.finish(first, of: 1), "first wait")
            findings.require(cluster.finish(second, of: 1), "second wait")
            let third = try cluster.engines[1].expect(immediate, count: 1)
            cluster.settle()
            findings.require(cluster.engines[1].isPending(third), "a wait ended without an arrival")
            try cluster.engines[0].send(immediate: immediate, to: peer)
            findings.require(cluster.finish(third, of: 1), "third wait")
        }
        findings.require(isZero(target, 0..<64), "an immediate wrote data")
        return findings
    }

    /// Messages of all sizes, before and after the receive pool is opened, in both directions; the sender's buffer is reused
    /// at once.
    static func messages(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([1, 1])
        let there = try cluster.connect(0, to: 1)
        let back = try cluster.connect(1, to: 0)
        let inbox = Inbox()
        let echo = cluster.engines[1]
        let sizes = [0, 1, 7, 100, 4096, Limits.messageBytes]
        func send(_ size: Int) throws -> Transfer {
            var payload = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ size) }
            return try payload.withUnsafeMutableBytes { bytes in
                let transfer = try cluster.engines[0].send(UnsafeRawBufferPointer(bytes), to: there)
                for index in bytes.indices { bytes[index] = 0xFF }
                return transfer
            }
        }
        let early = try sizes.map(send)
        cluster.settle()
        try cluster.engines[0].receive { bytes, sender in inbox.add(Array(bytes), sender) }
        try echo.receive { bytes, _ in _ = try? echo.send(bytes, to: back) }
        for transfer in early { findings.require(cluster.finish(transfer, of: 0), "early message") }
        for _ in 0..<20 {
            for size in sizes {
                findings.require(cluster.finish(try send(size), of: 0), "message of \(size)")
            }
        }
        let expected = sizes.count * 21
        findings.require(
            cluster.run(seconds: 30) { inbox.messages.count >= expected },
            "\(inbox.messages.count) of \(expected) echoes")
        cluster.settle()
        findings.require(inbox.messages.count == expected, "a message came twice")
        for size in sizes {
            let good = (0..<size).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ size) }
            findings.require(inbox.messages.filter { $0 == good }.count == 21, "messages of \(size) bytes")
        }
        findings.require(inbox.senders == [echo.id], "senders")
        findings.requireFailure("a message above the limit", [.outOfRange]) {
            _ = try cluster.engines[0].send([UInt8](repeating: 0, count: Limits.messageBytes + 1), to: there)
            return nil
        }
        return findings
    }

    /// Collects messages; used by one thread.
    private final class Inbox: @unchecked Sendable {
        // SAFETY: engines with manual progress call back on the thread of the test.
        var messages: [[UInt8]] = []
        var senders: Set<EngineID> = []
        func add(_ message: [UInt8], _ sender: EngineID) {
            messages.append(message)
            senders.insert(sender)
        }
    }
}
