internal import Platform
internal import CPlatform
internal import Synchronization
internal import TransferCore

extension TransferEngine {
    /// Runs `body` on the progress thread and waits for it: for registration, attachment and the like. May block for as
    /// long as the worker is busy with something else.
    func perform<Value>(_ body: (DomainGroup) throws(TransferError) -> Value) throws(TransferError) -> Value {
        if isProgressThread { return try body(group) }
        return try withoutActuallyEscaping(body) { body throws(TransferError) in
            let call = Call(body: body, group: group)
            let box = UnsafeSendable(call)  // `box` is done with before this function returns
            let accepted = control.withLock { control in
                if control.isClosed { return false }
                control.tasks.append { box.value.run() }
                return true
            }
            guard accepted else { throw TransferError(.closed, "the engine has been closed") }
            hasTasks.store(true, ordering: .sequentiallyConsistent)
            wakeIfSleeping()
            call.wait()
            switch call.result {
            case .success(let value): return value
            case .failure(let error): throw error
            case nil: throw TransferError(.closed, "the engine has been closed")
            }
        }
    }

    private final class Call<Value> {
        let body: (DomainGroup) throws(TransferError) -> Value
        let group: DomainGroup
        var result: Result<Value, TransferError>?
        private let isDone = Atomic<UInt32>(0)

        init(body: @escaping (DomainGroup) throws(TransferError) -> Value, group: DomainGroup) {
            self.body = body
            self.group = group
        }

        func run() {
            do throws(TransferError) { result = .success(try body(group)) } catch { result = .failure(error) }
            isDone.store(1, ordering: .releasing)  // pairs with the load in wait()
            withUnsafeAddress(of: isDone) { te_futex_wake($0) }
        }

        func wait() {
            while isDone.load(ordering: .acquiring) == 0 {  // pairs with the store in run()
                withUnsafeAddress(of: isDone) { te_futex_wait($0, 0, 1_000_000) }
            }
        }
    }
}

/// The address of an atomic word, for the kernel.
func withUnsafeAddress(of word: borrowing Atomic<UInt32>, _ body: (UnsafeRawPointer) -> Void) {
    withUnsafePointer(to: word) { body(UnsafeRawPointer($0)) }
}
