internal import Glibc
internal import TransferEngine

/// How a session ended, as one line of JSON.
struct Report {
    let role: String
    let session: Int
    /// Rounds of which every byte and every count was right.
    var rounds = 0
    /// What the receiver counted in the last round, if it said so.
    var counted: Int?
    var expected: Int?
    /// Arrivals beyond what was expected, in all rounds.
    var surplus = 0
    /// Whether all bytes were right so far.
    var isDataRight = true
    var error: TransferError?
    /// From the beginning of the round that failed, or of the session, to its end.
    var seconds = 0.0

    /// No error, and nothing else wrong.
    var isSuccess: Bool { error == nil && isExact }
    /// What must hold even if there was an error.
    var isExact: Bool { isDataRight && surplus == 0 }

    func show() {
        let outcome = !isExact ? "wrong" : error == nil ? "ok" : "error"
        var fields = [
            ("role", quoted(role)), ("session", "\(session)"), ("outcome", quoted(outcome)),
            ("rounds", "\(rounds)"), ("surplus", "\(surplus)"),
            ("data", quoted(isDataRight ? "right" : "wrong")),
            ("seconds", "\(Double(Int(seconds * 1000)) / 1000)"),
        ]
        if let counted { fields.append(("counted", "\(counted)")) }
        if let expected { fields.append(("expected", "\(expected)")) }
        if let error {
            fields.append(("code", quoted("\(error.code)")))
            fields.append(("error", quoted(error.message)))
        }
        say("{" + fields.map { "\(quoted($0)): \($1)" }.joined(separator: ", ") + "}")
    }
}

/// Prints a line at once.
func say(_ line: String) {
    print(line)
    fflush(nil)
}

private func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\"", "\\": result += "\\\(scalar)"
        case " "...: result.unicodeScalars.append(scalar)
        default: result += " "
        }
    }
    return result + "\""
}
