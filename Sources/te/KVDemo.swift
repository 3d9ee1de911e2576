internal import ArgumentParser
internal import Glibc
internal import Platform
internal import TransferEngine

/// `te kv demo`: the example that generates text, which is a program of its own.
struct KVDemo: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo",
        abstract: "Generate text in several processes that join, drain and are killed.",
        discussion: """
            Runs the example llama-demo (examples/prefill-decode) with SmolLM2-135M: every answer has to be, \
            token for token, that of one process alone. 'make demo-kv' builds it and fetches the model.
            """)

    @Option(help: "the program; by default the one beside te, or in .build/examples")
    var program: String?

    @Option(help: "a GGUF file of SmolLM2-135M; by default the one in .models")
    var model: String?

    func run() throws {
        let folder = ownPath.split(separator: "/", omittingEmptySubsequences: false).dropLast().joined(
            separator: "/")
        let programs = program.map { [$0] } ?? [folder + "/llama-demo", ".build/examples/release/llama-demo"]
        guard let program = programs.first(where: { access($0, X_OK) == 0 }) else {
            throw TransferError(
                .unavailable,
                "there is no \(programs.joined(separator: ", and no ")); 'make demo-kv' builds it")
        }
        guard let model = model ?? Self.ggufs(in: ".models").first else {
            throw TransferError(
                .unavailable, "there is no model in .models; 'make model' fetches one, or --model")
        }
        let words: [UnsafeMutablePointer<CChar>?] = [strdup(program), strdup(model), nil]
        execv(program, words)
        throw TransferError(.unavailable, "\(program) does not start: \(errorText(errno))")
    }

    private static func ggufs(in folder: String) -> [String] {
        guard let directory = opendir(folder) else { return [] }
        defer { closedir(directory) }
        var names: [String] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasSuffix(".gguf") { names.append(folder + "/" + name) }
        }
        return names.sorted()
    }
}
