import KVCacheTransfer
import Synchronization
import TransferEngine

/// What a prefiller and a decoder have: an engine, pages for the cache, slots for tails.
final class Cache: Sendable {
    static let pageCount = 256
    static let slotBytes = 4096
    static let slotCount = 64

    let shape: Llama.Shape
    let layout: KVLayout
    let rank: KVRank
    private let pages = Mutex(Array(0..<UInt32(Cache.pageCount)))
    private let slots = Mutex(Array(0..<Cache.slotCount))

    init(_ name: String, _ shape: Llama.Shape) throws {
        self.shape = shape
        let vectorBytes = 4 * shape.headSize
        layout = KVLayout(
            model: KVModel(
                name: "SmolLM2-135M-Instruct", elementType: "f32",
                groups: [
                    CacheGroup(
                        layers: Array(0..<shape.layers), heads: shape.cacheHeads, keyBytes: vectorBytes,
                        valueBytes: vectorBytes)
                ]),
            formats: [PageFormat(pageTokens: CacheMemory.pageTokens)])
        let placement = KVPlacement.contiguous(layout, rank: 0, pageCount: Self.pageCount)
        let engine = try TransferEngine(Configuration(name: name))
        rank = KVRank(
            engine: engine,
            regions: [
                try engine.allocate(byteCount: placement.regionBytes(layout, rank: 0)[0]),
                try engine.allocate(byteCount: Self.slotBytes * Self.slotCount),
            ], placement: placement)
    }

    /// Short times, so that the demonstration does not wait long for those that were killed.
    static func configuration(_ name: String) -> KVConfiguration {
        KVConfiguration(
            name: name, heartbeat: .milliseconds(200), cancelTimeout: .seconds(2), quarantine: .seconds(1))
    }

    var memory: CacheMemory {
        let planes = rank.placement.layers.map { $0[0] }
        return CacheMemory(
            base: rank.regions[0].baseAddress, layers: planes.map(\.offset), stride: planes[0].stride)
    }

    func tail(_ slot: Int) -> UnsafeMutableRawPointer { rank.regions[1].baseAddress + slot * Self.slotBytes }

    /// Pages for so many tokens, and a slot.
    func take(tokens: Int) -> Room? {
        let count = (tokens + CacheMemory.pageTokens - 1) / CacheMemory.pageTokens
        guard let slot = slots.withLock({ $0.popLast() }) else { return nil }
        let taken = pages.withLock { pages -> [UInt32]? in
            guard pages.count >= count else { return nil }
            defer { pages.removeLast(count) }
            return Array(pages.suffix(count))
        }
        if let taken { return Room(pages: taken, slot: slot) }
        slots.withLock { $0.append(slot) }
        return nil
    }

    func give(_ room: Room) {
        pages.withLock { $0 += room.pages }
        slots.withLock { $0.append(room.slot) }
    }

    struct Room: Sendable {
        var pages: [UInt32]
        var slot: Int
    }
}

/// What a prefiller sends behind the cache: the hidden state of the last token, and when it had computed what.
struct Tail {
    var hidden: [Float]
    /// When the keys and values of each layer were there, and then the hidden state.
    var computed: [UInt64]

    static func byteCount(_ shape: Llama.Shape) -> Int { 4 * shape.width + 8 * (shape.layers + 1) }

    func write(to place: UnsafeMutableRawPointer) {
        computed.withUnsafeBytes {
            place.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(place), byteCount: $0.count)
        }
        hidden.withUnsafeBytes {
            (place + 8 * computed.count).copyMemory(
                from: $0.baseAddress ?? UnsafeRawPointer(place), byteCount: $0.count)
        }
    }

    init(hidden: [Float], computed: [UInt64]) {
        self.hidden = hidden
        self.computed = computed
    }

    init(from place: UnsafeMutableRawPointer, _ shape: Llama.Shape) {
        let floats = 8 * (shape.layers + 1)
        computed = (0...shape.layers).map { place.load(fromByteOffset: 8 * $0, as: UInt64.self) }
        hidden = (0..<shape.width).map { place.load(fromByteOffset: floats + 4 * $0, as: Float.self) }
    }
}
