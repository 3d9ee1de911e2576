internal import TransferEngine

extension KVLayout {
    func write(to writer: inout ByteWriter) {
        writer.write(text: model.name, limit: KVLimits.textBytes)
        writer.write(text: model.elementType, limit: KVLimits.textBytes)
        writer.write(list: model.groups) { group, writer in
            writer.write(list: group.layers) { $1.write(UInt16($0)) }
            for value in [group.heads, group.keyBytes, group.valueBytes, group.window ?? 0] {
                writer.write(UInt32(value))
            }
        }
        writer.write(UInt16(tensorRanks))
        if let part {
            writer.write(UInt16(part.firstTensorRank))
            writer.write(UInt16(part.allTensorRanks))
        }
        writer.write(list: stages) { stage, writer in
            writer.write(UInt16(stage.lowerBound))
            writer.write(UInt16(stage.upperBound))
        }
        writer.write(list: formats) { format, writer in
            writer.write(UInt32(format.pageTokens))
            writer.write(format.order.rawValue)
            writer.write(format.arrangement.rawValue)
        }
    }

    /// Reads a layout and checks it.
    init(from reader: inout ByteReader, isPart: Bool) throws(TransferError) {
        let name = try reader.readString(limit: KVLimits.textBytes)
        let elementType = try reader.readString(limit: KVLimits.textBytes)
        let groups = try reader.readList(limit: KVLimits.groups) { (reader) throws(TransferError) in
            let layers = try reader.readList(limit: KVLimits.layers) { (reader) throws(TransferError) in
                Int(try reader.read(UInt16.self))
            }
            var group = CacheGroup(
                layers: layers, heads: Int(try reader.read(UInt32.self)),
                keyBytes: Int(try reader.read(UInt32.self)),
                valueBytes: Int(try reader.read(UInt32.self)))
            let window = Int(try reader.read(UInt32.self))
            group.window = window == 0 ? nil : window
            return group
        }
        let tensorRanks = Int(try reader.read(UInt16.self))
        let part =
            isPart
            ? Part(
                firstTensorRank: Int(try reader.read(UInt16.self)),
                allTensorRanks: Int(try reader.read(UInt16.self))) : nil
        let stages = try reader.readList(limit: KVLimits.ranks) { (reader) throws(TransferError) in
            let (begin, end) = (Int(try reader.read(UInt16.self)), Int(try reader.read(UInt16.self)))
            guard begin <= end else {
                throw TransferError(.malformedDescriptor, "a stage that ends before it begins")
            }
            return begin..<end
        }
        let formats = try reader.readList(limit: KVLimits.groups) { (reader) throws(TransferError) in
            let tokens = Int(try reader.read(UInt32.self))
            guard let order = PageFormat.Order(rawValue: try reader.read()),
                let arrangement = PageFormat.Arrangement(rawValue: try reader.read())
            else { throw TransferError(.malformedDescriptor, "a page of an unknown kind") }
            return PageFormat(pageTokens: tokens, order: order, arrangement: arrangement)
        }
        self.init(
            model: KVModel(name: name, elementType: elementType, groups: groups), tensorRanks: tensorRanks,
            part: part, stages: stages, formats: formats)
        do throws(KVError) { try validate() } catch {
            throw TransferError(.malformedDescriptor, error.message)
        }
    }
}

extension ByteWriter {
    mutating func write(_ flag: Bool) { write(UInt8(flag ? 1 : 0)) }

    /// A 32-bit length and the bytes.
    mutating func write(long bytes: [UInt8]) {
        write(UInt32(bytes.count))
        for byte in bytes { write(byte) }
    }

    /// A 16-bit count and the elements.
    mutating func write<Element>(list: [Element], _ body: (Element, inout ByteWriter) -> Void) {
        write(UInt16(list.count))
        for element in list { body(element, &self) }
    }
}

extension ByteReader {
    mutating func readFlag() throws(TransferError) -> Bool { try read(UInt8.self) != 0 }

    /// A 64-bit number that is an `Int` and not negative.
    mutating func readCount() throws(TransferError) -> Int {
        guard let value = Int(exactly: try read(UInt64.self)) else {
            throw TransferError(.malformedDescriptor, "a number that is too large")
        }
        return value
    }

    mutating func readLong(limit: Int) throws(TransferError) -> [UInt8] {
        let count = Int(try read(UInt32.self))
        guard count <= limit, count <= remaining else {
            throw TransferError(.malformedDescriptor, "a part that is longer than the message")
        }
        var bytes: [UInt8] = []
        bytes.reserveCapacity(count)
        for _ in 0..<count { bytes.append(try read()) }
        return bytes
    }

    mutating func readList<Element>(
        limit: Int, _ body: (inout ByteReader) throws(TransferError) -> Element
    ) throws(TransferError) -> [Element] {
        let count = Int(try read(UInt16.self))
        guard count <= limit else {
            throw TransferError(.malformedDescriptor, "a list of \(count); at most \(limit)")
        }
        var list: [Element] = []
        for _ in 0..<count { list.append(try body(&self)) }
        return list
    }
}
