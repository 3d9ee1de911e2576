internal import ArgumentParser
internal import Glibc
internal import Synchronization
internal import TransferEngine

/// One of several processes that write to each other all the time, while IntegrationTests/chaos/run kills, stops and cuts them off.
///
/// Reads one command a line (storm, revoke, measure, drain, quit) and answers measure and drain with a line of JSON.
struct Chaos: ParsableCommand {
    @OptionGroup var side: Side
    @Option(help: "Directory where processes leave their addresses.")
    var directory: String
    @Option(help: "Which of the processes this is, from 0.")
    var number: Int
    @Option(help: "How many there are.")
    var count: Int

    func run() throws {
        let key = try? ClusterKey(environment: "TE_CHAOS_KEY")
        let engine = try side.engine("node \(number)", deadline: 5, key: key) {
            $0.liveness = Liveness(interval: .milliseconds(300))
        }
        defer { engine.close() }
        let node = try ChaosNode(engine, number: number, count: count, directory: directory)
        _ = fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK)
        var commands = Commands()
        while let command = commands.next(), node.obey(command) {
            node.step()
            usleep(500)
        }
    }

    /// Lines of the standard input, without waiting for them; nil at its end.
    private struct Commands {
        private var buffered: [UInt8] = []

        mutating func next() -> String? {
            var bytes = [UInt8](repeating: 0, count: 256)
            let count = read(0, &bytes, bytes.count)
            if count == 0 { return nil }
            if count > 0 { buffered.append(contentsOf: bytes.prefix(count)) }
            guard let end = buffered.firstIndex(of: 10) else { return "" }
            defer { buffered.removeFirst(end + 1) }
            return String(decoding: buffered[..<end], as: UTF8.self)
        }
    }
}

/// What callbacks of the progress thread leave for the main thread.
final class ChaosInbox: Sendable {
    enum Event: Sendable {
        case message([UInt8], EngineID)
        case transferEnded(peer: Int, round: UInt64, isComplete: Bool)
        case receipt(peer: Int, round: UInt64, isQuiescent: Bool)
        case waitEnded(peer: Int, round: UInt64, isReached: Bool)
    }
    private let events = Mutex<[Event]>([])

    func add(_ event: Event) { events.withLock { $0.append(event) } }
    func take() -> [Event] {
        events.withLock { events in
            defer { events = [] }
            return events
        }
    }
}

/// What is written in a round, made from its number alone; pages of a round lie in another order at the target.
struct ChaosPattern {
    static let pageBytes = 1000
    let pages: Int
    private let seed: UInt64

    init(from: Int, round: UInt64) {
        seed = UInt64(from) &* 0x9E37_79B9_7F4A_7C15 &+ round &* 0xD1B5_4A32_D192_ED03
        pages = [1, 3, 30, 200][Int(seed >> 40) & 3]
    }

    var bytes: Int { pages * Self.pageBytes }
    static let longest = 200 * pageBytes

    /// The eight bytes of a word.
    private func word(_ number: Int) -> UInt64 {
        var word = seed &+ UInt64(number) &* 0x9E37_79B9_7F4A_7C15
        word = (word ^ word >> 30) &* 0xBF58_476D_1CE4_E5B9
        return word ^ word >> 27
    }

    func fill(_ memory: UnsafeMutableRawBufferPointer) {
        for number in 0..<bytes / 8 {
            memory.storeBytes(of: word(number), toByteOffset: 8 * number, as: UInt64.self)
        }
    }

    func matches(_ memory: UnsafeMutableRawBufferPointer) -> Bool {
        for number in 0..<bytes / 8
        where memory.load(fromByteOffset: 8 * number, as: UInt64.self) != word(number) { return false }
        return true
    }
}
