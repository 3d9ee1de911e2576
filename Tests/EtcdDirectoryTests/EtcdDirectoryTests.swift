#if HTTP
    import Foundation
    import Testing
    import TransferDirectory
    import TransferEngine

    @testable import EtcdDirectory

    /// A real etcd of one member, on ports of its own. `make test` installs it.
    private final class Etcd {
        private let folder: String
        private let port: UInt16
        private let peerPort: UInt16
        private var process: Process?

        var endpoint: String { "http://127.0.0.1:\(port)" }

        init() async throws {
            folder = NSTemporaryDirectory() + "te-etcd-\(UUID().uuidString)"
            (port, peerPort) = (try Self.freePort(), try Self.freePort())
            try await start()
        }

        deinit {
            if let process { kill(process.processIdentifier, SIGKILL) }
            try? FileManager.default.removeItem(atPath: folder)
        }

        func start() async throws {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            process.arguments = [
                "etcd", "--name", "test", "--data-dir", folder, "--listen-client-urls", endpoint,
                "--advertise-client-urls", endpoint, "--listen-peer-urls", "http://127.0.0.1:\(peerPort)",
                "--initial-advertise-peer-urls", "http://127.0.0.1:\(peerPort)",
                "--initial-cluster", "test=http://127.0.0.1:\(peerPort)",
            ]
            process.standardOutput = FileHandle.nullDevice
            process.standardError = FileHandle.nullDevice
            try process.run()
            self.process = process
            let directory = try EtcdDirectory(endpoints: [endpoint])
            let deadline = ContinuousClock.now + .seconds(60)
            while (try? await directory.entries()) == nil {
                try #require(
                    process.isRunning && ContinuousClock.now < deadline,
                    "etcd does not run: apt-get install etcd-server")
                try await Task.sleep(for: .milliseconds(50))
            }
        }

        /// As a host that loses its power.
        func stop() {
            guard let process else { return }
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
            self.process = nil
        }

        func loseData() throws { try FileManager.default.removeItem(atPath: folder) }

        private static func freePort() throws -> UInt16 {
            let file = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(file) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            let status = withUnsafeMutablePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(file, $0, length) == 0 && getsockname(file, $0, &length) == 0
                }
            }
            try #require(status)
            return UInt16(bigEndian: address.sin_port)
        }
    }

    private func entry(_ name: String, _ role: DirectoryEntry.Role = .prefiller, engine: UInt64 = 7)
        -> DirectoryEntry
    {
        DirectoryEntry(
            name: name, role: role,
            address: EngineAddress(
                name: name,
                landing: RemoteRegion(
                    engine: EngineID(rawValue: engine), device: 0, index: 1, generation: 2,
                    access: .remoteWrite,
                    length: 0, base: 4096, secret: 3, nics: [])),
            url: "http://10.0.0.1:80")
    }

    /// What somebody who follows a directory believes.
    private actor Follower {
        private(set) var known: Set<DirectoryEntry> = []
        private(set) var told: [DirectoryChange] = []

        func hear(_ change: DirectoryChange) {
            told.append(change)
            known.subtract(change.left)
            known.formUnion(change.joined)
        }

        var names: [String] { known.map(\.name).sorted() }

        /// Waits until these and no others are known.
        func waits(for names: [String]) async throws {
            let deadline = ContinuousClock.now + .seconds(30)
            while self.names != names {
                try #require(ContinuousClock.now < deadline, "\(self.names) instead of \(names) after 30 s")
                try await Task.sleep(for: .milliseconds(10))
            }
        }
    }

    @Suite(.serialized) struct EtcdDirectoryTests {
        private func follow(
            _ directory: EtcdDirectory, _ body: (Follower) async throws -> Void
        ) async throws {
            let follower = Follower()
            let task = Task {
                for await change in directory.changes(every: .milliseconds(100)) {
                    await follower.hear(change)
                }
            }
            defer { task.cancel() }
            try await body(follower)
        }

        @Test func entriesComeAndGo() async throws {
            let etcd = try await Etcd()
            let mine = try EtcdDirectory(endpoints: [etcd.endpoint], timeToLive: .seconds(2))
            // The first member does not answer.
            let theirs = try EtcdDirectory(endpoints: ["http://127.0.0.1:1", etcd.endpoint])
            let elsewhere = try EtcdDirectory(endpoints: [etcd.endpoint], prefix: "/another/")
            #expect(try await mine.entries().isEmpty)
            try await mine.announce(entry("b", .decoder))
            try await elsewhere.announce(entry("c"))
            try await follow(theirs) { follower in
                try await follower.waits(for: ["b"])
                try await theirs.announce(entry("a"))
                try await follower.waits(for: ["a", "b"])
                #expect(try await mine.entries() == [entry("a"), entry("b", .decoder)])
                try await theirs.announce(entry("a", engine: 8))
                #expect(try await mine.entries() == [entry("a", engine: 8), entry("b", .decoder)])
                try await mine.withdraw("b")
                try await mine.withdraw("b")
                try await follower.waits(for: ["a"])
                try await theirs.close()
                try await follower.waits(for: [])
                #expect(try await elsewhere.entries().map(\.name) == ["c"])
            }
        }

        @Test func whoDiesVanishesAndWhoLivesStays() async throws {
            let etcd = try await Etcd()
            let living = try EtcdDirectory(endpoints: [etcd.endpoint], timeToLive: .seconds(2))
            var dying: EtcdDirectory? = try EtcdDirectory(endpoints: [etcd.endpoint], timeToLive: .seconds(2))
            try await living.announce(entry("living"))
            try await dying?.announce(entry("dying"))
            try await follow(living) { follower in
                try await follower.waits(for: ["dying", "living"])
                dying = nil
                try await follower.waits(for: ["living"])
                // Longer than a lease that nobody keeps alive.
                try await Task.sleep(for: .seconds(5))
                #expect(await follower.names == ["living"])
                #expect(try await living.entries() == [entry("living")])
            }
        }

        @Test(arguments: [false, true]) func nobodyNoticesThatEtcdWasAway(losesData: Bool) async throws {
            let etcd = try await Etcd()
            let mine = try EtcdDirectory(endpoints: [etcd.endpoint], timeToLive: .seconds(3))
            try await mine.announce(entry("a"))
            try await follow(mine) { follower in
                try await follower.waits(for: ["a"])
                etcd.stop()
                await #expect(throws: TransferError.self) { try await mine.entries() }
                if losesData { try etcd.loseData() }
                try await Task.sleep(for: .seconds(4))
                #expect(await follower.names == ["a"])
                try await etcd.start()
                // It announces itself again without being asked, and nobody is told that it was gone.
                let deadline = ContinuousClock.now + .seconds(20)
                while try await mine.entries() != [entry("a")] {
                    try #require(ContinuousClock.now < deadline, "not announced again in 20 s")
                    try await Task.sleep(for: .milliseconds(20))
                }
                try await Task.sleep(for: .seconds(4))
                #expect(try await mine.entries() == [entry("a")])
                #expect(await follower.told.allSatisfy(\.left.isEmpty))
                // Changes are followed again.
                try await mine.announce(entry("b"))
                try await follower.waits(for: ["a", "b"])
                try await mine.withdraw("a")
                try await follower.waits(for: ["b"])
            }
        }

        /// Whoever announces something after etcd has lost its data announces all that he had before, and a name that
        /// cannot be read back is refused.
        @Test func whatIsAnnouncedAnewBringsTheRestAlong() async throws {
            let etcd = try await Etcd()
            // So long that nobody looks at the lease in between.
            let mine = try EtcdDirectory(endpoints: [etcd.endpoint], timeToLive: .seconds(300))
            try await mine.announce(entry("a"))
            etcd.stop()
            await #expect(throws: TransferError.self) { try await mine.announce(entry("a", engine: 9)) }
            try etcd.loseData()
            try await etcd.start()
            try await mine.announce(entry("b"))
            #expect(try await mine.entries() == [entry("a"), entry("b")])
            for name in ["", "a b"] {
                await #expect(throws: TransferError.self) { try await mine.announce(entry(name)) }
            }
            #expect(try await mine.entries().count == 2)
        }

        @Test func whatIsWrongIsSaid() async throws {
            for endpoints in [[], ["https://127.0.0.1:2379"], ["http://"], ["http://host:port"]] {
                let error = #expect(throws: TransferError.self) { try EtcdDirectory(endpoints: endpoints) }
                #expect(error?.code == .invalidArgument)
            }
            let nobody = try EtcdDirectory(endpoints: ["http://127.0.0.1:1"])
            let error = await #expect(throws: TransferError.self) { try await nobody.announce(entry("a")) }
            #expect(error?.code == .unavailable && "\(error.map { "\($0)" } ?? "")".contains("127.0.0.1:1"))
        }
    }

    /// What is told of lists and of events, without an etcd.
    @Suite struct EtcdViewTests {
        private let start = ContinuousClock.now

        @Test func whatIsMissingHasTimeToComeBack() {
            var view = EtcdView(grace: .seconds(10))
            #expect(view.replace([entry("a"), entry("b")], at: start).joined.count == 2)
            #expect(view.replace([entry("a")], at: start + .seconds(100)).left.isEmpty)
            #expect(view.replace([entry("a")], at: start + .seconds(109)).left.isEmpty)
            #expect(view.replace([entry("a"), entry("b")], at: start + .seconds(109)).joined.isEmpty)
            #expect(view.replace([entry("a")], at: start + .seconds(111)).left.isEmpty)
            #expect(view.replace([entry("a")], at: start + .seconds(121)).left.map(\.name) == ["b"])
            #expect(
                view.replace([entry("a"), entry("b")], at: start + .seconds(122)).joined.map(\.name) == ["b"])
        }

        @Test func eventsAreToldAtOnce() {
            var view = EtcdView(grace: .seconds(10))
            _ = view.replace([entry("a")], at: start)
            let change = view.update("a", to: entry("a", engine: 8))
            #expect(change.left == [entry("a")] && change.joined == [entry("a", engine: 8)])
            #expect(view.update("a", to: entry("a", engine: 8)).joined.isEmpty)
            #expect(view.update("a", to: nil).left == [entry("a", engine: 8)])
            #expect(view.update("a", to: nil).left.isEmpty)
            _ = view.update("b", to: entry("b"))
            // What was missing and was then deleted is told once.
            _ = view.replace([], at: start + .seconds(1))
            #expect(view.update("b", to: nil).left.count == 1)
            #expect(view.replace([], at: start + .seconds(60)).left.isEmpty)
        }

        @Test func messagesMayBeCutAnywhere() async throws {
            let (stream, continuation) = AsyncStream.makeStream(of: DirectoryChange.self)
            let follower = EtcdFollower(prefix: "/p/", grace: .seconds(1), continuation)
            func base64(_ text: String) -> String { Data(text.utf8).base64EncodedString() }
            let put =
                #"{"result":{"events":[{"kv":{"key":"\#(base64("/p/a"))","value":"\#(base64(entry("a").line))"}}]}}"#
            let foreign = #"{"result":{"events":[{"kv":{"key":"\#(base64("/q/a"))","value":"eA=="}}]}}"#
            let gone = #"{"result":{"events":[{"type":"DELETE","kv":{"key":"\#(base64("/p/a"))"}}]}}"#
            for byte in Array(
                (#"{"result":{"created":true}}"# + "\n" + put + "\n" + foreign + "\n" + gone + "\n").utf8)
            {
                try await follower.receive([byte])
            }
            continuation.finish()
            var told: [DirectoryChange] = []
            for await change in stream { told.append(change) }
            #expect(told.map(\.joined) == [[entry("a")], []] && told.map(\.left) == [[], [entry("a")]])
            for bad in [#"{"result":{"canceled":true}}"#, "nonsense", "{}"] {
                await #expect(throws: (any Error).self) {
                    try await follower.receive(Array((bad + "\n").utf8))
                }
            }
        }
    }
#endif
