internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import TransferEngine

/// `te kv`.
struct KVCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "kv", abstract: "Prefillers and decoders.", subcommands: subcommands)

    private static var subcommands: [any ParsableCommand.Type] {
        #if HTTP
            [KVDemo.self, KVRoute.self, KVSimulate.self, KVSoak.self]
        #else
            [KVDemo.self, KVSimulate.self, KVSoak.self]
        #endif
    }
}

/// `te kv soak`: real processes, killed and started again while requests are cancelled, and every byte looked at.
struct KVSoak: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "soak",
        abstract: "Kill prefillers and decoders while requests run, and check every byte.",
        discussion: """
            A request whose prefiller was killed is asked for again from another one (again). Exit \
            code 1 when a request failed for good, a byte was wrong, a free page was written to, or a \
            request did not end. Every other decoder compares digests. With --etcd the processes find \
            each other in an etcd, which is killed now and then, too, and sometimes loses its data.
            """
    )

    @Option(help: "seconds")
    var seconds = 20.0
    @Option(help: "prefillers at a time")
    var prefillers = 2
    @Option(help: "decoders at a time")
    var decoders = 2
    @Option(help: "seconds between two that are killed; 0 kills nobody")
    var killEvery = 1.0
    @Option(help: "shm or tcp")
    var provider = "shm"
    @Option(help: "what is killed when, and what is asked")
    var seed: UInt64 = 1
    #if HTTP
        @Flag(help: "let the processes find each other in an etcd that is killed as well")
        var etcd = false
    #endif
    @Flag(help: "one JSON object per line")
    var json = false

    private struct Numbers {
        var values = [Int](repeating: 0, count: 7)
        static let names = ["completed", "cancelled", "again", "failed", "wrong", "damaged", "open"]
    }

    func run() throws {
        var random = SeededGenerator(seed: seed)
        var number = 0
        #if HTTP
            let etcd = etcd ? try KVSoakEtcd() : nil
            let directory = etcd.map { ["--etcd", $0.endpoint] } ?? []
        #else
            let directory: [String] = []
        #endif
        func start(_ role: String) throws -> ChildProcess {
            number += 1
            return try ChildProcess(
                [
                    "kv-soak-node", "--role", role, "--name", "\(role)-\(number)", "--provider", provider,
                    "--seed", String(seed &* 1000 &+ UInt64(number)),
                ] + directory)
        }
        var addresses: [String] = []
        var sources: [ChildProcess] = []
        var targets: [ChildProcess] = []
        func startSource() throws {
            let child = try start("prefiller")
            let address = try child.receive()
            addresses.append(address)
            sources.append(child)
            for target in targets where directory.isEmpty { try target.send(address) }
        }
        func startTarget() throws {
            let child = try start("decoder")
            _ = try child.receive()
            targets.append(child)
            for address in addresses.suffix(prefillers) where directory.isEmpty { try child.send(address) }
        }
        for _ in 0..<decoders { try startTarget() }
        for _ in 0..<prefillers { try startSource() }
        var killed = 0
        let end = monotonicSeconds() + seconds
        while monotonicSeconds() < end {
            usleep(UInt32((killEvery > 0 ? min(killEvery, 10) : 1) * 1e6))
            #if HTTP
                try etcd?.disturb(&random)
            #endif
            guard killEvery > 0, monotonicSeconds() < end else { continue }
            showProgress("\(killed) killed")
            killed += 1
            if Int.random(in: 0..<4, using: &random) == 0 {
                targets.remove(at: Int.random(in: 0..<targets.count, using: &random)).endAtOnce()
                try startTarget()
            } else {
                sources.remove(at: Int.random(in: 0..<sources.count, using: &random)).endAtOnce()
                try startSource()
            }
        }
        #if HTTP
            try etcd?.start()  // what is asked again needs somebody to ask
            try finish(targets, sources, killed, etcd.map { ($0.kills, $0.losses) })
        #else
            try finish(targets, sources, killed, nil)
        #endif
    }

    private func finish(
        _ targets: [ChildProcess], _ sources: [ChildProcess], _ killed: Int,
        _ etcd: (kills: Int, losses: Int)?
    ) throws {
        var sum = Numbers()
        var reasons: [String] = []
        for target in targets { try target.send("stop") }
        for target in targets {
            let words = try target.receive().split(separator: " ")
            for (index, value) in words.compactMap({ Int($0) }).enumerated() { sum.values[index] += value }
            reasons += words.filter { $0.contains(":") }.map(String.init)
        }
        for child in targets + sources { child.endAtOnce() }
        showProgress("")
        var report = Report(json: json)
        report.add(
            [("provider", .text(provider)), ("seconds", .number(seconds)), ("killed", .integer(killed))]
                + (etcd.map { [("etcd killed", .integer($0.kills)), ("data lost", .integer($0.losses))] }
                    ?? [])
                + zip(Numbers.names, sum.values).map { ($0, .integer($1)) }
                + [("reasons", .list(reasons.map { .text($0) }))])
        report.finish()
        guard sum.values[3...].allSatisfy({ $0 == 0 }), sum.values[0] > 0 else { throw ExitCode(1) }
    }
}
