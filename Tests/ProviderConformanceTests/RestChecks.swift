import CPlatform
import TransferEngine

/// Engines without a thread whose file an event loop waits for.
enum RestChecks {
    /// Engine 1 makes progress only when its file is readable: what arrives wakes it, and nothing else does for long.
    static func rests(_ fabric: Fabric) throws -> Findings {
        var findings = Findings()
        let cluster = try Cluster(fabric, progress: .eventLoop)
        let source = try cluster.memory(0, 4096)
        let target = try cluster.memory(1, 4096)
        let remote = try cluster.attach(target, of: 1, to: 0)
        let (writer, sleeper) = (cluster.engines[0], cluster.engines[1])
        // Once as always, so that both are connected.
        let first = try sleeper.expect(1, count: 1)
        _ = try writer.write(from: source, byteCount: 8, to: remote, immediate: 1)
        findings.require(cluster.finish(first, of: 1), "the first write")
        let file = try sleeper.openWaitFile()
        /// As an event loop does it, for a time or until something holds; how often it was called.
        func loop(_ milliseconds: UInt64, until holds: () -> Bool = { false }) -> Int {
            let end = te_monotonic_nanoseconds() + milliseconds * 1_000_000
            var rounds = 0
            while !holds(), te_monotonic_nanoseconds() < end {
                writer.progress()
                guard te_wait_readable([file], 1, 1) == 1 else { continue }
                rounds += 1
                sleeper.progress()
                sleeper.rest()
            }
            return rounds
        }
        _ = loop(200)
        for round in 0..<20 {
            let wait = try sleeper.expect(2, count: 1)
            _ = try writer.write(from: source, byteCount: 4096, to: remote, immediate: 2)
            _ = loop(20_000) { !sleeper.isPending(wait) }
            findings.require(sleeper.status(of: wait) == .complete, "round \(round): nobody woke the sleeper")
        }
        guard fabric.sleeps else { return findings }
        _ = loop(200)
        let rounds = loop(300)
        findings.require(rounds <= 50, "an idle engine was woken \(rounds) times in 300 ms")
        return findings
    }
}
