internal import ArgumentParser
internal import Glibc
internal import KVCacheTransfer
internal import Platform
internal import Simulation

/// `te kv simulate`: a whole cluster in one thread and in virtual time.
struct KVSimulate: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulate",
        abstract: "Run all prefillers and decoders of a cluster in virtual time, while nodes come and go.",
        discussion: """
            The real engines and roles over simulated NICs; a model that computes layer by layer at a given \
            rate; requests that arrive at random. Of each page 16 bytes are moved and checked, and all are \
            charged to the NICs. Exit code 1 when a request was lost, a page was wrong, or a page did not \
            come back. Nothing of it runs on hardware. --table3: one prefiller and one decoder in the \
            shapes of the paper's table 3, beside what the wire takes at least.
            """)

    @Option(help: "prefillers at a time")
    var prefillers = 64
    @Option(help: "decoders at a time")
    var decoders = 192
    @Option(help: "virtual seconds in which requests arrive")
    var seconds = 20.0
    @Option(help: "part of the time in which prefillers compute; it gives the rate of arrivals")
    var load = 0.8
    @Option(help: "nodes that leave in a second, killed and drained in turn; each is replaced at once")
    var churn = 1.0
    @Option(help: "tokens of the prompts, A or A..B; the logarithm is uniform")
    var tokens = "1024..8192"
    @Option(help: "tokens that a prefiller computes in a second")
    var rate = 20_000.0
    @Option(help: "speed of each node's NIC, Gbit/s")
    var gbps = 400
    @Option(help: "everything random comes from it")
    var seed: UInt64 = 1
    @Flag(name: .customLong("table3"), help: "the paper's table 3 instead of a cluster")
    var isTable3 = false
    @Flag(help: "one JSON object per line")
    var json = false

    func validate() throws {
        guard prefillers > 0, decoders > 0, prefillers + decoders <= 1024, seconds > 0, seconds <= 3600 else {
            throw ValidationError("1 to 1024 nodes in all, and up to 3600 seconds")
        }
        guard load > 0, load < 2, churn >= 0, churn <= 100, rate > 0, (1...4000).contains(gbps) else {
            throw ValidationError("--load is below 2, --churn at most 100, --gbps at most 4000")
        }
        _ = try prompts()
    }

    func run() throws {
        raiseFileLimit()
        if isTable3 { return try showTable3() }
        var plan = KVClusterPlan()
        plan.prefillers = prefillers
        plan.decoders = decoders
        plan.seconds = seconds
        plan.load = load
        plan.churn = churn
        plan.tokens = try prompts()
        plan.tokensPerSecond = rate
        plan.shape.megabitsPerSecond = UInt32(gbps) * 1000
        plan.seed = seed
        let start = monotonicSeconds()
        let outcome = try simulate(plan)
        show(plan, outcome, real: monotonicSeconds() - start)
        guard outcome.isGood else { throw ExitCode(1) }
    }

    private func prompts() throws -> ClosedRange<Int> {
        let parts = tokens.split(separator: ".", omittingEmptySubsequences: true).map { Int($0) }
        guard let first = parts.first ?? nil, let last = parts.last ?? nil, 1...last ~= first,
            last <= 131_072, parts.count <= 2
        else { throw ValidationError("--tokens takes A or A..B, for example 1024..8192") }
        return first...last
    }

    /// Each engine has some files open.
    private func raiseFileLimit() {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
        limit.rlim_cur = limit.rlim_max
        _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    }

    private func show(_ plan: KVClusterPlan, _ outcome: KVClusterOutcome, real: Double) {
        var report = Report(json: json)
        let virtual = Double(outcome.nanoseconds) / 1e9
        report.add([
            ("model", .text(plan.shape.layout.model.name)), ("prefillers", .integer(plan.prefillers)),
            ("decoders", .integer(plan.decoders)), ("gbps", .integer(gbps)), ("tokens", .text(tokens)),
            ("tokens_per_s", .number(rate)), ("load", .number(load)), ("churn_per_s", .number(churn)),
            ("computing", .number(outcome.computing)), ("seed", .text(String(seed))),
        ])
        report.finish()
        report.add([
            ("requests", .integer(outcome.requests)), ("completed", .integer(outcome.completed)),
            ("retries", .integer(outcome.retries)), ("killed", .integer(outcome.killed)),
            ("drained", .integer(outcome.drained)), ("lost", .integer(outcome.lost)),
            ("wrong", .integer(outcome.wrong)), ("leaks", .integer(outcome.leaks)),
        ])
        report.finish()
        for (name, scale, values) in [
            ("ttft_ms", 1e3, outcome.firstToken), ("after_last_layer_us", 1e6, outcome.transfer),
            ("share_of_ttft_percent", 100, outcome.share), ("layer_us", 1e6, outcome.layer),
        ] {
            report.add([
                ("what", .text(name)), ("p50", .number(values.quantile(0.5) * scale)),
                ("p99", .number(values.quantile(0.99) * scale)), ("max", .number(values.quantile(1) * scale)),
            ])
        }
        report.finish()
        report.add([
            ("nic_utilisation", .number(outcome.utilisation)), ("virtual_s", .number(virtual)),
            ("real_s", .number(real)), ("virtual_per_real", .number(virtual / max(real, 1e-9))),
            ("events", .integer(Int(outcome.events))), ("hash", .text(String(outcome.hash, radix: 16))),
        ])
        report.finish()
        for problem in outcome.problems { report.add([("problem", .text(problem))]) }
        report.finish()
    }

    private func showTable3() throws {
        var report = Report(json: json)
        var isGood = true
        for row in KVTable3.rows {
            let (plan, outcome) = (row.plan(seed: seed), try simulate(row.plan(seed: seed)))
            isGood = isGood && outcome.isGood && outcome.completed == plan.requestLimit
            report.add([
                ("tokens", .integer(row.tokens)), ("chunks", .integer(row.chunks)),
                ("pages", .integer(row.pages)), ("compute_ms", .number(row.computeMilliseconds)),
                ("wire_ms", .number(row.wireMilliseconds)),
                ("layer_p50_ms", .number(outcome.layer.quantile(0.5) * 1e3)),
                ("layer_max_ms", .number(outcome.layer.quantile(1) * 1e3)),
                ("paper_ms", .number(row.paperMilliseconds)), ("lost", .integer(outcome.lost)),
                ("wrong", .integer(outcome.wrong)),
            ])
        }
        report.finish()
        guard isGood else { throw ExitCode(1) }
    }
}
