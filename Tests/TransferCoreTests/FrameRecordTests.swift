import Testing
import TransferCore

@Suite struct FrameRecordTests {
    private let mapping: PageMapping
    private let target = Scratch(256)

    init() throws {
        mapping = try #require(PageMapping(engine: 1))
        mapping.publish(index: 3, generation: 4, secret: 5, memory: target.bytes)
    }

    private func apply(
        _ bytes: [UInt8], offset: UInt64 = 0, generation: UInt32 = 4, secret: UInt64 = 5, eighths: UInt32 = 8
    ) -> WorkStatus {
        bytes.withUnsafeBytes { bytes in
            var record = FrameRecord(messageOf: bytes.count, from: 9)
            record.kind = FrameRecord.Kind.write
            record.index = 3
            record.generation = generation
            record.secret = secret
            record.offset = offset
            record.immediate = 17
            record.eighths = eighths
            return record.apply(bytes, to: mapping.page)
        }
    }

    @Test func layout() {
        #expect(MemoryLayout<FrameRecord>.size == 48)
        #expect(MemoryLayout<FrameRecord>.size == FrameRecord.byteCount)
        #expect(MemoryLayout<FrameRecord>.stride == 48)
        #expect(MemoryLayout<FrameRecord>.offset(of: \.kind) == 0)
        #expect(MemoryLayout<FrameRecord>.offset(of: \.secret) == 16)
        #expect(MemoryLayout<FrameRecord>.offset(of: \.immediate) == 32)
        #expect(MemoryLayout<FrameRecord>.offset(of: \.sender) == 40)
        for length in [0, 1, 7, 8, 9, 16384] {
            #expect(FrameRecord.stride(length: length) % 8 == 0)
            #expect((48 + length...55 + length).contains(FrameRecord.stride(length: length)))
        }
    }

    @Test func writesLandAndCount() {
        #expect(apply([1, 2, 3], offset: 253) == .success)
        #expect(Array(target.bytes[252...]) == [0, 1, 2, 3])
        #expect(mapping.page.eighths(of: 17) == 8)
        #expect(apply([4], offset: 0, eighths: 1) == .success)
        #expect(mapping.page.eighths(of: 17) == 9)
    }

    @Test func emptyWritesOnlyCount() {
        #expect(apply([]) == .success)
        #expect(apply([], offset: 256) == .success)
        #expect(mapping.page.eighths(of: 17) == 16)
        #expect(target.bytes.allSatisfy { $0 == 0 })
    }

    @Test func silentWritesOnlyLand() {
        #expect(apply([7], eighths: 0) == .success)
        #expect(target.bytes[0] == 7)
        #expect(mapping.page.eighths(of: 17) == 0)
    }

    @Test func refusedWritesDoNothing() {
        #expect(apply([7], generation: 3) == .staleRegion)
        #expect(apply([7], secret: 6) == .accessDenied)
        #expect(apply([7], offset: 256) == .outOfRange)
        #expect(apply([7], offset: .max) == .outOfRange)
        #expect(apply([7, 7], offset: 255) == .outOfRange)
        #expect(mapping.page.eighths(of: 17) == 0)
        #expect(target.bytes.allSatisfy { $0 == 0 })
    }

    @Test func recordsCarryTheRequest() throws {
        let region = RemoteRegion(
            engine: EngineID(rawValue: 1), device: 0, index: 3, generation: 4, access: .remoteWrite,
            length: 256,
            base: 0, secret: 5,
            nics: [.init(fabric: "sim", address: [], megabitsPerSecond: 1, key: 8, base: 0)])
        let key = ImportedKey(remote: region, nic: 0, peer: 2, maximumWriteBytes: 99)
        let base = try #require(target.bytes.baseAddress)
        let record = withUnsafePointer(to: key) { key in
            let request = WorkRequest(
                context: 1, source: base, length: 30, localKey: 0, target: key, targetOffset: 40,
                immediate: 50,
                eighths: 4)
            return FrameRecord(request, from: 60)
        }
        #expect(record.kind == FrameRecord.Kind.write)
        #expect(record.length == 30 && record.index == 3 && record.generation == 4 && record.secret == 5)
        #expect(record.offset == 40 && record.immediate == 50 && record.eighths == 4 && record.sender == 60)
        #expect(FrameRecord(padding: 12).kind == FrameRecord.Kind.padding)
        #expect(FrameRecord(messageOf: 12, from: 3).kind == FrameRecord.Kind.message)
    }
}
