internal import CPlatform
internal import Glibc
internal import Platform
internal import TransferCore

/// The one packet of the control socket, for requests and replies. Both ends are the same user on the same machine; a packet
/// of another size or another magic number ends the connection.
///
/// | request | carries | reply carries | file descriptors of the reply |
/// |---|---|---|---|
/// | hello | own engine | engine, a probe address | target page, wake-up event |
/// | region | index, generation, secret | length, address | the memory file, if there is one |
/// | ring | | | the ring's memory file |
/// | seat | | index: a writer's seat in the target page | |
struct ControlPacket {
    static let magic: UInt64 = 0x5445_5348_4D00_0002

    enum Kind {
        static let hello: UInt32 = 1
        static let region: UInt32 = 2
        static let ring: UInt32 = 3
        static let seat: UInt32 = 4
    }

    var magic = Self.magic
    var kind: UInt32
    /// 0, or a `WorkStatus` that says why not.
    var status: UInt32 = 0
    var engine: UInt64 = 0
    var index: UInt32 = 0
    var generation: UInt32 = 0
    var secret: UInt64 = 0
    var length: UInt64 = 0
    var address: UInt64 = 0
    var isPopulated: UInt32 = 0
    private var reserved: UInt32 = 0

    init(_ kind: UInt32) { self.kind = kind }

    /// Sends the packet; returns 0 or -errno.
    func send(to socket: Int32, files: [Int32] = []) -> Int32 {
        var packet = self
        return unsafe withUnsafeBytes(of: &packet) {
            unsafe te_unix_send(socket, $0.baseAddress, $0.count, files, Int32(files.count))
        }
    }

    /// Receives one packet. Nil means that the connection is of no use any more.
    static func receive(from socket: Int32) -> (ControlPacket, [Int32])? {
        var packet = ControlPacket(0)
        var files = [Int32](repeating: -1, count: 4)
        var fileCount: Int32 = 0
        let got = unsafe withUnsafeMutableBytes(of: &packet) {
            unsafe te_unix_receive(socket, $0.baseAddress, $0.count, &files, 4, &fileCount)
        }
        let received = Array(files.prefix(Int(fileCount)))
        guard got == MemoryLayout<ControlPacket>.size, packet.magic == magic else {
            for file in received { close(file) }
            return nil
        }
        return (packet, received)
    }
}

/// A number that is the same for all processes of one running machine: peers with another one are not on this host.
func hostIdentity() -> UInt64 {
    var text = [UInt8](repeating: 0, count: 64)
    let file = unsafe open("/proc/sys/kernel/random/boot_id", O_RDONLY)
    guard file >= 0 else { return 0 }
    defer { close(file) }
    let count = unsafe read(file, &text, text.count)
    return text.prefix(max(0, count)).reduce(0xCBF2_9CE4_8422_2325) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
}
