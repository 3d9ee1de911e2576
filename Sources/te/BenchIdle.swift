internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import TransferEngine

/// `te bench idle`: what two attached engines cost while nothing happens.
struct BenchIdle: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "idle",
        abstract: "The part of a core that an adaptive engine uses while nothing is in flight.")

    /// The most that an idle engine may use, in percent of a core.
    static let allowedPercent = 0.5

    @Option(help: "which providers, as in te bench p2p")
    var providers = "shm,tcp"
    @Option(help: "seconds for each measurement")
    var seconds = 3.0
    @Flag(help: "end with status 1 when an engine uses more than 0.5 % of a core")
    var check = false
    @Flag(help: "one JSON object per line")
    var json = false

    func validate() throws {
        guard (0.01...600).contains(seconds) else {
            throw ValidationError("--seconds is from 0.01 to 600")
        }
    }

    func run() throws {
        let processors = pairOfProcessors()
        var report = Report(json: json)
        var isGood = true
        for provider in providers.split(separator: ",").map(String.init) {
            showProgress("idle \(provider)")
            let (child, side) = try startPair(
                provider: provider, nicCount: 1, nics: "", progress: "adaptive", processors: processors,
                regionBytes: 1 << 20, callerMemory: false)
            defer {
                child.end()
                side.close()
            }
            try converse(child, side)
            for watchers in 0...1 {
                if watchers == 1 {
                    try side.watch()
                    try child.send("watch")
                    guard try child.receive() == "done" else { throw confused }
                }
                // What was just done settles.
                usleep(200_000)
                try child.send("idle\n\(seconds)")
                let initiator = side.idle(seconds: seconds)
                guard let target = Double(try child.receive(within: Int(seconds) + 60)) else {
                    throw confused
                }
                let isWithin = max(initiator, target) < Self.allowedPercent
                isGood = isGood && isWithin
                report.add([
                    ("provider", .text(provider)), ("test", .text("idle")), ("watchers", .integer(watchers)),
                    ("initiator_core_percent", .number(initiator)),
                    ("target_core_percent", .number(target)),
                    ("allowed", .number(Self.allowedPercent)), ("check", .text(isWithin ? "ok" : "above")),
                ])
            }
        }
        showProgress("")
        report.finish()
        if check, !isGood { throw ExitCode(1) }
    }

    /// Writes in both directions, so that connections exist.
    private func converse(_ child: ChildProcess, _ side: BenchSide) throws {
        try child.send("pong")
        let answered = try side.engine.expect(BenchSide.pingImmediate, count: 1)
        try side.ping()
        try side.engine.wait(for: answered)
        side.board.tell(.stop, side.board.read(.stop) + 1)
        guard try child.receive() == "done" else { throw confused }
    }

    private var confused: TransferError { TransferError(.peerLost, "the target is confused") }
}
