internal import CVerbs
internal import TransferCore

// Batches for several peers. Requests of one peer go together, however they lie in the batch, so that each doorbell rings
// once for a chain and not once for each change of peers.
extension DomainState {
    /// Hands over the first of some requests to several peers. What is accepted is decided first, in order, so that it is
    /// a prefix whatever goes wrong later: what a queue pair then refuses ends with it, by a completion.
    mutating func postGathered(
        _ requests: UnsafePointer<WorkRequest>, _ limit: Int
    ) -> (posted: Int, status: WorkStatus, detail: Int32) {
        let limit = min(limit, links.count)
        gatheredCount = 0
        var (accepted, status, detail) = (0, WorkStatus.success, Int32(0))
        while accepted < limit {
            let peer = unsafe requests[accepted].target.pointee.peer
            let (usable, refusal, number) = usableConnection(of: peer)
            guard let usable else {
                (status, detail) = (refusal, number)
                break
            }
            status = unsafe gather(requests + accepted, accepted, usable)
            guard status == .success else { break }
            accepted += 1
        }
        for place in 0..<gatheredCount { unsafe postGathered(requests, of: Int(gathered[place])) }
        return (accepted, status, detail)
    }

    /// Adds a request to those of its connection, or says why it cannot be taken now.
    private mutating func gather(
        _ request: UnsafePointer<WorkRequest>, _ index: Int, _ number: Int
    ) -> WorkStatus {
        let connection = unsafe connections.address(of: number)
        if unsafe UInt64(bitPattern: Int64(request.pointee.length)) > longestWrite { return .outOfRange }
        let own = unsafe connection.pointee.writes.inFlight + connection.pointee.gathered
        guard unsafe Int(connection.pointee.writes.room) > connection.pointee.gathered,
            own < handles.sizes.requests - requestsInFlight
        else { return refusal }
        if unsafe request.pointee.eighths > 0 {
            if unsafe connection.pointee.immediateCredit == 0 {
                unsafe connection.pointee.note(credit: incomingCredit(number))
                if unsafe connection.pointee.immediateCredit == 0 { return .targetBusy }
            }
            unsafe connection.pointee.immediatesSent &+= 1
            unsafe connection.pointee.sent &+= 1
        }
        if unsafe connection.pointee.gathered == 0 {
            unsafe connection.pointee.firstGathered = Int32(index)
            gathered[gatheredCount] = Int32(number)
            gatheredCount += 1
        } else {
            links[unsafe Int(connection.pointee.lastGathered)] = Int32(index)
        }
        unsafe connection.pointee.lastGathered = Int32(index)
        unsafe connection.pointee.gathered += 1
        // Its place among all that are in flight; what becomes of it is seen below.
        requestsInFlight += 1
        return .success
    }

    /// Hands over what was gathered for one connection, in chains.
    private mutating func postGathered(_ requests: UnsafePointer<WorkRequest>, of number: Int) {
        let connection = unsafe connections.address(of: number)
        var left = unsafe connection.pointee.gathered
        var index = unsafe Int(connection.pointee.firstGathered)
        unsafe connection.pointee.gathered = 0
        while left > 0, unsafe connection.pointee.state == .ready {
            let count = unsafe min(left, chain.count)
            let start = index
            let (taken, error) = unsafe postLinked(requests, &index, count, connection, number)
            unsafe connection.pointee.writes.posted &+= UInt32(truncatingIfNeeded: taken)
            left -= taken
            guard error != 0 else { continue }
            index = start
            for _ in 0..<taken { index = Int(links[index]) }
            breakConnection(number, .providerFailed, -error)
        }
        // The connection is broken, now or while another peer's was made: these end with it.
        for position in 0..<left {
            _ = unsafe note(position, requests + index, connection, number)
            index = Int(links[index])
        }
        unsafe connection.pointee.writes.posted &+= UInt32(truncatingIfNeeded: left)
        unsafe connection.pointee.writes.withheld = UInt32(truncatingIfNeeded: left)
    }

    /// One chain of linked requests, from `index` on, which moves behind it. How many were taken, and the error number.
    private mutating func postLinked(
        _ requests: UnsafePointer<WorkRequest>, _ index: inout Int, _ count: Int,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int
    ) -> (taken: Int, error: Int32) {
        guard let calls = unsafe connection.pointee.writes.calls else {
            for position in 0..<count {
                unsafe fill(position, requests + index, connection, number)
                index = Int(links[index])
            }
            return unsafe postList(count, connection)
        }
        unsafe ibv_wr_start(calls)
        for position in 0..<count {
            let isLast = position + 1 == count
            unsafe build(position, requests + index, connection, number, calls, isLast: isLast)
            index = Int(links[index])
        }
        let error = unsafe ibv_wr_complete(calls)
        return (error == 0 ? count : 0, error)
    }
}
