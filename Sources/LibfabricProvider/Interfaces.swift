import CLibfabric
import CPlatform
import Glibc

/// The machine's network interfaces, for providers that name a NIC by its address.
enum Interfaces {
    /// Whether a text is a numeric address.
    static func isAddress(_ text: String) -> Bool {
        var space = in6_addr()
        return inet_pton(AF_INET, text, &space) == 1 || inet_pton(AF_INET6, text, &space) == 1
    }

    /// The numeric address that a NIC's name stands for: itself when it is one of this machine's, or the
    /// interface's first; nil when it is neither.
    static func address(_ nic: String) -> String? {
        if isAddress(nic) { return name(covering: nic) == nil ? nil : nic }
        var fallback: String?
        return each { entry, address in
            guard FabricError.string(entry.pointee.ifa_name) == nic else { return nil }
            if entry.pointee.ifa_addr.pointee.sa_family == UInt16(AF_INET) { return address }
            if !address.hasPrefix("fe80") && fallback == nil { fallback = address }
            return nil
        } ?? fallback
    }

    /// The interface that has an address; every address of a loopback network is there.
    static func name(covering text: String) -> String? {
        var wanted = in_addr()
        let isVersion4 = inet_pton(AF_INET, text, &wanted) == 1
        return each { entry, address in
            let name = FabricError.string(entry.pointee.ifa_name)
            if address == text { return name }
            guard isVersion4, entry.pointee.ifa_flags & UInt32(IFF_LOOPBACK) != 0,
                entry.pointee.ifa_addr.pointee.sa_family == UInt16(AF_INET),
                let mask = entry.pointee.ifa_netmask.map(address4),
                let own = entry.pointee.ifa_addr.map(address4)
            else { return nil }
            return own & mask == wanted.s_addr & mask ? name : nil
        }
    }

    private static func address4(_ address: UnsafeMutablePointer<sockaddr>) -> UInt32 {
        UnsafeRawPointer(address).loadUnaligned(as: sockaddr_in.self).sin_addr.s_addr
    }

    /// Calls `body` for every address of every interface until it returns something.
    private static func each(
        _ body: (UnsafeMutablePointer<ifaddrs>, String) -> String?
    ) -> String? {
        var list: UnsafeMutablePointer<ifaddrs>?
        guard getifaddrs(&list) == 0 else { return nil }
        defer { freeifaddrs(list) }
        var next = list
        while let entry = next {
            next = entry.pointee.ifa_next
            guard let address = entry.pointee.ifa_addr else { continue }
            let length =
                address.pointee.sa_family == UInt16(AF_INET)
                ? MemoryLayout<sockaddr_in>.size : MemoryLayout<sockaddr_in6>.size
            let numeric = text(address, length)
            if !numeric.isEmpty, let found = body(entry, numeric) { return found }
        }
        return nil
    }

    /// The numeric form of a socket address; empty when it is something else.
    static func text(_ address: UnsafeRawPointer?, _ length: Int) -> String {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: 64) { buffer in
            guard let start = buffer.baseAddress, te_socket_address_text(address, length, start, 64) == 0
            else {
                return ""
            }
            return String(cString: start)
        }
    }

    /// The speed that the kernel knows; nil for interfaces that have none.
    static func megabitsPerSecond(_ interface: String) -> UInt32? {
        guard !interface.isEmpty, !interface.utf8.contains(UInt8(ascii: "/")) else { return nil }
        let file = open("/sys/class/net/\(interface)/speed", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { _ = close(file) }
        let digits = withUnsafeTemporaryAllocation(byteCount: 32, alignment: 1) { buffer -> String in
            let count = read(file, buffer.baseAddress, buffer.count)
            guard count > 0 else { return "" }
            return String(decoding: buffer.prefix(count).prefix { $0 != 10 }, as: UTF8.self)
        }
        guard let speed = Int64(digits), speed > 0 else { return nil }
        return UInt32(clamping: speed)
    }
}
