#if HTTP
    internal import ArgumentParser
    internal import CPlatform
    internal import EtcdDirectory
    internal import FoundationEssentials
    internal import Glibc
    internal import Platform
    internal import Synchronization
    internal import TransferDirectory
    internal import TransferEngine

    /// An etcd of one member for `te kv soak`, which is killed and started again while requests run.
    final class KVSoakEtcd {
        private let folder = "/tmp/te-soak-etcd-\(getpid())"
        private let ports: (client: UInt16, peer: UInt16)
        private var child: ChildProcess?
        /// How often it was killed, and how often it had lost its data when it came back.
        private(set) var kills = 0
        private(set) var losses = 0

        var endpoint: String { "http://127.0.0.1:\(ports.client)" }

        init() throws {
            ports = (try Self.freePort(), try Self.freePort())
            try start()
        }

        deinit {
            child?.endAtOnce()
            try? FileManager.default.removeItem(atPath: folder)
        }

        func start() throws {
            guard child == nil else { return }
            let child = try ChildProcess([
                "kv-soak-etcd", "--folder", folder, "--client", String(ports.client), "--peer",
                String(ports.peer),
            ])
            // Its output ends when it has become etcd.
            if let complaint = try? child.receive() { throw TransferError(.unavailable, complaint) }
            self.child = child
        }

        /// Kills it, now and then with its data, or brings it back.
        func disturb(_ random: inout SeededGenerator) throws {
            guard let running = child else {
                if Bool.random(using: &random) { try start() }
                return
            }
            guard Int.random(in: 0..<4, using: &random) == 0 else { return }
            running.endAtOnce()
            child = nil
            kills += 1
            guard Int.random(in: 0..<3, using: &random) == 0 else { return }
            losses += 1
            try FileManager.default.removeItem(atPath: folder)
        }

        private static func freePort() throws -> UInt16 {
            let file = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
            defer { close(file) }
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
            var length = socklen_t(MemoryLayout<sockaddr_in>.size)
            let isBound = withUnsafeMutablePointer(to: &address) { pointer in
                pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    bind(file, $0, length) == 0 && getsockname(file, $0, &length) == 0
                }
            }
            guard isBound else { throw TransferError(.unavailable, "no port is free: \(errorText(errno))") }
            return UInt16(bigEndian: address.sin_port)
        }

        // MARK: In the nodes

        /// What has been announced stays so as long as its directory lives.
        private static let announced = Mutex<[EtcdDirectory]>([])

        /// Keeps a prefiller announced, whether etcd is there or not.
        static func announce(_ name: String, _ address: EngineAddress, _ endpoint: String) throws {
            let directory = try EtcdDirectory(endpoints: [endpoint], timeToLive: .seconds(2))
            Task.detached {
                let entry = DirectoryEntry(name: name, role: .prefiller, address: address)
                while (try? await directory.announce(entry)) == nil {
                    try? await Task.sleep(for: .milliseconds(200))
                }
                announced.withLock { $0.append(directory) }
            }
        }

        /// Gives `lines` the addresses of prefillers that come, and with a minus those of prefillers that have left.
        static func follow(_ endpoint: String, _ lines: ChildLines) throws {
            let directory = try EtcdDirectory(endpoints: [endpoint], timeToLive: .seconds(2))
            Task.detached {
                for await change in directory.changes(every: .milliseconds(100)) {
                    for entry in change.left { lines.add("-" + hexadecimal(entry.address.encoded())) }
                    for entry in change.joined { lines.add(hexadecimal(entry.address.encoded())) }
                }
            }
        }
    }

    /// Becomes etcd. A process of its own, so that it ends with `te kv soak`.
    struct KVSoakEtcdNode: ParsableCommand {
        static let configuration = CommandConfiguration(commandName: "kv-soak-etcd", shouldDisplay: false)

        @Option var folder: String
        @Option var client: String
        @Option var peer: String

        func run() throws {
            _ = te_die_with_parent()
            let (client, peer) = ("http://127.0.0.1:" + client, "http://127.0.0.1:" + peer)
            let arguments = [
                "etcd", "--name", "soak", "--data-dir", folder, "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls",
                peer, "--initial-cluster", "soak=" + peer,
            ]
            let words = arguments.map { strdup($0) } + [nil]
            let parent = fcntl(1, F_DUPFD_CLOEXEC, 3)
            let nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC)
            dup2(nowhere, 1)
            dup2(nowhere, 2)
            execvp("etcd", words)
            _ = writeLine("etcd does not start: \(errorText(errno)); apt-get install etcd-server", to: parent)
            throw ExitCode(1)
        }
    }
#endif
