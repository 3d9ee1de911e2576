internal import Glibc
public import TransferEngine

/// A directory that is a folder: one small file for each entry, on one host or on a file system that all hosts see.
///
/// A file is written beside its place and renamed, so that readers see it whole or not at all. Nobody takes the file of a
/// process that was killed away; whoever cannot reach its engine leaves it alone, and the process that comes back under its
/// name replaces it.
public struct FileDirectory: TransferDirectory {
    private let folder: String
    private static let suffix = ".entry"

    /// Uses an existing folder.
    public init(folder: String) { self.folder = folder }

    private func path(_ name: String) throws(TransferError) -> String {
        guard !name.isEmpty, !name.hasPrefix("."), !name.contains(where: { $0 == "/" || $0.isWhitespace })
        else {
            throw TransferError(
                .invalidArgument, "'\(name)' names no file: no slashes, no spaces, no dot first")
        }
        return "\(folder)/\(name)\(Self.suffix)"
    }

    /// See `TransferDirectory`.
    public func announce(_ entry: DirectoryEntry) async throws(TransferError) {
        let path = try path(entry.name)
        let new = "\(path).\(getpid())"
        let file = unsafe open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard file >= 0 else { throw failure("create \(new)") }
        let bytes = Array((entry.line + "\n").utf8)
        let count = unsafe bytes.withUnsafeBytes { unsafe write(file, $0.baseAddress, $0.count) }
        close(file)
        guard count == bytes.count, unsafe rename(new, path) == 0 else {
            unsafe unlink(new)
            throw failure("write \(path)")
        }
    }

    /// See `TransferDirectory`.
    public func withdraw(_ name: String) async throws(TransferError) {
        let path = try path(name)
        guard unsafe unlink(path) == 0 || errno == ENOENT else { throw failure("remove \(path)") }
    }

    /// See `TransferDirectory`. Files that are no entries are passed over.
    public func entries() async throws(TransferError) -> [DirectoryEntry] {
        guard let stream = unsafe opendir(folder) else { throw failure("open \(folder)") }
        defer { unsafe closedir(stream) }
        var found: [DirectoryEntry] = []
        // SAFETY: the record is valid until the next call, and its name ends with a zero.
        while let record = unsafe readdir(stream) {
            let name = unsafe withUnsafeBytes(of: &record.pointee.d_name) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            guard name.hasSuffix(Self.suffix), let line = read("\(folder)/\(name)") else { continue }
            if let entry = try? DirectoryEntry(line: line) { found.append(entry) }
        }
        return found.sorted { $0.name < $1.name }
    }

    private func read(_ path: String) -> String? {
        let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes = [UInt8](repeating: 0, count: 65536)
        let count = unsafe bytes.withUnsafeMutableBytes { unsafe Glibc.read(file, $0.baseAddress, $0.count) }
        guard count > 0, bytes[count - 1] == 10 else { return nil }
        return String(decoding: bytes[..<(count - 1)], as: UTF8.self)
    }

    private func failure(_ what: String) -> TransferError {
        TransferError(
            .unavailable,
            "cannot \(what): \(unsafe String(cString: strerror(errno))); the folder has to exist")
    }
}
