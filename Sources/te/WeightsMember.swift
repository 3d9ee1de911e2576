internal import ArgumentParser
internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine
internal import WeightTransfer

/// One trainer or receiver of `te weights push`, told what to do by lines.
struct WeightsMember: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "weights-member", shouldDisplay: false)

    @Option var plan: String
    @Option var rank: Int
    @Flag var trains = false
    @Option var transport = "shm"
    @Option var file: String?
    @Option(help: "The leader's address; the leader has none.")
    var leader: String?
    @Flag(help: "Send everything, whether it has changed or not.")
    var whole = false
    @Flag(help: "Read what is served all the time.")
    var reads = false

    func run() throws {
        _ = te_die_with_parent()
        signal(SIGPIPE, SIG_IGN)
        do {
            let process = try WeightProcess(
                plan: Plan(decoding: File.read(plan)), rank: rank, trains: trains, transport: transport,
                file: file, leader: leader)
            process.trainer?.isDelta = !whole
            if reads { process.startReader() }
            try MemberLoop(process).serve()
        } catch {
            _ = writeLine("error \(error)", to: 1)
            throw ExitCode.failure
        }
    }
}

private final class MemberLoop {
    private let process: WeightProcess
    private var input: [UInt8] = []
    private var waiting: (words: [String], begun: Double)?

    init(_ process: WeightProcess) {
        self.process = process
        _ = writeLine("address " + process.address, to: 1)
    }

    func serve() throws {
        var idle = 0
        while true {
            let isBusy = process.poll()
            look()
            idle = isBusy ? 0 : idle + 1
            guard idle > 32 || !isBusy && idle % 16 == 0 else { continue }
            var poll = pollfd(fd: 0, events: Int16(POLLIN), revents: 0)
            guard Glibc.poll(&poll, 1, idle > 32 ? 1 : 0) > 0 else { continue }
            var bytes = [UInt8](repeating: 0, count: 4096)
            let count = read(0, &bytes, bytes.count)
            guard count > 0 else { break }
            input += bytes.prefix(count)
            while let end = input.firstIndex(of: 10) {
                let line = String(decoding: input[..<end], as: UTF8.self)
                input.removeFirst(end + 1)
                try perform(line.split(separator: " ").map(String.init))
            }
        }
        process.close()
    }

    private func perform(_ words: [String]) throws {
        let version = words.count > 1 ? Int(words[1]) ?? 0 : 0
        switch words.first {
        case "publish":
            try process.publish(version)
            _ = writeLine("published", to: 1)
        case "update":
            try process.controller?.update(to: UInt64(version))
            waiting = (words, monotonicSeconds())
        case "complete": waiting = (words, monotonicSeconds())
        case "sent":
            let trainer = process.trainer
            _ = writeLine("sent \(trainer?.sentBytes ?? 0)", to: 1)
        case "save":
            try process.save(to: words[1])
            _ = writeLine("saved", to: 1)
        case "verify":
            let wrong = try process.check(version)
            let (reads, torn) = process.reads
            _ = writeLine("\(wrong == nil ? "right" : "wrong") \(reads) \(torn) \(wrong ?? "")", to: 1)
        default: throw ValidationError("no command \(words)")
        }
    }

    private func look() {
        guard let (words, begun) = waiting, let controller = process.controller else { return }
        if words[0] == "complete", controller.isComplete {
            waiting = nil
            _ = writeLine("complete", to: 1)
        } else if words[0] == "update", let outcome = controller.outcomes[UInt64(words[1]) ?? 0] {
            waiting = nil
            let seconds = monotonicSeconds() - begun
            let parts = ["opening", "training", "verifying", "committing"].map {
                controller.phaseSeconds[$0] ?? 0
            }
            switch outcome {
            case .committed(leftOut: []):
                _ = writeLine("committed \(seconds) \(parts.map { "\($0)" }.joined(separator: " "))", to: 1)
            case .committed(let ranks): _ = writeLine("failed receivers \(ranks) did not commit", to: 1)
            case .failed(let reason): _ = writeLine("failed \(reason)", to: 1)
            }
        }
    }
}
