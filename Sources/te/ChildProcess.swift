internal import CPlatform
internal import Glibc
internal import Platform
internal import Synchronization
internal import TransferEngine

/// Another process running this very program, spoken to by lines over its standard input and output.
final class ChildProcess {
    private let process: pid_t
    private let toChild: Int32
    private let fromChild: Int32
    private var buffered: [UInt8] = []
    private var hasEnded = false

    /// Starts `te` with `arguments`. The child dies with this process.
    ///
    /// - Parameters:
    ///   - prefix: a command that is to start the child, such as `ip netns exec NAME`. It has to become the child, as
    ///     that one does, and not to have it as a child of its own.
    ///   - file: becomes the child's file `BenchBoard.inheritedFile`.
    init(_ arguments: [String], prefix: [String] = [], inheriting file: Int32? = nil) throws(TransferError) {
        var input: [Int32] = [-1, -1]
        var output: [Int32] = [-1, -1]
        guard pipe(&input) == 0, pipe(&output) == 0 else {
            throw TransferError(.limitReached, "no pipe: error \(errno)")
        }
        for file in input + output { _ = fcntl(file, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        posix_spawn_file_actions_adddup2(&actions, input[0], 0)
        posix_spawn_file_actions_adddup2(&actions, output[1], 1)
        if let file { posix_spawn_file_actions_adddup2(&actions, file, BenchBoard.inheritedFile) }
        // With a prefix, /proc/self would be the prefix's.
        let words = prefix.isEmpty ? ["te"] + arguments : prefix + [ownPath] + arguments
        var pointers = words.map { strdup($0) } + [nil]
        var process: pid_t = 0
        let failed = posix_spawnp(
            &process, prefix.first ?? "/proc/self/exe", &actions, nil, &pointers, environ)
        for pointer in pointers { free(pointer) }
        posix_spawn_file_actions_destroy(&actions)
        Glibc.close(input[0])
        Glibc.close(output[1])
        self.process = process
        toChild = input[1]
        fromChild = output[0]
        guard failed == 0 else {
            throw TransferError(.limitReached, "'\(words[0])' does not start: \(errorText(failed))")
        }
    }

    deinit { end() }

    /// The child's process id.
    var processIdentifier: Int32 { process }

    /// Sends one line.
    func send(_ line: String) throws(TransferError) {
        guard writeLine(line, to: toChild) else {
            throw TransferError(.peerLost, "child \(process) has ended")
        }
    }

    /// Receives one line, waiting at most `seconds`.
    func receive(within seconds: Int = 60) throws(TransferError) -> String {
        let deadline = monotonicSeconds() + Double(seconds)
        while true {
            if let end = buffered.firstIndex(of: 10) {
                defer { buffered.removeFirst(end + 1) }
                return String(decoding: buffered[..<end], as: UTF8.self)
            }
            var poll = pollfd(fd: fromChild, events: Int16(POLLIN), revents: 0)
            let left = Int32(max(0, (deadline - monotonicSeconds()) * 1000))
            guard Glibc.poll(&poll, 1, left) != 0 else {
                throw TransferError(.stalled, "child \(process) said nothing for \(seconds) s")
            }
            var bytes = [UInt8](repeating: 0, count: 65536)
            let count = read(fromChild, &bytes, bytes.count)
            guard count > 0 else { throw TransferError(.peerLost, "child \(process) has ended") }
            buffered.append(contentsOf: bytes.prefix(count))
        }
    }

    /// Ends the child without a word, as a machine that fails does.
    func endAtOnce() {
        guard !hasEnded else { return }
        hasEnded = true
        kill(process, SIGKILL)
        Glibc.close(toChild)
        Glibc.close(fromChild)
        var status: Int32 = 0
        waitpid(process, &status, 0)
    }

    /// Lets the child end: closes its input, waits two seconds, then kills it.
    func end() {
        guard !hasEnded else { return }
        hasEnded = true
        Glibc.close(toChild)
        Glibc.close(fromChild)
        var status: Int32 = 0
        for _ in 0..<2000 {
            if waitpid(process, &status, WNOHANG) != 0 { return }
            usleep(1000)
        }
        kill(process, SIGKILL)
        waitpid(process, &status, 0)
    }
}

/// What the parent says to a child that has other things to do, read by a thread of its own. The child ends when the parent has.
final class ChildLines: Sendable {
    private let waiting = Mutex<[String]>([])
    private static let threads = Mutex<[PlatformThread]>([])

    init() {
        let thread = PlatformThread(name: "te-lines") { [self] in
            while let line = readLine() { waiting.withLock { $0.append(line) } }
            exit(0)
        }
        Self.threads.withLock { threads in if let thread { threads.append(thread) } }
    }

    /// Somebody else has something to say.
    func add(_ line: String) { waiting.withLock { $0.append(line) } }

    /// The oldest line that has not been taken.
    func next() -> String? { waiting.withLock { $0.isEmpty ? nil : $0.removeFirst() } }
}

/// The path of this program.
var ownPath: String {
    guard let path = realpath("/proc/self/exe", nil) else { return "/proc/self/exe" }
    defer { free(path) }
    return String(cString: path)
}

/// Writes one line and a newline; false when nobody reads any more.
func writeLine(_ line: String, to file: Int32) -> Bool {
    var bytes = Array((line + "\n").utf8)[...]
    while !bytes.isEmpty {
        let count = bytes.withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
        guard count > 0 else { return false }
        bytes = bytes.dropFirst(count)
    }
    return true
}

/// Seconds of the monotonic clock.
func monotonicSeconds() -> Double { Double(te_monotonic_nanoseconds()) * 1e-9 }

/// Bytes as hexadecimal digits, for the lines between parent and child.
func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// Reads what `hexadecimal` wrote; nil when it is something else.
func bytes(hexadecimal text: some StringProtocol) -> [UInt8]? {
    let digits = Array(text.utf8)
    guard digits.count % 2 == 0 else { return nil }
    var result: [UInt8] = []
    for index in stride(from: 0, to: digits.count, by: 2) {
        guard let byte = UInt8(String(decoding: digits[index...index + 1], as: UTF8.self), radix: 16) else {
            return nil
        }
        result.append(byte)
    }
    return result
}
