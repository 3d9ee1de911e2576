import Glibc
import Platform
import SimulatedProvider
import TransferEngine

/// Engines in one process, driven by one thread, and a deadline for everything.
final class Cluster {
    let fabric: Fabric
    let engines: [TransferEngine]
    let network: SimulatedNetwork?
    /// Simulated events between two looks at the engines; 1 shows every state that there is.
    var eventsPerRound = 64
    private var owned: [UnsafeMutableRawPointer] = []
    private let clock = ContinuousClock()
    /// Kept until the engines have been closed.
    private let opener: ((Int, TargetPage) throws(TransferError) -> [any FabricDomain])?

    /// `nics[i]` is the number of NICs of engine `i`; `wrap` puts something between the engines and simulated NICs.
    init(
        _ fabric: Fabric, nics: [Int] = [1, 1], seed: UInt64 = 1, timeout: Duration = .seconds(60),
        progress: Configuration.Progress = .manual,
        wrap: (any FabricDomain) -> any FabricDomain = { $0 }
    ) throws {
        self.fabric = fabric
        let network = fabric.isSimulated ? SimulatedNetwork(seed: seed) : nil
        self.network = network
        let opener = fabric.opener()
        self.opener = opener
        engines = try nics.enumerated().map { index, count in
            let configuration = Configuration(
                name: "engine\(index)", nics: fabric.nics(count), progress: progress, timeout: timeout)
            if let opener {
                return try TransferEngine(
                    configuration, clock: SystemClock(), random: SystemRandomNumberGenerator()
                ) { page throws(TransferError) in try opener(count, page) }
            }
            guard let network else { return try TransferEngine(configuration) }
            return try TransferEngine(
                configuration, clock: network, random: SeededGenerator(seed: seed &* 1000 &+ UInt64(index))
            ) { page in
                (0..<count).map {
                    wrap(network.openDomain(fabric.simulatedNIC($0), page: page, engine: page.engine))
                }
            }
        }
    }

    deinit {
        for engine in engines { engine.close() }
        for memory in owned { memory.deallocate() }
    }

    /// Registered memory of the kind that the fabric is about, zeroed.
    func memory(_ engine: Int, _ byteCount: Int, access: Access = .remoteWrite) throws -> MemoryRegion {
        if fabric.usesEngineMemory {
            return try engines[engine].allocate(byteCount: byteCount, access: access, isPopulated: false)
        }
        let memory = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
        owned.append(memory)
        return try engines[engine].register(
            UnsafeMutableRawBufferPointer(start: memory, count: byteCount), access: access)
    }

    /// Attaches `region` of engine `owner` to engine `user`, by way of its binary form.
    func attach(_ region: MemoryRegion, of owner: Int, to user: Int) throws -> RemoteMemory {
        try engines[user].attach(decoding: engines[owner].descriptor(of: region).encoded())
    }

    func connect(_ user: Int, to owner: Int) throws -> Peer {
        try engines[user].connect(to: EngineAddress(decoding: engines[owner].address.encoded()))
    }

    /// One round of everybody.
    func pump() {
        for engine in engines { engine.progress() }
        guard let network else { return }
        for _ in 0..<eventsPerRound where !network.step() {
            network.advance(by: 1000)
            return
        }
    }

    /// Makes progress until `condition` holds; false after `seconds`.
    func run(seconds: Int = 60, until condition: () -> Bool) -> Bool {
        let deadline = clock.now + .seconds(seconds)
        while !condition() {
            pump()
            if clock.now > deadline { return false }
        }
        return true
    }

    /// Makes progress until a transfer of engine `engine` has ended; says why it failed.
    func finish(_ transfer: Transfer, of engine: Int, seconds: Int = 60) -> TransferError? {
        guard run(seconds: seconds, until: { !engines[engine].isPending(transfer) }) else {
            return TransferError(.stalled, "the suite waited \(seconds) s")
        }
        if case .failed(let error) = engines[engine].status(of: transfer) { return error }
        return nil
    }

    /// Lets late arrivals arrive, so that a surplus shows.
    func settle() {
        if let network {
            for _ in 0..<10000 {
                for engine in engines { engine.progress() }
                if !network.step() { break }
            }
        } else {
            for _ in 0..<50 { pump() }
        }
    }
}

/// What a check found; empty when the provider keeps the contract.
struct Findings {
    private(set) var violations: [String] = []

    mutating func require(_ condition: Bool, _ message: @autoclosure () -> String) {
        if !condition { violations.append(message()) }
    }

    /// The result of a transfer that must succeed.
    mutating func require(_ error: TransferError?, _ what: String) {
        if let error { violations.append("\(what): \(error)") }
    }

    /// An operation that must fail with one of `codes`, at once or in the end.
    mutating func requireFailure(
        _ what: String, _ codes: [TransferError.Code], _ body: () throws -> TransferError?
    ) {
        do {
            guard let error = try body() else {
                violations.append("\(what) succeeded")
                return
            }
            if !codes.contains(error.code) { violations.append("\(what) failed with \(error)") }
        } catch let error as TransferError {
            if !codes.contains(error.code) { violations.append("\(what) failed with \(error)") }
        } catch {
            violations.append("\(what) failed with \(error)")
        }
    }
}

/// Fills memory with numbers that depend on position and seed.
func fill(_ region: MemoryRegion, seed: UInt64) {
    var generator = SeededGenerator(seed: seed)
    let words = region.byteCount / 8
    let memory = region.baseAddress
    for word in 0..<words { memory.storeBytes(of: generator.next(), toByteOffset: word * 8, as: UInt64.self) }
    for byte in words * 8..<region.byteCount {
        memory.storeBytes(of: UInt8(truncatingIfNeeded: generator.next()), toByteOffset: byte, as: UInt8.self)
    }
}

/// Whether `count` bytes are equal.
func isEqual(_ left: UnsafeRawPointer, _ right: UnsafeRawPointer, _ count: Int) -> Bool {
    memcmp(left, right, count) == 0
}

/// Whether `range` of a region is all zero.
func isZero(_ region: MemoryRegion, _ range: Range<Int>) -> Bool {
    guard let first = range.first else { return true }
    let start = region.baseAddress + first
    return start.load(as: UInt8.self) == 0 && memcmp(start, start + 1, range.count - 1) == 0
}
