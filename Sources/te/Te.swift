internal import ArgumentParser

@main
struct Te: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "te", abstract: "Point-to-point transfers: look at this machine, measure, demonstrate.",
        subcommands: [
            Info.self, Bench.self, Demo.self, Sim.self, Weights.self, TraceCommand.self, BenchTarget.self,
            DemoReceiver.self, WeightsMember.self,
        ])
}
