#if HTTP
    internal import ArgumentParser
    internal import EtcdDirectory
    internal import Dispatch
    internal import Glibc
    internal import KVCacheTransfer
    internal import KVRouter
    internal import TransferDirectory

    /// `te kv route`: an HTTP service in front of prefillers and decoders.
    struct KVRoute: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "route",
            abstract: "Serve OpenAI's completions from prefillers and decoders that come and go.",
            discussion: """
                POST /v1/completions and /v1/chat/completions, GET /v1/models, /healthz, /metrics and \
                /instances. A request goes to the least loaded decoder and prefiller, or to those that had \
                the beginning of its prompt before. With --manage, POST /instances {"role": "decoder", \
                "url": "http://..."} and DELETE /instances?url=... add instances and take them out.
                """)

        @Option(name: .long, help: "Prefillers: http://HOST:PORT. Can be repeated.")
        var prefill: [String] = []

        @Option(name: .long, help: "Decoders: http://HOST:PORT. Can be repeated.")
        var decode: [String] = []

        @Option(
            name: .long,
            help:
                "Where instances announce themselves: file:FOLDER, or etcd:http://HOST:2379 (members apart by commas)."
        )
        var directory: String?

        @Option(name: .long, help: "What the keys in etcd begin with.")
        var prefix = "/transfer-engine/"

        @Option(name: .long, help: "The address to listen at; 0.0.0.0 and :: for all.")
        var host = "127.0.0.1"

        @Option(name: .long, help: "The port; 0 for a free one, which is printed.")
        var port = 8000

        @Option(name: .long, help: "Requests that may be open at once.")
        var requests = 1024

        @Option(name: .long, help: "Seconds that a request may take in all.")
        var timeout = 600.0

        @Option(
            name: .long,
            help: "Tokens of known prompt that outweigh a token of load; 0 for the least loaded only.")
        var affinity = 1.0

        @Flag(name: .long, help: "Let everybody who reaches the port add instances and take them out.")
        var manage = false

        @Flag(name: .long, help: "One JSON object for each line.")
        var json = false

        func validate() throws {
            guard !(prefill + decode).isEmpty || directory != nil || manage else {
                throw ValidationError("nobody to route to: give --decode, --prefill, --directory or --manage")
            }
            guard (0...65535).contains(port), requests > 0, timeout > 0, affinity >= 0 else {
                throw ValidationError("ports are below 65536, and the other numbers above 0")
            }
            _ = try source()
        }

        func run() throws {
            let source = try source()
            var configuration = KVRouter.Configuration()
            configuration.requestLimit = requests
            configuration.timeout = .seconds(timeout)
            configuration.isManaged = manage
            let router = KVRouter(configuration, scheduler: PrefixAffinityScheduler(weight: affinity))
            // The main thread waits: the service ends with a signal, or because its port is taken.
            let finished = DispatchSemaphore(value: 0)
            let serving = Task.detached {
                defer { finished.signal() }
                do {
                    for url in prefill { try await router.add(.prefiller, url: url) }
                    for url in decode { try await router.add(.decoder, url: url) }
                    try await withThrowingTaskGroup(of: Void.self) { group in
                        group.addTask { try await router.run(host: host, port: port, directory: source) }
                        group.addTask { try await announce(router) }
                        try await group.next()
                        try await group.next()
                    }
                } catch is CancellationError {
                } catch {
                    Self.exit(withError: error)
                }
            }
            let signals = [SIGINT, SIGTERM].map { number in
                signal(number, SIG_IGN)
                let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
                source.setEventHandler { serving.cancel() }
                source.resume()
                return source
            }
            finished.wait()
            withExtendedLifetime(signals) {}
        }

        private func announce(_ router: KVRouter) async throws {
            while true {
                if let port = await router.port {
                    let url = "http://\(host.contains(":") ? "[\(host)]" : host):\(port)"
                    print(json ? "{\"kind\": \"listening\", \"url\": \"\(url)\"}" : "listening at \(url)")
                    fflush(nil)
                    return
                }
                try await Task.sleep(for: .milliseconds(10))
            }
        }

        private func source() throws -> (any TransferDirectory)? {
            guard let directory else { return nil }
            if directory.hasPrefix("file:") {
                let folder = String(directory.dropFirst(5))
                var status = stat()
                guard stat(folder, &status) == 0, status.st_mode & S_IFMT == S_IFDIR else {
                    throw ValidationError("there is no folder \(folder)")
                }
                return FileDirectory(folder: folder)
            }
            guard directory.hasPrefix("etcd:") else {
                throw ValidationError("'\(directory)' is no directory: file:FOLDER or etcd:http://HOST:2379")
            }
            return try EtcdDirectory(
                endpoints: directory.dropFirst(5).split(separator: ",").map(String.init), prefix: prefix)
        }
    }
#endif
