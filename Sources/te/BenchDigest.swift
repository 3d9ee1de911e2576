internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import TransferEngine

/// `te bench digest`: how fast one core digests, beside copying and reading.
struct BenchDigest: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "digest", abstract: "The digest of a transfer on one core, beside memcpy.")

    @Option(help: "bytes, for example 65536,268435456") var sizes = "4096,65536,1048576,16777216,268435456"
    @Option(help: "seconds for each measurement") var seconds = 0.1
    @Option(help: "repetitions of each; the median is printed") var repeats = 5
    @Flag(help: "one JSON object per line") var json = false

    func validate() throws {
        guard sizes.split(separator: ",").allSatisfy({ Int($0).map { $0 > 0 } ?? false }) else {
            throw ValidationError("--sizes are numbers of bytes")
        }
    }

    func run() throws {
        var report = Report(json: json)
        for size in sizes.split(separator: ",").compactMap({ Int($0) }) {
            let source = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
            let target = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
            defer {
                source.deallocate()
                target.deallocate()
            }
            guard let from = source.baseAddress, let to = target.baseAddress else { return }
            memset(from, 1, size)
            memset(to, 2, size)
            var digests: [Double] = []
            var copies: [Double] = []
            var digest = Digest.empty
            for _ in 0..<repeats {
                digests.append(
                    rate(size) { digest += Digest(of: UnsafeRawBufferPointer(source), at: UInt64($0)) })
                copies.append(rate(size) { _ in memcpy(to, from, size) })
            }
            guard digest != .empty else { throw TransferError(.digestMismatch, "a digest of nothing") }
            report.add([
                ("test", .text("digest")), ("size", .integer(size)),
                ("gbps", .number(median(digests) / 1e9)), ("memcpy", .number(median(copies) / 1e9)),
                ("ratio", .number(median(zip(digests, copies).map { $0 / $1 }))),
            ])
        }
        report.finish()
    }

    /// Bytes per second of `body`, which is given a number that changes.
    private func rate(_ size: Int, _ body: (Int) -> Void) -> Double {
        let batch = max(1, (1 << 22) / size)
        var count = 0
        let start = monotonicSeconds()
        var elapsed = 0.0
        repeat {
            for _ in 0..<batch {
                body(count)
                count += 1
            }
            elapsed = monotonicSeconds() - start
        } while elapsed < seconds
        return Double(count) * Double(size) / elapsed
    }
}
