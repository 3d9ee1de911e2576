import TransferCore
import TransferDirectory
import TransferEngine

@testable import WeightTransfer

// What is read from files and directories: plans, models, checkpoints, announcements. The first byte of an input says which.
extension Target {
    private static func expect(_ error: TransferError) {
        let codes: [TransferError.Code] = [.malformedDescriptor, .unsupportedVersion, .invalidArgument]
        require(codes.contains(error.code), "reading ended with \(error)")
    }

    private static func plan(_ bytes: [UInt8]) {
        let body = bytes.dropLast(8)
        let checksum = Plan.checksum(body)
        for candidate in [
            bytes, body + (0..<8).map { UInt8(truncatingIfNeeded: checksum >> UInt64(8 * $0)) },
        ] {
            do throws(TransferError) {
                let plan = try Plan(decoding: candidate)
                require((try? Plan(decoding: plan.encoded())) == plan, "a plan changes when it is written")
                // Figures are computed of what is sound only.
                if plan.malformations().isEmpty { _ = plan.summary }
            } catch { expect(error) }
        }
    }

    private static func model(_ bytes: [UInt8]) {
        do throws(TransferError) {
            let model = try ModelDescription(json: JSON(parsing: bytes))
            require(model.byteCount >= model.parameterCount / 8, "fewer bytes than parameters")
            require(try ModelDescription(json: model.json) == model, "a model changes when it is written")
        } catch { expect(error) }
    }

    private static func safetensors(_ bytes: [UInt8]) {
        do throws(TransferError) {
            _ = try SafetensorsHeader.length(of: bytes)
            let header = try SafetensorsHeader(parsing: Array(bytes.dropFirst(8)))
            for (tensor, offset) in zip(header.tensors, header.offsets) {
                require(offset + tensor.byteCount <= header.fileByteCount, "a parameter behind the file")
            }
        } catch { expect(error) }
    }

    private static func gguf(_ bytes: [UInt8]) {
        do throws(TransferError) {
            let file = try GGUF(parsing: bytes)
            let tensor = TensorDescription("model.norm.weight", [32])
            if let values = try file.bf16(tensor) { require(values.count == 32, "too few elements") }
        } catch { expect(error) }
    }

    private static func announcement(_ bytes: [UInt8]) {
        do throws(TransferError) {
            let entry = try DirectoryEntry(line: String(decoding: bytes, as: UTF8.self))
            require(try DirectoryEntry(line: entry.line) == entry, "an announcement changes")
        } catch { expect(error) }
    }

    private static let readers: [@Sendable ([UInt8]) -> Void] = [
        plan, model, safetensors, gguf, announcement,
    ]

    private static var someFiles: [[UInt8]] {
        var files: [[UInt8]] = []
        let tensors = [TensorDescription("a.weight", [64, 32]), TensorDescription("b", [8], .f32)]
        if let model = try? ModelDescription(name: "m", tensors: tensors) {
            files.append([1] + Array(model.json.description.utf8))
            if let trainers = try? ParallelTrainer(fsdp: 2).layout(of: model),
                let inference = try? ParallelInference(replicas: 2).layout(of: model),
                let plan = try? Planner.plan(model, from: trainers, to: inference)
            {
                files.append([0] + plan.encoded())
            }
        }
        files.append([2] + SafetensorsHeader.encode(tensors))
        // One value of each kind, and one tensor of 32 numbers.
        var gguf: [UInt8] = Array("GGUF".utf8)
        gguf.append(integer: 3 as UInt32)
        gguf.append(integer: 1 as UInt64)
        gguf.append(integer: 2 as UInt64)
        for type in [4, 9] as [UInt32] {
            gguf.append(integer: 1 as UInt64)
            gguf += Array("k".utf8)
            gguf.append(integer: type)
            if type == 9 {
                gguf.append(integer: 0 as UInt32)
                gguf.append(integer: 3 as UInt64)
                gguf += [1, 2, 3]
            } else {
                gguf.append(integer: 7 as UInt32)
            }
        }
        let name = Array("output_norm.weight".utf8)
        gguf.append(integer: UInt64(name.count))
        gguf += name
        gguf.append(integer: 1 as UInt32)
        gguf.append(integer: 32 as UInt64)
        gguf.append(integer: 8 as UInt32)
        gguf.append(integer: 0 as UInt64)
        while gguf.count % 32 != 0 { gguf.append(0) }
        gguf += [UInt8](repeating: 0x3C, count: 34)
        files.append([3] + gguf)
        let region = RemoteRegion(
            engine: EngineID(rawValue: 7), device: 0, index: 3, generation: 5, access: .remoteWrite,
            length: 4096, base: 1 << 20, secret: 99, nics: [])
        let entry = DirectoryEntry(
            name: "p-0", role: .prefiller, address: EngineAddress(name: "p-0", landing: region),
            url: "http://10.0.0.1:80")
        files.append([4] + Array(entry.line.utf8))
        return files
    }

    /// `Plan`, `ModelDescription`, `SafetensorsHeader`, `GGUF`, `DirectoryEntry`.
    static let files = Target(
        name: "files", seeds: { someFiles },
        run: { bytes in
            guard let first = bytes.first else { return }
            readers[Int(first) % readers.count](Array(bytes.dropFirst()))
        })
}
