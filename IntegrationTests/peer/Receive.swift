internal import ArgumentParser
internal import Glibc
internal import TransferEngine

/// Offers memory to one sender after another, counts, and checks what came.
struct Receive: ParsableCommand {
    @OptionGroup var side: Side
    @Option(help: "Where senders find this process: address and port.")
    var at: String
    @Option(help: "How many senders to serve, one after the other.")
    var sessions = 1

    func run() throws {
        let engine = try side.engine("receiver")
        defer { engine.close() }
        let listener = try Channel.listen(at: at)
        defer { close(listener) }
        var isExact = true
        for number in 0..<sessions {
            let session = ReceiverSession(engine, try Channel.accept(on: listener), number)
            session.serve()
            session.report.show()
            isExact = isExact && session.report.isExact
        }
        guard isExact else { throw ExitCode.failure }
    }
}

/// One sender. It says what comes next; here is counted and compared.
private final class ReceiverSession {
    private(set) var report: Report
    private let engine: TransferEngine
    private let channel: Channel
    private var region: MemoryRegion?
    /// The immediates of this session, and how often each may still have been counted.
    private var allowed: [Immediate: Int] = [Round.lastImmediate: 0]

    init(_ engine: TransferEngine, _ channel: Channel, _ number: Int) {
        self.engine = engine
        self.channel = channel
        report = Report(role: "receive", session: number)
    }

    func serve() {
        let start = monotonicSeconds()
        do {
            var isOpen = true
            while isOpen { isOpen = try obey() }
        } catch {
            report.error = error
        }
        report.seconds = monotonicSeconds() - start
        if let region { try? engine.deregister(region) }
    }

    /// Does what one line says; false after the last one.
    private func obey() throws(TransferError) -> Bool {
        guard let words = try channel.receive(within: 60), let word = words.first else {
            throw TransferError(.stalled, "the sender said nothing for 60 s")
        }
        let numbers = words.dropFirst().compactMap { Int($0) }
        switch (word, numbers.count, region) {
        case ("begin", 1, nil):
            let region = try engine.allocate(byteCount: numbers[0])
            self.region = region
            channel.send("region \(report.session) " + hexadecimal(engine.descriptor(of: region).encoded()))
        case ("round", 2, let region?):
            let round = Round(numbers[0], byteCount: region.byteCount, session: report.session)
            memset(region.baseAddress, 0, region.byteCount)
            allowed[round.immediate] = 0
            guard
                try arrive(
                    round.immediate, round.count, seconds: numbers[1],
                    isRight: { round.matches(region.bytes) })
            else { return false }
            report.rounds += 1
        case ("last", 1, .some):
            return try arrive(Round.lastImmediate, 1, seconds: numbers[0], isRight: { true })
        case ("untouched", 0, let region?):
            usleep(100_000)
            report.isDataRight = region.bytes.allSatisfy { $0 == 0 }
            report.surplus = surplus()
            answer(report.surplus)
        case ("end", 0, _):
            usleep(100_000)
            report.surplus = surplus()
            answer(report.surplus)
            return false
        default: throw TransferError(.invalidArgument, "not understood: \(words.joined(separator: " "))")
        }
        return true
    }

    /// Counts until all has come, the time is over or the sender gives up. False when the session has ended by that.
    private func arrive(
        _ immediate: Immediate, _ count: Int, seconds: Int, isRight: () -> Bool
    ) throws(TransferError) -> Bool {
        let wait = try engine.expect(immediate, count: count, timeout: .seconds(seconds))
        channel.send("ready")
        while engine.isPending(wait) {
            guard let words = try channel.receive(within: 0.002) else { continue }
            guard words.first == "end" else {
                throw TransferError(.invalidArgument, "not understood: \(words.joined(separator: " "))")
            }
            // The sender has failed. No more than was on its way can have come.
            allowed[immediate] = count
            report.counted = engine.count(of: immediate)
            report.expected = count
            report.surplus = surplus()
            answer(report.counted ?? 0)
            return false
        }
        report.counted = count
        report.expected = count
        if case .failed(let error) = engine.status(of: wait) {
            allowed[immediate] = count
            report.counted = engine.count(of: immediate)
            report.error = error
        } else if !isRight() {
            report.isDataRight = false
        }
        answer(report.counted ?? 0)
        return true
    }

    private func surplus() -> Int { allowed.reduce(0) { $0 + max(0, engine.count(of: $1.key) - $1.value) } }

    private func answer(_ number: Int) {
        channel.send("arrived \(number) \(report.isDataRight ? "right" : "wrong")")
    }
}
