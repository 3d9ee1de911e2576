/// A house rule: what is wrong with a file, one sentence for each place, with what to do.
typealias Rule = @Sendable (SourceFile) -> [String]

/// The rules. Each is a small scanner that relies on the formatter having run.
enum Rules {
    static let fileLines = 800
    static let functionLines = 70
    static let columns = 110
    static let commentColumns = 130

    static let filesAreShort: Rule = { file in
        guard file.lines.count > fileLines + 1 else { return [] }
        return ["\(file.path) has \(file.lines.count) lines; split it, at most \(fileLines)"]
    }

    static let linesAreShort: Rule = { file in
        file.lines.indices.compactMap { number in
            let line = file.lines[number]
            let isText = line.contains("//") || line.contains("\"")
            let limit = isText ? commentColumns : columns
            return line.count > limit
                ? "\(file.place(number)) has \(line.count) columns; wrap it, at most \(limit)" : nil
        }
    }

    static let functionsAreShort: Rule = { file in
        file.lines.indices.compactMap { start in
            guard beginsFunction(file.lines[start]), let end = endOfFunction(file, start) else { return nil }
            let count = end - start + 1
            return count > functionLines
                ? "\(file.place(start)) is a function of \(count) lines; split it, at most \(functionLines)"
                : nil
        }
    }

    private static func beginsFunction(_ line: String) -> Bool {
        let words = line.split(separator: " ").map(String.init)
        guard let first = words.first, !first.hasPrefix("//") else { return false }
        return words.contains("func") || words.contains { $0.hasPrefix("init(") || $0 == "deinit" }
    }

    private static func endOfFunction(_ file: SourceFile, _ start: Int) -> Int? {
        let indent = String(file.lines[start].prefix { $0 == " " })
        var open = start
        while !file.lines[open].hasSuffix("{") {
            if file.lines[open].hasSuffix("}") || file.lines[open].isEmpty { return nil }
            open += 1
            guard open < file.lines.count else { return nil }
        }
        return file.lines[open...].firstIndex { $0 == indent + "}" }
    }

    static let importsSayTheirAccess: Rule = { file in
        guard file.module != nil else { return [] }
        return imports(file).compactMap { line, access, name in
            access.isEmpty && !internalByDefault.contains(file.module ?? "")
                ? "\(file.place(line)) imports \(name) without an access level; write internal or public"
                : nil
        }
    }

    /// Modules that leave `internal` to `InternalImportsByDefault`.
    private static let internalByDefault: Set<String> = ["LibfabricProvider", "SimulatedProvider"]

    /// At the edge, where JSON over HTTP is read and written.
    private static let aboveFoundation: Set<String> = ["te", "EtcdDirectory", "KVRouter"]

    static let foundationStaysAbove: Rule = { file in
        guard let module = file.module, !aboveFoundation.contains(module) else { return [] }
        return imports(file).filter { $0.name.hasPrefix("Foundation") }.map { line, _, _ in
            "\(file.place(line)) imports Foundation below te; it costs megabytes, use Glibc or write it"
        }
    }

    static let arrowsPointDown: Rule = { file in
        guard let module = file.module, let allowed = arrows[module] else { return [] }
        let known = Set(arrows.keys).union(cModules)
        return imports(file).filter { known.contains($0.name) && !allowed.contains($0.name) }.map {
            "\(file.place($0.line)): \(module) may not know \($0.name); see docs/architecture.md"
        }
    }

    private static let cModules: Set<String> = [
        "CPlatform", "CLibfabric", "CVerbs", "CHwloc", "CTransferEngine",
    ]

    /// Which modules each module may know.
    private static let arrows: [String: Set<String>] = [
        "TransferCore": [],
        "Platform": ["TransferCore", "CPlatform"],
        "SharedMemoryProvider": ["TransferCore", "Platform", "CPlatform"],
        "SimulatedProvider": ["TransferCore"],
        "LibfabricProvider": ["TransferCore", "Platform", "CPlatform", "CLibfabric"],
        "VerbsProvider": ["TransferCore", "Platform", "CPlatform", "CVerbs"],
        "TransferEngine": [
            "TransferCore", "Platform", "CPlatform", "SharedMemoryProvider", "SimulatedProvider",
            "LibfabricProvider", "VerbsProvider",
        ],
        "ExpertParallel": ["TransferEngine", "Platform", "CPlatform"],
        "KVCacheTransfer": ["TransferEngine"],
        "WeightTransfer": ["TransferCore", "TransferEngine", "CPlatform"],
        "TransferDirectory": ["TransferEngine"],
        "Topology": ["TransferCore", "CHwloc"],
        "Doctor": [],
        "HTTP": [],
        "EtcdDirectory": ["TransferEngine", "TransferDirectory", "HTTP"],
        "KVRouter": ["KVCacheTransfer", "TransferDirectory", "EngineMetrics", "HTTP"],
        "EngineMetrics": ["TransferEngine", "HTTP"],
        "Simulation": [
            "TransferCore", "SimulatedProvider", "TransferEngine", "KVCacheTransfer", "WeightTransfer",
            "ExpertParallel",
        ],
        // The provider modules only for their option types, which appear in the engine's configuration.
        "TransferEngineC": [
            "CTransferEngine", "TransferEngine", "KVCacheTransfer", "ExpertParallel", "WeightTransfer",
            "Platform",
            "CPlatform", "SharedMemoryProvider", "LibfabricProvider", "VerbsProvider",
        ],
        "te": [
            "TransferEngine", "KVCacheTransfer", "WeightTransfer", "ExpertParallel", "Simulation", "Platform",
            "CPlatform", "SharedMemoryProvider", "LibfabricProvider", "VerbsProvider", "Topology",
            "Doctor", "KVRouter", "EtcdDirectory", "TransferDirectory", "EngineMetrics",
        ],
    ]

    private static func imports(_ file: SourceFile) -> [(line: Int, access: String, name: String)] {
        file.lines.indices.compactMap { line in
            let words = file.lines[line].split(separator: " ").map(String.init)
            guard let place = words.firstIndex(of: "import"), place + 1 < words.count, place <= 2,
                words[..<place].allSatisfy({ $0.hasPrefix("@") || accessLevels.contains($0) })
            else { return nil }
            return (line, words[..<place].last { accessLevels.contains($0) } ?? "", words[place + 1])
        }
    }

    private static let accessLevels: Set<String> = [
        "public", "package", "internal", "private", "fileprivate",
    ]

    static let promisesAreExplained: Rule = { file in
        file.lines.indices.compactMap { line in
            let code = code(file.lines[line])
            guard code.contains("@unchecked Sendable") || code.contains("nonisolated(unsafe)") else {
                return nil
            }
            let near = file.lines[max(0, line - 3)...min(file.lines.count - 1, line + 3)]
            return near.contains { $0.contains("SAFETY:") }
                ? nil
                : "\(file.place(line)) promises what is not checked; say why within 3 lines, SAFETY: ..."
        }
    }

    static let orderingsNameTheirPartner: Rule = { file in
        guard file.module != nil else { return [] }
        let orderings = [".acquiring", ".releasing", ".acquiringAndReleasing"]
        return file.lines.indices.compactMap { line in
            let code = code(file.lines[line])
            guard
                orderings.contains(where: {
                    code.hasSuffix($0) || code.contains($0 + ")") || code.contains($0 + ",")
                })
            else { return nil }
            let near = file.lines[max(0, line - 3)...min(file.lines.count - 1, line + 1)]
            return near.contains { $0.lowercased().contains("pairs with") }
                ? nil : "\(file.place(line)) orders memory; say beside it what it pairs with"
        }
    }

    static let nothingIsLeftOver: Rule = { file in
        // Spelled in halves, so that this file does not find itself.
        let markers = [
            "TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK", ".disa" + "bled(", "not impl" + "emented",
        ]
        return file.lines.indices.flatMap { line in
            markers.filter { file.lines[line].contains($0) }.map {
                "\(file.place(line)) says \($0); finish it or write it down as a limit in the documentation"
            }
        }
    }

    static let publicIsDocumented: Rule = { file in
        guard file.module != nil, file.module != "te" else { return [] }
        return file.lines.indices.compactMap { line in
            let words = file.lines[line].split(whereSeparator: { " (:<{".contains($0) }).map(String.init)
            guard let place = words.firstIndex(where: { $0 == "public" || $0 == "open" }),
                words[..<place].allSatisfy({ $0.hasPrefix("@") || $0.hasSuffix(")") }),
                let kind = words.firstIndex(where: { declarations.contains($0) }), kind > place
            else { return nil }
            let name = kind + 1 < words.count ? words[kind + 1] : ""
            if words[kind] == "init" || witnesses.contains(name) || words[kind] == "import" { return nil }
            var above = line - 1
            while above >= 0, code(file.lines[above]).hasPrefix("@") { above -= 1 }
            // What implements a C header is described there.
            if file.lines[(above + 1)...line].contains(where: { $0.contains("@implementation") }) {
                return nil
            }
            return above >= 0 && file.lines[above].drop { $0 == " " }.hasPrefix("///")
                ? nil : "\(file.place(line)): \(name) is public and has no comment; write what it is with ///"
        }
    }

    private static let declarations: Set<String> = [
        "func", "var", "let", "init", "struct", "class", "enum", "protocol", "actor", "typealias",
        "subscript",
        "import",
    ]

    /// Requirements that are described where the protocol is (`FabricDomain`, `TransferClock`, the standard library's).
    private static let witnesses: Set<String> = [
        "description", "rawValue", "hash", "==", "next", "nowNanoseconds", "attributes", "address",
        "register",
        "deregister", "importRegion", "releaseImport", "post", "send", "poll", "prepareToSleep",
        "wakeDescriptor", "close", "describe", "fill",
    ]

    /// How many `unsafe` marks a module may have: lower it when some go, think twice before raising it.
    static let unsafeBudget = [
        "TransferCore": 75, "Platform": 25, "SimulatedProvider": 30, "SharedMemoryProvider": 80,
        "TransferEngine": 84,
    ]

    /// The number of `unsafe` marks in a file.
    static func unsafeMarks(_ file: SourceFile) -> Int {
        file.lines.reduce(0) { sum, line in
            sum + code(line).split(whereSeparator: { " ([{!".contains($0) }).count { $0 == "unsafe" }
        }
    }

    /// A line without its indentation and without a comment at its end.
    private static func code(_ line: String) -> Substring {
        let text = line.drop { $0 == " " }
        if text.hasPrefix("//") { return "" }
        guard let comment = text.firstRange(of: "  //") else { return text }
        return text[..<comment.lowerBound]
    }
}
