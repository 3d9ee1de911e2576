import Synchronization
import TransferCore

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// A target page in private memory, of which only touched pages exist.
final class PageMapping {
    /// The page.
    let page: TargetPage
    private let memory: UnsafeMutableRawPointer

    /// Maps and prepares a page; nil when there is no address space for it.
    init?(engine: UInt64) {
        let flags = MAP_PRIVATE | MAP_ANON | MAP_NORESERVE
        let mapped = mmap(nil, TargetPage.byteCount, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard let memory = mapped, Int(bitPattern: memory) != -1 else { return nil }
        self.memory = memory
        page = TargetPage.initialize(memory, engine: EngineID(rawValue: engine))
    }

    deinit { munmap(memory, TargetPage.byteCount) }

    /// Enters a region into the table, as an engine does.
    func publish(
        index: UInt32, generation: UInt32, secret: UInt64, memory: UnsafeMutableRawBufferPointer,
        access: Access = .remoteWrite
    ) {
        guard let base = memory.baseAddress else { return }
        page.publish(
            LocalRegion(
                index: index, generation: generation, access: access, secret: secret, base: base,
                length: memory.count, memoryFile: -1, isPopulated: true))
    }
}

/// Memory for the length of a test.
final class Scratch {
    /// Zeroed bytes.
    let bytes: UnsafeMutableRawBufferPointer

    /// Allocates zeroed bytes.
    init(_ count: Int) {
        bytes = .allocate(byteCount: count, alignment: 64)
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { bytes.deallocate() }
}

extension SeededGenerator {
    /// A random number of `range`.
    mutating func pick(_ range: ClosedRange<Int>) -> Int { Int.random(in: range, using: &self) }

    /// As many random numbers of `values` as one of `count` says.
    mutating func list(_ count: ClosedRange<Int>, of values: ClosedRange<UInt32>) -> [UInt32] {
        (0..<pick(count)).map { _ in UInt32.random(in: values, using: &self) }
    }
}

/// The bytes as lower-case hexadecimal digits.
func hexadecimal(_ bytes: [UInt8]) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}
