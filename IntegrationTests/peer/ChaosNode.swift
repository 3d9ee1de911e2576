internal import Glibc
internal import TransferEngine

/// Writes to everybody, is written to by everybody, and checks every byte and every count.
final class ChaosNode {
    let engine: TransferEngine
    let inbox = ChaosInbox()
    private let number: Int
    private let directory: String
    private var peers: [ChaosPeer?]
    private var isDraining = false
    private var nextLook = 0.0
    var rounds = 0
    var failed = 0
    var cancelled = 0
    var unproven = 0
    /// Regions that a writer which was stopped did not leave.
    var stalls = 0
    private var violations: [String] = []

    init(_ engine: TransferEngine, number: Int, count: Int, directory: String) throws {
        self.engine = engine
        self.number = number
        self.directory = directory
        peers = Array(repeating: nil, count: count)
        try engine.receive { [inbox] bytes, sender in inbox.add(.message(Array(bytes), sender)) }
        try publish()
    }

    func violate(_ text: String) {
        if violations.count < 10 { violations.append("node \(number): \(text)") }
    }

    // MARK: Commands

    /// Does what the driver says; false to end.
    func obey(_ command: String) -> Bool {
        switch command {
        case "": break
        case "storm": for peer in peers { peer?.cancel() }
        case "revoke": for peer in peers { peer?.revoke() }
        case "drain": isDraining = true
        case "go": isDraining = false
        case "measure": measure()
        default: return false
        }
        return true
    }

    private func measure() {
        let isIdle = peers.allSatisfy { $0?.isIdle ?? true }
        let usage = engine.usage
        let texts = violations.map { "\"" + $0.replacing("\"", with: "'") + "\"" }
        say(
            "{\"node\": \(number), \"idle\": \(isIdle), \"rounds\": \(rounds), \"failed\": \(failed), "
                + "\"cancelled\": \(cancelled), \"unproven\": \(unproven), \"stalls\": \(stalls), \"refused\": "
                + "\(engine.refusedMessages.total), \"fds\": \(Self.descriptors()), \"rss_kib\": \(Self.residentKiB()), "
                + "\"pending\": \(usage.pending), \"abandoned\": \(usage.abandoned), "
                + "\"violations\": [" + texts.joined(separator: ", ") + "]}")
    }

    private static func descriptors() -> Int {
        guard let folder = opendir("/proc/self/fd") else { return -1 }
        defer { closedir(folder) }
        var count = 0
        while readdir(folder) != nil { count += 1 }
        return count
    }

    /// Private pages: what others have mapped from us, or we from them, comes and goes with them.
    private static func residentKiB() -> Int {
        guard let file = fopen("/proc/self/status", "r") else { return -1 }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, 256, file) != nil {
            let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            if text.hasPrefix("RssAnon:") {
                return Int(String(text.drop { !$0.isNumber }.prefix { $0.isNumber })) ?? -1
            }
        }
        return -1
    }

    // MARK: Peers

    private func publish() throws {
        let path = "\(directory)/\(number)"
        guard let file = fopen(path + ".new", "w") else {
            throw TransferError(.unavailable, "cannot write \(path)")
        }
        fputs(hexadecimal(engine.address.encoded()) + "\n", file)
        fclose(file)
        rename(path + ".new", path)
    }

    /// Looks who is there now, every tenth of a second.
    private func meet() {
        guard monotonicSeconds() >= nextLook else { return }
        nextLook = monotonicSeconds() + 0.1
        for index in peers.indices where index != number {
            guard let file = fopen("\(directory)/\(index)", "r") else { continue }
            var line = [CChar](repeating: 0, count: 8192)
            let isRead = fgets(&line, 8192, file) != nil
            fclose(file)
            let text = String(decoding: line.prefix { $0 > 32 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard isRead, let address = try? EngineAddress(decoding: bytes(hexadecimal: text)),
                address.engine != peers[index]?.engine
            else { continue }
            if let old = peers[index] {
                guard old.leave() else { continue }
                peers[index] = nil
            }
            peers[index] = try? ChaosPeer(self, number, index, address)
        }
    }

    func step() {
        meet()
        for event in inbox.take() { handle(event) }
        for peer in peers { peer?.expire() }
        guard !isDraining else { return }
        for peer in peers { peer?.begin() }
    }

    private func handle(_ event: ChaosInbox.Event) {
        switch event {
        case .message(let bytes, let sender):
            guard let peer = peers.compactMap({ $0 }).first(where: { $0.engine == sender }) else { return }
            peer.receive(bytes)
        case .transferEnded(let peer, let round, let isComplete):
            peers[peer]?.transferEnded(round, isComplete)
        case .receipt(let peer, let round, let isQuiescent): peers[peer]?.receipt(round, isQuiescent)
        case .waitEnded(let peer, let round, let isReached): peers[peer]?.waitEnded(round, isReached)
        }
    }
}
