import CPlatform
import Testing

@Suite("Copying past the cache")
struct CopyTests {
    /// Every alignment of both ends, and every length around the borders of the vector loops.
    @Test func copiesExactlyTheRange() {
        let capacity = 2048
        let source = (0..<capacity).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ 7) }
        let lengths =
            Array(0...8) + [63, 64, 65, 127, 255, 256, 257, 319, 320, 321, 511, 512, 1000, 1023, 1024]
        for length in lengths {
            for sourceOffset in [0, 1, 7, 32, 63] {
                for targetOffset in Array(stride(from: 0, to: 65, by: 3)) + [64] {
                    var target = [UInt8](repeating: 0xEE, count: capacity)
                    target.withUnsafeMutableBytes { target in
                        source.withUnsafeBytes { source in
                            guard let to = target.baseAddress, let from = source.baseAddress else { return }
                            te_copy_streaming(to + targetOffset, from + sourceOffset, length)
                            te_copy_fence()
                        }
                    }
                    let expected = source[sourceOffset..<sourceOffset + length]
                    let copied = target[targetOffset..<targetOffset + length]
                    let isUntouched =
                        target[..<targetOffset].allSatisfy { $0 == 0xEE }
                        && target[(targetOffset + length)...].allSatisfy { $0 == 0xEE }
                    guard copied.elementsEqual(expected), isUntouched else {
                        Issue.record("\(length) bytes from +\(sourceOffset) to +\(targetOffset)")
                        return
                    }
                }
            }
        }
    }
}
