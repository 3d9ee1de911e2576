internal import Glibc
internal import TransferEngine

/// SHA-256 by coreutils' `sha256sum`: a check of this library should not rest on code of this library.
enum VerifyDigest {
    /// The digest of `bytes` as 64 hexadecimal digits, within `seconds`.
    static func sha256(of bytes: UnsafeRawBufferPointer, within seconds: Double) throws(TransferError)
        -> String
    {
        let tool = try Tool()
        defer { tool.end() }
        let deadline = monotonicSeconds() + seconds
        try tool.feed(bytes, until: deadline)
        let text = try tool.output(until: deadline)
        let digits = text.prefix { $0.isHexDigit }
        guard digits.count == 64 else {
            throw TransferError(.unavailable, "sha256sum answered '\(text)'; is coreutils installed?")
        }
        return String(digits)
    }

    /// A running `sha256sum` that reads from us.
    private final class Tool {
        private var process: pid_t = 0
        private var input: Int32 = -1
        private var output: Int32 = -1

        init() throws(TransferError) {
            var toTool: [Int32] = [-1, -1]
            var fromTool: [Int32] = [-1, -1]
            guard pipe(&toTool) == 0, pipe(&fromTool) == 0 else {
                throw TransferError(.limitReached, "no pipe: error \(errno); raise the limit of open files")
            }
            for file in toTool + fromTool { _ = fcntl(file, F_SETFD, FD_CLOEXEC) }
            var actions = posix_spawn_file_actions_t()
            posix_spawn_file_actions_init(&actions)
            posix_spawn_file_actions_adddup2(&actions, toTool[0], 0)
            posix_spawn_file_actions_adddup2(&actions, fromTool[1], 1)
            var words = [strdup("sha256sum"), nil]
            let failed = posix_spawnp(&process, "sha256sum", &actions, nil, &words, environ)
            free(words[0])
            posix_spawn_file_actions_destroy(&actions)
            Glibc.close(toTool[0])
            Glibc.close(fromTool[1])
            input = toTool[1]
            output = fromTool[0]
            guard failed == 0 else {
                Glibc.close(input)
                Glibc.close(output)
                throw TransferError(
                    .unavailable, "sha256sum does not start (error \(failed)); install coreutils")
            }
            // A write must not block past the deadline.
            _ = fcntl(input, F_SETFL, O_NONBLOCK)
        }

        func feed(_ bytes: UnsafeRawBufferPointer, until deadline: Double) throws(TransferError) {
            var sent = 0
            while sent < bytes.count {
                try wait(for: input, POLLOUT, until: deadline)
                guard let start = bytes.baseAddress else { break }
                let count = write(input, start + sent, min(bytes.count - sent, 1 << 20))
                if count < 0, errno == EAGAIN || errno == EINTR { continue }
                guard count > 0 else {
                    throw TransferError(.peerLost, "sha256sum ended early: error \(errno)")
                }
                sent += count
            }
            Glibc.close(input)
            input = -1
        }

        func output(until deadline: Double) throws(TransferError) -> String {
            var text: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 256)
            while true {
                try wait(for: output, POLLIN, until: deadline)
                let count = read(output, &buffer, buffer.count)
                guard count > 0 else { return String(decoding: text, as: UTF8.self) }
                text.append(contentsOf: buffer.prefix(count))
            }
        }

        /// Kills the tool if it still runs; it has nothing to lose.
        func end() {
            if input >= 0 { Glibc.close(input) }
            Glibc.close(output)
            kill(process, SIGKILL)
            var status: Int32 = 0
            waitpid(process, &status, 0)
        }

        private func wait(for file: Int32, _ event: Int32, until deadline: Double) throws(TransferError) {
            var entry = pollfd(fd: file, events: Int16(event), revents: 0)
            let left = Int32(clamping: Int(max(0, (deadline - monotonicSeconds()) * 1000)))
            guard poll(&entry, 1, left) != 0 else {
                throw TransferError(.stalled, "sha256sum did not finish in time; the machine is overloaded")
            }
        }
    }
}
