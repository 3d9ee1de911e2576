internal import CPlatform
internal import Glibc
internal import TransferEngine

/// Where metrics are read from: `http://HOST:PORT/PATH`, of which the host or the port is enough.
struct TopSource {
    let host: String
    let port: String
    let path: String

    var name: String { "\(host.contains(":") ? "[\(host)]" : host):\(port)\(path)" }

    /// - Throws: When it is no address of a web page, or of a secure one.
    init(_ text: String) throws(TransferError) {
        var rest = Substring(text)
        if rest.hasPrefix("http://") { rest = rest.dropFirst("http://".count) }
        guard !rest.contains("://") else {
            throw TransferError(.invalidArgument, "\(text): te top speaks HTTP only")
        }
        let place = rest.prefix { $0 != "/" }
        path = place.endIndex == rest.endIndex ? "/metrics" : String(rest[place.endIndex...])
        if place.hasPrefix("["), let end = place.firstIndex(of: "]") {
            host = String(place[place.index(after: place.startIndex)..<end])
            port = place[end...].hasPrefix("]:") ? String(place[end...].dropFirst(2)) : "9464"
        } else if !place.isEmpty, place.allSatisfy(\.isNumber) {
            (host, port) = ("127.0.0.1", String(place))
        } else {
            let parts = place.split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            (host, port) = (String(parts[0]), parts.count > 1 ? String(parts[1]) : "9464")
        }
        guard !host.isEmpty, UInt16(port) != nil, !text.utf8.contains(where: { $0 <= 32 }) else {
            throw TransferError(.invalidArgument, "\(text) is not HOST:PORT, PORT or http://HOST:PORT/PATH")
        }
    }

    /// What the page says now.
    /// - Throws: When it does not answer within `seconds`, or with anything else than a page.
    func read(within seconds: Double) throws(TransferError) -> [TopSample] {
        let deadline = te_monotonic_nanoseconds() + UInt64(seconds * 1e9)
        let socket = try connect(deadline)
        defer { Glibc.close(socket) }
        try send("GET \(path) HTTP/1.1\r\nHost: \(host)\r\nConnection: close\r\n\r\n", to: socket)
        let answer = try receive(from: socket, deadline)
        return TopSample.decode(try content(of: answer))
    }

    private func failure(_ what: String) -> TransferError {
        TransferError(.peerLost, "\(name) \(what): is there a MetricsServer (docs/operations.md)?")
    }

    private func connect(_ deadline: UInt64) throws(TransferError) -> Int32 {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, port, &hints, &found) == 0 else { throw failure("has no address") }
        defer { freeaddrinfo(found) }
        var next = found
        while let address = next {
            let socket = Glibc.socket(
                address.pointee.ai_family, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
            next = address.pointee.ai_next
            guard socket >= 0 else { continue }
            // Every call on it ends in time.
            let left = max(1000, Self.left(deadline) / 1000)
            var patience = timeval(tv_sec: left / 1_000_000, tv_usec: left % 1_000_000)
            let size = socklen_t(MemoryLayout<timeval>.size)
            setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, size)
            setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, size)
            if Glibc.connect(socket, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0 {
                return socket
            }
            Glibc.close(socket)
        }
        throw failure("cannot be reached")
    }

    private static func left(_ deadline: UInt64) -> Int {
        Int(deadline) - Int(te_monotonic_nanoseconds())
    }

    private func send(_ text: String, to socket: Int32) throws(TransferError) {
        let bytes = [UInt8](text.utf8)
        guard Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count else {
            throw failure("hung up")
        }
    }

    /// All that comes until the other side ends or has sent what it announced.
    private func receive(from socket: Int32, _ deadline: UInt64) throws(TransferError) -> [UInt8] {
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while bytes.count < 16 << 20 {
            let count = recv(socket, &buffer, buffer.count, 0)
            if count == 0, Self.expectedLength(bytes) ?? 0 <= bytes.count { return bytes }
            guard count > 0, Self.left(deadline) > 0 else { throw failure("does not answer") }
            bytes.append(contentsOf: buffer.prefix(count))
            if let end = Self.expectedLength(bytes), bytes.count >= end { return bytes }
        }
        throw failure("says too much")
    }

    private static let headEnd: [UInt8] = [13, 10, 13, 10]

    /// Where the content begins, behind a head that is not longer than those of servers.
    private static func contentStart(_ bytes: [UInt8]) -> Int? {
        bytes.indices.dropLast(3).prefix(1 << 14).first {
            bytes[$0] == 13 && bytes[$0..<$0 + 4].elementsEqual(headEnd)
        }.map {
            $0 + 4
        }
    }

    private static func expectedLength(_ bytes: [UInt8]) -> Int? {
        guard let start = contentStart(bytes) else { return nil }
        let lines = String(decoding: bytes[..<start], as: UTF8.self).lowercased().split(separator: "\r\n")
        let field = lines.first { $0.hasPrefix("content-length:") }
        let digits = field?.dropFirst("content-length:".count).filter { $0 != " " }
        return digits.flatMap { UInt32($0) }.map { start + Int($0) }
    }

    private func content(of answer: [UInt8]) throws(TransferError) -> String {
        guard let start = Self.contentStart(answer), answer.starts(with: "HTTP/1.".utf8) else {
            throw failure("does not speak HTTP")
        }
        let status = String(decoding: answer.prefix { $0 != 13 }, as: UTF8.self)
        guard status.split(separator: " ").dropFirst().first == "200" else {
            throw failure("answers '\(status)'")
        }
        return String(decoding: answer[start...], as: UTF8.self)
    }
}
