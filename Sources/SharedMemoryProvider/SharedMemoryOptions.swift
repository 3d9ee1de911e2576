/// How the shared-memory provider is set up.
public struct SharedMemoryOptions: Hashable, Sendable {
    /// How memory is written that the peer's application allocated by itself, and that cannot be mapped.
    public enum CallerMemory: Hashable, Sendable {
        /// process_vm_writev where the system allows it, otherwise the bounce ring.
        case automatic
        /// Always process_vm_writev; attaching fails where ptrace policy forbids it.
        case processWrite
        /// Always through a ring that the target's engine empties.
        case bounce
    }

    /// How memory is written that cannot be mapped.
    public var callerMemory: CallerMemory
    /// The speed that this NIC claims, in Mbit/s.
    public var megabitsPerSecond: UInt32

    public init(callerMemory: CallerMemory = .automatic, megabitsPerSecond: UInt32 = 100_000) {
        self.callerMemory = callerMemory
        self.megabitsPerSecond = megabitsPerSecond
    }
}
