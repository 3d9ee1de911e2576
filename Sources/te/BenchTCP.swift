internal import Glibc
internal import Platform
internal import TransferEngine

/// A plain TCP connection over loopback, for the limit of socket transports.
final class BenchSocket {
    private let listener: Int32
    private let sender: Int32
    private let receiver: Int32
    private let thread: PlatformThread?

    /// Connects, and empties the other end in a thread on `processor`.
    init(processor: Int, buffer: UnsafeMutableRawPointer, bufferBytes: Int) throws(TransferError) {
        let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let sender = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        let isConnected = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
                bind(listener, address, length) == 0 && listen(listener, 1) == 0
                    && getsockname(listener, address, &length) == 0 && connect(sender, address, length) == 0
            }
        }
        guard isConnected else {
            throw TransferError(.unavailable, "no TCP connection over loopback: error \(errno)")
        }
        let receiver = accept(listener, nil, nil)
        var one: Int32 = 1
        setsockopt(sender, Int32(IPPROTO_TCP), TCP_NODELAY, &one, 4)
        let target = UInt(bitPattern: buffer)
        thread = PlatformThread(name: "te-sink", cpu: processor) {
            guard let buffer = UnsafeMutableRawPointer(bitPattern: target) else { return }
            var offset = 0
            while true {
                let count = recv(receiver, buffer + offset, min(1 << 20, bufferBytes - offset), 0)
                if count <= 0 { return }
                offset = (offset + count) % bufferBytes
                // The last byte of a measurement carries 255: it is answered.
                if (buffer + (offset == 0 ? bufferBytes : offset) - 1).load(as: UInt8.self) == 255 {
                    var reply: UInt8 = 1
                    send(receiver, &reply, 1, 0)
                }
            }
        }
        (self.listener, self.sender, self.receiver) = (listener, sender, receiver)
    }

    /// Sends `size` bytes at a time for `seconds` and waits until the other end has them; bytes per second.
    func measure(from source: UnsafeRawPointer, regionBytes: Int, size: Int, seconds: Double) -> Double {
        let slots = regionBytes / size
        var count = 0
        let start = monotonicSeconds()
        while monotonicSeconds() - start < seconds {
            guard sendAll(source + count % slots * size, size) else { return .nan }
            count += 1
        }
        var last: UInt8 = 255
        guard sendAll(&last, 1) else { return .nan }
        var reply: UInt8 = 0
        guard recv(sender, &reply, 1, 0) == 1 else { return .nan }
        return Double(count) * Double(size) / (monotonicSeconds() - start)
    }

    private func sendAll(_ bytes: UnsafeRawPointer, _ length: Int) -> Bool {
        var sent = 0
        while sent < length {
            let count = send(sender, bytes + sent, length - sent, Int32(MSG_NOSIGNAL))
            if count <= 0 { return false }
            sent += count
        }
        return true
    }

    func close() {
        Glibc.close(sender)
        thread?.join()
        Glibc.close(receiver)
        Glibc.close(listener)
    }
}
