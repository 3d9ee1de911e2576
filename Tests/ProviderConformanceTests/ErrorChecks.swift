import TransferEngine

/// What cannot work is a typed error, and leaves no trace at the target.
enum ErrorChecks {
    /// Arguments that are wrong here: refused before anything is sent.
    static func arguments(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([1, 1])
        let engine = cluster.engines[0]
        let source = try cluster.memory(0, 4096)
        let target = try cluster.memory(1, 4096)
        let closed = try cluster.memory(1, 4096, access: .localOnly)
        let remote = try cluster.attach(target, of: 1, to: 0)
        let ranges = [
            (0, 0, 4097), (1, 0, 4096), (0, 1, 4096), (-1, 0, 1), (0, -1, 1), (0, 0, -1), (Int.max, 0, 1),
            (0, Int.max, 1),
        ]
        for (from, to, length) in ranges {
            findings.requireFailure("write of \(length) from \(from) to \(to)", [.outOfRange]) {
                _ = try engine.write(
                    from: source, sourceOffset: from, byteCount: length, to: remote, targetOffset: to,
                    immediate: 1)
                return nil
            }
        }
        let pages: [(Int, [UInt32], Int, [UInt32], Int, TransferError.Code)] = [
            (512, [8], 512, [0], 512, .outOfRange), (512, [0], 512, [8], 512, .outOfRange),
            (512, [0, 1], 512, [0], 512, .invalidArgument), (512, [.max], 512, [0], 512, .outOfRange),
            (512, [0], 512, [.max], Int.max, .outOfRange), (-1, [0], 512, [0], 512, .invalidArgument),
            (512, [0], -512, [0], 512, .invalidArgument), (4097, [0], 0, [0], 0, .outOfRange),
        ]
        for (number, item) in pages.enumerated() {
            findings.requireFailure("pages \(number)", [item.5]) {
                _ = try PageChecks.write(
                    engine, item.0, source, item.1, item.2, 0, remote, item.3, item.4, 0, 1)
                return nil
            }
        }
        findings.requireFailure("a write into a region without remote access", [.accessDenied]) {
            let remote = try cluster.attach(closed, of: 1, to: 0)
            return cluster.finish(
                try engine.write(from: source, byteCount: 1, to: remote, immediate: 1), of: 0)
        }
        try engine.deregister(source)
        findings.requireFailure("a write from a deregistered region", [.staleRegion]) {
            _ = try engine.write(from: source, byteCount: 1, to: remote, immediate: 1)
            return nil
        }
        findings.requireFailure("deregistering twice", [.staleRegion]) {
            try engine.deregister(source)
            return nil
        }
        cluster.settle()
        findings.require(cluster.engines[1].count(of: 1) == 0, "an error was counted")
        findings.require(isZero(target, 0..<4096), "an error wrote data")
        return findings
    }

    /// Descriptors that are wrong there: another key, another generation, a region that is gone, one longer than it is.
    static func descriptors(
        _ make: MakeCluster, alsoRefusedBy others: [TransferError.Code]
    ) throws -> Findings {
        var findings = Findings()
        let refused: [TransferError.Code] =
            [.staleRegion, .accessDenied, .providerFailed, .outOfRange, .unreachable, .peerLost] + others
        let wrongs: [(String, (inout RemoteRegion) -> Void)] = [
            (
                "key",
                { region in
                    region.secret ^= 1
                    for nic in region.nics.indices { region.nics[nic].key ^= 0x5555 }
                }
            ),
            (
                "generation",
                { region in
                    region.generation += 1
                    for nic in region.nics.indices { region.nics[nic].key ^= 0x1234_5678 }
                }
            ),
            ("engine", { region in region = region.ofNobody }),
        ]
        for (what, change) in wrongs {
            // A fresh cluster for each: on some fabrics a refused write ends the connection.
            let cluster = try make([1, 1])
            let source = try cluster.memory(0, 64)
            let target = try cluster.memory(1, 4096)
            fill(source, seed: 1)
            var descriptor = cluster.engines[1].descriptor(of: target)
            change(&descriptor)
            // Nobody answers for an engine that does not exist; that may take the transfer's whole time.
            findings.requireFailure(
                "a write with a wrong \(what)", what == "engine" ? refused + [.stalled] : refused
            ) {
                let remote = try cluster.engines[0].attach(descriptor)
                return cluster.finish(
                    try cluster.engines[0].write(
                        from: source, byteCount: 64, to: remote, immediate: 1, timeout: .seconds(2)),
                    of: 0, seconds: 20)
            }
            cluster.settle()
            findings.require(cluster.engines[1].count(of: 1) == 0, "wrong \(what): counted")
            findings.require(isZero(target, 0..<4096), "wrong \(what): data arrived")
        }
        return findings
    }

    /// A region that was deregistered after it was attached, while its memory lives on; and its place used again.
    static func deregistered(
        _ make: MakeCluster, alsoRefusedBy others: [TransferError.Code]
    ) throws -> Findings {
        var findings = Findings()
        let cluster = try make([1, 1])
        let source = try cluster.memory(0, 64)
        fill(source, seed: 1)
        let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
        defer { memory.deallocate() }
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        let region = try cluster.engines[1].register(memory)
        let remote = try cluster.attach(region, of: 1, to: 0)
        let first = try cluster.engines[0].write(from: source, byteCount: 64, to: remote, immediate: 1)
        findings.require(cluster.finish(first, of: 0), "write before deregistration")
        findings.require(cluster.run(seconds: 20) { cluster.engines[1].consume(1, count: 1) }, "not counted")
        try cluster.engines[1].deregister(region)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
        findings.requireFailure(
            "a write into a deregistered region",
            [.staleRegion, .accessDenied, .providerFailed, .peerLost] + others
        ) {
            cluster.finish(
                try cluster.engines[0].write(
                    from: source, byteCount: 64, to: remote, immediate: 1, timeout: .seconds(2)), of: 0,
                seconds: 20)
        }
        cluster.settle()
        findings.require(
            cluster.engines[1].count(of: 1) == 0, "a write into a deregistered region was counted")
        findings.require(memory.allSatisfy { $0 == 0 }, "a write into a deregistered region arrived")
        try cluster.engines[0].detach(remote)
        findings.requireFailure("a write into a detached region", [.staleRegion]) {
            _ = try cluster.engines[0].write(from: source, byteCount: 64, to: remote, immediate: 1)
            return nil
        }
        return findings
    }

    /// Whole descriptors, checksum and all, that no engine made: attaching them is an error or harmless, and never a trap.
    static func forgeries(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([2, 1])
        let source = try cluster.memory(0, 8192)
        let target = try cluster.memory(1, 4096)
        let neighbour = try cluster.memory(1, 4096)
        fill(source, seed: 2)
        let good = cluster.engines[1].descriptor(of: target)
        var generator = SeededGenerator(seed: 9)
        for number in 0..<200 {
            let forged = good.forged(using: &generator)
            do throws(TransferError) {
                let remote = try cluster.engines[0].attach(decoding: forged.encoded())
                try cluster.engines[0].detach(remote)
            } catch {
                findings.require(error.code != .stalled, "forgery \(number): \(error)")
            }
        }
        // A region that claims to be longer than it is.
        var longer = good
        longer.length = 1 << 40
        findings.requireFailure(
            "a write behind the region",
            [
                .outOfRange, .accessDenied, .staleRegion, .providerFailed, .peerLost, .malformedDescriptor,
                .stalled,
            ]
        ) {
            let remote = try cluster.engines[0].attach(longer)
            return cluster.finish(
                try cluster.engines[0].write(
                    from: source, byteCount: 64, to: remote, targetOffset: 4096, immediate: 1,
                    timeout: .seconds(2)),
                of: 0, seconds: 20)
        }
        cluster.settle()
        findings.require(cluster.engines[1].count(of: 1) == 0, "a write behind the region was counted")
        findings.require(isZero(target, 0..<4096) && isZero(neighbour, 0..<4096), "it arrived")
        return findings
    }

    /// 10 000 damaged descriptors: refused when decoded, or when attached, or never more than an error when used.
    static func mutations(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([1, 1])
        let target = try cluster.memory(1, 4096)
        let good = cluster.engines[1].descriptor(of: target).encoded()
        var generator = SeededGenerator(seed: 4)
        for number in 0..<10_000 {
            var bytes = good
            for _ in 0...Int.random(in: 0...3, using: &generator) {
                switch Int.random(in: 0...3, using: &generator) {
                case 0:
                    bytes[Int.random(in: bytes.indices, using: &generator)] ^=
                        1 << UInt8.random(in: 0...7, using: &generator)
                case 1: bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator))
                case 2:
                    bytes.insert(
                        .random(in: 0...255, using: &generator),
                        at: Int.random(in: 0...bytes.count, using: &generator))
                default:
                    bytes = (0..<Int.random(in: 0...200, using: &generator)).map { _ in
                        .random(in: 0...255, using: &generator)
                    }
                }
                if bytes.isEmpty { break }
            }
            if bytes == good { continue }
            findings.requireFailure("mutation \(number)", [.malformedDescriptor, .unsupportedVersion]) {
                _ = try cluster.engines[0].attach(decoding: bytes)
                return nil
            }
        }
        return findings
    }
}

extension RemoteRegion {
    /// A descriptor that decodes, with some of its fields replaced.
    fileprivate func forged(using generator: inout SeededGenerator) -> RemoteRegion {
        func word(_ generator: inout SeededGenerator) -> UInt64 {
            [0, 1, 8, .max, .max - 7, 1 << 63, generator.next()].randomElement(using: &generator) ?? 0
        }
        var copy = self
        for _ in 0...Int.random(in: 0...3, using: &generator) {
            switch Int.random(in: 0..<9, using: &generator) {
            case 0: copy.length = word(&generator)
            case 1: copy.base = word(&generator)
            case 2: copy.index = UInt32(truncatingIfNeeded: word(&generator))
            case 3: copy.generation = UInt32(truncatingIfNeeded: word(&generator))
            case 4: copy.secret = word(&generator)
            case 5: copy.engine = EngineID(rawValue: word(&generator))
            case 6:
                for nic in copy.nics.indices {
                    copy.nics[nic].key = word(&generator)
                    copy.nics[nic].base = word(&generator)
                }
            case 7:
                for nic in copy.nics.indices {
                    let length = Int.random(in: 0...Limits.addressBytes, using: &generator)
                    copy.nics[nic].address = (0..<length).map { _ in .random(in: 0...255, using: &generator) }
                }
            default:
                let few = Int.random(in: 0...8, using: &generator)
                copy.nics = (0..<few).compactMap { _ in nics.randomElement(using: &generator) }
            }
        }
        return copy
    }

    /// The same region of an engine that does not exist.
    fileprivate var ofNobody: RemoteRegion {
        var copy = self
        copy.engine = EngineID(rawValue: engine.rawValue ^ 0xFFFF)
        copy.secret ^= 0xFFFF
        for nic in copy.nics.indices {
            copy.nics[nic].key ^= 0xFFFF
            if copy.nics[nic].fabric == "sim", !copy.nics[nic].address.isEmpty {
                copy.nics[nic].address[0] ^= 0xFF
            }
        }
        return copy
    }
}
