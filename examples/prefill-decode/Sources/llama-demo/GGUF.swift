import Foundation

/// A model file: its metadata and its tensors, of the types F32, Q4_1 and Q8_0.
struct GGUF {
    enum Value {
        case number(Double)
        case text([UInt8])
        case list([Value])
    }

    struct Failure: Error, CustomStringConvertible {
        var description: String
    }

    private struct Tensor {
        var count: Int
        var type: UInt32
        var offset: Int
    }

    private let data: Data
    private var place = 24
    private var values: [String: Value] = [:]
    private var tensors: [String: Tensor] = [:]

    init(path: String) throws {
        data = try Data(contentsOf: URL(fileURLWithPath: path), options: .alwaysMapped)
        guard data.count > 24, data.prefix(4) == Data("GGUF".utf8) else {
            throw Failure(description: "\(path) is no GGUF file; fetch one with 'make model'")
        }
        let tensorCount = load(UInt64.self, at: 8)
        for _ in 0..<load(UInt64.self, at: 16) {
            let key = try string()
            values[key] = try value(take(UInt32.self))
        }
        for _ in 0..<tensorCount {
            let name = try string()
            let dimensions = try (0..<take(UInt32.self)).map { _ in Int(try take(UInt64.self)) }
            let type = try take(UInt32.self)
            tensors[name] = Tensor(
                count: dimensions.reduce(1, *), type: type, offset: Int(try take(UInt64.self)))
        }
        let start = (place + 31) / 32 * 32
        for name in tensors.keys { tensors[name]?.offset += start }
    }

    // MARK: Metadata

    func number(_ key: String) throws -> Double {
        guard case .number(let number)? = values[key] else {
            throw Failure(description: "no number '\(key)'")
        }
        return number
    }

    func texts(_ key: String) throws -> [[UInt8]] {
        guard case .list(let list)? = values[key] else { throw Failure(description: "no list '\(key)'") }
        return list.map { if case .text(let text) = $0 { text } else { [] } }
    }

    private func load<Number: FixedWidthInteger>(_: Number.Type, at offset: Int) -> Number {
        data.withUnsafeBytes {
            Number(littleEndian: $0.loadUnaligned(fromByteOffset: offset, as: Number.self))
        }
    }

    private mutating func take<Number: FixedWidthInteger>(_ type: Number.Type) throws -> Number {
        guard place + MemoryLayout<Number>.size <= data.count else {
            throw Failure(description: "the file ends early")
        }
        defer { place += MemoryLayout<Number>.size }
        return load(type, at: place)
    }

    private mutating func bytes() throws -> [UInt8] {
        let count = try take(UInt64.self)
        guard count <= UInt64(data.count - place) else { throw Failure(description: "a text does not end") }
        defer { place += Int(count) }
        return Array(data[place..<place + Int(count)])
    }

    private mutating func string() throws -> String { String(decoding: try bytes(), as: UTF8.self) }

    private mutating func value(_ type: UInt32) throws -> Value {
        switch type {
        case 0, 7: .number(Double(try take(UInt8.self)))
        case 1: .number(Double(try take(Int8.self)))
        case 2: .number(Double(try take(UInt16.self)))
        case 3: .number(Double(try take(Int16.self)))
        case 4: .number(Double(try take(UInt32.self)))
        case 5: .number(Double(try take(Int32.self)))
        case 6: .number(Double(Float(bitPattern: try take(UInt32.self))))
        case 8: .text(try bytes())
        case 9: try list()
        case 10: .number(Double(try take(UInt64.self)))
        case 11: .number(Double(try take(Int64.self)))
        case 12: .number(Double(bitPattern: try take(UInt64.self)))
        default: throw Failure(description: "a value of the unknown type \(type)")
        }
    }

    private mutating func list() throws -> Value {
        let type = try take(UInt32.self)
        return .list(try (0..<take(UInt64.self)).map { _ in try value(type) })
    }

    // MARK: Tensors

    /// A tensor's elements, row after row.
    func tensor(_ name: String, count: Int) throws -> [Float] {
        guard let tensor = tensors[name], tensor.count == count else {
            throw Failure(description: "no tensor '\(name)' of \(count) elements")
        }
        let (elements, size) = tensor.type == 0 ? (1, 4) : tensor.type == 8 ? (32, 34) : (32, 20)
        guard [0, 3, 8].contains(tensor.type), tensor.offset + count / elements * size <= data.count else {
            throw Failure(description: "'\(name)' has the type \(tensor.type); known are F32, Q4_1 and Q8_0")
        }
        return [Float](unsafeUninitializedCapacity: count) { output, initialized in
            guard let first = output.baseAddress else { return }
            data.withUnsafeBytes { bytes in
                for block in 0..<count / elements {
                    let place = tensor.offset + block * size
                    expand(bytes, place, tensor.type, first + block * elements)
                }
            }
            initialized = count
        }
    }

    private func expand(
        _ bytes: UnsafeRawBufferPointer, _ place: Int, _ type: UInt32, _ output: UnsafeMutablePointer<Float>
    ) {
        switch type {
        case 0: output[0] = bytes.loadUnaligned(fromByteOffset: place, as: Float.self)
        case 8:
            let scale = half(bytes, place)
            for index in 0..<32 {
                output[index] = scale * Float(Int8(bitPattern: bytes[place + 2 + index]))
            }
        default:
            let (scale, least) = (half(bytes, place), half(bytes, place + 2))
            for index in 0..<16 {
                output[index] = scale * Float(bytes[place + 4 + index] & 15) + least
                output[index + 16] = scale * Float(bytes[place + 4 + index] >> 4) + least
            }
        }
    }

    /// IEEE binary16, finite.
    private func half(_ bytes: UnsafeRawBufferPointer, _ place: Int) -> Float {
        let bits = bytes.loadUnaligned(fromByteOffset: place, as: UInt16.self)
        let (exponent, mantissa) = (Int(bits >> 10 & 31), Float(bits & 1023))
        let value =
            exponent == 0
            ? mantissa * 0x1p-24
            : (1024 + mantissa) * Float(sign: .plus, exponent: exponent - 25, significand: 1)
        return bits >> 15 == 0 ? value : -value
    }
}
