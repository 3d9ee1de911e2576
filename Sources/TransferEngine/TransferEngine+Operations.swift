internal import Synchronization
public import TransferCore

// Every operation: validate, fill a slot, hand it over. A bad argument is an error here, before anything is sent.
extension TransferEngine {
    /// Writes one contiguous range; the receiver counts `immediate` once, over however many NICs the bytes go.
    ///
    /// 0 bytes are allowed: with an immediate they are just that.
    /// - Parameters:
    ///   - source: A registered region of this engine, which must stay unchanged until the transfer ends.
    ///   - timeout: How long the transfer may take; nil is the engine's default.
    ///   - onEnd: Called once, never from inside this method.
    /// - Throws: `outOfRange`, `accessDenied`, `staleRegion` for arguments that cannot work; `backPressure` when
    ///   `Limits.transfers` are in flight: make progress and submit again.
    /// - Complexity: O(1) to submit, apart from NICs that copy while they post.
    @discardableResult
    public func write(
        from source: MemoryRegion, sourceOffset: Int = 0, byteCount: Int, to target: RemoteMemory,
        targetOffset: Int = 0, immediate: Immediate? = nil, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try check(source, sourceOffset, byteCount)
        try check(target, targetOffset, byteCount)
        if byteCount == 0, immediate == nil, onEnd == nil { return .complete }
        if onEnd == nil, isProgressThread,
            postAtOnce(source, sourceOffset, byteCount, target, targetOffset, immediate)
        {
            return .complete
        }
        return try submit(.write, immediate, timeout, onEnd) { slot in
            slot.pointee.source = UnsafeRawPointer(source.baseAddress + sourceOffset)
            slot.pointee.localIndex = source.index
            slot.pointee.attachment = target.index
            slot.pointee.length = byteCount
            slot.pointee.targetOffset = targetOffset
            slot.pointee.targetCount = 1
        }
    }

    /// Sends an immediate without data to whoever owns `target`.
    @discardableResult
    public func send(
        immediate: Immediate, to target: RemoteMemory, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try check(target)
        return try submit(.write, immediate, timeout, onEnd) { slot in
            slot.pointee.source = nil
            slot.pointee.localIndex = 0
            slot.pointee.attachment = target.index
            slot.pointee.length = 0
            slot.pointee.targetOffset = 0
            slot.pointee.targetCount = 1
        }
    }

    /// Sends an immediate without data to a peer.
    @discardableResult
    public func send(
        immediate: Immediate, to peer: Peer, timeout: Duration? = nil, onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try send(immediate: immediate, to: peer.landing, timeout: timeout, onEnd: onEnd)
    }

    /// Copies pages of `pageBytes` from `sourcePages` of `source` to `targetPages` of `target`, in any order; the receiver
    /// counts `immediate` once for each page.
    ///
    /// The lists are equally long; page numbers may repeat. No pages is a transfer that ends at once.
    /// - Complexity: O(pages).
    @discardableResult
    public func write(
        pageBytes: Int, from source: MemoryRegion, pages sourcePages: Pages, to target: RemoteMemory,
        pages targetPages: Pages, immediate: Immediate? = nil, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        let count = sourcePages.indices.count
        guard count == targetPages.indices.count else {
            throw TransferError(
                .invalidArgument, "\(count) source pages but \(targetPages.indices.count) target pages")
        }
        guard count <= Limits.pages else {
            throw TransferError(.limitReached, "\(count) pages in one write; at most \(Limits.pages)")
        }
        try check(source, 0, 0)
        try check(target, 0, 0)
        try check(sourcePages, pageBytes, source.byteCount, "source")
        try check(targetPages, pageBytes, target.byteCount, "target")
        let posts = immediate != nil || pageBytes > 0
        return try submit(.paged, immediate, timeout, onEnd) { slot in
            slot.pointee.source = UnsafeRawPointer(source.baseAddress + sourcePages.offset)
            slot.pointee.localIndex = source.index
            slot.pointee.attachment = target.index
            slot.pointee.length = pageBytes
            slot.pointee.targetOffset = targetPages.offset
            slot.pointee.pageCount = posts ? count : 0
            slot.pointee.sourceStride = sourcePages.stride
            slot.pointee.targetStride = targetPages.stride
            slot.pointee.sourcePages = sourcePages.indices.baseAddress
            slot.pointee.targetPages = targetPages.indices.baseAddress
        }
    }

    /// Writes one slice to each member of a group; each receiver counts `immediate` once.
    /// - Parameter slices: As many as the group has members, in its order.
    @discardableResult
    public func scatter(
        from source: MemoryRegion, _ slices: [ScatterSlice], to group: PeerGroup, immediate: Immediate? = nil,
        timeout: Duration? = nil, onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        guard slices.count == group.members.count else {
            throw TransferError(
                .invalidArgument, "\(slices.count) slices for a group of \(group.members.count)")
        }
        try check(source, 0, 0)
        for index in slices.indices {
            try check(source, slices[index].sourceOffset, slices[index].byteCount)
            try check(group.members[index], slices[index].targetOffset, slices[index].byteCount)
        }
        return try submit(.scatter, immediate, timeout, onEnd) { slot in
            slot.pointee.localIndex = source.index
            let targets = slot.pointee.reserveTargets(slices.count)
            for index in slices.indices {
                let slice = slices[index]
                (targets + index).initialize(
                    to: ScatterTarget(
                        attachment: group.members[index].index,
                        source: UnsafeRawPointer(source.baseAddress + slice.sourceOffset),
                        length: slice.byteCount,
                        targetOffset: slice.targetOffset))
            }
        }
    }

    /// Writes one slice to each of some regions that are no group; each receiver counts `immediate` once.
    @discardableResult
    public func scatter(
        from source: MemoryRegion, _ slices: [(slice: ScatterSlice, target: RemoteMemory)],
        immediate: Immediate? = nil, timeout: Duration? = nil, onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try scatter(
            from: source, slices.map(\.slice), to: PeerGroup(slices.map(\.target)), immediate: immediate,
            timeout: timeout, onEnd: onEnd)
    }

    /// Meets the other members of a group: sends each an immediate, and ends when as many have been counted here.
    ///
    /// Every member calls it with a group of all others and the same immediate. Not a collective: nothing is agreed upon but
    /// that everybody has come.
    @discardableResult
    public func barrier(
        _ group: PeerGroup, immediate: Immediate, timeout: Duration? = nil, onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        for member in group.members { try check(member) }
        return try submit(.barrier, immediate, timeout, onEnd) { slot in
            slot.pointee.localIndex = 0
            let targets = slot.pointee.reserveTargets(group.members.count)
            for index in group.members.indices {
                (targets + index).initialize(
                    to: ScatterTarget(
                        attachment: group.members[index].index, source: UnsafeRawPointer(self.group.batch),
                        length: 0, targetOffset: 0))
            }
        }
    }

    /// Sends a small message, which the peer's receive pool gets whole. The payload is copied before this returns.
    /// - Throws: `outOfRange` above `Limits.messageBytes`.
    @discardableResult
    public func send(
        _ payload: UnsafeRawBufferPointer, to peer: Peer, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try check(peer.landing)
        guard payload.count <= Limits.messageBytes else {
            throw TransferError(
                .outOfRange,
                "a message of \(payload.count) bytes; at most \(Limits.messageBytes), write larger data")
        }
        return try submit(.send, nil, timeout, onEnd) { slot in
            slot.pointee.attachment = peer.landing.index
            slot.pointee.length = payload.count
            let copy = slot.pointee.reserveScratch(Limits.messageBytes)
            if let bytes = payload.baseAddress { copy.copyMemory(from: bytes, byteCount: payload.count) }
        }
    }

    /// Sends a small message.
    @discardableResult
    public func send(
        _ payload: some Collection<UInt8>, to peer: Peer, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        let bytes = Array(payload)
        let result = bytes.withUnsafeBytes { bytes -> Result<Transfer, TransferError> in
            do throws(TransferError) {
                return .success(try send(bytes, to: peer, timeout: timeout, onEnd: onEnd))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Opens the receive pool: from now on `handler` gets every message, also those that came before.
    public func receive(_ handler: @escaping MessageHandler) throws(TransferError) {
        try perform { group throws(TransferError) in group.messages.open(handler) }
    }
}
