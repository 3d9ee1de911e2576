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
        guard let first = requests.baseAddress, !requests.isEmpty else {
            return PostResult(accepted: 0, isComplete: true, status: .success)
        }
        if first.pointee.target.pointee.mapping == 0,
            peers[first.pointee.target.pointee.peer].outgoing != nil,
            first.pointee.target.pointee.maximumWriteBytes <= UInt64(ByteRing.recordBytes)
        {
            return postBounced(requests)
        }
        var due = Due()
        var index = 0
        var status = WorkStatus.success
        var detail: Int32 = 0
        while index < requests.count {
            let target = first[index].target
            var end = index + 1
            while end < requests.count, first[end].target == target { end += 1 }
            let run = UnsafeBufferPointer(start: first + index, count: end - index)
            let page = peers[target.pointee.peer].page
            let region = target.pointee.index
            guard page[region: region].enter(expecting: target.pointee.key) else {
                status = .staleRegion
                break
            }
            if target.pointee.mapping != 0 {
                copy(run, &due)
            } else if isBounced(target) {
                page[region: region].leave()
                break
            } else {
                (status, detail) = writeProcess(run, &due)
            }
            page[region: region].leave()
            if status != .success { break }
            index = end
        }
        pay(&due)
        return PostResult(accepted: index, isComplete: true, status: status, detail: detail)
    }

    private func isBounced(_ target: UnsafePointer<ImportedKey>) -> Bool {
        target.pointee.maximumWriteBytes <= UInt64(ByteRing.recordBytes)
    }

    private func copy(_ run: UnsafeBufferPointer<WorkRequest>, _ due: inout Due) {
        guard let first = run.baseAddress,
            let base = UnsafeMutableRawPointer(bitPattern: first.pointee.target.pointee.mapping)
        else { return }
        let peer = first.pointee.target.pointee.peer
        let streams = run.count > 1 && isLong(run)
        for index in 0..<run.count {
            let request = first + index
            let length = request.pointee.length
            // Pages lie anywhere: the processor cannot guess where the next one begins, but we know.
            if streams, index + 1 < run.count {
                te_prefetch_page(request[1].source, request[1].length, 0)
            } else if !streams, index + 4 < run.count {
                te_prefetch_page(request[4].source, request[4].length, 0)
                te_prefetch_page(base + Int(request[4].targetOffset), request[4].length, 1)
            }
            let target = base + Int(request.pointee.targetOffset)
            if streams {
                te_copy_streaming(target, request.pointee.source, length)
            } else {
                memcpy(target, request.pointee.source, length)
            }
        }
        // The counts follow the data, also the data that went past the cache.
        if streams { te_copy_fence() }
        for index in 0..<run.count where first[index].eighths > 0 { add(first + index, peer, &due) }
    }

    /// Whether a list of pages is too long to stay in a core's cache: then its bytes go past the cache, which saves reading
    /// the target's lines first (a third of the memory traffic).
    private func isLong(_ run: UnsafeBufferPointer<WorkRequest>) -> Bool {
        var bytes = 0
        for request in run { bytes += request.length }
        return bytes >= Self.streamingBytes
    }

    @inline(__always)
    private func add(_ request: UnsafePointer<WorkRequest>, _ peer: Int, _ due: inout Due) {
        if due.eighths > 0, due.peer == peer, due.immediate == request.pointee.immediate {
            due.eighths += request.pointee.eighths
        } else {
            pay(&due)
            due = Due(peer: peer, immediate: request.pointee.immediate, eighths: request.pointee.eighths)
        }
    }

    @inline(__always)
    private func pay(_ due: inout Due) {
        guard due.eighths > 0 else { return }
        peers[due.peer].page.add(eighths: due.eighths, to: due.immediate)
        due.eighths = 0
        wake(due.peer)
    }

    /// One system call for the whole run.
    private func writeProcess(_ run: UnsafeBufferPointer<WorkRequest>, _ due: inout Due) -> (
        WorkStatus, Int32
    ) {
        guard let first = run.baseAddress else { return (.success, 0) }
        let peer = first.pointee.target.pointee.peer
        let base = first.pointee.target.pointee.base
        let targets = ranges + Limits.requestsPerPost
        var count = 0
        var bytes = 0
        for index in 0..<run.count {
            let request = first + index
            if request.pointee.length > 0 {
                let length = UInt64(request.pointee.length)
                ranges[count] = te_range(
                    base: UInt64(UInt(bitPattern: request.pointee.source)), length: length)
                targets[count] = te_range(base: base + request.pointee.targetOffset, length: length)
                count += 1
                bytes += request.pointee.length
            }
            let isLast = index + 1 == run.count
            if count > 0, isLast || bytes >= 1 << 29 {
                let failure = transfer(peers[peer].process, targets, count)
                guard failure == 0 else { return (status(of: failure), failure) }
                count = 0
                bytes = 0
            }
        }
        for index in 0..<run.count where first[index].eighths > 0 { add(first + index, peer, &due) }
        return (.success, 0)
    }

    /// Writes all ranges, going on after short writes. Returns 0 or the error number.
    private func transfer(_ process: Int32, _ targets: UnsafeMutablePointer<te_range>, _ count: Int) -> Int32
    {
        var done = 0
        while done < count {
            var written = te_write_process(process, ranges + done, targets + done, Int32(count - done))
            guard written > 0 else { return written == 0 ? EIO : Int32(-written) }
            while done < count, written >= Int(ranges[done].length) {
                written -= Int(ranges[done].length)
                done += 1
            }
            if written > 0 {
                ranges[done].base += UInt64(written)
                ranges[done].length -= UInt64(written)
                targets[done].base += UInt64(written)
                targets[done].length -= UInt64(written)
            }
        }
        return 0
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
        for request in requests {
            let peer = request.target.pointee.peer
            guard isBounced(request.target), request.target.pointee.mapping == 0,
                let outgoing = peers[peer].outgoing
            else { break }
            let record = FrameRecord(request, from: host.engine.rawValue)
            let bytes = UnsafeRawBufferPointer(start: request.source, count: request.length)
            guard outgoing.pointee.append(record, bytes, context: request.context) else {
                status = .again
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
