internal import CPlatform
internal import Platform
internal import Synchronization
internal import TransferCore

extension TransferEngine {
    /// Runs `body` on the progress thread and waits for it: for registration, attachment and the like. May block for as
    /// long as the worker is busy with something else.
    func perform<Value>(
        _ body: @escaping (DomainGroup) throws(TransferError) -> Value
    ) throws(TransferError) -> Value {
        if isProgressThread {
            // With manual progress nobody else can close the engine meanwhile.
            guard !isStopping.load(ordering: .relaxed) || !isManual else { throw .engineClosed }
            stirIfResting()
            return try body(group)
        }
        let call = Call(body: body, group: group)
        let box = UnsafeSendable(call)  // this thread only waits until the worker is done with it
        let isAccepted = control.withLock { control in
            if control.isClosed { return false }
            control.tasks.append { box.value.run() }
            return true
        }
        guard isAccepted else { throw .engineClosed }
        hasTasks.store(true, ordering: .sequentiallyConsistent)
        wakeIfSleeping()
        call.gate.wait()
        guard let result = call.result else { throw .engineClosed }
        return try result.get()
    }

    private final class Call<Value> {
        let gate = Gate()
        private(set) var result: Result<Value, TransferError>?
        private let body: (DomainGroup) throws(TransferError) -> Value
        private let group: DomainGroup

        init(body: @escaping (DomainGroup) throws(TransferError) -> Value, group: DomainGroup) {
            self.body = body
            self.group = group
        }

        func run() {
            do throws(TransferError) { result = .success(try body(group)) } catch { result = .failure(error) }
            gate.open()
        }
    }
}

/// Something to sleep on until another thread opens it, once.
final class Gate: Sendable {
    // The kernel only compares and reports; the word lives as long as the gate, which both sides keep.
    private let word = Atomic<UInt32>(0)

    func open() {
        word.store(1, ordering: .releasing)  // pairs with the load in wait()
        unsafe withUnsafePointer(to: word) { unsafe te_futex_wake($0) }
    }

    /// The kernel is asked again every millisecond, so that a missed wake-up costs a millisecond and not a hang.
    func wait() {
        while word.load(ordering: .acquiring) == 0 {  // pairs with the store in open()
            unsafe withUnsafePointer(to: word) { unsafe te_futex_wait($0, 0, 1_000_000) }
        }
    }
}

extension TransferError {
    static let engineClosed = TransferError(.closed, "the engine has been closed")
}
