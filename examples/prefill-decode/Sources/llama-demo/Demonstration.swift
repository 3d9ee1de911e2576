import Foundation
import KVCacheTransfer

/// Sends questions to the processes, lets them come and go, and compares the answers.
final class Demonstration {
    private static let questions = [
        "What is the capital of France?", "Name three colors of the rainbow.",
        "Why is the sky blue?", "Write one sentence about the sea.",
    ]
    private static let wanted = 12

    private struct Request {
        var question: Int
        var prefiller = ""
        var decoder = ""
        var attempts = 0
        var answer: [Int32]?
        /// Microseconds: to the first token; of a layer; of all layers; after the last layer.
        var times: [Int] = []
    }

    private let path: String
    private let tokenizer: Tokenizer
    private let model: Llama
    private let prompts: [[Int32]]
    private var references: [[Int32]] = []
    private let events = Queue<Child.Event>()
    private var prefillers: [String: (child: Child, address: String)] = [:]
    private var decoders: [String: Child] = [:]
    private var draining: Set<String> = []
    private var requests: [Request] = []
    private var scheduler = PrefixAffinityScheduler()

    init(model path: String) throws {
        self.path = path
        let file = try GGUF(path: path)
        tokenizer = try Tokenizer(file)
        model = try Llama(file)
        prompts = Self.questions.map(tokenizer.chat)
        guard prompts.allSatisfy({ tokenizer.decode($0).contains("<|im_start|>assistant") }) else {
            throw GGUF.Failure(description: "the file's tokens are not those of SmolLM2-Instruct")
        }
    }

    func run() throws -> Bool {
        defer { for child in prefillers.values.map(\.child) + Array(decoders.values) { child.end() } }
        try computeReferences()
        say("-- one prefiller, one decoder")
        try start("prefiller", "prefiller-1")
        try start("decoder", "decoder-1")
        try answer(2)
        say("-- prefiller-2 and decoder-2 join")
        try start("prefiller", "prefiller-2")
        try start("decoder", "decoder-2")
        try answer(2)
        say("-- prefiller-1 is killed while it computes")
        try answer(4) { self.killPrefiller("prefiller-1") }
        say("-- decoder-1 drains: it finishes what it has, gets nothing new, and leaves")
        try answer(2) { self.draining.insert("decoder-1") }
        decoders.removeValue(forKey: "decoder-1")?.end()
        try answer(2)
        return report()
    }

    // MARK: One process

    /// The same model in this process: what every answer must be.
    private func computeReferences() throws {
        let cache = try Cache("reference", model.shape)
        for (question, prompt) in prompts.enumerated() {
            guard let room = cache.take(tokens: prompt.count + Self.wanted) else { continue }
            let begin = now()
            var token = model.choose(model.forward(prompt, first: 0, cache.memory, room.pages))
            let first = now() - begin
            var answer: [Int32] = []
            while token != Tokenizer.end, answer.count < Self.wanted {
                answer.append(token)
                let place = prompt.count + answer.count - 1
                token = model.choose(model.forward([token], first: place, cache.memory, room.pages))
            }
            references.append(answer)
            say(
                "one process: \(Self.questions[question]) -> \(tokenizer.decode(answer).debugDescription) "
                    + "(\(prompt.count) tokens, the first after \(first / 1_000_000) ms)")
            cache.give(room)
        }
    }

    // MARK: Many processes

    private func start(_ role: String, _ name: String) throws {
        let child = try Child(role, name, model: path, events)
        guard case .line(_, let words) = events.next(), let word = words.first else {
            throw GGUF.Failure(description: "\(name) did not start")
        }
        if role == "decoder" {
            decoders[name] = child
            for (name, other) in prefillers { child.send("prefiller \(name) \(other.address)") }
        } else if word == "address", words.count == 2 {
            prefillers[name] = (child, String(words[1]))
            for decoder in decoders.values { decoder.send("prefiller \(name) \(words[1])") }
        }
    }

    private func killPrefiller(_ name: String) {
        // Its first layers are on their way.
        Thread.sleep(forTimeInterval: 0.3)
        prefillers.removeValue(forKey: name)?.child.kill()
    }

    /// Asks so many questions at once, lets something happen, and waits for all answers.
    private func answer(_ count: Int, meanwhile: () -> Void = {}) throws {
        let first = requests.count
        for number in first..<first + count {
            requests.append(Request(question: number % prompts.count))
            try send(number)
        }
        meanwhile()
        while requests.contains(where: { $0.answer == nil }) { try take(events.next()) }
        for number in first..<requests.count { show(number) }
    }

    private func send(_ number: Int) throws {
        let prompt = prompts[requests[number].question]
        func workers(_ names: some Sequence<String>, _ key: KeyPath<Request, String>) -> [KVWorker] {
            names.sorted().map { name in
                let load = requests.filter { $0.answer == nil && $0[keyPath: key] == name }
                return KVWorker(
                    name: name, load: load.reduce(0) { $0 + prompts[$1.question].count },
                    isDraining: draining.contains(name))
            }
        }
        let (sources, targets) = (workers(prefillers.keys, \.prefiller), workers(decoders.keys, \.decoder))
        guard requests[number].attempts < 5,
            let choice = scheduler.choose(prompt.map(UInt32.init), prefillers: sources, decoders: targets)
        else { throw GGUF.Failure(description: "nobody answers request \(number)") }
        requests[number].attempts += 1
        requests[number].prefiller = sources[choice.prefiller].name
        requests[number].decoder = targets[choice.decoder].name
        let tokens = prompt.map(String.init).joined(separator: " ")
        decoders[requests[number].decoder]?.send(
            "request \(number) \(requests[number].prefiller) \(Self.wanted) \(tokens)")
    }

    private func take(_ event: Child.Event) throws {
        guard case .line(_, let words) = event, words.count > 2, let number = Int(words[1]) else { return }
        switch words[0] {
        case "failed":
            say("   request \(number): \(words[2...].joined(separator: " ")); asked again")
            try send(number)
        case "done" where words.count >= 6:
            requests[number].times = words[2..<6].compactMap { Int($0) }
            requests[number].answer =
                words.count > 6 ? words[6].split(separator: ",").compactMap { Int32($0) } : []
        default: break
        }
    }

    // MARK: Results

    private func isRight(_ request: Request) -> Bool { request.answer == references[request.question] }

    private func show(_ number: Int) {
        let request = requests[number]
        let (first, layer, all, exposed) = (
            request.times[0], request.times[1], request.times[2], request.times[3]
        )
        let hidden = all > 0 ? 100 * (all - exposed) / all : 100
        say(
            "   request \(number), \(request.prefiller) to \(request.decoder): first token after \(first / 1000) ms, "
                + "\(layer) us to transfer a layer (median), \(hidden) % of \(all) us hidden behind computing, "
                + (isRight(request) ? "same text" : "ANOTHER TEXT"))
    }

    private func report() -> Bool {
        let right = requests.count(where: isRight)
        let again = requests.count { $0.attempts > 1 }
        say(
            "\(right) of \(requests.count) answers are, token for token, those of one process; \(again) were asked for again"
        )
        if again == 0 { say("nothing was under way when prefiller-1 was killed: run it again") }
        return right == requests.count && again > 0
    }
}
