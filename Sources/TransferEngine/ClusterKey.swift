internal import Glibc
internal import Platform
public import TransferCore

/// A secret that all engines of a cluster share: with it they sign descriptors and messages, and refuse what is not signed.
///
/// It is held in memory and never shown: a description, a dump, a trace or an error does not contain it.
public struct ClusterKey: Sendable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    let bytes: [UInt8]

    /// The shortest key, in bytes.
    public static let minimumBytes = 32
    /// The environment variable that `init(environment:)` reads if none is named.
    public static let environmentName = "TE_CLUSTER_KEY"

    /// Takes a key as bytes, which should be random.
    /// - Throws: `invalidArgument` below `minimumBytes`; `unavailable` when the library was built without the trait
    ///   `Authentication`.
    public init(bytes: some Collection<UInt8>) throws(TransferError) {
        guard Authenticator.isAvailable else {
            throw TransferError(
                .unavailable, "a cluster key needs the package trait Authentication; build with it")
        }
        guard bytes.count >= Self.minimumBytes else {
            throw TransferError(
                .invalidArgument,
                "a cluster key of \(bytes.count) bytes; it needs \(Self.minimumBytes) random ones")
        }
        self.bytes = Array(bytes)
    }

    /// Reads a key of hexadecimal digits from a file that nobody but its owner may read, as `openssl rand -hex 32` makes it.
    /// - Throws: `unavailable` when the file cannot be read, `accessDenied` when others may, `invalidArgument` as for bytes.
    public init(file path: String) throws(TransferError) {
        try self.init(digits: Self.text(of: path), from: path)
    }

    /// Reads a key of hexadecimal digits from the environment.
    /// - Throws: `unavailable` when there is no such variable, `invalidArgument` as for bytes.
    public init(environment name: String = environmentName) throws(TransferError) {
        // The environment's own text, copied at once.
        guard let text = unsafe getenv(name).map({ unsafe String(cString: $0) }) else {
            throw TransferError(.unavailable, "no cluster key in \(name); set it, or configure none")
        }
        try self.init(digits: text, from: name)
    }

    private init(digits text: String, from origin: String) throws(TransferError) {
        let digits = text.utf8.filter { !Self.blanks.contains($0) }
        let values = digits.compactMap { UInt8(String(UnicodeScalar($0)), radix: 16) }
        guard values.count == digits.count, values.count % 2 == 0 else {
            throw TransferError(
                .invalidArgument,
                "the cluster key in \(origin) is not an even number of hexadecimal digits; make one with openssl rand -hex 32"
            )
        }
        try self.init(
            bytes: stride(from: 0, to: values.count, by: 2).map { values[$0] << 4 | values[$0 + 1] })
    }

    /// Blank, tab, line feed, carriage return.
    private static let blanks: Set<UInt8> = [0x20, 0x09, 0x0A, 0x0D]

    private static func text(of path: String) throws(TransferError) -> String {
        // The path is good during the call.
        let file = unsafe Glibc.open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            throw TransferError(
                .unavailable, "the cluster key in \(path) cannot be read: \(errorText(errno))")
        }
        defer { _ = Glibc.close(file) }
        var about = stat()
        // `about` is ours, and so is `content`.
        guard unsafe fstat(file, &about) == 0, about.st_mode & 0o077 == 0 else {
            throw TransferError(
                .accessDenied, "others than its owner may read the cluster key in \(path); chmod 600 it")
        }
        var content = [UInt8](repeating: 0, count: 4096)
        let count = unsafe read(file, &content, content.count)
        return String(decoding: content.prefix(max(0, count)), as: UTF8.self)
    }

    /// Says that there is a key, and nothing of it.
    public var description: String { "cluster key (not shown)" }
    /// As `description`.
    public var debugDescription: String { description }
    /// Without children.
    public var customMirror: Mirror { Mirror(self, children: [:]) }
}
