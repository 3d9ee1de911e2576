internal import CVerbs
internal import Glibc
internal import TransferCore

/// A failed request in words: what happened, to whom, and what to do.
struct VerbsFailure {
    private let status: WorkStatus
    private let detail: Int32
    private let peer: String
    private let options: VerbsOptions

    init(_ status: WorkStatus, _ detail: Int32, peer: String, _ options: VerbsOptions) {
        self.status = status
        self.detail = detail
        self.peer = peer
        self.options = options
    }

    /// nil when the status says it all.
    var words: String? {
        if detail == 0 { return nil }
        if detail > 0 { return ofCompletion }
        if detail <= VerbsError.firstEvent {
            return
                "the NIC reported that the queue pair to \(peer) failed (event \(VerbsError.firstEvent - detail)): "
                + "see the kernel's log; the next request makes a new connection"
        }
        return ofErrorNumber(-detail)
    }

    // MARK: Error numbers of the system

    private func ofErrorNumber(_ error: Int32) -> String {
        switch error {
        case ETIMEDOUT:
            return
                "\(peer) did not answer the handshake within \(options.connectTimeout) (ETIMEDOUT): is its engine "
                + "running and making progress, and does UDP port 4791 reach it?"
        case ECONNREFUSED:
            return
                "\(peer) has another engine than the one that was attached (ECONNREFUSED): it was started over; "
                + "attach its new descriptor"
        case ECONNRESET:
            return
                "\(peer) has closed the connection (ECONNRESET): its engine has ended or started over; attach its "
                + "new descriptor once it is back"
        case ENODEV:
            return "the RDMA device is gone (ENODEV): see the kernel's log, then open a new engine"
        case ENOMEM:
            return
                "the system has no memory or queue for a connection to \(peer) (ENOMEM): raise the limit of locked "
                + "memory (ulimit -l unlimited), or use fewer peers"
        default:
            return
                "the driver refused a request or a connection to \(peer): \(VerbsError.text(error)) (\(error)); see "
                + "the kernel's log"
        }
    }

    // MARK: Work completions

    private var ofCompletion: String {
        let code = ibv_wc_status(rawValue: UInt32(detail & 0xFF))
        let vendor = detail >> 8 == 0 ? "" : " (vendor 0x\(String(detail >> 8, radix: 16)))"
        switch code {
        case IBV_WC_REM_ACCESS_ERR:
            return
                "remote access error\(vendor) at \(peer): the region was deregistered, or does not allow remote "
                + "writes; attach its new descriptor"
        case IBV_WC_RETRY_EXC_ERR:
            return
                "\(peer) does not acknowledge: retries exceeded\(vendor); is it running, and do RoCE packets (UDP "
                + "port 4791) reach it? VerbsOptions.timeout and retryCount set how long this takes"
        case IBV_WC_RNR_RETRY_EXC_ERR:
            return
                "\(peer) had no receive for too long: receiver not ready, retries exceeded\(vendor); it must make "
                + "progress, or raise its immediateReceives and messageReceives"
        case IBV_WC_WR_FLUSH_ERR:
            return
                "the connection to \(peer) broke while the request was in flight\(vendor); the next request makes "
                + "a new one"
        case IBV_WC_LOC_PROT_ERR:
            return
                "local protection error\(vendor): the source is not registered on this NIC any more; keep regions "
                + "until their transfers have ended"
        default:
            return
                "\(Self.name(code))\(vendor) on the connection to \(peer); see the NIC's counters and the kernel's log"
        }
    }

    private static func name(_ code: ibv_wc_status) -> String {
        let names: [UInt32: String] = [
            IBV_WC_LOC_LEN_ERR.rawValue: "local length error",
            IBV_WC_LOC_QP_OP_ERR.rawValue: "local queue pair operation error",
            IBV_WC_BAD_RESP_ERR.rawValue: "bad response error",
            IBV_WC_LOC_ACCESS_ERR.rawValue: "local access error",
            IBV_WC_REM_INV_REQ_ERR.rawValue: "remote invalid request error",
            IBV_WC_REM_OP_ERR.rawValue: "remote operation error",
            IBV_WC_REM_ABORT_ERR.rawValue: "remote aborted error",
            IBV_WC_FATAL_ERR.rawValue: "fatal error",
            IBV_WC_RESP_TIMEOUT_ERR.rawValue: "response timeout error",
            IBV_WC_GENERAL_ERR.rawValue: "general error",
        ]
        return names[code.rawValue] ?? "work completion error \(code.rawValue)"
    }
}

extension DomainState {
    /// A peer for people: its address.
    func name(ofPeer peer: Int?) -> String {
        guard let peer, peer >= 0, peer < peerCount else { return "a peer" }
        return "peer \(peers[peer].address.text)"
    }
}
