internal import ArgumentParser
internal import CPlatform
internal import ExpertParallel
internal import Glibc
internal import Platform
internal import TransferEngine

/// `te moe`.
struct MoECommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "moe", abstract: "Expert parallelism.", subcommands: [MoEDemo.self, MoEDemoRank.self])
}

/// `te moe demo`: one layer of a mixture of experts on several processes, and the same in one.
struct MoEDemo: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo",
        abstract: "Compute MoE layers like Mixtral's and Qwen3's on several processes, and the same in one.",
        discussion: """
            Every process has some of the experts (SwiGLU, BF16 weights), and tokens of its own. The router \
            is a softmax over all experts; the best k are taken and their weights made to add up to 1. The \
            results must be equal to the bit.
            """)

    @Option(help: "processes") var ranks = 4
    @Option(help: "tokens of each process") var tokens = 32
    @Option(help: "layers, one after the other") var layers = 2
    @Flag(help: "one JSON object per line") var json = false

    func validate() throws {
        guard 1...16 ~= ranks, 1...4096 ~= tokens, 1...64 ~= layers else {
            throw ValidationError("--ranks is 1 to 16, --tokens 1 to 4096, --layers 1 to 64")
        }
    }

    func run() throws {
        var report = Report(json: json)
        var isEqual = true
        for model in MoEModel.all {
            let alone = try digests(model, processes: 1)
            let together = try digests(model, processes: ranks)
            isEqual = isEqual && alone == together
            report.add([
                ("layer", .text(model.name)), ("experts", .integer(model.experts)),
                ("top_k", .integer(model.topK)), ("hidden", .integer(model.hidden)),
                ("processes", .integer(ranks)), ("tokens", .integer(ranks * tokens)),
                ("layers", .integer(layers)), ("digest", .text(together.first ?? "-")),
                ("check", .text(alone == together ? "equal to one process" : "DIFFERENT")),
            ])
        }
        report.finish()
        if !isEqual { throw ExitCode.failure }
    }

    /// What each share of the tokens becomes.
    private func digests(_ model: MoEModel, processes: Int) throws -> [String] {
        let children = try (0..<processes).map { rank in
            try ChildProcess([
                "moe", "demo-rank", "--model", model.name, "--rank", String(rank), "--ranks",
                String(processes),
                "--shares", String(ranks / processes), "--tokens", String(tokens), "--layers", String(layers),
            ])
        }
        defer { for child in children { child.end() } }
        let addresses = try children.map { try $0.receive() }
        for child in children {
            for address in addresses { try child.send(address) }
        }
        return try children.flatMap { try $0.receive(within: 300).split(separator: " ").map(String.init) }
    }
}

/// One process of the demo.
struct MoEDemoRank: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "demo-rank", shouldDisplay: false)

    @Option var model: String
    @Option var rank: Int
    @Option var ranks: Int
    @Option(help: "shares of the tokens that this process has") var shares: Int
    @Option var tokens: Int
    @Option var layers: Int

    func run() throws {
        _ = te_die_with_parent()
        guard let model = MoEModel.all.first(where: { $0.name == model }) else { throw ExitCode.failure }
        let count = tokens * shares
        var shape = ExpertConfiguration(
            rank: rank, ranks: ranks, experts: model.experts, topK: model.topK, hidden: model.hidden,
            maximumTokens: count)
        shape.padding = 8
        let engine = try TransferEngine(Configuration(name: "rank \(rank)", progress: .manual))
        defer { engine.close() }
        let exchange = try ExpertExchange(engine, shape)
        _ = writeLine(hexadecimal(exchange.address), to: 1)
        var addresses: [[UInt8]] = []
        for _ in 0..<ranks {
            guard let line = readLine(), let address = bytes(hexadecimal: line) else { return }
            addresses.append(address)
        }
        try exchange.connect(addresses)
        var layer = MoELayer(model, experts: shape.placement.experts(of: rank))
        var values = (0..<count).flatMap { model.token(rank * count + $0) }
        for number in 0..<layers { values = try layer.run(values, number, exchange) }
        let share = tokens * model.hidden
        let digests = (0..<shares).map { share * $0..<share * ($0 + 1) }.map { range in
            String(
                values[range].reduce(UInt64(0xCBF2_9CE4_8422_2325)) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 },
                radix: 16)
        }
        _ = writeLine(digests.joined(separator: " "), to: 1)
        // Until everybody is done: others may still fetch their results from here.
        _ = readLine()
        try exchange.close()
    }
}

/// The shape of a demo's layer; weights and tokens come from seeds.
struct MoEModel {
    let name: String
    let experts: Int
    let topK: Int
    let hidden: Int
    let inner: Int

    /// Mixtral has 8 experts of which 2 compute, Qwen3-MoE 128 of which 8 do; both smaller here.
    static let all = [
        MoEModel(name: "mixtral", experts: 8, topK: 2, hidden: 256, inner: 448),
        MoEModel(name: "qwen3", experts: 128, topK: 8, hidden: 256, inner: 96),
    ]

    /// Numbers around 0 in BF16.
    func numbers(_ count: Int, seed: UInt64, scale: Float) -> [Float] {
        var random = SeededGenerator(seed: seed)
        return (0..<count).map { _ in
            BFloat16.value(BFloat16.bits(Float.random(in: -scale...scale, using: &random)))
        }
    }

    /// A token, in BF16.
    func token(_ number: Int) -> [UInt16] {
        numbers(hidden, seed: UInt64(number) &+ 1_000_000, scale: 1).map(BFloat16.bits)
    }
}
