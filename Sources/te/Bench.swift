internal import ArgumentParser

/// `te bench`.
struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure.",
        subcommands: [
            PointToPoint.self, BenchIdle.self, BenchTrace.self, BenchDigest.self, BenchMoE.self, BenchKV.self,
            BenchWeights.self,
        ],
        defaultSubcommand: PointToPoint.self)
}

/// `te bench p2p`: two processes, one on each of two cores, host memory.
struct PointToPoint: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "p2p", abstract: "Write, paged write and ping-pong between two processes.")

    enum Reference: String, ExpressibleByArgument { case limits, none }

    @Option(help: "shm, tcp, verbs, tcp;ofi_rxm, lf-shm (libfabric's), efa, verbs;ofi_rxm")
    var provider = "shm"
    @Option(help: "measure the machine's limits beside each row: limits or none")
    var against = Reference.limits
    @Option(help: "number of NICs of each side")
    var nicCount = 1
    @Option(help: "NICs of this side, for example eth0@1000,eth1@1000 (name or address, Mbit/s)")
    var nics = ""
    @Option(help: "NICs of the other side, when they are not the same")
    var targetNics = ""
    @Option(help: "a command that becomes the other side's process, for example 'ip netns exec NAME'")
    var targetCommand = ""
    @Flag(help: "memory of the application instead of the engine's: shm then uses process_vm_writev")
    var callerMemory = false
    @Option(help: "which tests, of write, hot, paged, pingpong and submit")
    var tests = "write,hot,paged,pingpong,submit"
    @Option(help: "sizes of writes or of pages instead of the usual ones, for example 4096,67108864")
    var sizes = ""
    @Option(help: "seconds for each measurement")
    var seconds = 0.1
    @Option(help: "repetitions, each beside a measurement of the limit; the median is printed")
    var repeats = 7
    @Option(help: "MiB registered on each side")
    var regionMiB = 256
    @Option(help: "events that this side's flight recorder keeps; 0 shows what it costs")
    var traceEvents = 8192
    @Flag(
        help: """
            the NIC is software and needs the processors, too: no side is pinned to one, and the target \
            sleeps while nothing arrives
            """)
    var softNic = false
    @Flag(help: "one JSON object per line")
    var json = false

    /// The sizes to measure, or the usual ones.
    func sizes(usually: [Int]) -> [Int] {
        sizes.isEmpty ? usually : sizes.split(separator: ",").compactMap { Int($0) }
    }

    /// What a row says about the number of NICs.
    var numberOfNICs: Int { nics.isEmpty ? nicCount : nics.split(separator: ",").count }

    func validate() throws {
        let list = sizes.split(separator: ",").map { Int($0) }
        guard list.allSatisfy({ $0.map { $0 > 0 && $0 <= regionMiB << 20 } ?? false }) else {
            throw ValidationError("--sizes are numbers of bytes from 1 to the size of the region")
        }
        if tests.contains("paged"),
            sizes(usually: [65536]).contains(where: { $0 * PageLists.count > regionMiB << 20 })
        {
            throw ValidationError("1024 of the largest pages have to fit into the region; see --region-mi-b")
        }
    }

    func run() throws {
        let initiator = try BenchInitiator(self)
        defer { initiator.close() }
        var report = Report(json: json)
        let names = tests.split(separator: ",").map(String.init)
        if names.contains("write") { try initiator.writes(&report, isHot: false) }
        if names.contains("hot"), provider == "shm", !callerMemory {
            try initiator.writes(&report, isHot: true)
        }
        if names.contains("paged") { try initiator.pages(&report) }
        if names.contains("submit") { try initiator.submissions(&report) }
        if names.contains("pingpong") { try initiator.pingPong(&report, progress: "manual") }
        initiator.close()
        if names.contains("pingpong") {
            let busy = try BenchInitiator(self, progress: "busy")
            defer { busy.close() }
            try busy.pingPong(&report, progress: "busy")
        }
        showProgress("")
        report.finish()
    }
}
