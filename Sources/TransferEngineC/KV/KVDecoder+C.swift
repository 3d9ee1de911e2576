public import CTransferEngine
internal import KVCacheTransfer
internal import Synchronization
internal import TransferEngine

@c @implementation
public func te_kv_connect(
    _ decoder: te_kv_decoder, _ address: UnsafeRawPointer?, _ length: UInt64,
    _ peer: UnsafeMutablePointer<te_kv_peer>?
) -> Int32 {
    callRole(decoder, .decoder) { role, _ throws(Failure) in
        let peer = try place(peer, "peer")
        let bytes = try bytes(address, length, "address")
        let decoded = try engine { () throws(TransferError) in try EngineAddress(decoding: bytes) }
        let decoder = try role.decoder(decoder)
        let connected = try kv { () throws(KVError) in try decoder.connect(to: decoded) }
        let number = role.objects.state.withLock { state in
            state.last += 1
            state.peers[state.last] = connected
            return state.last
        }
        peer.pointee = role.objects.bits(.peer, number)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_disconnect(_ peer: te_kv_peer) -> Int32 {
    callRole(peer, .peer) { role, handle throws(Failure) in
        let known = role.objects.state.withLock { $0.peers.removeValue(forKey: handle.number) }
        guard let known else { throw Failure.badRoleHandle(peer, .peer) }
        try role.decoder(peer).disconnect(known)
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_peer_status(_ peer: te_kv_peer, _ state: UnsafeMutablePointer<te_kv_peer_state>?) -> Int32 {
    callRole(peer, .peer) { role, handle throws(Failure) in
        let target = try place(state, "state")
        var out = try readSized(UnsafePointer(target), "state", as: te_kv_peer_state.self)
        let known = try role.peer(peer, handle)
        let answer = Answer<(KVWorker, KVError?)>()
        try role.decoder(peer).status(of: known) { answer.set(($0, $1)) }
        guard let (worker, reason) = answer.value else {
            throw Failure(TE_ETIMEDOUT, "the decoder is busy for too long")
        }
        out.is_draining = worker.isDraining ? 1 : 0
        out.load = UInt64(clamping: worker.load)
        out.code = UInt32(reason?.code.rawValue ?? 0)
        withUnsafeMutableBytes(of: &out.name) { fill($0, worker.name) }
        withUnsafeMutableBytes(of: &out.reason) { fill($0, reason?.message ?? "") }
        target.pointee = out
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_ask(
    _ decoder: te_kv_decoder, _ questions: UnsafePointer<te_kv_question>?, _ count: UInt64,
    _ requests: UnsafeMutablePointer<te_kv_request>?, _ asked: UnsafeMutablePointer<UInt64>?
) -> Int32 {
    callRole(decoder, .decoder) { role, _ throws(Failure) in
        asked?.pointee = 0
        guard questions != nil || count == 0 else { throw Failure.isNull("questions") }
        guard count <= UInt64(KVLimits.requests) else {
            throw Failure(TE_ELIMIT, "\(count) questions; at most \(KVLimits.requests)")
        }
        var next = UnsafeRawPointer(questions)
        for index in 0..<Int(count) {
            let question = try readSized(next, "question", as: te_kv_question.self)
            let request = try role.ask(question)
            requests?[index] = request
            asked?.pointee = UInt64(index + 1)
            next = next.map { $0 + Int(question.size) }
        }
        return Int32(TE_OK)
    }
}

@c @implementation
public func te_kv_cancel(_ request: te_kv_request) -> Int32 {
    callRole(request, .request) { role, handle throws(Failure) in
        let id = try role.objects.state.withLock { state throws(Failure) in
            guard handle.number <= state.last else {
                throw Failure.badRoleHandle(request, .request)
            }
            state.requests[handle.number]?.isCancelled = true
            return state.requests[handle.number]?.id
        }
        if let id { try role.decoder(request).cancel(id) }
        return Int32(TE_OK)
    }
}

extension KVRole {
    fileprivate func peer(_ bits: UInt64, _ handle: KVHandle) throws(Failure) -> KVPeer {
        guard let known = objects.state.withLock({ $0.peers[handle.number] }) else {
            throw Failure.badRoleHandle(bits, .peer)
        }
        return known
    }

    fileprivate func ask(_ c: te_kv_question) throws(Failure) -> UInt64 {
        guard let handle = KVHandle(c.prefiller, [.peer]), handle.role == objects.role else {
            throw Failure.badRoleHandle(c.prefiller, .peer)
        }
        let peer = try peer(c.prefiller, handle)
        let request = try KVRequest(c)
        let number = objects.state.withLock { state in
            state.last += 1
            state.requests[state.last] = KVObjects.Request()
            return state.last
        }
        guard case .decoder(let decoder) = side else { return 0 }
        let id = decoder.request(request, from: peer) { [objects, tag = c.tag] event in
            objects.happened(event, to: number, tag: tag)
        }
        let isCancelled = objects.state.withLock { state in
            state.requests[number]?.id = id
            return state.requests[number]?.isCancelled ?? false
        }
        if isCancelled { decoder.cancel(id) }
        return objects.bits(.request, number)
    }
}

extension KVRequest {
    /// Bytes of an application's input.
    private static let inputLimit: UInt64 = 1 << 20

    fileprivate init(_ c: te_kv_question) throws(Failure) {
        guard c.flags & ~TE_KV_LAYERWISE == 0 else {
            throw Failure(TE_EINVALID, "question.flags is \(c.flags)")
        }
        guard c.cached <= c.end, c.end <= UInt64(KVLimits.tokens) else {
            throw Failure(TE_EINVALID, "question: tokens \(c.cached) to \(c.end)")
        }
        guard c.input_bytes <= Self.inputLimit else {
            throw Failure(TE_ELIMIT, "an input of \(c.input_bytes) bytes; at most \(Self.inputLimit)")
        }
        guard c.timeout_ns <= 86_400_000_000_000 else {
            throw Failure(TE_EINVALID, "question.timeout_ns is longer than a day")
        }
        var tail: KVMessage.Tail?
        if let c = c.tail?.pointee {
            tail = KVMessage.Tail(
                rank: Int(c.rank), region: Int(c.region), offset: try integer(c.offset, "tail.offset"),
                byteCount: try integer(c.byte_count, "tail.byte_count"))
        }
        self.init(
            span: TokenSpan(cached: Int(c.cached), end: Int(c.end)),
            tables: try pageTables(c.tables, c.table_count), tail: tail,
            input: Array(
                try list(c.input?.assumingMemoryBound(to: UInt8.self), c.input_bytes, "input")),
            timeout: c.timeout_ns > 0 ? .nanoseconds(c.timeout_ns) : .seconds(30),
            isLayerwise: c.flags & TE_KV_LAYERWISE != 0)
    }
}
