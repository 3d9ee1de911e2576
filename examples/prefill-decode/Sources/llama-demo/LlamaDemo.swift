import Foundation

/// An example, not an engine: SmolLM2-135M over several processes, which come, go and are killed while it answers.
///
/// usage: `llama-demo MODEL.gguf`; the rest is for the processes that it starts.
@main struct LlamaDemo {
    static func main() throws {
        signal(SIGPIPE, SIG_IGN)  // writing to a process that was killed is an error only
        let arguments = CommandLine.arguments
        do {
            switch arguments.count > 1 ? arguments[1] : "" {
            case "prefiller" where arguments.count == 4:
                try PrefillerProcess(arguments[2], Llama(GGUF(path: arguments[3]))).run(arguments[2])
            case "decoder" where arguments.count == 4:
                try DecoderProcess(arguments[2], Llama(GGUF(path: arguments[3]))).run()
            case let path where arguments.count == 2:
                exit(try Demonstration(model: path).run() ? 0 : 1)
            default:
                say("usage: llama-demo MODEL.gguf    ('make model' fetches one)")
                exit(2)
            }
        } catch {
            say("llama-demo: \(error)")
            exit(1)
        }
    }
}
