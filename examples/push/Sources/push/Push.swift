import TransferEngine

/// Two engines in one process: one writes into the memory of the other, which knows by counting that it is there.
@main struct Push {
    static func main() async throws {
        let sender = try TransferEngine(Configuration(name: "prefill"))
        let receiver = try TransferEngine(Configuration(name: "decode"))
        defer {
            sender.close()
            receiver.close()
        }

        // The receiver offers memory; the descriptor goes to the sender by any channel.
        let target = try receiver.allocate(byteCount: 1 << 20)
        let descriptor = receiver.descriptor(of: target).encoded()
        let arrived = try receiver.expect(7, count: 2)

        // The sender attaches to it and writes twice; each write is counted once.
        let remote = try sender.attach(decoding: descriptor)
        let source = try sender.allocate(byteCount: 1 << 20)
        source.bytes.copyBytes(from: Array("hello, memory".utf8))
        let small = try sender.write(from: source, byteCount: 13, to: remote, immediate: 7)
        let large = try sender.write(
            from: source, sourceOffset: 4096, byteCount: 900_000, to: remote, targetOffset: 4096, immediate: 7
        )
        try await sender.result(of: small)
        try await sender.result(of: large)

        try await receiver.result(of: arrived)
        print(String(decoding: target.bytes.prefix(13), as: UTF8.self))
    }
}
