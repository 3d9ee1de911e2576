internal import CPlatform
internal import Glibc
internal import TransferEngine

/// What the machine can do for one transport, without this library: measured between the rounds of the demonstration.
final class DemoLimit {
    /// For people.
    let name: String
    private let engine: TransferEngine
    private let source: MemoryRegion
    private let target: MemoryRegion?
    private let child: ChildProcess?
    private var socket: Int32 = -1
    private var sendBytes = 1 << 20

    /// Sizes of one send call of which the fastest is the limit.
    private static let sendSizes = [64 << 10, 256 << 10, 1 << 20, 4 << 20]

    init(transport: String, engine: TransferEngine, source: MemoryRegion, processor: Int)
        throws(TransferError)
    {
        self.engine = engine
        self.source = source
        guard transport != "shm" else {
            name = "memcpy"
            target = try engine.allocate(byteCount: source.byteCount)
            child = nil
            return
        }
        name = "TCP socket"
        target = nil
        let child = try ChildProcess([
            "demo-receiver", "--sink", "--region-bytes", String(source.byteCount), "--processor",
            String(processor),
        ])
        self.child = child
        let answer = try child.receive()
        guard let port = UInt16(answer) else { throw TransferError(.unavailable, "TCP sink: \(answer)") }
        socket = try connectToLoopback(port)
        var best = 0.0
        for size in Self.sendSizes {
            _ = try stream(size)
            let rate = try stream(size)
            if rate > best { (best, sendBytes) = (rate, size) }
        }
    }

    /// Bytes per second, for all bytes of the source once.
    func measure() throws(TransferError) -> Double {
        guard let target else { return try stream(sendBytes) }
        // As cold as the receivers' memory is, which is overwritten by its owner before each round.
        memset(target.baseAddress, 0x5A, target.byteCount)
        let start = monotonicSeconds()
        memcpy(target.baseAddress, source.baseAddress, source.byteCount)
        return Double(source.byteCount) / (monotonicSeconds() - start)
    }

    func close() {
        if socket >= 0 { Glibc.close(socket) }
        socket = -1
        child?.end()
        if let target { try? engine.deregister(target) }
    }

    private func stream(_ size: Int) throws(TransferError) -> Double {
        let start = monotonicSeconds()
        var sent = 0
        while sent < source.byteCount {
            let wanted = min(size, source.byteCount - sent)
            let count = send(socket, source.baseAddress + sent, wanted, Int32(MSG_NOSIGNAL))
            guard count > 0 else {
                throw TransferError(.stalled, "the TCP sink does not read: error \(errno)")
            }
            sent += count
        }
        var reply: UInt8 = 0
        guard recv(socket, &reply, 1, 0) == 1 else {
            throw TransferError(.stalled, "the TCP sink does not answer: error \(errno)")
        }
        return Double(sent) / (monotonicSeconds() - start)
    }

    private func connectToLoopback(_ port: UInt16) throws(TransferError) -> Int32 {
        let file = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = loopback(port: port)
        let failed = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(file, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard failed == 0 else {
            Glibc.close(file)
            throw TransferError(.unavailable, "no TCP connection over loopback: error \(errno)")
        }
        _ = fcntl(file, F_SETFD, FD_CLOEXEC)
        boundWaits(of: file)
        return file
    }
}

/// The process at the other end of the plain socket: reads into cold memory, answers a byte for each round.
struct DemoSink {
    let byteCount: Int

    func serve() throws(TransferError) {
        let listener = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = loopback(port: 0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let isListening = withUnsafeMutablePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(listener, $0, length) == 0 && listen(listener, 1) == 0
                    && getsockname(listener, $0, &length) == 0
            }
        }
        boundWaits(of: listener)
        guard isListening, writeLine(String(UInt16(bigEndian: address.sin_port)), to: 1) else {
            throw TransferError(.unavailable, "no TCP socket on loopback: error \(errno)")
        }
        let file = accept(listener, nil, nil)
        guard file >= 0 else { throw TransferError(.stalled, "nobody connected: error \(errno)") }
        let memory = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 4096)
        memset(memory, 1, byteCount)
        var offset = 0
        // The listener's time limit came along, but between two rounds the other end does something else. It closes the
        // socket when it ends.
        boundWaits(of: file, seconds: 0)
        while true {
            let count = recv(file, memory + offset, min(1 << 20, byteCount - offset), 0)
            guard count > 0 else { break }
            offset += count
            if offset == byteCount {
                var reply: UInt8 = 1
                guard send(file, &reply, 1, Int32(MSG_NOSIGNAL)) == 1 else { break }
                offset = 0
            }
        }
        memory.deallocate()
        Glibc.close(file)
        Glibc.close(listener)
    }
}

private func loopback(port: UInt16) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    return address
}

/// No call on this socket blocks for more than `seconds`; 0 is no limit.
private func boundWaits(of file: Int32, seconds: Int = 30) {
    var time = timeval(tv_sec: seconds, tv_usec: 0)
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
        setsockopt(file, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
    }
}
