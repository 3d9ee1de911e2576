/// What a thread has of the object that it works for: no reference, so that the object can end, and with it the thread.
@safe public struct ThreadOwner<Owner: AnyObject>: @unchecked Sendable {
    // SAFETY: whoever makes one keeps the object until the thread has ended, or has it end on the thread, which then does not
    // come back here.
    private let reference: Unmanaged<Owner>

    public init(_ owner: Owner) { unsafe reference = Unmanaged.passUnretained(owner) }

    /// Calls `body` with the object and then lets go of the reference that it returns: if that is the last one, the object ends
    /// here, after everything that `body` did with it.
    public func use(_ body: (Owner) -> Owner?) {
        // By hand, so that it is here and not later.
        unsafe reference._withUnsafeGuaranteedRef { owner in unsafe body(owner).map(Unmanaged.passRetained) }?
            .release()
    }
}
