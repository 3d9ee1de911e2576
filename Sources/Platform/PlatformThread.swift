internal import CPlatform
internal import Glibc

/// A named thread of the operating system that is joined, or detached by itself.
///
/// Workers are raw threads and not tasks: they spin, they are pinned, and nothing else may run on them.
public final class PlatformThread: @unchecked Sendable {
    // SAFETY: `handle` is written in `init` and read in `join`, which the owner calls once. The new thread gets a retained
    // `Start` and takes it over; when there is no thread, `init` releases it.
    private var handle = pthread_t()
    private var isJoined = false

    private final class Start {
        let name: String
        let cpu: Int?
        let body: @Sendable () -> Void
        init(name: String, cpu: Int?, body: @escaping @Sendable () -> Void) {
            self.name = name
            self.cpu = cpu
            self.body = body
        }
    }

    /// Starts a thread; `name` is cut to 15 characters, `cpu` pins it. Returns nil when the system has no thread left.
    public init?(name: String, cpu: Int? = nil, body: @escaping @Sendable () -> Void) {
        let start = unsafe Unmanaged.passRetained(Start(name: name, cpu: cpu, body: body))
        let failed = unsafe pthread_create(
            &handle, nil,
            { @Sendable argument in
                guard let argument = unsafe argument else { return nil }
                let start = unsafe Unmanaged<Start>.fromOpaque(argument).takeRetainedValue()
                _ = unsafe te_name_thread(String(start.name.prefix(15)))
                if let cpu = start.cpu { _ = te_pin_self(Int32(cpu)) }
                start.body()
                return nil
            }, start.toOpaque())
        guard failed == 0 else {
            unsafe start.release()
            return nil
        }
    }

    /// Waits for the end of the thread. Call it once, from another thread.
    public func join() {
        precondition(!isJoined, "a thread is joined once")
        isJoined = true
        pthread_join(handle, nil)
    }

    /// Says that nobody will wait for the end of the thread. Instead of `join`, on the thread itself.
    public func detach() {
        precondition(!isJoined && pthread_equal(handle, pthread_self()) != 0, "a thread detaches itself")
        isJoined = true
        pthread_detach(handle)
    }

    deinit { precondition(isJoined, "join a thread before dropping it") }

    /// A number that differs between running threads.
    @inline(__always) public static var token: UInt { UInt(te_thread_token()) }
}

/// Processors that this process may use.
public func allowedProcessors() -> [Int] {
    var cpus = [Int32](repeating: 0, count: 1024)
    let count = unsafe te_allowed_cpus(&cpus, Int32(cpus.count))
    return cpus.prefix(max(0, Int(count))).map(Int.init)
}
