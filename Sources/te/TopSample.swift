/// One number of a page of metrics.
struct TopSample {
    let name: Substring
    let labels: [Substring: String]
    let value: Double

    /// The numbers of a page in Prometheus' text format; lines that are none are left out.
    static func decode(_ text: String) -> [TopSample] { text.split(separator: "\n").compactMap(Self.init) }

    private init?(_ line: Substring) {
        guard line.first != "#", let end = line.firstIndex(where: { $0 == "{" || $0 == " " }) else {
            return nil
        }
        name = line[..<end]
        var rest = line[end...]
        var labels: [Substring: String] = [:]
        if rest.first == "{" {
            rest = rest.dropFirst()
            while let first = rest.first, first != "}" {
                guard let equals = rest.firstIndex(of: "="),
                    let value = Self.quoted(rest, after: equals)
                else { return nil }
                labels[rest[..<equals]] = value.text
                rest = rest[value.end...]
                if rest.first == "," { rest = rest.dropFirst() }
            }
            rest = rest.dropFirst()
        }
        // A time may follow.
        guard let number = rest.split(separator: " ").first.flatMap({ Double($0) }) else { return nil }
        self.labels = labels
        value = number
    }

    /// The text in quotes behind a place, and where it ends.
    private static func quoted(_ line: Substring, after place: Substring.Index) -> (
        text: String, end: Substring.Index
    )? {
        var index = line.index(after: place)
        guard index < line.endIndex, line[index] == "\"" else { return nil }
        var text = ""
        var isEscaped = false
        index = line.index(after: index)
        while index < line.endIndex {
            let character = line[index]
            index = line.index(after: index)
            if isEscaped {
                text.append(character == "n" ? "\n" : character)
                isEscaped = false
            } else if character == "\\" {
                isEscaped = true
            } else if character == "\"" {
                return (text, index)
            } else {
                text.append(character)
            }
        }
        return nil
    }
}
