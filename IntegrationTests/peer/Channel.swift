internal import Glibc
internal import TransferEngine

/// Lines over TCP: what the two sides agree upon beside the transfers. It does not pass through the NICs under test.
final class Channel {
    private let socket: Int32
    private var buffered: [UInt8] = []

    private init(socket: Int32) { self.socket = socket }

    deinit { close(socket) }

    /// Connects to `host:port`, again and again for 20 seconds: the other side may be starting.
    static func connect(to name: String) throws(TransferError) -> Channel {
        var address = try socketAddress(name)
        for _ in 0..<200 {
            let socket = try makeSocket()
            let failed = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            if failed == 0 { return Channel(socket: socket) }
            close(socket)
            usleep(100_000)
        }
        throw TransferError(.unreachable, "nobody listens at \(name)")
    }

    /// Listens at `host:port`; returns the socket.
    static func listen(at name: String) throws(TransferError) -> Int32 {
        let socket = try makeSocket()
        var address = try socketAddress(name)
        var yes: Int32 = 1
        setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        let failed = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard failed == 0, Glibc.listen(socket, 8) == 0 else {
            throw TransferError(.unavailable, "cannot listen at \(name): \(String(cString: strerror(errno)))")
        }
        return socket
    }

    /// The next connection.
    static func accept(on listener: Int32) throws(TransferError) -> Channel {
        let socket = Glibc.accept(listener, nil, nil)
        guard socket >= 0 else {
            throw TransferError(.unavailable, "no connection: \(String(cString: strerror(errno)))")
        }
        return Channel(socket: socket)
    }

    /// Sends a line. Whether it arrives shows when there is no answer.
    func send(_ line: String) {
        let bytes = Array((line + "\n").utf8)
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes { Glibc.send(socket, $0.baseAddress, $0.count, 0) }
            guard count > 0 else { return }
            sent += count
        }
    }

    /// The words of the next line; nil when none came within `seconds`.
    /// - Throws: `peerLost` when the other side has gone.
    func receive(within seconds: Double) throws(TransferError) -> [Substring]? {
        let deadline = monotonicSeconds() + seconds
        while true {
            if let end = buffered.firstIndex(of: 10) {
                defer { buffered.removeFirst(end + 1) }
                return String(decoding: buffered[..<end], as: UTF8.self).split(separator: " ")
            }
            var event = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
            let left = Int32(max(0, (deadline - monotonicSeconds()) * 1000))
            guard poll(&event, 1, left) != 0 else { return nil }
            var bytes = [UInt8](repeating: 0, count: 65536)
            let count = recv(socket, &bytes, bytes.count, 0)
            guard count > 0 else { throw TransferError(.peerLost, "the control connection has ended") }
            buffered.append(contentsOf: bytes.prefix(count))
        }
    }

    /// The words after `word` of a line that must begin with it and come within `seconds`.
    func receive(_ word: String, within seconds: Double) throws(TransferError) -> [Substring] {
        guard let words = try receive(within: seconds) else {
            throw TransferError(.stalled, "no answer (\(word)) for \(seconds) s")
        }
        guard words.first == word[...] else {
            throw TransferError(.providerFailed, "\(word) expected: " + words.joined(separator: " "))
        }
        return Array(words.dropFirst())
    }

    private static func makeSocket() throws(TransferError) -> Int32 {
        let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard socket >= 0 else { throw TransferError(.limitReached, "no socket") }
        return socket
    }

    private static func socketAddress(_ name: String) throws(TransferError) -> sockaddr_in {
        let parts = name.split(separator: ":")
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        guard parts.count == 2, let port = UInt16(parts[1]),
            inet_pton(AF_INET, String(parts[0]), &address.sin_addr) == 1
        else { throw TransferError(.invalidArgument, "\(name) is not an IPv4 address and a port") }
        address.sin_port = port.bigEndian
        return address
    }
}

/// Seconds of a clock that only goes forward.
func monotonicSeconds() -> Double {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return Double(now.tv_sec) + Double(now.tv_nsec) * 1e-9
}
