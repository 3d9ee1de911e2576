import CPlatform
import Glibc
import Platform
@testable import SharedMemoryProvider
import Synchronization
import TransferCore

extension Target {
    /// The control socket of shared memory: a service that answers with anything, and a client that asks for anything.
    static let control = Target(
        name: "control",
        seeds: {
            let hello: [UInt8] = [0b0000_0011, 0]
            // 3000 bytes, in a file that has them or not; more than there can be; with files that nobody asked for.
            let bytes: [UInt8] = [2, 40, 0xB8, 41, 0x0B]
            let region = [0b0000_0101] + bytes
            let short = [0b0001_0001] + bytes
            let crowded = [0b0000_0111] + bytes
            let endless: [UInt8] = [0b0000_0101, 8] + (40..<48 as Range<UInt8>).flatMap { [$0, 0xFF] }
            let longer: [UInt8] = [0b0000_0011, 3, 40, 0xA0, 41, 0x86, 42, 1]
            let ring: [UInt8] = [0b0000_0111, 0]
            let asked: [[UInt8]] = [1, 2, 3].map { kind in
                [1, 1, 8, kind, 3, 24, UInt8(FuzzMemory.index), 28, UInt8(FuzzMemory.generation)]
            }
            let answered = [region, short, crowded, endless, region + longer, longer + longer].map {
                [0] + hello + $0 + ring
            }
            return answered + [[0, 0b0001_0001, 0], [0, 0b0000_1000, 0]] + asked
        },
        run: { bytes in ControlFuzz.shared.run(copy bytes) })
}

private final class ControlFuzz: @unchecked Sendable {
    // SAFETY: the input is guarded; everything else is constant, or used by one thread.
    static let shared = ControlFuzz()

    private static let hostile = EngineID(rawValue: 0xF0_0000_0000 | UInt64(UInt32(bitPattern: getpid())))
    private static let served = EngineID(rawValue: 0xF1_0000_0000 | UInt64(UInt32(bitPattern: getpid())))

    private let input = Mutex<[UInt8]>([])
    private let listener: Int32
    private let hostilePage: SharedMapping
    private let servedPage: SharedMapping
    private let region: SharedMapping
    private let ring: SharedMapping
    private let short: SharedMapping
    private let wakeFile: Int32
    private let scratch = UnsafeMutableRawPointer.allocate(byteCount: 64, alignment: 8)
    private let host: SharedMemoryHost
    /// Runs as long as the process.
    private var thread: PlatformThread?
    private var rounds = 0
    private var files = 0

    private init() {
        do {
            hostilePage = try .create(name: "te-fuzz", byteCount: TargetPage.byteCount)
            servedPage = try .create(name: "te-fuzz", byteCount: TargetPage.byteCount)
            region = try .create(name: "te-fuzz", byteCount: 4096)
            ring = try .create(name: "te-fuzz", byteCount: ByteRing.byteCount)
            short = try .create(name: "te-fuzz", byteCount: 100)
            _ = TargetPage.initialize(hostilePage.base, engine: Self.hostile)
            let page = TargetPage.initialize(servedPage.base, engine: Self.served)
            wakeFile = te_event_new()
            host = try SharedMemoryHost(page: page, pageFile: servedPage.file, wakeFile: wakeFile)
            host.publish(
                LocalRegion(
                    index: FuzzMemory.index, generation: FuzzMemory.generation, access: .remoteWrite,
                    secret: 0,
                    base: region.base, length: FuzzMemory.length, memoryFile: region.file, isPopulated: false)
            )
        } catch {
            fatalError("\(error)")
        }
        listener = te_unix_listen(SharedMemoryHost.socketName(Self.hostile))
        guard listener >= 0, let service = PlatformThread(name: "te-fuzz", body: { [self] in serve() }) else {
            fatalError("no socket")
        }
        thread = service
    }

    func run(_ bytes: [UInt8]) {
        guard let first = bytes.first else { return }
        if first & 1 == 0 {
            input.withLock { $0 = Array(bytes.dropFirst()) }
            attach()
        } else {
            ask(Array(bytes.dropFirst()))
        }
        // Nothing that a peer sends may stay open.
        rounds += 1
        guard rounds % 64 == 0 else { return }
        var open = Self.openFiles()
        if rounds == 64 { files = open }
        // The services close what has ended in their own time.
        for _ in 0..<1000 where open > files + 2 {
            usleep(1000)
            open = Self.openFiles()
        }
        Target.require(open <= files + 2, "\(open) open files, \(files) before")
    }

    private static func openFiles() -> Int {
        guard let folder = opendir("/proc/self/fd") else { return 0 }
        defer { closedir(folder) }
        var count = 0
        while readdir(folder) != nil { count += 1 }
        return count
    }

    // MARK: Our client, a hostile service

    private func attach() {
        do throws(TransferError) {
            let peer = try SharedMemoryPeer(connectingTo: Self.hostile, from: Self.served)
            defer { peer.close() }
            Target.require(peer.page.engine == Self.hostile, "another engine's page")
            do throws(TransferError) {
                let remote = RemoteRegion(
                    engine: Self.hostile, device: 0, index: 1, generation: 2, access: .remoteWrite,
                    length: UInt64(FuzzMemory.length), base: 0, secret: 3, nics: [])
                let (mapping, _) = try peer.attach(remote)
                if let mapping {
                    // A writer may use all that the descriptor says.
                    mapping.base.storeBytes(of: 1, toByteOffset: FuzzMemory.length - 1, as: UInt8.self)
                    attachAgain(remote, peer)
                    peer.detach(mappedAt: UInt(bitPattern: mapping.base))
                }
            } catch {}
            let ring = try peer.openRing()
            ring.base.storeBytes(of: 1, toByteOffset: ByteRing.byteCount - 1, as: UInt8.self)
            ring.unmap()
        } catch {}
    }

    /// The same region by a descriptor that says more of it.
    private func attachAgain(_ remote: RemoteRegion, _ peer: SharedMemoryPeer) {
        var longer = remote
        longer.length = 100_000
        guard let mapping = try? peer.attach(longer).mapping else { return }
        mapping.base.storeBytes(of: 1, toByteOffset: 99_999, as: UInt8.self)
        peer.detach(mappedAt: UInt(bitPattern: mapping.base))
    }

    private func serve() {
        while true {
            let connection = te_unix_accept(listener)
            guard connection >= 0 else { return }
            var choices = Choices(input.withLock { $0 })
            while !choices.isEmpty, let (request, files) = ControlPacket.receive(from: connection) {
                for file in files { close(file) }
                reply(to: request, on: connection, &choices)
            }
            close(connection)
        }
    }

    /// Bit 0: a packet of ours to begin with; bits 1 and 2: which files; bit 3: too short; then bytes to change.
    private func reply(to request: ControlPacket, on connection: Int32, _ choices: inout Choices) {
        let what = choices.byte()
        var packet = [UInt8](repeating: 0, count: MemoryLayout<ControlPacket>.size)
        if what & 1 != 0 { packet = withUnsafeBytes(of: ControlPacket(request.kind)) { Array($0) } }
        change(&packet, &choices)
        // Whether we may write into the service's process is found out by writing there: here that is this process.
        if request.kind == ControlPacket.Kind.hello, packet.count >= 56 {
            withUnsafeBytes(of: UInt64(UInt(bitPattern: scratch))) {
                packet.replaceSubrange(48..<56, with: $0)
            }
        }
        if what & 8 != 0 { packet.removeLast(packet.count / 2) }
        let files: [Int32] =
            switch what >> 1 & 3 {
            // A page has 8 GiB of address space: mapped as a region, and populated, it would be memory.
            case 1: [request.kind == ControlPacket.Kind.hello ? hostilePage.file : ring.file, wakeFile]
            case 2: [region.file]
            case 3: [ring.file, wakeFile, region.file]
            default: what & 16 == 0 ? [] : [short.file, wakeFile]
            }
        _ = packet.withUnsafeBytes {
            te_unix_send(connection, $0.baseAddress, $0.count, files, Int32(files.count))
        }
    }

    /// Some places and their new values.
    private func change(_ packet: inout [UInt8], _ choices: inout Choices) {
        for _ in 0..<min(64, choices.byte()) {
            let place = Int(choices.byte())
            let value = choices.byte()
            if place < packet.count { packet[place] = value }
        }
    }

    // MARK: Our service, a hostile client

    private func ask(_ bytes: [UInt8]) {
        let connection = te_unix_connect(SharedMemoryHost.socketName(Self.served))
        guard connection >= 0 else { return }
        defer { close(connection) }
        var choices = Choices(bytes)
        var requests = 0
        while !choices.isEmpty, requests < 4 {
            requests += 1
            let isOurs = choices.byte() & 1 != 0
            var packet = [UInt8](repeating: 0, count: MemoryLayout<ControlPacket>.size)
            if isOurs { packet = withUnsafeBytes(of: ControlPacket(0)) { Array($0) } }
            // Kind, then anything.
            packet[Int(choices.byte() % 64)] = choices.byte()
            change(&packet, &choices)
            if choices.byte() == 0xFF { packet.removeLast(7) }
            let sent = packet.withUnsafeBytes {
                te_unix_send(connection, $0.baseAddress, $0.count, [wakeFile], Int32(requests & 1))
            }
            guard sent == 0, let (reply, files) = ControlPacket.receive(from: connection) else { break }
            for file in files { close(file) }
            Target.require(reply.engine == Self.served.rawValue, "another engine answers")
        }
        for ring in host.takeRingChanges().new { ring.unmap() }
    }
}
