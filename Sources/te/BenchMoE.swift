internal import ArgumentParser
internal import ExpertParallel
internal import Glibc
internal import Platform
internal import TransferEngine

/// `te bench moe`: dispatch and combine between processes, without experts in between.
struct BenchMoE: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "moe", abstract: "Token dispatch and combine of expert parallelism.",
        discussion: """
            One process for each rank, over shared memory. DeepSeek-V3's shape: 7168 values, 256 experts, \
            8 of them for each token, FP8 with a scale for every 128 values in, BF16 out. Tokens choose \
            their experts at random. A step is dispatch and combine; copied is what it has to copy, beside \
            what memcpy copies at that time. With --nodes the ranks are spread over so many nodes of one \
            host: that shows what the second level costs, not what it saves on a network.
            """)

    enum Mode: String, ExpressibleByArgument { case decode, prefill }

    @OptionGroup var shape: MoEShape
    @Option(help: "decode (1, 8, 32 and 128 tokens) or prefill (512 and 2048)")
    var mode = Mode.decode
    @Option(help: "numbers of tokens of each rank instead, for example 128,4096")
    var tokens = ""
    @Option(help: "measured steps of each")
    var steps = 0
    @Flag(help: "one JSON object per line")
    var json = false

    func validate() throws {
        guard tokens.split(separator: ",").allSatisfy({ Int($0).map { $0 > 0 } ?? false }) else {
            throw ValidationError("--tokens are numbers of tokens")
        }
    }

    func run() throws {
        let counts =
            tokens.isEmpty
            ? (mode == .decode ? [1, 8, 32, 128] : [512, 2048])
            : tokens.split(separator: ",").compactMap { Int($0) }
        var report = Report(json: json)
        for count in counts { try measure(count, &report) }
        report.finish()
    }

    private func measure(_ count: Int, _ report: inout Report) throws {
        let team = try MoETeam(shape, tokens: count)
        defer { team.end() }
        let steps = steps > 0 ? steps : max(5, min(300, 20_000 / count))
        let answers = try team.ask("run \(max(3, steps / 5)) \(steps)", within: 300).map {
            $0.split(separator: " ").compactMap { Double($0) }
        }
        guard answers.allSatisfy({ $0.count == 6 }), let first = answers.first else {
            throw TransferError(.malformedDescriptor, "a rank answered something else")
        }
        let seconds = median(answers.map { $0[0] })
        let copied = answers.reduce(0) { $0 + $1[1] }
        let limit = answers.reduce(0) { $0 + $1[2] }
        report.add([
            ("test", .text("moe")), ("mode", .text(mode.rawValue)), ("ep", .integer(shape.ep)),
            ("nodes", .integer(shape.nodes)), ("tokens", .integer(count)), ("us", .number(seconds * 1e6)),
            ("dispatch_us", .number(median(answers.map { $0[3] }) * 1e6)),
            ("combine_us", .number(median(answers.map { $0[4] }) * 1e6)),
            ("copied_gbps", .number(copied / seconds / 1e9)), ("limit", .number(limit / 1e9)),
            ("ratio", .number(copied / seconds / limit)), ("limit_is", .text("memcpy in every rank")),
            ("writes_per_peer", .number(first[5])),
        ])
    }
}

/// The shape of an exchange on the command line.
struct MoEShape: ParsableArguments {
    enum Sum: String, ExpressibleByArgument { case receiver, sender }

    @Option(help: "ranks, each a process") var ep = 2
    @Option(help: "experts in all") var experts = 256
    @Option(help: "experts of a token") var topK = 8
    @Option(help: "values of a token") var hidden = 7168
    @Option(help: "where results are added: receiver or sender") var sum = Sum.sender
    @Option(help: "nodes that tokens are exchanged over; 0 is one exchange of all ranks") var nodes = 0

    func validate() throws {
        try configuration(rank: 0, tokens: 1).validate()
        guard nodes == 0 || nodes > 0 && ep % nodes == 0 && sum == .sender else {
            throw ValidationError("--nodes divides --ep, and results are added at the sender")
        }
    }

    func configuration(rank: Int, tokens: Int) -> ExpertConfiguration {
        var shape = ExpertConfiguration(
            rank: rank, ranks: ep, experts: experts, topK: topK, hidden: hidden, maximumTokens: tokens)
        shape.dispatchElement = .float8
        shape.scaleBlock = 128
        shape.reduction = sum == .sender ? .sender : .receiver
        shape.microBatches = 1
        if ep > allowedProcessors().count { shape.spins = 20 }
        return shape
    }

    var arguments: [String] {
        [
            "--ep", String(ep), "--experts", String(experts), "--top-k", String(topK), "--hidden",
            String(hidden), "--sum", sum.rawValue, "--nodes", String(nodes),
        ]
    }
}

/// The processes of all ranks, which know each other.
final class MoETeam {
    private let children: [ChildProcess]

    init(_ shape: MoEShape, tokens: Int) throws {
        children = try (0..<shape.ep).map { rank in
            try ChildProcess(
                ["bench-moe-rank", "--rank", String(rank), "--tokens", String(tokens)] + shape.arguments)
        }
        let addresses = try children.map { try $0.receive() }
        for child in children {
            for address in addresses { try child.send(address) }
        }
    }

    /// Sends a line to every rank, and returns what each of them answers.
    func ask(_ line: String, within seconds: Int) throws -> [String] {
        for child in children { try child.send(line) }
        return try children.map { try $0.receive(within: seconds) }
    }

    func end() { for child in children { child.end() } }
}
