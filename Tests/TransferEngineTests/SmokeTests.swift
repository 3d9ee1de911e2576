import Testing
import TransferEngine

@Suite struct SmokeTests {
    @Test func writeOverSharedMemory() throws {
        let a = try TransferEngine(Configuration(name: "a", progress: .manual))
        let b = try TransferEngine(Configuration(name: "b", progress: .manual))
        let source = try a.allocate(byteCount: 1 << 20)
        let target = try b.allocate(byteCount: 1 << 20)
        for i in 0..<(1 << 20) { source.bytes[i] = UInt8(truncatingIfNeeded: i &* 7) }
        let remote = try a.attach(decoding: b.descriptor(of: target).encoded())
        try a.wait(for: a.write(from: source, byteCount: 1 << 20, to: remote, immediate: 5))
        try b.wait(for: b.expect(5, count: 1))
        #expect(target.bytes.elementsEqual(source.bytes))
        a.close()
        b.close()
    }
}
