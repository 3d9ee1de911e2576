internal import ArgumentParser

@main
struct Te: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "te", abstract: "Point-to-point transfers: look at this machine, measure, demonstrate.",
        subcommands: [
            Info.self, TopologyCommand.self, DoctorCommand.self, Explain.self, ErrorCommand.self, Bench.self,
            Demo.self, Sim.self, KVCommand.self, Weights.self, MoECommand.self, TraceCommand.self,
            BenchTarget.self, DemoReceiver.self, BenchKVTarget.self, KVSoakNode.self, WeightsMember.self,
            BenchMoERank.self,
        ] + withHTTP)

    private static var withHTTP: [any ParsableCommand.Type] {
        #if HTTP
            [Top.self, KVSoakEtcdNode.self]
        #else
            []
        #endif
    }
}
