#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

/// What one thread is to do.
private final class Job: Sendable {
    let number: Int
    let body: @Sendable (Int) -> Void

    init(number: Int, body: @escaping @Sendable (Int) -> Void) {
        self.number = number
        self.body = body
    }
}

/// Runs `body` on `count` threads at once and waits for all of them.
///
/// Tasks have no more threads than there are cores, so that they are rarely interrupted in the middle of an
/// operation. More threads than cores are, and that is when algorithms without locks go wrong.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    var threads: [pthread_t] = []
    for number in 0..<count {
        let job = Unmanaged.passRetained(Job(number: number, body: body))
        #if canImport(Darwin)
            var thread: pthread_t?
            let status = pthread_create(&thread, nil, { run($0) }, job.toOpaque())
            guard status == 0, let thread else { preconditionFailure("no thread: \(status)") }
        #else
            var thread = pthread_t()
            let status = pthread_create(&thread, nil, { run($0) }, job.toOpaque())
            precondition(status == 0, "no thread: \(status)")
        #endif
        threads.append(thread)
    }
    for thread in threads { pthread_join(thread, nil) }
}

private func run(_ context: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
    if let context {
        let job = Unmanaged<Job>.fromOpaque(context).takeRetainedValue()
        job.body(job.number)
    }
    return nil
}
