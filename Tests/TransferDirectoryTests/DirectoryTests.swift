import EtcdDirectory
import Foundation
import Testing
import TransferDirectory
import TransferEngine

@Suite struct DirectoryTests {
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
                    length: 0, base: 4096, secret: 3,
                    nics: [
                        RemoteRegion.NIC(
                            fabric: "shm", address: [1, 250], megabitsPerSecond: 5, key: 6, base: 7)
                    ])))
    }

    private func folder() throws -> String {
        let folder = NSTemporaryDirectory() + "te-directory-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        return folder
    }

    /// What every directory does.
    private func check(_ directory: some TransferDirectory) async throws {
        #expect(try await directory.entries().isEmpty)
        try await directory.announce(entry("b", .decoder))
        try await directory.announce(entry("a"))
        #expect(try await directory.entries() == [entry("a"), entry("b", .decoder)])
        try await directory.announce(entry("a", engine: 8))
        #expect(try await directory.entries() == [entry("a", engine: 8), entry("b", .decoder)])
        try await directory.withdraw("b")
        try await directory.withdraw("b")
        #expect(try await directory.entries() == [entry("a", engine: 8)])
        try await directory.withdraw("a")
    }

    @Test func linesComeBackAsTheyWere() throws {
        #expect(try DirectoryEntry(line: entry("x").line) == entry("x"))
        for line in ["", "prefiller a", "nobody a 00", "prefiller a 0", "prefiller a zz", "prefiller a 0011"]
        {
            #expect(throws: TransferError.self) { try DirectoryEntry(line: line) }
        }
    }

    @Test func theStaticDirectoryKeepsEntries() async throws { try await check(StaticDirectory()) }

    @Test func theFolderKeepsEntries() async throws {
        let folder = try folder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try Data("no entry\n".utf8).write(to: URL(fileURLWithPath: folder + "/x.entry"))
        try await check(FileDirectory(folder: folder))
        for name in ["", "../a", ".a", "a b"] {
            await #expect(throws: TransferError.self) {
                try await FileDirectory(folder: folder).announce(entry(name))
            }
        }
        let error = await #expect(throws: TransferError.self) {
            try await FileDirectory(folder: folder + "/nowhere").entries()
        }
        #expect(error?.code == .unavailable)
    }

    @Test func changesAreWhatIsDifferent() async throws {
        let change = DirectoryChange(
            from: [entry("a"), entry("b")], to: [entry("b"), entry("a", engine: 9)])
        #expect(change.joined == [entry("a", engine: 9)])
        #expect(change.left == [entry("a")])
        let directory = StaticDirectory([entry("a")])
        var seen: [DirectoryChange] = []
        for await change in directory.changes(every: .milliseconds(1)) {
            seen.append(change)
            if seen.count == 2 { break }
            try await directory.withdraw("a")
        }
        #expect(seen.map(\.joined.count) == [1, 0])
        #expect(seen.map(\.left.count) == [0, 1])
    }

    static let etcd = ["/usr/bin/etcd", "/usr/local/bin/etcd"].first {
        FileManager.default.isExecutableFile(atPath: $0)
    }

    private func start(_ program: String, _ folder: String, _ port: Int) throws -> Process {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: program)
        process.arguments = [
            "--data-dir", folder, "--listen-client-urls", "http://127.0.0.1:\(port)",
            "--advertise-client-urls",
            "http://127.0.0.1:\(port)", "--listen-peer-urls", "http://127.0.0.1:\(port + 1)",
            "--initial-advertise-peer-urls", "http://127.0.0.1:\(port + 1)", "--initial-cluster",
            "default=http://127.0.0.1:\(port + 1)",
        ]
        process.standardOutput = FileHandle.nullDevice
        process.standardError = FileHandle.nullDevice
        try process.run()
        return process
    }

    private func until(_ condition: () async -> Bool) async throws {
        for _ in 0..<300 {
            if await condition() { return }
            try await Task.sleep(for: .milliseconds(100))
        }
        Issue.record("waited in vain")
    }

    @Test(.enabled(if: etcd != nil, "etcd-server is not installed"), .timeLimit(.minutes(2)))
    func etcdKeepsEntriesAndMayBeLost() async throws {
        let program = try #require(Self.etcd)
        let (folder, port) = (
            try folder(), 23_790 + Int(ProcessInfo.processInfo.processIdentifier % 1000) * 2
        )
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let directory = EtcdDirectory(endpoint: "http://127.0.0.1:\(port)", leaseSeconds: 2)
        await #expect(throws: TransferError.self) { try await directory.entries() }
        var server = try start(program, folder + "/1", port)
        defer { server.terminate() }
        try await until { (try? await directory.entries()) != nil }
        try await check(directory)

        // One that ends disappears, one that lives stays.
        var other: EtcdDirectory? = EtcdDirectory(endpoint: "http://127.0.0.1:\(port)", leaseSeconds: 2)
        try await other?.announce(entry("mortal"))
        try await directory.announce(entry("a"))
        #expect(try await directory.entries().count == 2)
        other = nil
        try await until { (try? await directory.entries()) == [entry("a")] }

        // etcd is lost, and another one comes, which knows nothing.
        server.terminate()
        server.waitUntilExit()
        await #expect(throws: TransferError.self) { try await directory.entries() }
        server = try start(program, folder + "/2", port)
        try await until { (try? await directory.entries()) == [entry("a")] }
        try await directory.withdraw("a")
    }

    @Test(.enabled(if: etcd == nil, "etcd-server is installed")) func etcdWasNotTested() {
        #expect(Self.etcd == nil)
    }
}
