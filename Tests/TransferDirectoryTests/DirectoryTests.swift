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
}
