internal import CPlatform
internal import Glibc
internal import Synchronization
public import TransferCore

// The data path: no allocation, no lock, no reference counting.
extension SharedMemoryDomain {
    /// Counts that are due to one peer and one immediate; neighbours are added together.
    private struct Due {
        var peer = -1
        var immediate: UInt32 = 0
        var eighths: UInt32 = 0
    }

    public func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        guard requests.count > 0 else { return PostResult(accepted: 0, isComplete: true, status: .success) }
        if unsafe isBounced(requests[0].target) { return unsafe postBounced(requests) }
        var due = Due()
        var index = 0
        var status = WorkStatus.success
        var detail: Int32 = 0
        while index < requests.count, status == .success {
            // The engine's keys stay in place during the call; requests to one target form a run.
            let target = unsafe requests[index].target
            if unsafe isBounced(target) { break }
            var end = index + 1
            while end < requests.count, unsafe requests[end].target == target { end += 1 }
            (status, detail) = unsafe write(requests, index..<end, to: target, &due) { base, peer in
                unsafe copy(requests, index..<end, to: base, peer)
            }
            if status == .success { index = end }
        }
        pay(&due)
        return PostResult(accepted: index, isComplete: true, status: status, detail: detail)
    }

    public func fill(
        _ request: UnsafeBufferPointer<WorkRequest>, _ body: (UnsafeMutableRawPointer) -> Void
    ) -> WorkStatus? {
        // One request, which the engine has checked as it checks those that are posted.
        let target = unsafe request[0].target
        guard unsafe target.pointee.mapping != 0 else { return nil }
        var due = Due()
        let (status, _) = unsafe write(request, 0..<1, to: target, &due) { base, _ in
            unsafe body(base + Int(request[0].targetOffset))
            te_copy_fence()
        }
        pay(&due)
        return status
    }

    /// Whether writes to the target go through its engine's ring.
    private func isBounced(_ target: UnsafePointer<ImportedKey>) -> Bool {
        unsafe target.pointee.mapping == 0
            && target.pointee.maximumWriteBytes <= UInt64(ByteRing.recordBytes)
    }

    /// Carries out a run of requests to one target, inside its region; `copy` does it where that is mapped.
    @inline(__always)
    private func write(
        _ requests: UnsafeBufferPointer<WorkRequest>, _ run: Range<Int>,
        to target: UnsafePointer<ImportedKey>,
        _ due: inout Due, copy: (UnsafeMutableRawPointer, _ peer: Int) -> Void
    ) -> (WorkStatus, Int32) {
        let peer = unsafe target.pointee.peer
        guard unsafe enter(target.pointee.index, of: peer, expecting: target.pointee.key) else {
            return (.staleRegion, 0)
        }
        defer { peers[peer].page.leave(seat: peers[peer].seat) }
        if let base = unsafe UnsafeMutableRawPointer(bitPattern: target.pointee.mapping) {
            unsafe copy(base, peer)
        } else {
            let failure = unsafe writeProcess(requests, run, of: peer, at: target.pointee.base)
            guard failure == 0 else { return (status(of: failure), failure) }
        }
        for index in run {
            let request = unsafe requests[index]
            add(request.immediate, request.eighths, peer, &due)
        }
        return (.success, 0)
    }

    /// Enters a region of a peer at this domain's seat there.
    @inline(__always)
    private func enter(_ region: UInt32, of peer: Int, expecting key: UInt64) -> Bool {
        let page = peers[peer].page
        let seat = peers[peer].seat
        guard peers[peer].isFenced else { return page.enter(region, expecting: key, seat: seat) }
        page.announce(region, seat: seat)
        te_compiler_barrier()
        if page.isOpen(region, expecting: key) { return true }
        page.leave(seat: seat)
        return false
    }

    /// Copies a run of requests into the mapping at `base`. When this returns the data precedes whatever is written next.
    ///
    /// The engine has checked both ends of every write, and the region cannot go away before its writer leaves it.
    private func copy(
        _ requests: UnsafeBufferPointer<WorkRequest>, _ run: Range<Int>, to base: UnsafeMutableRawPointer,
        _ peer: Int
    ) {
        let bytes = unsafe byteCount(requests, run)
        // What is left of a sample, and when that began.
        var sample = peers[peer].pace.samples(byteCount: bytes) ? CopyPace.sampleBytes : 0
        let start = sample > 0 ? te_monotonic_nanoseconds() : 0
        let isStreamed =
            peers[peer].pace.streams(byteCount: bytes) && bytes / run.count <= te_copy_streaming_limit()
        let (lookahead, streams): (Int, Int32) = isStreamed ? (1, 1) : (4, 0)
        for index in run {
            // Pages lie anywhere: the processor cannot guess where the next one begins, but we know.
            if index + lookahead < run.upperBound {
                let later = unsafe requests[index + lookahead]
                unsafe te_prefetch_copy(
                    base + Int(later.targetOffset), later.source, later.length, streams)
            }
            let request = unsafe requests[index]
            let target = unsafe base + Int(request.targetOffset)
            let head = min(sample, request.length)
            if head > 0 {
                unsafe memcpy(target, request.source, head)
                sample -= head
                if sample == 0 {
                    peers[peer].pace.record(nanoseconds: te_monotonic_nanoseconds() - start)
                }
            }
            let rest = request.length - head
            unsafe te_copy(target + head, request.source + head, rest, streams)
        }
        if isStreamed { te_copy_fence() }
    }

    private func byteCount(_ requests: UnsafeBufferPointer<WorkRequest>, _ run: Range<Int>) -> Int {
        var bytes = 0
        for index in run { unsafe bytes += requests[index].length }
        return bytes
    }

    @inline(__always)
    private func add(_ immediate: UInt32, _ eighths: UInt32, _ peer: Int, _ due: inout Due) {
        guard eighths > 0 else { return }
        if due.eighths > 0, due.peer == peer, due.immediate == immediate {
            due.eighths += eighths
        } else {
            pay(&due)
            due = Due(peer: peer, immediate: immediate, eighths: eighths)
        }
    }

    @inline(__always)
    private func pay(_ due: inout Due) {
        guard due.eighths > 0 else { return }
        peers[due.peer].page.add(eighths: due.eighths, to: due.immediate)
        due.eighths = 0
        wake(due.peer)
    }

    /// One system call for the whole run; the kernel checks the addresses. Returns 0 or the error number.
    private func writeProcess(
        _ requests: UnsafeBufferPointer<WorkRequest>, _ run: Range<Int>, of peer: Int, at base: UInt64
    ) -> Int32 {
        var count = 0
        var bytes = 0
        for index in run {
            let request = unsafe requests[index]
            if request.length > 0 {
                let length = UInt64(request.length)
                ranges[count] = te_range(
                    base: UInt64(UInt(bitPattern: unsafe request.source)), length: length)
                ranges[Limits.requestsPerPost + count] = te_range(
                    base: base + request.targetOffset, length: length)
                count += 1
                bytes += request.length
            }
            if count > 0, index + 1 == run.upperBound || bytes >= 1 << 29 {
                let failure = transfer(peers[peer].process, count)
                guard failure == 0 else { return failure }
                count = 0
                bytes = 0
            }
        }
        return 0
    }

    /// Writes all ranges, going on after short writes. Returns 0 or the error number.
    private func transfer(_ process: Int32, _ count: Int) -> Int32 {
        var done = 0
        while done < count {
            let target = Limits.requestsPerPost + done
            var written = unsafe te_write_process(
                process, ranges.address(of: done), ranges.address(of: target), Int32(count - done))
            guard written > 0 else { return written == 0 ? EIO : Int32(-written) }
            while done < count, written >= Int(ranges[done].length) {
                written -= Int(ranges[done].length)
                done += 1
            }
            if written > 0 { advance(done, by: UInt64(written)) }
        }
        return 0
    }

    private func advance(_ range: Int, by bytes: UInt64) {
        ranges[range].base += bytes
        ranges[range].length -= bytes
        ranges[Limits.requestsPerPost + range].base += bytes
        ranges[Limits.requestsPerPost + range].length -= bytes
    }

    private func status(of error: Int32) -> WorkStatus {
        switch error {
        case ESRCH: .peerLost
        case EPERM: .accessDenied
        case EFAULT: .staleRegion
        default: .providerFailed
        }
    }

    private func postBounced(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        var accepted = 0
        var rung = -1
        var status = WorkStatus.success
        while accepted < requests.count, unsafe isBounced(requests[accepted].target) {
            let request = unsafe requests[accepted]
            let peer = unsafe request.target.pointee.peer
            guard peers[peer].outgoing.count > 0 else { break }
            // The engine has checked that the bytes lie inside a registered region.
            let bytes = unsafe UnsafeRawBufferPointer(start: request.source, count: request.length)
            let record = FrameRecord(request, from: host.engine.rawValue)
            guard unsafe peers[peer].outgoing[0].append(record, bytes, context: request.context) else {
                status = .targetBusy
                break
            }
            if rung >= 0, rung != peer { ring(rung) }
            rung = peer
            accepted += 1
        }
        if rung >= 0 { ring(rung) }
        return PostResult(accepted: accepted, isComplete: false, status: status)
    }
}
