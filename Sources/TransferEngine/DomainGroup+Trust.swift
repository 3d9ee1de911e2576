internal import CPlatform
internal import Platform
internal import Synchronization
public import TransferCore

// Whose word is taken. Without a cluster key nothing here costs anything.
extension DomainGroup {
    /// Nanoseconds since 1970; the time of the simulation where time is simulated.
    var wallNanoseconds: UInt64 { clock is SystemClock ? te_wall_nanoseconds() : clock.nowNanoseconds }

    /// The message with its trailer, if there is a key.
    func sealed(_ message: [UInt8], to receiver: EngineID) -> [UInt8] {
        guard let authenticator else { return message }
        var message = message
        message[ControlMessage.sealMark.place] = ControlMessage.sealMark.value
        return message + authenticator.trailer(of: message.span, to: receiver)
    }

    /// Seals the caller's message, once: it may be offered to a NIC several times.
    func seal(_ slot: inout TransferSlot) {
        guard let authenticator, slot.message[ControlMessage.sealMark.place] != ControlMessage.sealMark.value,
            let link = links.all[Int(attachments[slot.attachment].links[0])]
        else { return }
        slot.message[ControlMessage.sealMark.place] = ControlMessage.sealMark.value
        let length = slot.length
        let trailer = authenticator.trailer(
            of: slot.message.span.extracting(first: length), to: link.peer.engine)
        for (place, byte) in trailer.enumerated() { slot.message[length + place] = byte }
        slot.length = length + trailer.count
    }

    /// Checks that a message may be taken. Returns its bytes before the trailer.
    func check(_ message: Span<UInt8>, from sender: EngineID) throws(TransferError) -> Int {
        guard ControlMessage.kind(of: message) != nil else {
            throw TransferError(
                .malformedDescriptor, "engine \(sender) sent what no engine of this version sends")
        }
        switch (authenticator, ControlMessage.isSealed(message)) {
        case (nil, false): return message.count
        case (let authenticator?, true): return try authenticator.check(message, from: sender)
        case (nil, true):
            throw TransferError(
                .unauthenticated,
                "engine \(sender) has a cluster key and \(engineName) has none; give it the same key")
        case (_?, false):
            throw TransferError(
                .unauthenticated,
                "engine \(sender) signs nothing and \(engineName) has a cluster key; give it the same key")
        }
    }

    // MARK: Expiry

    /// Ends an attachment's use once its descriptor's time is over.
    func expire(_ attachment: UInt32, after nanoseconds: UInt64) {
        let (at, overflow) = clock.nowNanoseconds.addingReportingOverflow(nanoseconds)
        guard !overflow else { return }
        hot.value.expiring.append((attachment, attachments[attachment].generation, at))
    }

    /// Attachments whose time is over: what has begun goes on, nothing new begins.
    func expireAttachments() {
        hot.value.expiring.removeAll { entry in
            guard entry.at <= hot.value.now else { return false }
            attachments[entry.attachment].expiredGeneration = entry.generation
            attachments[entry.attachment].generation = .max
            return true
        }
    }
}

/// Messages that an engine did not take: nobody waits for them, so nobody is told by an error.
public struct RefusedMessages: Hashable, Sendable {
    /// How many, by reason: `unauthenticated`, `forged`, `replayed`, `malformedDescriptor`, `limitReached`.
    public private(set) var counts: [TransferError.Code: Int] = [:]
    /// Why the latest one was not taken, and what to do.
    public private(set) var latest: TransferError?

    /// Of all reasons.
    public var total: Int { counts.values.reduce(0, +) }

    mutating func note(_ error: TransferError) {
        counts[error.code, default: 0] += 1
        latest = error
    }
}

extension TransferEngine {
    /// Messages of others that were not taken since the engine was opened. From any thread.
    public var refusedMessages: RefusedMessages { group.refused.withLock { $0 } }
}
