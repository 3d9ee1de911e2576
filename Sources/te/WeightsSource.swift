internal import Glibc
internal import TransferEngine
internal import WeightTransfer

/// What trainers hold: a model's parameters, of several versions.
struct WeightSource {
    private enum Origin {
        case generated
        case gguf(GGUF)
        case safetensors(SafetensorsFiles)
    }

    let model: ModelDescription
    private let origin: Origin

    /// - Parameter path: A GGUF file, a safetensors file or a directory of them; without it parameters are generated.
    init(model: ModelDescription, path: String?) throws {
        self.model = model
        origin =
            if let path {
                path.hasSuffix(".gguf")
                    ? .gguf(try GGUF(parsing: File.read(path))) : .safetensors(try SafetensorsFiles(path))
            } else { .generated }
    }

    /// A whole parameter, row by row. Each version after the first changes every other parameter.
    func bytes(_ tensor: Int, version: Int) throws -> [UInt8] {
        let description = model.tensors[tensor]
        let isChanged = version > 1 && (tensor + version) % 2 == 0
        switch origin {
        case .generated: return Self.generated(tensor, description.byteCount, isChanged ? version : 1)
        case .gguf(let file):
            guard let bits = try file.bf16(description) else { throw missing(description) }
            return Self.changed(bits.withUnsafeBytes(Array.init), 2, isChanged ? version : 0)
        case .safetensors(let files):
            guard let bytes = try files.bytes(of: description) else { throw missing(description) }
            return Self.changed(bytes, description.type.byteCount, isChanged ? version : 0)
        }
    }

    private func missing(_ tensor: TensorDescription) -> TransferError {
        TransferError(
            .invalidArgument,
            "the file has no '\(tensor.name)' of \(tensor.type) \(tensor.shape); choose its --model")
    }

    /// Changes the lowest bits of each element.
    private static func changed(_ bytes: [UInt8], _ elementBytes: Int, _ version: Int) -> [UInt8] {
        guard version & 7 != 0 else { return bytes }
        var bytes = bytes
        for index in stride(from: 0, to: bytes.count, by: elementBytes) { bytes[index] ^= UInt8(version & 7) }
        return bytes
    }

    /// BF16 numbers between 1/256 and 4, with both signs.
    private static func generated(_ tensor: Int, _ byteCount: Int, _ version: Int) -> [UInt8] {
        var random = DemoRandom(seed: UInt64(tensor) << 20 ^ UInt64(version))
        return [UInt8](unsafeUninitializedCapacity: byteCount) { buffer, initialised in
            var place = 0
            while place < byteCount {
                let word = random.next() & 0x83FF_83FF_83FF_83FF | 0x3C00_3C00_3C00_3C00
                if place + 8 <= byteCount {
                    UnsafeMutableRawBufferPointer(buffer).storeBytes(
                        of: word.littleEndian, toByteOffset: place, as: UInt64.self)
                } else {
                    for index in 0..<byteCount - place {
                        buffer[place + index] = UInt8(truncatingIfNeeded: word >> UInt64(8 * index))
                    }
                }
                place += 8
            }
            initialised = byteCount
        }
    }
}

extension File {
    /// Writes a safetensors file, whole or not at all: its data come from `body`, parameter by parameter.
    static func writeSafetensors(
        _ tensors: [TensorDescription], to path: String, _ body: (Int) throws -> [UInt8]
    ) throws {
        let temporary = path + ".part"
        try write(SafetensorsHeader.encode(tensors), to: temporary)
        let file = open(temporary, O_WRONLY | O_APPEND | O_CLOEXEC)
        guard file >= 0 else {
            throw TransferError(.invalidArgument, "\(temporary) cannot be written: error \(errno)")
        }
        defer { Glibc.close(file) }
        for index in tensors.indices {
            let bytes = try body(index)
            var place = 0
            while place < bytes.count {
                let count = bytes.withUnsafeBytes {
                    Glibc.write(file, $0.baseAddress.map { $0 + place }, bytes.count - place)
                }
                guard count > 0 else {
                    throw TransferError(.limitReached, "\(temporary) cannot be written: error \(errno)")
                }
                place += count
            }
        }
        guard rename(temporary, path) == 0 else {
            throw TransferError(.invalidArgument, "\(path) cannot be written: error \(errno)")
        }
    }
}
