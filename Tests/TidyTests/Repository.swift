import Foundation

/// One Swift file of this package, as the rules see it.
struct SourceFile {
    /// Path within the package.
    let path: String
    /// Its lines, without their ends.
    let lines: [String]

    init(path: String, text: String) {
        self.path = path
        lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    }

    /// The module of a file in `Sources`, otherwise nil.
    var module: String? {
        let parts = path.split(separator: "/")
        return parts.first == "Sources" && parts.count > 2 ? String(parts[1]) : nil
    }

    /// Where a line is, for people.
    func place(_ line: Int) -> String { "\(path):\(line + 1)" }
}

/// The package that these tests belong to.
enum Repository {
    /// All hand-written Swift files.
    static let files: [SourceFile] = {
        let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
        var files: [SourceFile] = []
        for folder in ["Sources", "Tests", "Fuzz", "examples"] {
            let start = root.appendingPathComponent(folder)
            let names = FileManager.default.enumerator(atPath: start.path)
            while let name = names?.nextObject() as? String {
                guard name.hasSuffix(".swift"), !name.contains(".build") else { continue }
                guard let text = try? String(contentsOf: start.appendingPathComponent(name), encoding: .utf8)
                else { continue }
                files.append(SourceFile(path: "\(folder)/\(name)", text: text))
            }
        }
        return files
    }()

    /// Files of the modules that other people may link.
    static let library = files.filter { $0.module != nil && $0.module != "te" }
}
