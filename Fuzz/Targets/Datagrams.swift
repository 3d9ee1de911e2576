#if Verbs
    import TransferCore
    @testable import VerbsProvider

    extension Target {
        /// What two RDMA NICs tell each other to connect: `Hello` and `NICAddress`.
        static let datagrams = Target(
            name: "datagrams",
            seeds: {
                var address = NICAddress()
                address.datagramQP = 17
                address.epoch = 0x0102_0304_0506_0708
                address.gid = (3, 4)
                var hello = Hello()
                hello.sourceEngine = 5
                hello.targetEngine = 6
                hello.attempt = 1
                hello.writeQP = 2
                hello.messageQP = 3
                hello.immediateWindow = 64
                hello.messageWindow = 16
                hello.source = address
                var goodbye = hello
                goodbye.kind = .goodbye
                return [address.encoded, encoded(hello), encoded(goodbye)]
            },
            run: { bytes in
                let span = bytes.span.bytes
                if let address = NICAddress(span) {
                    require(NICAddress(address.encoded.span.bytes) == address, "another address")
                    require((1...5).contains(address.mtu), "an MTU that there is not")
                }
                if let hello = Hello(span) {
                    let again = encoded(hello)
                    guard let second = Hello(again.span.bytes) else { fatalError("our own hello is none") }
                    require(encoded(second) == again, "another hello")
                    if hello.kind == .hello {
                        require(hello.attempt > 0 && hello.creditAddress & 7 == 0, "a hello that cannot be")
                    }
                }
            })

        private static func encoded(_ hello: Hello) -> [UInt8] {
            var bytes = [UInt8](repeating: 0, count: Hello.byteCount)
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            hello.write(to: &raw)
            return bytes
        }
    }
#endif
