import CLibfabric
import TransferCore

/// What libfabric hands back with a completion: one for each operation that may be in flight, at a fixed
/// place.
///
/// Providers may use the first bytes as they like while the operation is in flight (FI_CONTEXT2), hence the
/// order.
struct OperationSlot {
    var scratch: fi_context2
    /// The engine's context of a write.
    var context: UInt64
    /// The target of a write, for the record that counts it.
    var target: UnsafePointer<ImportedKey>?
    var offset: UInt64
    var immediate: UInt32
    /// Eighths that a record has to count once the write is complete; 0 when the immediate does.
    var eighths: UInt32
    var peer: Int32
    /// Whether the receiver's acknowledgement ends the write, not libfabric's completion.
    var isCounted = false
    /// Whether it was given to the reverse endpoint.
    var isReverse = false
    /// Whether a record in a frame reports a counted write.
    var hasRecord = false
    /// Whether libfabric has it, and whether a counted write has ended and has been reported.
    var isPosted = false
    var isReported = false
    var status = WorkStatus.success
    var detail: Int32 = 0
    /// Of a counted write that was lost: what the peer calls what was lost with it, or 0.
    var connection: UInt64 = 0
    /// Bytes of a counted write.
    var length = 0
    /// Which part of its transfer a write is.
    var tag = RequestTag(rawValue: 0)
    /// Next in a free list or a queue, or -1.
    var next: Int32
    /// The peer's epoch when a frame was sent, or the epoch and number of a frame that came; a counted write's number.
    var epoch: UInt32
    var sequence: UInt32 = 0
}

/// Consecutive records of a frame with the same context.
struct ContextRun {
    var context: UInt64
    var count: UInt32
}

/// A frame being filled, on its way, or acknowledged and being reported.
struct SendFrame {
    var bytes: UnsafeMutableRawPointer
    var runs: UnsafeMutablePointer<ContextRun>
    var failures: UnsafeMutablePointer<FrameFailure>
    /// Which part of its transfer each record is; `noTag` for messages.
    var tags: UnsafeMutablePointer<RequestTag>
    var used = 0
    var runCount = 0
    var failureCount = 0
    var recordCount: UInt32 = 0
    var sequence: UInt32 = 0
    /// Reported so far: runs, records of the current run, records in all, failures.
    var reportedRuns = 0
    var reportedOfRun: UInt32 = 0
    var reportedRecords: UInt32 = 0
    var reportedFailures = 0
    var detail: Int32 = 0
    /// Whether libfabric still has the buffer.
    var isPosted = false
    /// Whether all completions have been handed out.
    var isReported = false
    /// Whether it was lost with its connection, and then what the peer calls that; 0 for a frame that was never sent.
    var isLost = false
    var connection: UInt64 = 0
    var next: Int32 = -1

    /// The tag of what cannot be made again.
    static let noTag = RequestTag(rawValue: .max)

    /// Makes the frame empty; `start` bytes are left for the header.
    mutating func reset(start: Int) {
        used = start
        runCount = 0
        failureCount = 0
        recordCount = 0
        reportedRuns = 0
        reportedOfRun = 0
        reportedRecords = 0
        reportedFailures = 0
        detail = 0
        isPosted = false
        isReported = false
        isLost = false
        next = -1
    }

    /// Notes one more record.
    @inline(__always) mutating func note(_ context: UInt64, _ tag: RequestTag) {
        tags[Int(recordCount)] = tag
        recordCount += 1
        if runCount > 0, runs[runCount - 1].context == context {
            runs[runCount - 1].count += 1
        } else {
            runs[runCount] = ContextRun(context: context, count: 1)
            runCount += 1
        }
    }

    /// Marks records as failed. A peer decides what arrives here: ranges that make no sense are dropped.
    mutating func fail(_ failure: FrameFailure) {
        guard failure.count > 0, failure.first < recordCount, failureCount < Tuning.recordsPerFrame else {
            return
        }
        if failureCount > 0 {
            let last = failures[failureCount - 1]
            guard failure.first >= last.first + last.count else { return }
        }
        failures[failureCount] = failure
        failures[failureCount].count = min(failure.count, recordCount - failure.first)
        failureCount += 1
    }

    /// Marks all records as failed. `connection` says of which frames it is one; nil when it was never sent.
    mutating func failAll(_ status: WorkStatus, detail: Int32, connection: FabricConnection?) {
        isLost = true
        self.connection = connection?.rawValue ?? 0
        failureCount = 1
        self.detail = detail
        failures[0] = FrameFailure(
            sequence: sequence, first: 0, count: recordCount, status: UInt32(status.rawValue))
    }

    /// The next record of a frame that was lost, or nil when all have been reported.
    mutating func takeLost() -> Completion? {
        guard reportedRuns < runCount else { return nil }
        var completion = Completion(
            context: runs[reportedRuns].context, count: 1,
            status: WorkStatus(rawValue: UInt8(truncatingIfNeeded: failures[0].status)) ?? .providerFailed,
            detail: detail)
        completion.tag = tags[Int(reportedRecords)]
        if completion.tag != Self.noTag {
            let ordinal = UInt64(sequence) << FabricConnection.recordBits | UInt64(reportedRecords)
            completion.delivery =
                connection == 0 ? .never : .unsettled(connection: connection, ordinal: ordinal)
        }
        reportedRecords += 1
        reportedOfRun += 1
        if reportedOfRun == runs[reportedRuns].count {
            reportedRuns += 1
            reportedOfRun = 0
        }
        return completion
    }

    /// The next records of one context that ended the same way, or nil when all have been reported.
    mutating func takeReport() -> Completion? {
        guard reportedRuns < runCount else { return nil }
        let run = runs[reportedRuns]
        var count = run.count - reportedOfRun
        var status = WorkStatus.success
        if reportedFailures < failureCount {
            let failure = failures[reportedFailures]
            if failure.first <= reportedRecords {
                count = min(count, failure.first + failure.count - reportedRecords)
                status = WorkStatus(rawValue: UInt8(truncatingIfNeeded: failure.status)) ?? .providerFailed
                if status == .success || status == .again || status == .targetBusy {
                    status = .providerFailed
                }
            } else {
                count = min(count, failure.first - reportedRecords)
            }
        }
        reportedRecords += count
        reportedOfRun += count
        if reportedOfRun == run.count {
            reportedRuns += 1
            reportedOfRun = 0
        }
        if reportedFailures < failureCount {
            let failure = failures[reportedFailures]
            if failure.first + failure.count <= reportedRecords { reportedFailures += 1 }
        }
        return Completion(
            context: run.context, count: count, status: status, detail: status == .success ? 0 : detail)
    }
}

/// Another domain that this one talks to.
struct Peer {
    var engine: UInt64 = 0
    var address: fi_addr_t = 0
    var addressLength = 0
    var imports = 0
    var isLost = false
    /// Whether large writes come from it, and at which poll the last one did; whether the reverse endpoint is connected to
    /// it; and whether frames and writes leave from there, too.
    var isStreaming = false
    var streamedAt: UInt32 = 0
    var isReverseOpen = false
    var usesReverse = false

    // What is sent to it.
    var epoch: UInt32 = 0
    var nextSequence: UInt32 = 0
    var inFlight: UInt32 = 0
    var remoteIndex: UInt32 = .max
    /// Where our ring is with it, and the key; nobody knows until it has said so.
    var ring: UInt64 = 0
    var ringKey: UInt64 = 0
    var hasRing = false
    /// When it was last asked for that, or 0.
    var greetedAt: UInt64 = 0
    /// Since when the end of the epoch before is to be proven to it, or 0, and whether from the reverse endpoint, too.
    var provesSince: UInt64 = 0
    /// When its second connection may be asked, which has refused.
    var provesReverseAt: UInt64 = 0
    var provesReverse = false
    var open: Int32 = -1
    var firstInFlight: Int32 = -1
    var lastInFlight: Int32 = -1
    /// Writes of their own that are on their way.
    var writes = 0
    /// Counted writes posted in this epoch, those acknowledged, and the last one that asked for it.
    var countedWrites: UInt32 = 0
    var countedAcked: UInt32 = 0
    var countedAsked: UInt32 = 0
    /// Bytes of counted writes since that one, and the poll before which the last was posted.
    var bytesSinceAsked = 0
    /// Bytes of counted writes that have not been acknowledged.
    var countedBytes = 0
    var countedAt: UInt32 = 0
    /// The counted writes that are not acknowledged, in order.
    var firstCounted: Int32 = -1
    var lastCounted: Int32 = -1
    /// Since when the transport takes nothing, or 0.
    var refusedSince: UInt64 = 0
    /// Since when the oldest frame waits for its acknowledgement, or 0 when nobody has looked yet.
    var waitsSince: UInt64 = 0
    /// The highest acknowledgement, and how many with failures had to come before it and have.
    var ackSeen: UInt32 = 0
    var failuresExpected: UInt32 = 0
    var failuresSeen: UInt32 = 0

    // What is received from it.
    var inEpoch: UInt32 = 0
    /// The epochs of the last frames that came behind all that was sent before from its endpoint, and from the reverse one.
    var proven: UInt32 = 0
    var provenReverse: UInt32 = 0
    /// Since when it waits to be told what was counted, or 0.
    var settlesSince: UInt64 = 0
    /// Whether it knows its ring with us, and whether it has asked for it and was not told.
    var isWriter = false
    var owesRing = false
    /// Counted writes that came in this epoch, and how many of them it was told of.
    var countedArrivals: UInt32 = 0
    var countedTold: UInt32 = 0
    /// Frames that came.
    var arrived: UInt32 = 0
    /// Frames that have been carried out, and how many of them it was told of.
    var processed: UInt32 = 0
    var acknowledged: UInt32 = 0
    /// Acknowledgements with failures that it was sent.
    var failuresSent: UInt32 = 0
    /// What was missing at the last ping, plus one; the same twice is a gap.
    var missedAtPing: UInt32 = 0
    var owesAck = false
    var owesGap = false
    /// The acknowledgement that collects failures, or -1.
    var failureAck: Int32 = -1
    var failureBytes = 0

    /// Whether it is in the list of peers that need a look.
    var isListed = false

    /// The end of the next counted write. One that is alone asks to be acknowledged, and one with which half of the bytes on
    /// their way have not asked: a sender that keeps so many on their way posts one half while the other travels.
    @inline(__always) func nextCounted(_ request: UnsafePointer<WorkRequest>, eighths: UInt32) -> CountedWrite
    {
        CountedWrite(
            request.pointee.immediate, eighths: eighths, epoch: epoch,
            asks: firstCounted < 0 || bytesSinceAsked + request.pointee.length >= askAfter)
    }

    private var askAfter: Int {
        min(max(countedBytes / 2, Tuning.askBytes.lowerBound), Tuning.askBytes.upperBound)
    }

    /// Whether counted writes wait and none of them has asked to be acknowledged.
    @inline(__always) var isUnasked: Bool {
        firstCounted >= 0 && Int32(bitPattern: countedAcked &- countedAsked) >= 0
    }
}
