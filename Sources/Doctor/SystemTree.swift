internal import Glibc

/// The files of a system: this one's, or those that were captured from another one into a directory.
///
/// All paths begin with `/`. What cannot be read is not there. Use from one thread.
public final class SystemTree {
    /// What no file says, put into a captured tree under this name: lines of `name=value`.
    public static let factsPath = "/te-doctor-facts"

    private let root: String
    private var facts: [String: String]
    /// Everything that was read, for `capture`; nil where it was not there.
    private var read: [String: String] = [:]

    /// - Parameters:
    ///   - root: The directory that has the tree; `/` is this system.
    ///   - facts: What no file of this system says. A captured tree has its own.
    public init(root: String = "/", facts: [String: String] = [:]) {
        self.root = root.hasSuffix("/") ? String(root.dropLast()) : root
        self.facts = facts
        if !self.root.isEmpty {
            for line in lines(Self.factsPath) {
                let parts = line.split(separator: "=", maxSplits: 1).map(String.init)
                if parts.count == 2 { self.facts[parts[0]] = parts[1] }
            }
        }
        read[Self.factsPath] = nil
    }

    /// Something that no file says: `libfabric`, `process_vm_writev`, ...
    public func fact(_ name: String) -> String? { facts[name] }

    /// A file's text without white space at its ends; nil when it cannot be read.
    public func text(_ path: String) -> String? {
        guard let text = Self.contents(root + path) else { return nil }
        read[path] = text
        var rest = Substring(text)
        while let last = rest.last, last.isWhitespace { rest.removeLast() }
        return String(rest.drop { $0.isWhitespace })
    }

    /// The lines of a file that are not empty.
    public func lines(_ path: String) -> [Substring] { (text(path) ?? "").split(separator: "\n") }

    /// The number that a file begins with.
    public func number(_ path: String) -> Int? {
        text(path).flatMap { text in Int(text.prefix { $0.isNumber || $0 == "-" }) }
    }

    /// The value of a line `name: value` or `name value`.
    public func value(of name: String, in path: String) -> String? {
        guard let line = lines(path).first(where: { $0.hasPrefix(name) }) else { return nil }
        return String(line.dropFirst(name.count).drop { $0 == ":" || $0.isWhitespace })
    }

    /// The names in a directory, in order; empty when it is not there.
    public func names(in path: String) -> [String] {
        guard let directory = unsafe opendir(root + path) else { return [] }
        defer { unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            var name = unsafe entry.pointee.d_name
            let text = unsafe withUnsafeBytes(of: &name) { bytes in
                let end = unsafe bytes.firstIndex(of: 0) ?? bytes.count
                return unsafe String(decoding: UnsafeRawBufferPointer(rebasing: bytes[..<end]), as: UTF8.self)
            }
            if text != ".", text != ".." { names.append(text) }
        }
        for name in names where unsafe access("\(root)\(path)/\(name)", R_OK) == 0 {
            if read["\(path)/\(name)"] == nil { read["\(path)/\(name)"] = "" }
        }
        return names.sorted()
    }

    /// Whether there is a file or a directory.
    public func exists(_ path: String) -> Bool {
        let isThere = unsafe access(root + path, F_OK) == 0
        if isThere, read[path] == nil { read[path] = "" }
        return isThere
    }

    /// Writes what has been read so far, and the facts, below a directory, which is made when it is not there.
    /// - Returns: False when that fails; `errno` says why.
    public func capture(to directory: String) -> Bool {
        read[Self.factsPath] = facts.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)\n" }.joined()
        var directories = Set<Substring>()
        for path in read.keys {
            for slash in path.indices.dropFirst() where path[slash] == "/" {
                directories.insert(path[..<slash])
            }
        }
        for (path, text) in read where !directories.contains(Substring(path)) {
            guard Self.makeDirectories(above: directory + path), Self.write(text, to: directory + path) else {
                return false
            }
        }
        return true
    }

    private static func makeDirectories(above path: String) -> Bool {
        var position = path.startIndex
        while let slash = path[position...].dropFirst().firstIndex(of: "/") {
            let made = unsafe mkdir(String(path[..<slash]), 0o755)
            guard made == 0 || errno == EEXIST || errno == EISDIR else { return false }
            position = slash
        }
        return true
    }

    private static func write(_ text: String, to path: String) -> Bool {
        let file = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard file >= 0 else { return false }
        defer { close(file) }
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            let count = unsafe rest.withUnsafeBytes { unsafe Glibc.write(file, $0.baseAddress, $0.count) }
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    private static func contents(_ path: String) -> String? {
        let file = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard file >= 0 else { return nil }
        defer { close(file) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 16384)
        while bytes.count < 1 << 20 {
            let count = unsafe Glibc.read(file, &buffer, buffer.count)
            guard count >= 0 else { return nil }
            if count == 0 { break }
            bytes.append(contentsOf: buffer.prefix(count))
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
