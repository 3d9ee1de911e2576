import Glibc
import TransferEngine

/// How a check gets its engines; the argument is the number of NICs of each.
typealias MakeCluster = ([Int]) throws -> Cluster

/// What every provider must do with writes. Each check returns what it found wrong.
enum WriteChecks {
    /// Lengths and offsets that have gone wrong somewhere: none, one, odd, a page and one, many stripes.
    static func sizes(_ make: MakeCluster, nics: [Int] = [1, 1]) throws -> Findings {
        var findings = Findings()
        let cluster = try make(nics)
        let bytes = (1 << 20) + 13
        let source = try cluster.memory(0, bytes)
        let target = try cluster.memory(1, bytes)
        let remote = try cluster.attach(target, of: 1, to: 0)
        fill(source, seed: 3)
        let cases = [
            (0, 0, 0), (0, 0, 1), (1, 2, 1), (7, 3, 4097), (0, 0, 65536), (5, 11, 131_072), (64, 1, 300_001),
            (0, 0, bytes), (0, bytes - 1, 1), (bytes - 1, bytes, 0), (bytes, bytes, 0),
            (3, bytes - 70_001, 70_001),
        ]
        for (number, (from, to, length)) in cases.enumerated() {
            memset(target.baseAddress, 0, bytes)
            let immediate = Immediate(truncatingIfNeeded: 1000 + number)
            let transfer = try cluster.engines[0].write(
                from: source, sourceOffset: from, byteCount: length, to: remote, targetOffset: to,
                immediate: immediate)
            // The source may be reused when the transfer has ended: it is overwritten at once.
            findings.require(cluster.finish(transfer, of: 0), "write of \(length) at \(to)")
            let sent = Array(source.bytes[from..<from + length])
            memset(source.baseAddress + from, 0xEE, length)
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].count(of: immediate) >= 1 },
                "write of \(length) at \(to) was not counted")
            let isRight = sent.withUnsafeBytes { sent in
                sent.baseAddress.map { isEqual($0, target.baseAddress + to, length) } ?? true
            }
            findings.require(isRight, "write of \(length) at \(to): data")
            findings.require(isZero(target, 0..<to), "write of \(length) at \(to) touched bytes before it")
            findings.require(
                isZero(target, to + length..<bytes), "write of \(length) at \(to) touched bytes after it")
            cluster.settle()
            findings.require(
                cluster.engines[1].consume(immediate, count: 1)
                    && cluster.engines[1].count(of: immediate) == 0,
                "write of \(length) at \(to) was counted more than once")
            sent.withUnsafeBytes {
                UnsafeMutableRawBufferPointer(rebasing: source.bytes[from..<from + length]).copyBytes(
                    from: $0)
            }
        }
        return findings
    }

    /// The count says that the data is there: looked at the moment it is reached.
    static func countAfterData(_ make: MakeCluster, nics: [Int]) throws -> Findings {
        var findings = Findings()
        let cluster = try make(nics)
        cluster.eventsPerRound = 1
        let bytes = 400_000
        let source = try cluster.memory(0, bytes)
        let target = try cluster.memory(1, bytes)
        let remote = try cluster.attach(target, of: 1, to: 0)
        for round in 0..<5 {
            fill(source, seed: UInt64(round))
            try cluster.engines[0].write(from: source, byteCount: bytes, to: remote, immediate: 9)
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].consume(9, count: 1) },
                "round \(round) not counted")
            findings.require(
                isEqual(source.baseAddress, target.baseAddress, bytes), "counted before the data was there")
        }
        return findings
    }

    /// Offsets beyond 4 GiB, in memory of which only a few pages exist.
    static func beyondFourGiB(_ make: MakeCluster) throws -> Findings {
        var findings = Findings()
        let cluster = try make([1, 1])
        let bytes = (5 << 30) + 4096
        let source = try cluster.memory(0, 4096)
        let target = try cluster.engines[1].allocate(byteCount: bytes, isPopulated: false)
        let remote = try cluster.attach(target, of: 1, to: 0)
        fill(source, seed: 5)
        for (number, offset) in [4 << 30, (4 << 30) - 100, bytes - 200].enumerated() {
            let transfer = try cluster.engines[0].write(
                from: source, byteCount: 200, to: remote, targetOffset: offset, immediate: 3)
            findings.require(cluster.finish(transfer, of: 0), "write at \(offset)")
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].consume(3, count: 1) },
                "write \(number) not counted")
            findings.require(
                isEqual(source.baseAddress, target.baseAddress + offset, 200), "data at \(offset)")
        }
        findings.require(isZero(target, 0..<4096), "the beginning was touched")
        // Page numbers times stride beyond 32 bits.
        let from: [UInt32] = [0, 1]
        let to: [UInt32] = [5 << 18, 1 << 20]
        let transfer = try from.withUnsafeBufferPointer { from in
            try to.withUnsafeBufferPointer { to in
                try cluster.engines[0].write(
                    pageBytes: 64, from: source, pages: Pages(from, stride: 64), to: remote,
                    pages: Pages(to, stride: 4096), immediate: 4)
            }
        }
        findings.require(cluster.finish(transfer, of: 0), "pages beyond 4 GiB")
        findings.require(
            cluster.run(seconds: 20) { cluster.engines[1].consume(4, count: 2) }, "pages not counted")
        findings.require(isEqual(source.baseAddress, target.baseAddress + (5 << 30), 64), "page 0")
        findings.require(isEqual(source.baseAddress + 64, target.baseAddress + (4 << 30), 64), "page 1")
        return findings
    }

    /// Many rounds of mixed operations between engines with different numbers of NICs; every count and every byte.
    static func rounds(_ make: MakeCluster, nics: [Int], rounds: Int) throws -> Findings {
        var findings = Findings()
        let cluster = try make(nics)
        let bytes = 1 << 18
        let source = try cluster.memory(0, bytes)
        let target = try cluster.memory(1, bytes)
        let remote = try cluster.attach(target, of: 1, to: 0)
        var generator = SeededGenerator(seed: 99)
        fill(source, seed: 7)
        for round in 0..<rounds {
            let big = round % 16 == 0
            let length = Int.random(in: 0...(big ? bytes : 3000), using: &generator)
            let from = Int.random(in: 0...bytes - length, using: &generator)
            let to = Int.random(in: 0...bytes - length, using: &generator)
            let transfer = try cluster.engines[0].write(
                from: source, sourceOffset: from, byteCount: length, to: remote, targetOffset: to,
                immediate: 77)
            findings.require(cluster.finish(transfer, of: 0), "round \(round)")
            findings.require(
                cluster.run(seconds: 20) { cluster.engines[1].consume(77, count: 1) },
                "round \(round) not counted")
            findings.require(
                isEqual(source.baseAddress + from, target.baseAddress + to, length),
                "round \(round): \(length) bytes from \(from) to \(to)")
            if !findings.violations.isEmpty { break }
        }
        cluster.settle()
        findings.require(cluster.engines[1].count(of: 77) == 0, "a surplus count")
        return findings
    }
}
