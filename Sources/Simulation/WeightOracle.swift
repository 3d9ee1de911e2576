internal import TransferCore
package import WeightTransfer

/// What weights must be, computed slowly from the layouts alone: no plan, no kernel, no engine.
package struct WeightOracle {
    package let model: ModelDescription
    package let inference: InferenceLayout

    package init(model: ModelDescription, inference: InferenceLayout) {
        self.model = model
        self.inference = inference
    }

    /// The version in which a parameter last changed: not all do in each.
    package static func change(of tensor: Int, in version: UInt64) -> UInt64 {
        var version = version
        while version > 1, mix(UInt64(tensor) &* 31 &+ version) % 3 == 0 { version -= 1 }
        return version
    }

    private static func mix(_ value: UInt64) -> UInt64 {
        var word = value &+ 0x9E37_79B9_7F4A_7C15
        word = (word ^ word >> 30) &* 0xBF58_476D_1CE4_E5B9
        word = (word ^ word >> 27) &* 0x94D0_49BB_1331_11EB
        return word ^ word >> 31
    }

    /// The bits of an element: finite BF16 numbers of many magnitudes.
    package static func element(_ tensor: Int, _ index: Int, _ version: UInt64) -> UInt16 {
        let word = mix(UInt64(tensor) << 48 ^ UInt64(index) << 8 ^ change(of: tensor, in: version))
        return UInt16(truncatingIfNeeded: (word >> 63) << 15 | (100 + (word >> 8) % 41) << 7 | word & 0x7F)
    }

    /// A whole parameter, row by row.
    package func bytes(of tensor: Int, version: UInt64) -> [UInt8] {
        (0..<model.tensors[tensor].count).flatMap { index in
            let bits = Self.element(tensor, index, version)
            return [UInt8(truncatingIfNeeded: bits), UInt8(truncatingIfNeeded: bits >> 8)]
        }
    }

    /// Says what is wrong with a receiver's weights; nil when nothing is. Bytes between tensors are not looked at.
    package func damage(rank: Int, version: UInt64, _ weights: UnsafeRawBufferPointer) -> String? {
        for target in inference.targets {
            guard let replica = target.replicas.first(where: { $0.rank == Int32(rank) }) else { continue }
            let bits = elements(of: target, version)
            for (index, expected) in expected(target, bits, replica).enumerated() {
                guard let (offset, byte) = expected, unsafe weights[offset] != byte else { continue }
                return
                    "receiver \(rank): '\(target.name)' of version \(version) is wrong at byte \(offset), number \(index)"
            }
        }
        return nil
    }

    private func elements(of target: Target, _ version: UInt64) -> [UInt16] {
        var bits = [UInt16](repeating: 0, count: target.box.count)
        let width = target.box.columns.count
        for part in target.parts {
            let columns = Box(shape: model.tensors[part.source].shape).columns.count
            for (i, row) in part.box.rows.enumerated() {
                for (j, column) in part.box.columns.enumerated() {
                    let (r, c) = part.isTransposed ? (j, i) : (i, j)
                    let place = (part.place.rows.lowerBound + r) * width + part.place.columns.lowerBound + c
                    bits[place] = Self.element(part.source, row * columns + column, version)
                }
            }
        }
        return bits
    }

    private func expected(
        _ target: Target, _ bits: [UInt16], _ replica: Target.Replica
    ) -> [(offset: Int, byte: UInt8)?] {
        guard target.hasBlockScales else {
            return bits.enumerated().flatMap { index, bits in
                (0..<2).map { (replica.offset + 2 * index + $0, UInt8(truncatingIfNeeded: bits >> (8 * $0))) }
            }
        }
        let width = target.box.columns.count
        let blocks = target.scaleShape.columns
        var largest = [Float](repeating: 1e-4, count: target.scaleByteCount / 4)
        for (index, bits) in bits.enumerated() {
            let block = index / width / 128 * blocks + index % width / 128
            largest[block] = max(largest[block], Float(bitPattern: UInt32(bits) << 16).magnitude)
        }
        var result: [(offset: Int, byte: UInt8)?] = []
        for (index, bits) in bits.enumerated() {
            let block = index / width / 128 * blocks + index % width / 128
            let value = Float(bitPattern: UInt32(bits) << 16) * (1 / largest[block] * 448)
            result.append((replica.offset + index, Self.nearest(value)))
        }
        for (block, magnitude) in largest.enumerated() {
            let scale = (magnitude / 448).bitPattern
            for byte in 0..<4 {
                result.append(
                    (replica.scaleOffset + 4 * block + byte, UInt8(truncatingIfNeeded: scale >> (8 * byte))))
            }
        }
        return result
    }

    /// The values of the codes 0...126.
    private static let values: [Double] = (0..<127).map { code in
        let exponent = code >> 3
        var value = exponent == 0 ? Double(code & 7) / 8 : 1 + Double(code & 7) / 8
        for _ in 0..<abs(max(exponent, 1) - 7) { value *= exponent >= 7 ? 2 : 0.5 }
        return value
    }

    /// The nearest code, by looking for it; of two equally near ones the even one.
    private static func nearest(_ number: Float) -> UInt8 {
        let magnitude = Double(number.magnitude)
        var (low, high) = (0, 126)
        while high - low > 1 {
            let middle = (low + high) / 2
            if values[middle] <= magnitude { low = middle } else { high = middle }
        }
        let (below, above) = (magnitude - values[low], values[high] - magnitude)
        let code = below < above || below == above && low % 2 == 0 ? low : high
        return UInt8(code) | (number.sign == .minus ? 0x80 : 0)
    }
}
