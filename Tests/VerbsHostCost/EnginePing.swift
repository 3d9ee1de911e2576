#if Verbs
    import CVerbsStandIn
    import Platform
    import TransferEngine
    import VerbsProvider

    /// What one way of a ping-pong of 8 bytes costs: two engines that one thread drives by hand, over the stand-in.
    enum EnginePing {
        static func run(rounds: Int) throws {
            let network = unsafe te_standin_new(2, 1)
            let engines = try (0..<2).map { device in
                let name = unsafe String(cString: te_standin_name(network, Int32(device)))
                return try TransferEngine(
                    Configuration(name: "engine \(device)", progress: .manual),
                    clock: SystemClock(), random: SystemRandomNumberGenerator()
                ) { page throws(TransferError) in
                    unsafe [
                        try VerbsDomain(
                            VerbsOptions(device: name), page: page, engine: page.engine, api: te_standin_api()
                        )
                    ]
                }
            }
            let regions = try engines.map { try $0.allocate(byteCount: 4096) }
            let targets = [
                try engines[0].attach(engines[1].descriptor(of: regions[1])),
                try engines[1].attach(engines[0].descriptor(of: regions[0])),
            ]
            for _ in 0..<rounds {
                try ping(engines[0], regions[0], targets[0], engines[1])
                try ping(engines[1], regions[1], targets[1], engines[0])
            }
            for engine in engines { engine.close() }
            print("pings \(2 * rounds)")
        }

        private static func ping(
            _ sender: TransferEngine, _ region: MemoryRegion, _ target: RemoteMemory,
            _ receiver: TransferEngine
        ) throws {
            try sender.write(from: region, byteCount: 8, to: target, immediate: 2)
            for _ in 0..<1_000_000 {
                sender.progress()
                receiver.progress()
                if receiver.consume(2, count: 1) { return }
            }
            fatalError("a ping did not arrive")
        }
    }
#endif
