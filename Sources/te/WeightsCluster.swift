internal import Glibc
internal import TransferEngine
internal import WeightTransfer

/// Processes that do a plan.
final class WeightCluster {
    private var trainers: [ChildProcess] = []
    private var receivers: [ChildProcess] = []
    private let path: String
    private var sent = 0

    init(_ plan: Plan, file: String?, transport: String, whole: Bool = false, reads: Bool = true) throws {
        path = "/tmp/te-weights-\(getpid()).plan"
        try File.write(plan.encoded(), to: path)
        var arguments = ["weights-member", "--plan", path, "--transport", transport]
        if let file { arguments += ["--file", file] }
        if whole { arguments.append("--whole") }
        if reads { arguments.append("--reads") }
        let first = try ChildProcess(arguments + ["--trains", "--rank", "0"])
        trainers = [first]
        let leader = try Self.expect("address", from: first)
        for rank in 1..<max(1, plan.trainers.worldSize) {
            trainers.append(
                try ChildProcess(arguments + ["--trains", "--rank", "\(rank)", "--leader", leader[1]]))
        }
        for rank in 0..<plan.inference.worldSize {
            receivers.append(try ChildProcess(arguments + ["--rank", "\(rank)", "--leader", leader[1]]))
        }
        for child in trainers.dropFirst() + receivers { _ = try Self.expect("address", from: child) }
        try first.send("complete")
        _ = try Self.expect("complete", from: first)
    }

    func end() {
        for child in trainers + receivers { child.end() }
        unlink(path)
    }

    /// Lets every receiver write what it serves to `directory`.
    func save(to directory: String) throws {
        for (rank, child) in receivers.enumerated() {
            try child.send("save \(WeightFiles.rank(rank, in: directory))")
        }
        for child in receivers { _ = try Self.expect("saved", from: child) }
    }

    private static func expect(_ word: String, from child: ChildProcess) throws -> [String] {
        let words = try child.receive(within: 120).split(separator: " ").map(String.init)
        guard words.first == word else {
            throw TransferError(.providerFailed, "a member said '\(words.joined(separator: " "))'")
        }
        return words
    }

    /// Publishes a version and pushes it. Seconds of opening, writing, verifying and committing.
    func update(to version: Int) throws -> (seconds: Double, phases: [Double], bytes: Int) {
        for child in trainers { try child.send("publish \(version)") }
        for child in trainers { _ = try Self.expect("published", from: child) }
        try trainers[0].send("update \(version)")
        let numbers = try Self.expect("committed", from: trainers[0]).dropFirst().compactMap(Double.init)
        var total = 0
        for child in trainers {
            try child.send("sent")
            total += Int(try Self.expect("sent", from: child)[1]) ?? 0
        }
        defer { sent = total }
        return (numbers[0], Array(numbers.dropFirst()), total - sent)
    }

    /// Lets every receiver look at each of its bytes.
    func verify(_ version: Int) throws -> (wrong: [String], reads: Int, torn: Int) {
        for child in receivers { try child.send("verify \(version)") }
        var result: (wrong: [String], reads: Int, torn: Int) = ([], 0, 0)
        for child in receivers {
            let words = try child.receive(within: 120).split(separator: " ").map(String.init)
            guard words.count >= 3, words[0] == "right" || words[0] == "wrong" else {
                throw TransferError(.providerFailed, "a receiver said '\(words.joined(separator: " "))'")
            }
            if words[0] == "wrong" { result.wrong.append(words.dropFirst(3).joined(separator: " ")) }
            result.reads += Int(words[1]) ?? 0
            result.torn += Int(words[2]) ?? 0
        }
        return result
    }
}
