internal import ArgumentParser
internal import Glibc
internal import TransferEngine
internal import WeightTransfer

/// Where versions are saved.
enum WeightFiles {
    /// The directory of a version; made if it is not there.
    static func directory(_ path: String, _ version: Int) throws(TransferError) -> String {
        let result = "\(path)/\(version)"
        for directory in [path, result] where mkdir(directory, 0o755) != 0 && errno != EEXIST {
            throw TransferError(.invalidArgument, "\(directory) cannot be made: error \(errno)")
        }
        return result
    }

    /// What one rank serves.
    static func rank(_ rank: Int, in directory: String) -> String { "\(directory)/rank-\(rank).safetensors" }
}

/// What one member of a push that runs on several hosts has to know.
struct WeightMemberOptions: ParsableArguments {
    @Option(help: "The plan's file, the same for all members.")
    var plan: String?
    @Option(help: "The rank of this member.")
    var rank: Int?
    @Option(help: "A file for the leader's address: trainer 0 writes it, all others read it.")
    var leader: String?
    @Option(help: "The version to push or to wait for.")
    var version = 1
    @Option(help: "Gives up after so many seconds.")
    var seconds = 600.0

    /// Makes the member; all but trainer 0 wait for the leader's address.
    func process(_ rank: Int, trains: Bool, transport: String, file: String?) throws -> WeightProcess {
        guard let plan, let leader else { throw ValidationError("--plan and --leader are needed.") }
        let leads = trains && rank == 0
        let process = try WeightProcess(
            plan: Plan(decoding: File.read(plan)), rank: rank, trains: trains, transport: transport,
            file: file,
            leader: leads ? nil : address(leader))
        guard leads else { return process }
        // Whoever reads it finds all of it.
        try File.write(Array(process.address.utf8), to: leader + ".part")
        guard rename(leader + ".part", leader) == 0 else {
            throw TransferError(.invalidArgument, "\(leader) cannot be written: error \(errno)")
        }
        return process
    }

    private func address(_ path: String) throws -> String {
        let deadline = monotonicSeconds() + seconds
        while access(path, R_OK) != 0 {
            guard monotonicSeconds() < deadline else {
                throw TransferError(
                    .stalled, "nobody wrote \(path); start `te weights push --rank 0` with it")
            }
            usleep(20_000)
        }
        return String(decoding: try File.read(path), as: UTF8.self)
    }

    /// Takes part until the version is served, and a second longer: others may ask again.
    func run(_ process: WeightProcess, json: Bool, _ served: () throws -> Void = {}) throws {
        let begin = monotonicSeconds()
        let wanted = UInt64(version)
        var isAsked = false
        var end = Double.infinity
        while monotonicSeconds() < end {
            if !process.poll() { usleep(200) }
            guard end == .infinity else { continue }
            guard monotonicSeconds() < begin + seconds else {
                throw TransferError(
                    .stalled,
                    "version \(version) is not served after \(seconds) s; \(process.controller?.state ?? "look at trainer 0")"
                )
            }
            if let controller = process.controller {
                if controller.isComplete, !isAsked {
                    isAsked = true
                    try controller.update(to: wanted)
                }
                if case .failed(let reason) = controller.outcomes[wanted] { throw reason }
            }
            guard isServed(process, wanted) else { continue }
            end = monotonicSeconds() + 1
            try served()
            var report = Report(json: json)
            report.add([
                ("rank", .integer(rank ?? 0)), ("version", .integer(version)),
                ("seconds", .number(monotonicSeconds() - begin)),
                ("bytes_sent", .integer(process.trainer?.sentBytes ?? 0)),
            ])
            report.finish()
        }
    }

    private func isServed(_ process: WeightProcess, _ version: UInt64) -> Bool {
        if let controller = process.controller { return controller.outcomes[version] != nil }
        if let trainer = process.trainer { return trainer.servedVersion == version }
        return process.receiver?.activeVersion == version
    }
}

/// `te weights serve`: one inference process.
struct WeightsServe: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "serve",
        abstract: "One inference process: waits for a version that `te weights push` sends, and saves it.",
        discussion: """
            te weights plan --model model.safetensors --trainers fsdp=2 --inference tp=2 --output model.plan
            te weights push --plan model.plan --rank 0 --leader leader --file model.safetensors \
            --transport tcp &
            te weights push --plan model.plan --rank 1 --leader leader --file model.safetensors \
            --transport tcp &
            te weights serve --plan model.plan --rank 0 --leader leader --transport tcp --save served &
            te weights serve --plan model.plan --rank 1 --leader leader --transport tcp --save served
            te weights reassemble model.plan --from served/1 --output again.safetensors --against \
            model.safetensors
            """)

    @OptionGroup var member: WeightMemberOptions
    @Option(help: "shm or tcp.")
    var transport = "tcp"
    @Option(help: "Writes the version to DIRECTORY/VERSION/rank-N.safetensors.")
    var save: String?
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        signal(SIGPIPE, SIG_IGN)
        guard let rank = member.rank else { throw ValidationError("--rank is needed.") }
        let process = try member.process(rank, trains: false, transport: transport, file: nil)
        defer { process.close() }
        try member.run(process, json: json) {
            guard let save else { return }
            try process.save(to: WeightFiles.rank(rank, in: WeightFiles.directory(save, member.version)))
        }
    }
}

/// `te weights reassemble`: whole parameters from what inference ranks saved.
struct WeightsReassemble: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "reassemble",
        abstract: "Puts what inference ranks saved together again, as one safetensors file.",
        discussion:
            "Exit code 1 when a parameter is not what --against has, or cannot be put together, as after FP8."
    )

    @Argument(help: "The plan's file.")
    var plan: String
    @Option(help: "The directory with rank-N.safetensors.")
    var from: String
    @Option(help: "The file to write.")
    var output: String?
    @Option(help: "The file or directory that was pushed: every byte is compared.")
    var against: String?
    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        let plan = try Plan(decoding: File.read(plan))
        let ranks = try (0..<plan.inference.worldSize).map {
            try SafetensorsFiles(WeightFiles.rank($0, in: from))
        }
        let original = try against.map { try WeightSource(model: plan.model, path: $0) }
        var wrong: [String] = []
        let parameter = { (index: Int) throws -> [UInt8] in
            let name = plan.model.tensors[index].name
            let bytes = try WeightAssembly.parameter(index, plan) { try held($0, ranks) }
            guard let bytes else {
                throw TransferError(
                    .invalidArgument, "'\(name)' was converted: it cannot be put together again")
            }
            if let original, try original.bytes(index, version: 1) != bytes { wrong.append(name) }
            return bytes
        }
        if let output {
            try File.writeSafetensors(plan.model.tensors, to: output, parameter)
        } else {
            for index in plan.model.tensors.indices { _ = try parameter(index) }
        }
        var report = Report(json: json)
        report.add([
            ("parameters", .integer(plan.model.tensors.count)), ("bytes", .integer(plan.model.byteCount)),
            ("wrong", .list(wrong.map(Field.text))),
        ])
        report.finish()
        if !wrong.isEmpty { throw ExitCode(1) }
    }

    /// What a target's ranks saved; they must all have the same.
    private func held(_ target: Target, _ ranks: [SafetensorsFiles]) throws -> [UInt8] {
        var result: [UInt8]?
        for replica in target.replicas {
            let bytes = try ranks[Int(replica.rank)].bytes(
                of: TensorDescription(target.name, target.shape, target.type))
            guard let bytes, result == nil || result == bytes else {
                throw TransferError(
                    .digestMismatch,
                    "rank \(replica.rank) has not saved '\(target.name)', or not as others have")
            }
            result = bytes
        }
        return result ?? []
    }
}
