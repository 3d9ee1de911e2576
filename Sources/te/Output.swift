internal import Glibc

/// A value of a result line.
enum Field {
    case text(String)
    case integer(Int)
    case number(Double)
    case flag(Bool)
    case list([Field])
    case null

    /// As JSON.
    var json: String {
        switch self {
        case .text(let text): return "\"" + text.flatMap(Self.escaped) + "\""
        case .integer(let value): return String(value)
        case .number(let value): return value.isFinite ? Self.rounded(value) : "null"
        case .flag(let value): return value ? "true" : "false"
        case .list(let fields): return "[" + fields.map(\.json).joined(separator: ", ") + "]"
        case .null: return "null"
        }
    }

    /// For a table.
    var human: String {
        switch self {
        case .text(let text): text
        case .number(let value): Self.rounded(value)
        case .list(let fields): fields.map(\.human).joined(separator: ", ")
        case .null: "-"
        case .integer, .flag: json
        }
    }

    private static func escaped(_ character: Character) -> String {
        switch character {
        case "\"": "\\\""
        case "\\": "\\\\"
        case "\n": "\\n"
        default: String(character.unicodeScalars.map { $0.value < 32 ? " " : Character($0) })
        }
    }

    private static func rounded(_ value: Double) -> String {
        var digits = value.magnitude >= 100 ? 1 : value.magnitude >= 1 ? 3 : 4
        var scale = 1.0
        while digits > 0 {
            scale *= 10
            digits -= 1
        }
        return String((value * scale).rounded() / scale)
    }
}

/// Prints results: one JSON object a line, or a table whose columns are as wide as their widest value.
struct Report {
    /// Names of the columns, and of the fields in JSON.
    typealias Row = [(name: String, value: Field)]

    let isJSON: Bool
    private var rows: [Row] = []

    init(json: Bool) { isJSON = json }

    /// Adds a row; JSON is printed at once.
    mutating func add(_ row: Row) {
        if isJSON {
            print(
                "{" + row.map { Field.text($0.name).json + ": " + $0.value.json }.joined(separator: ", ")
                    + "}")
            fflush(nil)
        } else {
            rows.append(row)
        }
    }

    /// Prints the table, if it is one, and forgets its rows.
    mutating func finish() {
        guard !isJSON, let first = rows.first else { return }
        let table = [first.map(\.name)] + rows.map { $0.map(\.value.human) }
        let isNumber = first.map { field in
            switch field.value {
            case .integer, .number, .null: true
            case .text, .flag, .list: false
            }
        }
        let widths = first.indices.map { column in
            table.map { $0.count > column ? $0[column].count : 0 }.max() ?? 0
        }
        for line in table {
            let cells = zip(line.indices, line).map { index, cell in
                let space = String(repeating: " ", count: widths[index] - cell.count)
                return isNumber[index] ? space + cell : cell + space
            }
            var text = cells.joined(separator: "  ")
            while text.last == " " { text.removeLast() }
            print(text)
        }
        rows = []
        fflush(nil)
    }
}

/// Says on a terminal what is going on; silent when standard error is not one.
func showProgress(_ text: String) {
    guard isatty(2) == 1 else { return }
    _ = "\r\u{1B}[K\(text)".withCString { write(2, $0, strlen($0)) }
}
