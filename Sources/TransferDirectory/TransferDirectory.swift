public import TransferEngine

/// One process that others may want to reach.
public struct DirectoryEntry: Hashable, Sendable {
    /// What it does.
    public enum Role: String, Hashable, Sendable {
        /// Computes prompts.
        case prefiller
        /// Generates.
        case decoder
    }

    /// Unique among all entries; a process that is started again takes the place of the one before.
    public var name: String
    /// What it does.
    public var role: Role
    /// How to reach its engine of rank 0.
    public var address: EngineAddress
    /// Where it answers requests over HTTP, if it does: `http://HOST:PORT`.
    public var url: String?

    /// Describes an entry.
    public init(name: String, role: Role, address: EngineAddress, url: String? = nil) {
        self.name = name
        self.role = role
        self.address = address
        self.url = url
    }

    /// One line of text: role, name, the address as hexadecimal digits, and the URL if there is one. Names and URLs have neither
    /// spaces nor line ends.
    public var line: String {
        let digits = address.encoded().map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
        return "\(role.rawValue) \(name) \(digits)" + (url.map { " \($0)" } ?? "")
    }

    /// Reads a line.
    /// - Throws: `malformedDescriptor` for anything that `line` does not make.
    public init(line: some StringProtocol) throws(TransferError) {
        let words = line.split(separator: " ")
        guard words.count == 3 || words.count == 4, let role = Role(rawValue: String(words[0])),
            words[2].utf8.count % 2 == 0
        else {
            throw TransferError(
                .malformedDescriptor,
                "a line of a directory has a role, a name, an address, perhaps a URL")
        }
        let digits = Array(words[2].utf8)
        var bytes: [UInt8] = []
        for index in stride(from: 0, to: digits.count, by: 2) {
            guard let high = Self.value(digits[index]), let low = Self.value(digits[index + 1]) else {
                throw TransferError(.malformedDescriptor, "the address of \(words[1]) is not hexadecimal")
            }
            bytes.append(high << 4 | low)
        }
        self.init(
            name: String(words[1]), role: role, address: try EngineAddress(decoding: bytes),
            url: words.count > 3 ? String(words[3]) : nil)
    }

    private static func value(_ digit: UInt8) -> UInt8? {
        switch digit {
        case 48...57: digit - 48
        case 97...102: digit - 87
        default: nil
        }
    }
}

/// Who is where. Processes announce themselves and learn of the others; none of them needs it for what is already running.
public protocol TransferDirectory: Sendable {
    /// Makes an entry known until it is withdrawn, or until this process ends where the directory notices that.
    /// - Throws: `unavailable` when the directory cannot be reached, with what to do.
    func announce(_ entry: DirectoryEntry) async throws(TransferError)

    /// Takes an entry out. One that is not there is no error.
    /// - Throws: `unavailable`.
    func withdraw(_ name: String) async throws(TransferError)

    /// All entries as they are now, by name.
    /// - Throws: `unavailable`.
    func entries() async throws(TransferError) -> [DirectoryEntry]

    /// Yields what has changed; the first time all entries. A directory that cannot be reached changes nothing: whoever works
    /// together goes on. Directories that are not told of changes look every `interval`.
    func changes(every interval: Duration) -> AsyncStream<DirectoryChange>
}

/// What has changed between two looks into a directory.
public struct DirectoryChange: Hashable, Sendable {
    /// Entries that are new, or have a new address.
    public var joined: [DirectoryEntry]
    /// Entries that are gone, or have a new address.
    public var left: [DirectoryEntry]

    /// Compares. O(entries).
    public init(from old: [DirectoryEntry], to new: [DirectoryEntry]) {
        let (before, after) = (Set(old), Set(new))
        joined = new.filter { !before.contains($0) }
        left = old.filter { !after.contains($0) }
    }
}

extension TransferDirectory {
    /// `changes(every:)` with a second.
    public func changes() -> AsyncStream<DirectoryChange> { changes(every: .seconds(1)) }

    /// Looks into the directory every `interval`.
    public func changes(every interval: Duration) -> AsyncStream<DirectoryChange> {
        AsyncStream { continuation in
            let task = Task {
                var known: [DirectoryEntry] = []
                while !Task.isCancelled {
                    if let now = try? await entries() {
                        let change = DirectoryChange(from: known, to: now)
                        known = now
                        if !change.joined.isEmpty || !change.left.isEmpty { continuation.yield(change) }
                    }
                    try? await Task.sleep(for: interval)
                }
                continuation.finish()
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }
}
