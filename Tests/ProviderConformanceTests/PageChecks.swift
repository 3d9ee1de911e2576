import TransferEngine

/// What every provider must do with paged writes.
enum PageChecks {
    /// Submits a paged write from arrays.
    static func write(
        _ engine: TransferEngine, _ pageBytes: Int, _ source: MemoryRegion, _ from: [UInt32],
        _ sourceStride: Int,
        _ sourceOffset: Int, _ remote: RemoteMemory, _ to: [UInt32], _ targetStride: Int, _ targetOffset: Int,
        _ immediate: Immediate?
    ) throws -> Transfer {
        try from.withUnsafeBufferPointer { from in
            try to.withUnsafeBufferPointer { to in
                try engine.write(
                    pageBytes: pageBytes, from: source,
                    pages: Pages(from, stride: sourceStride, offset: sourceOffset),
                    to: remote, pages: Pages(to, stride: targetStride, offset: targetOffset),
                    immediate: immediate)
            }
        }
    }

    /// Random permutations with strides and offsets; neighbours; no pages; empty pages.
    static func lists(_ make: MakeCluster, nics: [Int]) throws -> Findings {
        var findings = Findings()
        let cluster = try make(nics)
        let bytes = 4 << 20
        let source = try cluster.memory(0, bytes)
        let target = try cluster.memory(1, bytes)
        let remote = try cluster.attach(target, of: 1, to: 0)
        fill(source, seed: 11)
        var generator = SeededGenerator(seed: 1)
        let cases:
            [(pageBytes: Int, count: Int, sourceStride: Int, targetStride: Int, offset: Int, mixed: Bool)] =
                [
                    (1000, 300, 1024, 2000, 48, true), (512, 700, 512, 512, 0, false),
                    (4096, 200, 4096, 4096, 4096, true),
                    // More bytes than a core's cache holds, on odd addresses.
                    (9001, 400, 9003, 9007, 7, true),
                    (1, 500, 3, 5, 1, true), (0, 5, 16, 16, 0, true), (512, 0, 512, 512, 0, true),
                    (512, 1, 512, 512, 0, true),
                ]
        for (number, item) in cases.enumerated() {
            target.bytes.initializeMemory(as: UInt8.self, repeating: 0)
            var from = Array(0..<UInt32(item.count))
            var to = from
            if item.mixed {
                from.shuffle(using: &generator)
                to.shuffle(using: &generator)
            }
            let immediate = Immediate(truncatingIfNeeded: 50 + number)
            let transfer = try write(
                cluster.engines[0], item.pageBytes, source, from, item.sourceStride, item.offset, remote, to,
                item.targetStride, item.offset, immediate)
            findings.require(cluster.finish(transfer, of: 0), "case \(number)")
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].consume(immediate, count: item.count) },
                "case \(number): \(cluster.engines[1].count(of: immediate)) of \(item.count) counted")
            for page in 0..<item.count {
                let there = target.baseAddress + item.offset + Int(to[page]) * item.targetStride
                let here = source.baseAddress + item.offset + Int(from[page]) * item.sourceStride
                findings.require(isEqual(here, there, item.pageBytes), "case \(number), page \(page)")
            }
            cluster.settle()
            findings.require(cluster.engines[1].count(of: immediate) == 0, "case \(number): a surplus count")
        }
        return findings
    }

    /// The same page many times, on either side: each occurrence counts.
    static func duplicates(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([2, 1])
        let source = try cluster.memory(0, 65536)
        let target = try cluster.memory(1, 65536)
        let remote = try cluster.attach(target, of: 1, to: 0)
        fill(source, seed: 13)
        let from: [UInt32] = Array(repeating: 3, count: 100) + [1, 2, 1]
        let to: [UInt32] = (0..<100).map { UInt32($0 % 7) } + [9, 9, 10]
        let transfer = try write(cluster.engines[0], 512, source, from, 512, 0, remote, to, 512, 0, 8)
        findings.require(cluster.finish(transfer, of: 0), "duplicates")
        findings.require(
            cluster.run(seconds: 20) { cluster.engines[1].consume(8, count: 103) }, "duplicates not counted")
        for page in 0..<7 {
            findings.require(
                isEqual(source.baseAddress + 3 * 512, target.baseAddress + page * 512, 512), "page \(page)")
        }
        let nine = target.baseAddress + 9 * 512
        findings.require(
            isEqual(source.baseAddress + 512, nine, 512) || isEqual(source.baseAddress + 1024, nine, 512),
            "a page written twice is neither of the two")
        return findings
    }

    /// 100 000 pages in one operation.
    static func many(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([2, 2])
        let count = 100_000
        let source = try cluster.memory(0, count * 16)
        let target = try cluster.memory(1, count * 16)
        let remote = try cluster.attach(target, of: 1, to: 0)
        fill(source, seed: 17)
        var generator = SeededGenerator(seed: 2)
        let from = Array(0..<UInt32(count)).shuffled(using: &generator)
        let to = Array(0..<UInt32(count)).shuffled(using: &generator)
        let transfer = try write(cluster.engines[0], 16, source, from, 16, 0, remote, to, 16, 0, 21)
        findings.require(cluster.finish(transfer, of: 0, seconds: 120), "100 000 pages")
        findings.require(
            cluster.run(seconds: 120) { cluster.engines[1].count(of: 21) >= count },
            "\(cluster.engines[1].count(of: 21)) of \(count) pages counted")
        cluster.settle()
        findings.require(cluster.engines[1].count(of: 21) == count, "a surplus count")
        for page in 0..<count {
            let here = source.baseAddress.load(fromByteOffset: Int(from[page]) * 16, as: UInt64.self)
            let there = target.baseAddress.load(fromByteOffset: Int(to[page]) * 16, as: UInt64.self)
            if here != there {
                findings.require(false, "page \(page)")
                break
            }
        }
        return findings
    }
}
