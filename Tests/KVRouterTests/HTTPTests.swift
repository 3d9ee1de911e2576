#if HTTP
    import Glibc
    import NIOCore
    import NIOHTTP1
    import Testing

    @testable import HTTP

    @Suite struct HTTPTests {
        /// Connections that come while a server ends are closed; they do not end the process.
        @Test func aServerMayEndAtAnyTime() async throws {
            for round in 0..<40 {
                let server = try await HTTPServer(host: "127.0.0.1", port: 0) { _, writer in
                    try await writer.answer(.ok, "x")
                }
                let address = try HTTPAddress("http://127.0.0.1:\(server.port)")
                await withTaskGroup(of: Void.self) { group in
                    for _ in 0..<8 {
                        group.addTask {
                            let request = HTTPRequest(.GET, "/")
                            _ = try? await HTTPClient().fetch(request, from: address, within: .seconds(5))
                        }
                    }
                    group.addTask {
                        try? await Task.sleep(for: .microseconds(round * 50))
                        server.close()
                    }
                }
                try await server.run()
                await #expect(throws: HTTPFailure.self) {
                    try await HTTPClient().fetch(HTTPRequest(.GET, "/"), from: address, within: .seconds(5))
                }
            }
        }

        @Test func connectionsAreKeptAlive() async throws {
            let server = try await HTTPServer(host: "127.0.0.1", port: 0, bodyLimit: 10) { request, writer in
                try await writer.answer(
                    .ok, "\(request.path) \(request.query("a b") ?? "-") \(request.body.readableBytes)")
            }
            defer { server.close() }
            let file = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(file) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = UInt16(server.port).bigEndian
            address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            let isConnected = withUnsafePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    connect(file, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
                }
            }
            try #require(isConnected)
            // Three at once: they are answered in turn.
            let text =
                "GET /x?a+b=%41%2 HTTP/1.1\r\nHost: h\r\n\r\nPOST /y HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
                + "POST /z HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\nConnection: close\r\n\r\n0123456789a"
            #expect(send(file, text, text.utf8.count, 0) == text.utf8.count)
            let answer = await Task.detached {
                var bytes: [UInt8] = []
                var buffer = [UInt8](repeating: 0, count: 4096)
                while true {
                    let count = recv(file, &buffer, buffer.count, 0)
                    guard count > 0 else { break }
                    bytes += buffer[..<count]
                }
                return String(decoding: bytes, as: UTF8.self)
            }.value
            let bodies = answer.split(separator: "\r\n\r\n").dropFirst().map {
                $0.split(separator: "HTTP/1.1")[0]
            }
            #expect(bodies == ["/x A%2 0", "/y - 3", "at most 10 bytes\n"])
            #expect(answer.contains("413 Payload Too Large"))
        }

        @Test func addresses() throws {
            for (text, host, port, path) in [
                ("http://a:80/", "a", 80, ""), ("http://a", "a", 80, ""),
                ("http://[::1]:8000/x/y/", "::1", 8000, "/x/y"),
                ("http://[::1]", "::1", 80, ""),
            ] {
                let address = try HTTPAddress(text)
                #expect(address.host == host && address.port == port && address.path == path)
                #expect(try HTTPAddress(address.text) == address)
            }
            for text in ["", "a:80", "https://a", "http://", "http://:80", "http://a:x", "http://a:70000"] {
                #expect(throws: HTTPFailure.self) { try HTTPAddress(text) }
            }
        }
    }
#endif
