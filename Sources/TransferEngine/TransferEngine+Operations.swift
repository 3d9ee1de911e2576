internal import Synchronization
public import TransferCore

// Every operation: validate, fill a slot, hand it over. A bad argument is an error here, before anything is sent.
extension TransferEngine {
    /// Writes one contiguous range; the receiver counts `immediate` once, over however many NICs the bytes go.
    ///
    /// 0 bytes are allowed: with an immediate they are just that.
    /// - Parameters:
    ///   - source: A registered region of this engine, which must stay unchanged until the transfer ends.
    ///   - sourceOffset: First byte within the source.
    ///   - byteCount: Bytes; the source and the target have that many.
    ///   - target: An attached region of a peer.
    ///   - targetOffset: First byte within the target.
    ///   - immediate: What the receiver counts; nil is nothing.
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
        let attachment = try attachment(from: source, to: target)
        if byteCount == 0, immediate == nil, onEnd == nil { return .complete }
        if onEnd == nil, isProgressThread,
            doAtOnce(
                source: source.address + UInt(sourceOffset), source.index, byteCount, attachment,
                targetOffset,
                immediate, leastStriped: 2 * group.planner.stripeBytes, sentBytes: byteCount,
                start: { $0.post(firstOf: group.batch) })
        {
            return .complete
        }
        return try submit(.write, immediate, timeout, onEnd) { slot in
            slot.sourceOffset = sourceOffset
            slot.localIndex = source.index
            slot.attachment = attachment
            slot.length = byteCount
            slot.targetOffset = targetOffset
            slot.targetCount = 1
        }
    }

    /// Makes the bytes of a write where they are to lie, in place of making them here and copying them; the receiver counts
    /// `immediate` once, and sees the bytes then.
    ///
    /// `body` gets the address of the target's byte `targetOffset` in this process, and has `spanBytes` bytes there until it
    /// returns. It writes `byteCount` of them, must not call the engine, and may write past the cache. Complete when this
    /// returns. What is counted as sent is `byteCount`.
    /// - Returns: Whether `body` was called. Not where the peer's memory is not mapped in this process (it is on another host, or
    ///   the caller's own) or has been revoked, on another thread than the one that makes progress, and while writes wait
    ///   in line: make the bytes in a region then, and write them from there.
    /// - Throws: what is wrong with the arguments, as `write` does.
    /// - Complexity: O(1), and that of `body`.
    package func write(
        byteCount: Int, spanBytes: Int, to target: RemoteMemory, targetOffset: Int, immediate: Immediate,
        making body: (UnsafeMutableRawPointer) -> Void
    ) throws(TransferError) -> Bool {
        try check(target, targetOffset, spanBytes)
        guard isProgressThread else { return false }
        // As for a write without data: nothing is read.
        return doAtOnce(
            source: group.regions[0].base, 0, spanBytes, target.index, targetOffset, immediate,
            leastStriped: .max, sentBytes: byteCount,
            start: { unsafe $0.fill(firstOf: group.batch, body) })
    }

    /// Sends an immediate without data to whoever owns `target`.
    @discardableResult
    public func send(
        immediate: Immediate, to target: RemoteMemory, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        try check(target)
        return try submit(.write, immediate, timeout, onEnd) { slot in
            slot.sourceOffset = 0
            slot.localIndex = 0
            slot.attachment = target.index
            slot.length = 0
            slot.targetOffset = 0
            slot.targetCount = 1
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
    /// - Parameters:
    ///   - pageBytes: Bytes of one page, on both sides.
    ///   - source: A registered region of this engine, which must stay unchanged until the transfer ends.
    ///   - sourcePages: Where the pages come from.
    ///   - target: An attached region of a peer.
    ///   - targetPages: Where they go.
    ///   - immediate: What the receiver counts for each page; nil is nothing.
    ///   - timeout: How long the transfer may take; nil is the engine's default.
    ///   - onEnd: Called once, when all pages have been written or one has failed.
    /// - Complexity: O(pages).
    @discardableResult
    public func write(
        pageBytes: Int, from source: MemoryRegion, pages sourcePages: Pages, to target: RemoteMemory,
        pages targetPages: Pages, immediate: Immediate? = nil, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        let count = sourcePages.count
        guard count == targetPages.count else {
            throw TransferError(
                .invalidArgument, "\(count) source pages but \(targetPages.count) target pages")
        }
        guard count <= Limits.pages else {
            throw TransferError(.limitReached, "\(count) pages in one write; at most \(Limits.pages)")
        }
        try check(source, 0, 0)
        try check(target, 0, 0)
        try check(sourcePages, pageBytes, source.byteCount, "source")
        try check(targetPages, pageBytes, target.byteCount, "target")
        let attachment = try attachment(from: source, to: target)
        let posts = immediate != nil || pageBytes > 0
        return try submit(.paged, immediate, timeout, onEnd) { slot in
            slot.sourceOffset = sourcePages.offset
            slot.localIndex = source.index
            slot.attachment = attachment
            slot.length = pageBytes
            slot.targetOffset = targetPages.offset
            slot.sourceStride = sourcePages.stride
            slot.targetStride = targetPages.stride
            // The caller lends the lists until `submit` returns; by then the slot has copied what it still needs.
            if posts { unsafe slot.pages.borrow(sourcePages.indices, targetPages.indices) }
        }
    }

    /// Writes one slice to each member of a group; each receiver counts `immediate` once.
    /// - Parameters:
    ///   - source: A registered region of this engine, which must stay unchanged until the transfer ends.
    ///   - slices: As many as the group has members, in its order.
    ///   - group: The targets.
    ///   - immediate: What each receiver counts; nil is nothing.
    ///   - timeout: How long the transfer may take; nil is the engine's default.
    ///   - onEnd: Called once, when all slices have been written or one has failed.
    /// - Complexity: O(members).
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
            _ = try attachment(from: source, to: group.members[index])
        }
        return try submit(.scatter, immediate, timeout, onEnd) { slot in
            slot.localIndex = source.index
            slot.reserveTargets(slices.count)
            for index in slices.indices {
                let slice = slices[index]
                slot.targets[index] = ScatterTarget(
                    attachment: self.group.attachment(from: source.index, to: group.members[index].index),
                    number: UInt16(truncatingIfNeeded: index),
                    sourceOffset: slice.sourceOffset,
                    length: slice.byteCount, targetOffset: slice.targetOffset)
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
            slot.localIndex = 0
            slot.reserveTargets(group.members.count)
            for index in group.members.indices {
                slot.targets[index] = ScatterTarget(
                    attachment: group.members[index].index, number: UInt16(truncatingIfNeeded: index))
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
            slot.attachment = peer.landing.index
            unsafe slot.keepMessage(payload)
        }
    }

    /// Sends a small message.
    @discardableResult
    public func send(
        _ payload: some Collection<UInt8>, to peer: Peer, timeout: Duration? = nil,
        onEnd: TransferCallback? = nil
    ) throws(TransferError) -> Transfer {
        let bytes = Array(payload)
        let result = unsafe bytes.withUnsafeBytes { bytes -> Result<Transfer, TransferError> in
            do throws(TransferError) {
                return .success(try unsafe send(bytes, to: peer, timeout: timeout, onEnd: onEnd))
            } catch {
                return .failure(error)
            }
        }
        return try result.get()
    }

    /// Opens the receive pool: from now on `handler` gets every message, also those that came before.
    public func receive(_ handler: @escaping MessageHandler) throws(TransferError) {
        try perform { group throws(TransferError) in unsafe group.messages.open(handler) }
    }

    /// Opens the receive pool to a receiver that has room for so many messages only. While `isReady` is false senders are
    /// pushed back, as they are before there is a pool; it is asked on the progress thread between polls of the NICs.
    package func receive(
        while isReady: @escaping @Sendable () -> Bool, _ handler: @escaping MessageHandler
    ) throws(TransferError) {
        try perform { group throws(TransferError) in unsafe group.messages.open(handler, while: isReady) }
    }
}
