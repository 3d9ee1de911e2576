internal import CVerbs
internal import Synchronization
internal import TransferCore

// From requests to the NIC. No allocation, no lock.
extension DomainState {
    /// Starts requests; see `FabricDomain.post`.
    mutating func post(_ requests: UnsafeBufferPointer<WorkRequest>) -> PostResult {
        guard let first = requests.baseAddress else {
            return PostResult(accepted: 0, isComplete: false, status: .success)
        }
        var (accepted, status, detail) = (0, WorkStatus.success, Int32(0))
        while accepted < requests.count, status == .success {
            let posted: Int
            (posted, status, detail) = unsafe postSome(first + accepted, requests.count - accepted)
            accepted += posted
        }
        return PostResult(accepted: accepted, isComplete: false, status: status, detail: detail)
    }

    /// Hands over the first of some requests. Returns how many were taken, and why no more.
    @inline(__always) private mutating func postSome(
        _ requests: UnsafePointer<WorkRequest>, _ limit: Int
    ) -> (posted: Int, status: WorkStatus, detail: Int32) {
        let peer = unsafe requests.pointee.target.pointee.peer
        let (usable, status, detail) = usableConnection(of: peer)
        guard let usable else { return (0, status, detail) }
        let connection = unsafe connections.address(of: usable)
        let most = unsafe min(limit, chain.count)
        let (count, counted, refusal) = unsafe admit(requests, most, connection, usable, peer)
        // Another peer's come next, and perhaps more of this one's behind them.
        if count < most, unsafe requests[count].target.pointee.peer != peer {
            return unsafe postGathered(requests, limit)
        }
        if count == 0 { return (0, refusal, 0) }
        return unsafe postChain(requests, count, counted, connection, usable)
    }

    /// The connection to a peer when both sides are ready; otherwise what to tell the engine. Starts a handshake.
    @inline(__always) mutating func usableConnection(of peer: Int) -> (Int?, WorkStatus, Int32) {
        guard peer >= 0, peer < peerCount else { return (nil, .providerFailed, -EINVAL) }
        let connection = peers[peer].connection
        if connection >= 0, connections[connection].state == .ready { return (connection, .success, 0) }
        return beginUse(of: peer)
    }

    /// Hands over one chain of requests to one peer, of which `counted` are. Returns how many were taken, and why no more.
    private mutating func postChain(
        _ requests: UnsafePointer<WorkRequest>, _ count: Int, _ counted: UInt32,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int
    ) -> (posted: Int, status: WorkStatus, detail: Int32) {
        unsafe connection.pointee.immediatesSent &+= counted
        unsafe connection.pointee.sent &+= UInt64(counted)
        var (taken, error) = (0, Int32(0))
        if let calls = unsafe connection.pointee.writes.calls {
            unsafe ibv_wr_start(calls)
            for position in 0..<count {
                let isLast = position + 1 == count
                unsafe build(position, requests + position, connection, number, calls, isLast: isLast)
            }
            // All or nothing.
            error = unsafe ibv_wr_complete(calls)
        } else {
            for position in 0..<count { unsafe fill(position, requests + position, connection, number) }
            (taken, error) = unsafe postList(count, connection)
        }
        if error == 0 { taken = count }
        unsafe connection.pointee.writes.posted &+= UInt32(truncatingIfNeeded: taken)
        requestsInFlight += taken
        guard error != 0 else { return (count, .success, 0) }
        for position in taken..<count where unsafe requests[position].eighths > 0 {
            unsafe connection.pointee.immediatesSent &-= 1
            unsafe connection.pointee.sent &-= 1
        }
        // A full queue that we know to have room, or a queue pair that takes nothing. What was taken does not report, so
        // that only the end of the queue pair can end it.
        if error == ENOMEM, taken == 0, unsafe !connection.pointee.writes.isDrained {
            return (0, .targetBusy, 0)
        }
        breakConnection(number, .providerFailed, -error)
        return (taken, .providerFailed, -error)
    }

    /// How many requests a connection may take now: what its own queue has room for, and of what the domain may have in
    /// flight as many as it leaves free, so that any number of peers that do not answer leave something for the others.
    @inline(__always) func room(_ connection: UnsafeMutablePointer<Connection>) -> Int {
        let free = handles.sizes.requests - requestsInFlight
        let share = unsafe (free &- connection.pointee.writes.inFlight &+ 1) >> 1
        return unsafe min(Int(connection.pointee.writes.room), share)
    }

    /// Why a connection takes no request: because of its peer, or because the domain has no place left.
    var refusal: WorkStatus { requestsInFlight < handles.sizes.requests ? .targetBusy : .again }

    /// How many requests to one peer may go in one chain, and how many of them are counted; why none, if none.
    @inline(__always) private func admit(
        _ requests: UnsafePointer<WorkRequest>, _ limit: Int,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int, _ peer: Int
    ) -> (count: Int, counted: UInt32, status: WorkStatus) {
        let room = unsafe min(room(connection), limit)
        var credit = unsafe connection.pointee.immediateCredit
        var (count, counted) = (0, UInt32(0))
        while count < room {
            let request = unsafe requests + count
            guard unsafe request.pointee.target.pointee.peer == peer else { break }
            if unsafe UInt64(bitPattern: Int64(request.pointee.length)) > longestWrite {
                return (count, counted, .outOfRange)
            }
            if unsafe request.pointee.eighths > 0 {
                if counted >= credit {
                    unsafe connection.pointee.note(credit: incomingCredit(number))
                    unsafe credit = connection.pointee.immediateCredit
                    if counted >= credit { break }
                }
                counted &+= 1
            }
            count += 1
        }
        return (count, counted, refusal)
    }

    /// What the peer of a connection has taken so far; it writes the word itself.
    func incomingCredit(_ connection: Int) -> UInt64 {
        // SAFETY: a 64-bit word in the domain's memory, aligned, written by the NIC as a whole.
        let word = unsafe memory.incomingCredit(connection).assumingMemoryBound(to: Atomic<UInt64>.self)
        return unsafe word.pointee.load(ordering: .acquiring)  // pairs with the peer's write
    }

    /// Notes request `position` of a chain as the next in flight. Returns what it comes back as.
    @inline(__always) func note(
        _ position: Int, _ request: UnsafePointer<WorkRequest>,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int
    ) -> UInt64 {
        let sequence = unsafe connection.pointee.writes.posted &+ UInt32(truncatingIfNeeded: position)
        let place = unsafe Int(sequence & connection.pointee.writes.mask)
        unsafe connection.pointee.writes.contexts[place] = request.pointee.context
        unsafe connection.pointee.writes.tags[place] = request.pointee.tag
        unsafe connection.pointee.writes.counts[place] = request.pointee.eighths > 0
        return unsafe WorkID(
            .write, connection: number, generation: connection.pointee.generation, sequence: sequence
        ).rawValue
    }

    /// Whether bytes are copied into their request, as a flag of the request: some drivers want it even by calls.
    @inline(__always) private func inlineFlag(_ length: Int, _ localKey: UInt64) -> UInt32 {
        // The hint makes it a branch: pages are long, and then one comparison is all.
        guard _slowPath(length <= Int(inlineBytes)) else { return 0 }
        return length > 0 && localKey < LocalKey.deviceMemory ? IBV_SEND_INLINE.rawValue : 0
    }

    /// Makes prepared request `position` of the chain into `request`.
    @inline(__always) func fill(
        _ position: Int, _ request: UnsafePointer<WorkRequest>,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int
    ) {
        let work = unsafe chain.address(of: position)
        unsafe work.pointee.wr_id = note(position, request, connection, number)
        let length = unsafe request.pointee.length
        let key = unsafe request.pointee.localKey
        var flags: UInt32 = 0
        // A length of 0 would be read as 2^31 bytes: no element at all.
        if length > 0 {
            let part = unsafe chainParts.address(of: position)
            unsafe part.pointee.addr = UInt64(UInt(bitPattern: request.pointee.source))
            unsafe part.pointee.length = UInt32(truncatingIfNeeded: length)
            unsafe part.pointee.lkey = UInt32(truncatingIfNeeded: key)
            unsafe work.pointee.num_sge = 1
            flags = inlineFlag(length, key)
        } else {
            unsafe work.pointee.num_sge = 0
        }
        let target = unsafe request.pointee.target
        unsafe work.pointee.wr.rdma.remote_addr = target.pointee.base &+ request.pointee.targetOffset
        unsafe work.pointee.wr.rdma.rkey = UInt32(truncatingIfNeeded: target.pointee.key)
        if unsafe request.pointee.eighths > 0 {
            unsafe work.pointee.opcode = IBV_WR_RDMA_WRITE_WITH_IMM
            unsafe work.pointee.imm_data = request.pointee.wireImmediate
        } else {
            unsafe work.pointee.opcode = IBV_WR_RDMA_WRITE
        }
        unsafe work.pointee.send_flags = flags
    }

    /// Builds `request` in the queue of a queue pair. The last one of a chain reports for all.
    @inline(__always) func build(
        _ position: Int, _ request: UnsafePointer<WorkRequest>,
        _ connection: UnsafeMutablePointer<Connection>, _ number: Int,
        _ calls: UnsafeMutablePointer<ibv_qp_ex>, isLast: Bool
    ) {
        let (length, localKey) = unsafe (request.pointee.length, request.pointee.localKey)
        let flags = inlineFlag(length, localKey)
        unsafe calls.pointee.wr_id = note(position, request, connection, number)
        unsafe calls.pointee.wr_flags = flags | (isLast ? IBV_SEND_SIGNALED.rawValue : 0)
        let target = unsafe request.pointee.target
        let address = unsafe target.pointee.base &+ request.pointee.targetOffset
        let key = unsafe UInt32(truncatingIfNeeded: target.pointee.key)
        if unsafe request.pointee.eighths > 0 {
            unsafe ibv_wr_rdma_write_imm(calls, key, address, request.pointee.wireImmediate)
        } else {
            unsafe ibv_wr_rdma_write(calls, key, address)
        }
        unsafe attach(request.pointee.source, length, localKey, flags, to: calls)
    }

    /// Gives the newest request its bytes. A length of 0 would be read as 2^31: then an empty list.
    @inline(__always) private func attach(
        _ source: UnsafeRawPointer, _ length: Int, _ localKey: UInt64, _ inlineFlag: UInt32,
        to calls: UnsafeMutablePointer<ibv_qp_ex>
    ) {
        if inlineFlag != 0 {
            unsafe ibv_wr_set_inline_data(calls, UnsafeMutableRawPointer(mutating: source), length)
        } else if length > 0 {
            unsafe ibv_wr_set_sge(
                calls, UInt32(truncatingIfNeeded: localKey), UInt64(UInt(bitPattern: source)),
                UInt32(truncatingIfNeeded: length))
        } else {
            unsafe ibv_wr_set_sge_list(calls, 0, chainParts.address(of: 0))
        }
    }

    /// Hands over the first `count` requests of the chain; the last one reports for all. How many were taken before an
    /// error, and its number.
    @inline(__always) func postList(
        _ count: Int, _ connection: UnsafeMutablePointer<Connection>
    ) -> (taken: Int, error: Int32) {
        let last = unsafe chain.address(of: count - 1)
        let next = unsafe last.pointee.next
        unsafe last.pointee.next = nil
        unsafe last.pointee.send_flags |= IBV_SEND_SIGNALED.rawValue
        let error = unsafe ibv_post_send(
            connection.pointee.writes.qp, chain.address(of: 0), rejected.address(of: 0))
        unsafe last.pointee.next = next
        return error == 0 ? (count, 0) : (rejectedPosition(count), error)
    }

    /// How many requests of a chain the driver took before the one that it refused.
    private func rejectedPosition(_ count: Int) -> Int {
        guard let refused = unsafe rejected[0] else { return 0 }
        return (0..<count).first { unsafe chain.address(of: $0) == refused } ?? 0
    }

    // MARK: Messages

    /// Sends a message; see `FabricDomain.send`.
    mutating func send(_ payload: UnsafeRawBufferPointer, to peer: Int, context: UInt64) -> PostResult {
        func refused(_ status: WorkStatus, _ detail: Int32 = 0) -> PostResult {
            PostResult(accepted: 0, isComplete: false, status: status, detail: detail)
        }
        guard payload.count <= Limits.packetBytes else { return refused(.outOfRange) }
        let (usable, status, detail) = usableConnection(of: peer)
        guard let number = usable else { return refused(status, detail) }
        let connection = unsafe connections.address(of: number)
        if unsafe connection.pointee.messagesSent &- connection.pointee.messagesTaken
            >= connection.pointee.messageWindow
        {
            unsafe connection.pointee.note(credit: incomingCredit(number))
        }
        guard
            unsafe connection.pointee.messagesSent &- connection.pointee.messagesTaken
                < connection.pointee.messageWindow,
            unsafe connection.pointee.messages.room > 1, requestsInFlight < handles.sizes.requests,
            unsafe connection.pointee.messages.inFlight < freeMessages.count,
            let buffer = freeMessages.take()
        else { return refused(.again) }
        let place = unsafe memory.messageSend(buffer)
        if let bytes = payload.baseAddress, payload.count > 0 {
            unsafe place.copyMemory(from: bytes, byteCount: payload.count)
        }
        let error = unsafe postSingle(place, payload.count, connection, number, context, Int32(buffer))
        guard error == 0 else {
            freeMessages.give(buffer)
            if error == ENOMEM { return refused(.again) }
            breakConnection(number, .providerFailed, -error)
            return refused(.providerFailed, -error)
        }
        unsafe connection.pointee.messagesSent &+= 1
        return PostResult(accepted: 1, isComplete: false, status: .success)
    }

    /// Posts a message, or a write of a credit, on a message queue pair, from the domain's own memory. 0 or an error number.
    private mutating func postSingle(
        _ place: UnsafeMutableRawPointer, _ length: Int, _ connection: UnsafeMutablePointer<Connection>,
        _ number: Int, _ context: UInt64, _ buffer: Int32
    ) -> Int32 {
        let sequence = unsafe connection.pointee.messages.posted
        let entry = unsafe Int(sequence & connection.pointee.messages.mask)
        unsafe connection.pointee.messages.contexts[entry] = context
        unsafe connection.pointee.buffers[entry] = buffer
        let id = unsafe WorkID(
            .message, connection: number, generation: connection.pointee.generation, sequence: sequence
        ).rawValue
        let key = unsafe handles.buffers.unsafelyUnwrapped.pointee.lkey
        let flag = inlineFlag(length, UInt64(key))
        let isCredit = buffer == Connection.creditMark
        let remote = unsafe (connection.pointee.remoteCreditKey, connection.pointee.remoteCreditAddress)
        let error: Int32
        if let calls = unsafe connection.pointee.messages.calls {
            unsafe ibv_wr_start(calls)
            unsafe calls.pointee.wr_id = id
            unsafe calls.pointee.wr_flags = IBV_SEND_SIGNALED.rawValue | flag
            if isCredit {
                unsafe ibv_wr_rdma_write(calls, remote.0, remote.1)
            } else {
                unsafe ibv_wr_send(calls)
            }
            unsafe attach(place, length, UInt64(key), flag, to: calls)
            error = unsafe ibv_wr_complete(calls)
        } else {
            unsafe single[0].wr_id = id
            unsafe single[0].opcode = isCredit ? IBV_WR_RDMA_WRITE : IBV_WR_SEND
            unsafe single[0].wr.rdma.rkey = remote.0
            unsafe single[0].wr.rdma.remote_addr = remote.1
            singlePart[0] = ibv_sge(
                addr: UInt64(UInt(bitPattern: place)), length: UInt32(length), lkey: key)
            unsafe single[0].num_sge = length > 0 ? 1 : 0
            unsafe single[0].send_flags = IBV_SEND_SIGNALED.rawValue | flag
            error = unsafe ibv_post_send(
                connection.pointee.messages.qp, single.address(of: 0), rejected.address(of: 0))
        }
        guard error == 0 else { return error }
        unsafe connection.pointee.messages.posted &+= 1
        requestsInFlight += 1
        return 0
    }

    /// Tells the peers that were received from how far, by a write into a word of theirs. It needs no receive there.
    mutating func returnCredits() {
        let count = owingCount
        owingCount = 0
        for position in 0..<count {
            let number = Int(owing[position])
            connections[number].owesCredit = false
            if connections[number].state == .ready, connections[number].isCreditDue,
                !connections[number].isReturningCredit, !sendCredit(number)
            {
                owe(number)
            }
        }
    }

    /// Finds out whether silent peers live, when shares run short: a credit to a dead one ends its connection.
    mutating func probeSilentPeers() {
        for number in 0..<connections.count
        where connections[number].state == .ready && !connections[number].isReturningCredit
            && connections[number].writes.isDrained && connections[number].messages.isDrained
        {
            _ = sendCredit(number)
        }
    }

    /// Whether a credit was sent; if not, it has to wait.
    private mutating func sendCredit(_ number: Int) -> Bool {
        guard requestsInFlight < handles.sizes.requests + Tuning.creditReserve else { return false }
        let connection = unsafe connections.address(of: number)
        let immediates = unsafe connection.pointee.immediatesReceived
        let messages = unsafe connection.pointee.messagesReceived
        let place = unsafe memory.outgoingCredit(number)
        unsafe place.storeBytes(of: UInt64(messages) << 32 | UInt64(immediates), as: UInt64.self)
        let error = unsafe postSingle(place, 8, connection, number, 0, Connection.creditMark)
        if error == ENOMEM { return false }
        guard error == 0 else {
            breakConnection(number, .providerFailed, -error)
            return true
        }
        unsafe connection.pointee.isReturningCredit = true
        unsafe connection.pointee.immediatesReturned = immediates
        unsafe connection.pointee.messagesReturned = messages
        return true
    }
}

extension WorkRequest {
    /// What a NIC carries with the write.
    @inline(__always) fileprivate var wireImmediate: UInt32 {
        WireImmediate(immediate, eighths: eighths).rawValue.bigEndian
    }
}

/// What `DomainKey.local` means here: the NIC's local key, and a mark.
enum LocalKey {
    /// Added for memory that the processor cannot read: nothing of it is copied into requests.
    static let deviceMemory: UInt64 = 1 << 32
}
