internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import KVCacheTransfer
internal import Platform
internal import TransferEngine

/// The decoder: the other process.
struct BenchKVTarget: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "bench-kv-target", shouldDisplay: false)

    @Option var model: String
    @Option var tokens: Int
    @Option var provider: String
    @Option var processor: Int

    /// What plain page writes carry.
    static let rawImmediate: Immediate = 1

    private final class Ready: @unchecked Sendable {
        // SAFETY: used by one thread.
        var time: UInt64 = 0
        var failure: KVError?
    }

    func run() throws {
        _ = te_die_with_parent()
        _ = te_pin_self(Int32(processor))
        let layout = try KVBenchModel.layout(model)
        let pageTokens = layout.formats[0].pageTokens
        let table = KVBenchModel.pages((tokens + pageTokens - 1) / pageTokens, seed: 2)
        let ranks = try KVBenchModel.ranks(
            layout, pageCount: table.pages.count, provider: provider, name: "decoder")
        let decoder = try KVDecoder(KVBenchModel.configuration("decoder"), layout: layout, ranks: ranks)
        _ = writeLine(
            ranks.map { hexadecimal($0.engine.descriptor(of: $0.regions[0]).encoded()) }
                .joined(separator: " "), to: 1)
        guard let line = readLine(), let address = bytes(hexadecimal: line) else { return }
        let peer = try decoder.connect(to: EngineAddress(decoding: address))
        // The other side's last writes need this one's progress as well.
        let lines = ChildLines()
        while true {
            guard let line = lines.next() else {
                for rank in ranks { rank.engine.progress() }
                continue
            }
            if line == "raw" {
                for rank in ranks {
                    let count = table.pages.count * layout.model.layerCount
                    while !rank.engine.consume(Self.rawImmediate, count: count) {
                        for rank in ranks { rank.engine.progress() }
                    }
                }
                _ = writeLine(String(te_monotonic_nanoseconds()), to: 1)
                continue
            }
            let ready = Ready()
            decoder.request(
                KVRequest(span: TokenSpan(end: tokens), tables: [table], input: [], timeout: .seconds(60)),
                from: peer
            ) { event in
                if case .failed(let error) = event { ready.failure = error }
                if event == .ready { ready.time = te_monotonic_nanoseconds() }
            }
            while ready.time == 0, ready.failure == nil { for rank in ranks { rank.engine.progress() } }
            if let failure = ready.failure { throw failure }
            _ = writeLine(String(ready.time), to: 1)
        }
    }
}
