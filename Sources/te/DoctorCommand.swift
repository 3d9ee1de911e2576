internal import ArgumentParser
internal import CPlatform
internal import Doctor
internal import Glibc
internal import Platform
internal import TransferEngine

#if Libfabric
    internal import LibfabricProvider
#endif
#if Verbs
    internal import VerbsProvider
#endif

/// `te doctor`.
struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Find what makes transfers fail or slow here, and say what to do.",
        discussion: """
            Exits with 0 when nothing is wrong, 1 after warnings, 2 after errors. --capture writes what was \
            looked at into a directory, which --root examines on any machine.
            """)

    @Option(help: "A directory that --capture made, instead of this machine.")
    var root: String?

    @Option(help: "Write what is looked at into this directory.")
    var capture: String?

    @Flag(help: "One JSON object per line, for all findings.")
    var json = false

    @Flag(help: "Also show what is as it should be.")
    var all = false

    func run() throws {
        let tree = root.map { SystemTree(root: $0) } ?? SystemTree(facts: SystemFacts.collect())
        if let root, !tree.exists("/proc"), !tree.exists("/sys") {
            throw ValidationError(
                "\(root) has neither proc nor sys: make it with 'te doctor --capture DIRECTORY'")
        }
        let findings = Doctor(tree).examine().sorted { $0.severity > $1.severity }
        if let capture, !tree.capture(to: capture) {
            throw TransferError(
                .invalidArgument, "\(capture) cannot be written: \(errorText(errno)); name another directory")
        }
        if json { printJSON(findings) } else { printText(findings) }
        switch findings.first?.severity ?? .good {
        case .error: throw ExitCode(2)
        case .warning: throw ExitCode(1)
        case .note, .good: return
        }
    }

    private func printJSON(_ findings: [Finding]) {
        var report = Report(json: true)
        for finding in findings {
            report.add([
                ("severity", .text("\(finding.severity)")), ("id", .text(finding.id)),
                ("summary", .text(finding.summary)), ("cost", .text(finding.cost)),
                ("command", .text(finding.command)),
            ])
        }
    }

    private func printText(_ findings: [Finding]) {
        for finding in findings where all || finding.severity > .good {
            print("\(finding.severity): \(finding.summary) [\(finding.id)]")
            if !finding.cost.isEmpty { print("  costs: \(finding.cost)") }
            if !finding.command.isEmpty { print("  do:    \(finding.command)") }
        }
        func count(_ severity: Finding.Severity) -> Int { findings.count { $0.severity == severity } }
        print(
            "\(count(.error)) errors, \(count(.warning)) warnings, \(count(.note)) notes, \(count(.good)) as they should be"
        )
    }
}

/// What no file of this system says.
enum SystemFacts {
    static func collect() -> [String: String] {
        var facts = ["process_vm_writev": processWrite(), "clock": clock()]
        #if Libfabric
            if LibfabricProvider.isLoaded {
                facts["libfabric"] = String(LibfabricProvider.status.drop { !$0.isNumber })
                var names: [String] = []
                for nic in LibfabricProvider.available() where !names.contains(nic.provider) {
                    names.append(nic.provider)
                }
                facts["libfabric_providers"] = names.joined(separator: ",")
            } else {
                facts["libfabric"] = "missing"
            }
        #endif
        #if Verbs
            facts["libibverbs"] = VerbsProvider.isLoaded ? "ok" : "missing"
        #endif
        return facts
    }

    /// Whether the kernel lets this process write with one copy into another one's memory.
    private static func processWrite() -> String {
        var word: UInt64 = 1
        let result = withUnsafeMutablePointer(to: &word) { pointer -> Int in
            var source = te_range(base: UInt64(UInt(bitPattern: pointer)), length: 8)
            var target = source
            return te_write_process(getpid(), &source, &target, 1)
        }
        return result == 8 ? "ok" : errorText(Int32(-result))
    }

    private static func clock() -> String {
        switch te_wall_clock_is_kept() {
        case 1: "synchronized"
        case 0: "unsynchronized"
        default: "unknown"
        }
    }
}
