internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine

/// What this machine can do at all, measured by the same program beside each row.
enum BenchLimits {
    /// Copies `size` bytes at a time through two large buffers, for `seconds`; bytes per second.
    static func copy(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, regionBytes: Int, size: Int,
        seconds: Double
    ) -> Double {
        let slots = regionBytes / size
        let batch = size < 1 << 20 ? 64 : 1
        var count = 0
        let start = monotonicSeconds()
        var elapsed = 0.0
        repeat {
            for _ in 0..<batch {
                let offset = count % slots * size
                memcpy(target + offset, source + offset, size)
                count += 1
            }
            elapsed = monotonicSeconds() - start
        } while elapsed < seconds
        return Double(count) * Double(size) / elapsed
    }

    /// Copies page lists; bytes per second.
    static func copyPages(
        from source: UnsafeRawPointer, to target: UnsafeMutableRawPointer, lists: PageLists, seconds: Double
    ) -> Double {
        var count = 0
        let start = monotonicSeconds()
        var elapsed = 0.0
        repeat {
            let (from, to) = lists.list(count)
            for page in 0..<from.count {
                memcpy(
                    target + Int(to[page]) * lists.pageBytes, source + Int(from[page]) * lists.pageBytes,
                    lists.pageBytes)
            }
            count += 1
            elapsed = monotonicSeconds() - start
        } while elapsed < seconds
        return Double(count * PageLists.count * lists.pageBytes) / elapsed
    }

    /// process_vm_writev, one call a write; bytes per second.
    static func writeProcess(
        _ process: Int32, from source: UnsafeRawPointer, to target: UInt64, regionBytes: Int, size: Int,
        seconds: Double
    ) -> Double {
        let slots = regionBytes / size
        var count = 0
        let start = monotonicSeconds()
        var elapsed = 0.0
        repeat {
            let offset = UInt64(count % slots * size)
            var from = te_range(base: UInt64(UInt(bitPattern: source)) + offset, length: UInt64(size))
            var to = te_range(base: target + offset, length: UInt64(size))
            guard te_write_process(process, &from, &to, 1) == size else { return .nan }
            count += 1
            elapsed = monotonicSeconds() - start
        } while elapsed < seconds
        return Double(count) * Double(size) / elapsed
    }

    /// process_vm_writev, one call for each page list; bytes per second.
    static func writeProcessPages(
        _ process: Int32, from source: UnsafeRawPointer, to target: UInt64, lists: PageLists, seconds: Double
    ) -> Double {
        var ranges = [te_range](repeating: te_range(), count: PageLists.count)
        var targets = ranges
        var count = 0
        let start = monotonicSeconds()
        var elapsed = 0.0
        repeat {
            let (from, to) = lists.list(count)
            let bytes = UInt64(lists.pageBytes)
            for page in 0..<from.count {
                ranges[page] = te_range(
                    base: UInt64(UInt(bitPattern: source)) + UInt64(from[page]) * bytes, length: bytes)
                targets[page] = te_range(base: target + UInt64(to[page]) * bytes, length: bytes)
            }
            guard
                te_write_process(process, ranges, targets, Int32(PageLists.count)) == PageLists.count
                    * lists.pageBytes
            else { return .nan }
            count += 1
            elapsed = monotonicSeconds() - start
        } while elapsed < seconds
        return Double(count * PageLists.count * lists.pageBytes) / elapsed
    }

    /// One way of a flag between two cores, in microseconds, median of batches of 100.
    static func flag(processor: Int, seconds: Double) -> Double {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
        memset(memory, 0, 4096)
        defer { memory.deallocate() }
        let address = UInt(bitPattern: memory)
        let answering = PlatformThread(name: "te-flag", cpu: processor) {
            guard let memory = UnsafeMutableRawPointer(bitPattern: address) else { return }
            let ping = memory.assumingMemoryBound(to: Atomic<UInt64>.self)
            let pong = (memory + 256).assumingMemoryBound(to: Atomic<UInt64>.self)
            var next: UInt64 = 1
            while true {
                // pairs with the stores to ping below
                var seen = ping.pointee.load(ordering: .acquiring)
                while seen < next { seen = ping.pointee.load(ordering: .acquiring) }
                if seen == .max { return }
                pong.pointee.store(next, ordering: .releasing)  // pairs with the load of pong below
                next += 1
            }
        }
        let ping = memory.assumingMemoryBound(to: Atomic<UInt64>.self)
        let pong = (memory + 256).assumingMemoryBound(to: Atomic<UInt64>.self)
        var samples: [Double] = []
        var value: UInt64 = 0
        let end = monotonicSeconds() + seconds
        while monotonicSeconds() < end {
            let start = te_monotonic_nanoseconds()
            for _ in 0..<100 {
                value += 1
                ping.pointee.store(value, ordering: .releasing)  // pairs with the loads of ping above
                while pong.pointee.load(ordering: .acquiring) < value {}
            }
            samples.append(Double(te_monotonic_nanoseconds() - start) / 200_000)
        }
        ping.pointee.store(.max, ordering: .releasing)  // pairs with the loads of ping above
        answering?.join()
        return median(samples)
    }
}

/// Random lists of pages over a large region, the same for the limit and for the engine.
struct PageLists {
    static let count = 1024
    static let sets = 4
    let pageBytes: Int
    private let sources: UnsafeMutableBufferPointer<UInt32>
    private let targets: UnsafeMutableBufferPointer<UInt32>

    init(pageBytes: Int, regionBytes: Int) {
        self.pageBytes = pageBytes
        var generator = SeededGenerator(seed: UInt64(pageBytes))
        let total = regionBytes / pageBytes
        let wanted = min(total, Self.count * Self.sets) / Self.count * Self.count
        func shuffled(_ generator: inout SeededGenerator) -> UnsafeMutableBufferPointer<UInt32> {
            let list = UnsafeMutableBufferPointer<UInt32>.allocate(capacity: wanted)
            _ = list.initialize(from: (0..<UInt32(total)).shuffled(using: &generator).prefix(wanted))
            return list
        }
        sources = shuffled(&generator)
        targets = shuffled(&generator)
    }

    /// The page lists of repetition `number`.
    func list(_ number: Int) -> (UnsafeBufferPointer<UInt32>, UnsafeBufferPointer<UInt32>) {
        let first = number % (sources.count / Self.count) * Self.count
        let range = first..<first + Self.count
        return (UnsafeBufferPointer(rebasing: sources[range]), UnsafeBufferPointer(rebasing: targets[range]))
    }

    func deallocate() {
        sources.deallocate()
        targets.deallocate()
    }
}

/// The middle value; nan of nothing.
func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    return sorted.isEmpty ? .nan : sorted[sorted.count / 2]
}
