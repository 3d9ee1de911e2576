import Glibc
import TransferCore

/// A target page with one region whose last byte is followed by memory that nobody may touch, and the first one preceded.
final class FuzzMemory {
    static let index: UInt32 = 3
    static let generation: UInt32 = 5
    static let secret: UInt64 = 0x5EC2_E75E_C2E7_5EC2
    static let length = 3000

    let page: TargetPage
    let bytes: UnsafeMutableRawPointer

    init(engine: UInt64) {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
        guard let base = mmap(nil, TargetPage.byteCount, PROT_READ | PROT_WRITE, flags, -1, 0),
            base != MAP_FAILED
        else { fatalError("no address space") }
        page = TargetPage.initialize(base, engine: EngineID(rawValue: engine))
        let guarded = 1 << 21
        guard
            let place = mmap(
                nil, 2 * guarded + 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            place != MAP_FAILED, mprotect(place + guarded, 4096, PROT_READ | PROT_WRITE) == 0
        else { fatalError("no memory") }
        bytes = place + guarded + 4096 - Self.length
        page.publish(
            LocalRegion(
                index: Self.index, generation: Self.generation, access: .remoteWrite, secret: Self.secret,
                base: bytes, length: Self.length, memoryFile: -1, isPopulated: false))
    }
}

extension FrameRecord {
    /// Makes a record one that the region of `FuzzMemory` accepts. A generation with bit 3 set moves it to the region's end, or
    /// by up to 7 bytes beyond.
    mutating func aim() {
        if generation & 8 != 0 {
            offset = UInt64(FuzzMemory.length) &- UInt64(length) &+ UInt64(generation & 7)
        }
        kind = Kind.write
        index = FuzzMemory.index
        generation = FuzzMemory.generation
        secret = FuzzMemory.secret
    }
}
