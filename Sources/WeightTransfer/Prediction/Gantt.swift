extension Prediction {
    /// The traced ranks for the Perfetto viewer or chrome://tracing: one process a rank, one track a stage.
    public var perfetto: JSON {
        var events: [JSON] = []
        for rank in spans.keys.sorted() {
            events.append(
                .object([
                    "ph": "M", "name": "process_name", "pid": .integer(rank),
                    "args": .object(["name": .string("trainer \(rank)")]),
                ]))
            for span in Self.joined(spans[rank] ?? [], gap: 1e-6) {
                events.append(
                    .object([
                        "ph": "X", "name": .string(span.stage.rawValue), "pid": .integer(rank),
                        "tid": .integer(Stage.allCases.firstIndex(of: span.stage) ?? 0),
                        "ts": .number(span.begin * 1e6), "dur": .number((span.end - span.begin) * 1e6),
                    ]))
            }
        }
        return .object(["traceEvents": .array(events), "displayTimeUnit": "ms"])
    }

    /// The traced ranks as a picture.
    public func svg(title: String) -> String {
        let ranks = spans.keys.sorted()
        let (width, left, lane) = (1000.0, 110.0, 7.0)
        let height = lane * Double(Stage.allCases.count) + 10
        let scale = width / max(seconds, 1e-9)
        var text = """
            <svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" \
            viewBox="0 0 \(left + width + 20) \(70 + height * Double(ranks.count))">
            <rect width="100%" height="100%" fill="white"/><text x="10" y="18" font-size="14">\(title)</text>\n
            """
        for (index, stage) in Stage.allCases.enumerated() {
            let x = left + Double(index) * 90
            text += "<rect x=\"\(x)\" y=\"28\" width=\"10\" height=\"10\" fill=\"\(Self.colour(stage))\"/>"
            text += "<text x=\"\(x + 14)\" y=\"37\">\(stage.rawValue)</text>\n"
        }
        for (row, rank) in ranks.enumerated() {
            let top = 48 + height * Double(row)
            text += "<text x=\"10\" y=\"\(top + height / 2)\">trainer \(rank)</text>\n"
            for span in Self.joined(spans[rank] ?? [], gap: seconds / 2000) {
                let y = top + lane * Double(Stage.allCases.firstIndex(of: span.stage) ?? 0)
                text += "<rect x=\"\(Self.short(left + span.begin * scale))\" y=\"\(Self.short(y))\" "
                text +=
                    "width=\"\(Self.short(max(0.3, (span.end - span.begin) * scale)))\" height=\"\(lane - 1)\" "
                text += "fill=\"\(Self.colour(span.stage))\"/>\n"
            }
        }
        let bottom = 60 + height * Double(ranks.count)
        for tick in 0...10 {
            let milliseconds = (seconds * 100 * Double(tick)).rounded()
            text +=
                "<text x=\"\(left + Double(tick) * width / 10 - 10)\" y=\"\(bottom)\">\(Int(milliseconds)) ms</text>"
        }
        return text + "</svg>\n"
    }

    /// Spans of a stage with less than `gap` between them count as one: a picture has so many points only.
    private static func joined(_ spans: [Span], gap: Double) -> [Span] {
        var result: [Span] = []
        var last: [Stage: Int] = [:]
        for span in spans {
            if let place = last[span.stage], span.begin <= result[place].end + gap {
                result[place].end = max(result[place].end, span.end)
            } else {
                last[span.stage] = result.count
                result.append(span)
            }
        }
        return result
    }

    private static func short(_ value: Double) -> Double { (value * 10).rounded() / 10 }

    private static func colour(_ stage: Stage) -> String {
        switch stage {
        case .load: "#4477aa"
        case .gather: "#ee6677"
        case .fuse: "#228833"
        case .quantise: "#ccbb44"
        case .submit: "#66ccee"
        case .wait: "#bbbbbb"
        case .rest: "#aa3377"
        }
    }
}

extension JSON: ExpressibleByStringLiteral {
    public init(stringLiteral value: String) { self = .string(value) }
}
