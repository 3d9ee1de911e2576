internal import ArgumentParser
internal import Glibc
internal import TransferEngine

#if Libfabric
    internal import LibfabricProvider
#endif
#if Verbs
    internal import VerbsProvider
#endif

/// The two sides of a transfer, for tests on real NICs: one process writes, another counts and checks.
@main struct PeerCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "te-peer",
        abstract: "Two processes that transfer and check, while something goes wrong.",
        subcommands: [Send.self, Receive.self, Chaos.self])
}

/// What both sides are told.
struct Side: ParsableArguments {
    @Option(
        name: .customLong("nic"),
        help:
            "PROVIDER@NIC: memory@, verbs@DEVICE, or a provider of libfabric, tcp@ADDRESS. Once for each NIC."
    )
    var nics: [String]
    @Option(help: "Seconds between heartbeats; after three without an answer a peer counts as lost.")
    var heartbeat = 1.0

    func engine(
        _ name: String, deadline: Double = 30, key: ClusterKey? = nil,
        _ change: (inout Configuration) -> Void = { _ in }
    ) throws -> TransferEngine {
        signal(SIGPIPE, SIG_IGN)
        var configuration = Configuration(
            name: name, nics: try nics.map(Self.nic), timeout: .seconds(deadline), clusterKey: key)
        configuration.liveness = Liveness(interval: .seconds(heartbeat))
        change(&configuration)
        return try TransferEngine(configuration)
    }

    private static func nic(_ text: String) throws -> Configuration.NIC {
        let parts = text.split(separator: "@", maxSplits: 1).map(String.init)
        if parts == ["memory"] { return .sharedMemory }
        guard parts.count == 2 else { throw ValidationError("\(text) is not PROVIDER@NIC.") }
        #if Verbs
            if parts[0] == "verbs" { return .verbs(VerbsOptions(device: parts[1])) }
        #endif
        #if Libfabric
            return .libfabric(LibfabricOptions(provider: parts[0], nic: parts[1]))
        #else
            throw ValidationError("This program was built without libfabric.")
        #endif
    }
}

/// Bytes as hexadecimal digits.
func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// What `hexadecimal` wrote.
func bytes(hexadecimal text: some StringProtocol) -> [UInt8] {
    let digits = text.utf8.compactMap { Character(UnicodeScalar($0)).hexDigitValue }
    return stride(from: 0, to: digits.count - 1, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
}
