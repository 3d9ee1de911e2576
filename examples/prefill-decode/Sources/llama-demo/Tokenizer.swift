/// Byte-pair encoding as GPT-2 does it, with digits one by one.
struct Tokenizer {
    static let begin: Int32 = 1  // <|im_start|>
    static let end: Int32 = 2  // <|im_end|>

    private let tokens: [[UInt8]]
    private let numbers: [[UInt8]: Int32]
    private let ranks: [Pair: Int]

    private struct Pair: Hashable {
        var left: [UInt8]
        var right: [UInt8]
    }

    init(_ file: GGUF) throws {
        let bytes = Self.bytesOfCharacters()
        func decoded(_ text: [UInt8]) -> [UInt8] {
            String(decoding: text, as: UTF8.self).unicodeScalars.flatMap { scalar -> [UInt8] in
                bytes[scalar].map { [$0] } ?? Array(String(scalar).utf8)
            }
        }
        tokens = try file.texts("tokenizer.ggml.tokens").map(decoded)
        numbers = Dictionary(zip(tokens, 0..<Int32(tokens.count)), uniquingKeysWith: { first, _ in first })
        var ranks: [Pair: Int] = [:]
        for (rank, merge) in try file.texts("tokenizer.ggml.merges").enumerated() {
            guard let space = merge.firstIndex(of: 32) else { continue }
            ranks[Pair(left: decoded(Array(merge[..<space])), right: decoded(Array(merge[(space + 1)...])))] =
                rank
        }
        self.ranks = ranks
    }

    /// GPT-2 writes a byte that is no printable character as a character from 256 on.
    private static func bytesOfCharacters() -> [Unicode.Scalar: UInt8] {
        var result: [Unicode.Scalar: UInt8] = [:]
        var next: UInt32 = 256
        for byte in UInt8.min...UInt8.max {
            let isItself = (33...126).contains(byte) || (161...172).contains(byte) || byte >= 174
            if let scalar = Unicode.Scalar(isItself ? UInt32(byte) : next) { result[scalar] = byte }
            if !isItself { next += 1 }
        }
        return result
    }

    /// The tokens of a chat with one question.
    func chat(_ question: String) -> [Int32] {
        let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        let newline = encode("\n")
        return [Self.begin] + encode("system\n\(system)") + [Self.end] + newline + [Self.begin]
            + encode("user\n\(question)") + [Self.end] + newline + [Self.begin] + encode("assistant\n")
    }

    func decode(_ numbers: [Int32]) -> String {
        String(decoding: numbers.flatMap { tokens[Int($0)] }, as: UTF8.self)
    }

    func encode(_ text: String) -> [Int32] { Self.words(text).flatMap(merge) }

    private func merge(_ word: String) -> [Int32] {
        var parts = word.utf8.map { [$0] }
        while parts.count > 1 {
            let best = (0..<parts.count - 1).compactMap { index in
                ranks[Pair(left: parts[index], right: parts[index + 1])].map { (rank: $0, index: index) }
            }.min { $0 < $1 }
            guard let best else { break }
            parts[best.index] += parts.remove(at: best.index + 1)
        }
        return parts.compactMap { numbers[$0] }
    }

    /// Cuts a text into words, each with the space before it; digits, signs and the rest of white space are words of their own.
    private static func words(_ text: String) -> [String] {
        enum Kind { case letter, digit, space, sign }
        func kind(_ character: Character) -> Kind {
            character.isLetter
                ? .letter : character.isNumber ? .digit : character.isWhitespace ? .space : .sign
        }
        let characters = Array(text)
        var words: [String] = []
        var place = 0
        while place < characters.count {
            var end = place
            let hasSpace = characters[place] == " " && place + 1 < characters.count
            let first = kind(characters[hasSpace ? place + 1 : place])
            if first == .letter || first == .sign {
                end = hasSpace ? place + 1 : place
                while end < characters.count, kind(characters[end]) == first { end += 1 }
            } else if kind(characters[place]) == .space {
                while end < characters.count, kind(characters[end]) == .space { end += 1 }
                // The last space belongs to the word behind it.
                if end < characters.count, end - place > 1 { end -= 1 }
            } else {
                end = place + 1
            }
            words.append(String(characters[place..<end]))
            place = end
        }
        return words
    }
}
