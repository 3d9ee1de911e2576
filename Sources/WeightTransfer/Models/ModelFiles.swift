internal import Glibc
public import TransferCore

extension ModelDescription {
    /// A published model by its name (`PublishedModel`), a JSON description or the path of one, a safetensors file, or a
    /// directory of those.
    /// - Throws: `invalidArgument` when there is none, or what a description or a file is refused for.
    public init(named name: String) throws(TransferError) {
        if let published = PublishedModel(rawValue: name) {
            self = published.description
        } else if name.hasPrefix("{") {
            try self.init(json: JSON(parsing: Array(name.utf8)))
        } else if name.hasSuffix(".json") {
            try self.init(json: JSON(parsing: File.read(name)))
        } else if unsafe access(name, R_OK) == 0 {
            try self.init(name: name, tensors: SafetensorsFiles(name).tensors)
        } else {
            let known = PublishedModel.allCases.map(\.rawValue).joined(separator: ", ")
            throw TransferError(
                .invalidArgument,
                "no model '\(name)'; there are \(known), .json and safetensors files, and directories of those"
            )
        }
    }
}

/// Parameters in safetensors files, read when they are asked for.
package struct SafetensorsFiles {
    private struct Entry {
        var path: String
        var offset: Int
        var tensor: TensorDescription
    }

    private var entries: [String: Entry] = [:]
    /// All parameters, file by file.
    package private(set) var tensors: [TensorDescription] = []

    /// - Parameter path: A file, or a directory with the files of one model.
    package init(_ path: String) throws(TransferError) {
        for path in try Self.files(path) {
            let length = try SafetensorsHeader.length(of: File.read(path, limit: 8))
            let header = try SafetensorsHeader(parsing: File.read(path, from: 8, count: length))
            for (tensor, offset) in zip(header.tensors, header.offsets) {
                entries[tensor.name] = Entry(path: path, offset: offset, tensor: tensor)
                tensors.append(tensor)
            }
        }
    }

    private static func files(_ path: String) throws(TransferError) -> [String] {
        guard let directory = unsafe opendir(path) else { return [path] }
        defer { unsafe closedir(directory) }
        var names: [String] = []
        while let entry = unsafe readdir(directory) {
            let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
                unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasSuffix(".safetensors") { names.append(path + "/" + name) }
        }
        guard !names.isEmpty else {
            throw TransferError(.invalidArgument, "'\(path)' has no .safetensors files")
        }
        return names.sorted()
    }

    /// Nil when there is no parameter of this name, type and shape.
    package func bytes(of tensor: TensorDescription) throws(TransferError) -> [UInt8]? {
        guard let entry = entries[tensor.name], entry.tensor == tensor else { return nil }
        return try File.read(entry.path, from: entry.offset, count: tensor.byteCount)
    }
}

/// Bytes of files.
package enum File {
    /// All of a file, or its first `limit` bytes.
    package static func read(_ path: String, limit: Int = .max) throws(TransferError) -> [UInt8] {
        try reading(path) { file throws(TransferError) in
            var status = stat()
            guard unsafe fstat(file, &status) == 0 else {
                throw TransferError(.invalidArgument, "\(path): error \(errno)")
            }
            return try bytes(of: file, path, from: 0, count: min(limit, Int(status.st_size)))
        }
    }

    /// Some bytes of a file.
    package static func read(_ path: String, from offset: Int, count: Int) throws(TransferError) -> [UInt8] {
        try reading(path) { file throws(TransferError) in
            try bytes(of: file, path, from: offset, count: count)
        }
    }

    private static func reading(
        _ path: String, _ body: (Int32) throws(TransferError) -> [UInt8]
    ) throws(TransferError) -> [UInt8] {
        let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            throw TransferError(.invalidArgument, "\(path) cannot be opened: error \(errno)")
        }
        defer { close(file) }
        return try body(file)
    }

    private static func bytes(
        of file: Int32, _ path: String, from offset: Int, count: Int
    ) throws(TransferError) -> [UInt8] {
        let bytes = unsafe [UInt8](unsafeUninitializedCapacity: count) { buffer, initialised in
            while initialised < count, let base = buffer.baseAddress {
                let read = unsafe pread(
                    file, base + initialised, count - initialised, off_t(offset + initialised))
                guard read > 0 else { break }
                initialised += read
            }
        }
        guard bytes.count == count else {
            throw TransferError(.invalidArgument, "\(path) ends before byte \(offset + count)")
        }
        return bytes
    }
}
