internal import ArgumentParser
internal import Glibc
internal import TransferEngine

/// Writes to one receiver after another, and says how each of them ended.
struct Send: ParsableCommand {
    enum Outcome: String, ExpressibleByArgument {
        case ok, error, either
    }

    @OptionGroup var side: Side
    @Option(help: "Address and port of a receiver; several are served one after the other, by one engine.")
    var to: [String]
    @Option(help: "Bytes of the receiver's memory, all of which each round writes.")
    var bytes = 2 << 20
    @Option(help: "Rounds with each receiver, at least.")
    var rounds = 3
    @Option(help: "Seconds with the first receiver, at least.")
    var seconds = 0.0
    @Option(help: "Seconds after which a transfer must have ended, well or with an error.")
    var deadline = 10
    @Option(help: "How the first session must end: ok, error, either. The others must be ok.")
    var expect = Outcome.ok
    @Flag(help: "Use a wrong remote key with the first receiver.")
    var wrongKey = false

    func validate() throws {
        guard bytes >= 2 * Round.pageBytes, bytes % (2 * Round.pageBytes) == 0 else {
            throw ValidationError("--bytes takes a multiple of \(2 * Round.pageBytes).")
        }
    }

    func run() throws {
        let engine = try side.engine("sender", deadline: Double(deadline))
        defer { engine.close() }
        var isExpected = true
        for (number, receiver) in to.enumerated() {
            let session = SenderSession(engine, self, isFirst: number == 0)
            let report = session.run(receiver, number)
            report.show()
            let outcome = number == 0 ? expect : .ok
            isExpected = isExpected && report.isExact
            switch outcome {
            case .ok: isExpected = isExpected && report.error == nil
            case .error: isExpected = isExpected && report.error != nil
            case .either: break
            }
            // A second for the thread that notices.
            if report.error != nil { isExpected = isExpected && report.seconds < Double(deadline) + 1 }
        }
        guard isExpected else { throw ExitCode.failure }
    }
}

/// One receiver.
private final class SenderSession {
    private let engine: TransferEngine
    private let options: Send
    private let isFirst: Bool

    init(_ engine: TransferEngine, _ options: Send, isFirst: Bool) {
        self.engine = engine
        self.options = options
        self.isFirst = isFirst
    }

    func run(_ receiver: String, _ number: Int) -> Report {
        var report = Report(role: "send", session: number)
        let start = monotonicSeconds()
        report.seconds = start
        do {
            let channel = try Channel.connect(to: receiver)
            do {
                try transfer(over: channel, &report)
            } catch {
                report.error = error
                report.seconds = monotonicSeconds() - report.seconds
                try conclude(channel, &report)
                return report
            }
            try conclude(channel, &report)
        } catch {
            // Who could not be asked has gone; the error of the transfer is the one to tell.
            if report.error == nil { report.error = error } else { return report }
        }
        report.seconds = monotonicSeconds() - start
        return report
    }

    private func transfer(over channel: Channel, _ report: inout Report) throws(TransferError) {
        channel.send("begin \(options.bytes)")
        let words = try channel.receive("region", within: 20)
        guard words.count == 2, let session = Int(words[0]) else {
            throw TransferError(.malformedDescriptor, "the receiver sent no descriptor")
        }
        var descriptor = try RemoteRegion(decoding: bytes(hexadecimal: words[1]))
        if options.wrongKey, isFirst {
            descriptor.secret ^= 1
            for nic in descriptor.nics.indices { descriptor.nics[nic].key ^= 0x5555 }
        }
        let remote = try engine.attach(descriptor)
        defer { try? engine.detach(remote) }
        let source = try engine.allocate(byteCount: options.bytes)
        defer { try? engine.deregister(source) }
        let end = monotonicSeconds() + (isFirst ? options.seconds : 0)
        while report.rounds < options.rounds || monotonicSeconds() < end {
            report.seconds = monotonicSeconds()
            let round = Round(report.rounds + 1, byteCount: options.bytes, session: session)
            round.fill(source.bytes)
            channel.send("round \(round.number) \(options.deadline)")
            _ = try answer("ready", channel, source, remote)
            try finish(try submit(round, from: source, to: remote))
            try confirm(answer("arrived", channel, source, remote), count: round.count, &report)
            report.rounds += 1
            if isFirst, report.rounds == 1 { say("{\"role\": \"send\", \"event\": \"running\"}") }
        }
        report.seconds = monotonicSeconds()
        channel.send("last \(options.deadline)")
        _ = try answer("ready", channel, source, remote)
        try finish([
            try engine.write(
                from: source, byteCount: Round.pageBytes, to: remote, immediate: Round.lastImmediate)
        ])
        try confirm(answer("arrived", channel, source, remote), count: 1, &report)
    }

    /// The words after `word` in the receiver's answer. While there is none, writes show whether it is still reached: the
    /// error of the library is the one to tell.
    private func answer(
        _ word: String, _ channel: Channel, _ source: MemoryRegion, _ remote: RemoteMemory
    ) throws(TransferError) -> [Substring] {
        let end = monotonicSeconds() + Double(options.deadline) + 5
        while monotonicSeconds() < end {
            if let words = try channel.receive(within: 1) {
                guard words.first == word[...] else {
                    throw TransferError(.providerFailed, "\(word) expected: " + words.joined(separator: " "))
                }
                return Array(words.dropFirst())
            }
            try engine.wait(for: engine.write(from: source, byteCount: Round.pageBytes, to: remote))
        }
        throw TransferError(.stalled, "the receiver is reached, but it does not answer (\(word))")
    }

    private func submit(
        _ round: Round, from source: MemoryRegion, to remote: RemoteMemory
    ) throws(TransferError) -> [Transfer] {
        var transfers: [Transfer] = []
        for range in round.writes {
            transfers.append(
                try engine.write(
                    from: source, sourceOffset: range.lowerBound, byteCount: range.count, to: remote,
                    targetOffset: range.lowerBound, immediate: round.immediate))
        }
        let paged = round.pages.withUnsafeBufferPointer { indices -> Result<Transfer, TransferError> in
            let pages = Pages(indices, stride: Round.pageBytes)
            do throws(TransferError) {
                return .success(
                    try engine.write(
                        pageBytes: Round.pageBytes, from: source, pages: pages, to: remote, pages: pages,
                        immediate: round.immediate))
            } catch {
                return .failure(error)
            }
        }
        transfers.append(try paged.get())
        for _ in 0..<Round.signals {
            transfers.append(try engine.send(immediate: round.immediate, to: remote))
        }
        return transfers
    }

    /// Waits for all, also after an error: the source is reused.
    private func finish(_ transfers: [Transfer]) throws(TransferError) {
        var failure: TransferError?
        for transfer in transfers {
            do throws(TransferError) { try engine.wait(for: transfer) } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
    }

    private func confirm(
        _ words: [Substring], count: Int, _ report: inout Report
    ) throws(TransferError) {
        note(words, &report)
        report.expected = count
        guard report.counted == count else {
            throw TransferError(.stalled, "the receiver counted \(report.counted ?? 0) of \(count)")
        }
    }

    private func note(_ words: [Substring], _ report: inout Report) {
        report.counted = words.first.flatMap { Int($0) }
        report.isDataRight = report.isDataRight && words.last == "right"
    }

    /// Asks what came that should not have.
    private func conclude(_ channel: Channel, _ report: inout Report) throws(TransferError) {
        let hasFailed = report.error != nil
        let counted = report.counted
        channel.send("end")
        try note(channel.receive("arrived", within: 3), &report)
        if !hasFailed {
            report.surplus = report.counted ?? 0
            report.counted = counted
        }
    }
}
