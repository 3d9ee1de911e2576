internal import ArgumentParser
internal import Glibc
internal import TransferEngine

/// `te error`.
struct ErrorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "error", abstract: "Show what an error code means and what to do.")

    @Argument(
        help: "The name, for example staleRegion, or the number of C and Python. Without it all are listed.")
    var code: String?

    @Option(help: "Write all pages into this directory.")
    var write: String?

    @Flag(help: "One JSON object per line.")
    var json = false

    func run() throws {
        if let write {
            for guide in ErrorGuide.all { try Self.write(guide.page, to: "\(write)/\(guide.code).md") }
            try Self.write(ErrorGuide.index, to: "\(write)/README.md")
            return
        }
        let guides = try code.map { [try guide($0)] } ?? ErrorGuide.all
        if code != nil, !json {
            for guide in guides { print(guide.page, terminator: "") }
            return
        }
        var report = Report(json: json)
        for guide in guides {
            var row: Report.Row = [
                ("code", .text("\(guide.code)")), ("number", .integer(guide.number)),
                ("c", .text(guide.cName)),
                ("meaning", .text(guide.sentence)),
            ]
            if json { row.append(("remedy", .text(guide.remedy))) }
            report.add(row)
        }
        report.finish()
    }

    private func guide(_ code: String) throws -> ErrorGuide {
        let number = Int(code).map { -abs($0) }
        guard
            let guide = ErrorGuide.all.first(where: {
                "\($0.code)" == code || $0.cName == code || $0.number == number
            })
        else { throw ValidationError("there is no error '\(code)'; 'te error' lists all") }
        return guide
    }

    private static func write(_ text: String, to path: String) throws {
        guard let file = fopen(path, "w") else {
            throw TransferError(
                .invalidArgument, "\(path) cannot be written: \(String(cString: strerror(errno)))")
        }
        fputs(text, file)
        fclose(file)
    }
}
