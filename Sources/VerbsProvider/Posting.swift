internal import CVerbs
internal import Glibc

/// Queue pairs of reliable connections, and the two ways to hand requests to them.
enum QueuePairs {
    /// Makes a queue pair that takes requests by calls (`ibv_wr_*`), or by list only. nil with `errno` when it cannot be.
    static func create(
        _ api: UnsafePointer<te_verbs_api>, _ pd: UnsafeMutablePointer<ibv_pd>,
        _ cq: UnsafeMutablePointer<ibv_cq>?, srq: UnsafeMutablePointer<ibv_srq>?, depth: UInt32,
        inlineBytes: UInt32, takesCalls: Bool
    ) -> UnsafeMutablePointer<ibv_qp>? {
        guard takesCalls else {
            var initial = unsafe ibv_qp_init_attr()
            unsafe initial.send_cq = cq
            unsafe initial.recv_cq = cq
            unsafe initial.srq = srq
            unsafe initial.qp_type = IBV_QPT_RC
            unsafe initial.cap.max_send_wr = depth
            unsafe initial.cap.max_send_sge = 1
            unsafe initial.cap.max_inline_data = inlineBytes
            return unsafe api.pointee.create_qp(pd, &initial)
        }
        var initial = unsafe ibv_qp_init_attr_ex()
        unsafe initial.send_cq = cq
        unsafe initial.recv_cq = cq
        unsafe initial.srq = srq
        unsafe initial.qp_type = IBV_QPT_RC
        unsafe initial.cap.max_send_wr = depth
        unsafe initial.cap.max_send_sge = 1
        unsafe initial.cap.max_inline_data = inlineBytes
        unsafe initial.comp_mask =
            IBV_QP_INIT_ATTR_PD.rawValue | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS.rawValue
        unsafe initial.pd = pd
        unsafe initial.send_ops_flags = UInt64(
            IBV_QP_EX_WITH_RDMA_WRITE.rawValue | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM.rawValue
                | IBV_QP_EX_WITH_SEND.rawValue)
        return unsafe api.pointee.create_qp_ex(unsafe pd.pointee.context, &initial)
    }

    /// Whether the device takes requests by calls, which only a queue pair made for them tells.
    static func canTakeCalls(
        _ api: UnsafePointer<te_verbs_api>, _ pd: UnsafeMutablePointer<ibv_pd>,
        _ cq: UnsafeMutablePointer<ibv_cq>
    ) -> Bool {
        guard unsafe api.pointee.create_qp_ex != nil, let convert = unsafe api.pointee.qp_to_qp_ex,
            let qp = unsafe create(api, pd, cq, srq: nil, depth: 1, inlineBytes: 0, takesCalls: true)
        else { return false }
        let isConverted = unsafe convert(qp) != nil
        _ = unsafe api.pointee.destroy_qp(qp)
        return isConverted
    }

    /// The same of a device of which nothing is open yet.
    static func canTakeCalls(
        _ api: UnsafePointer<te_verbs_api>, _ context: UnsafeMutablePointer<ibv_context>
    ) -> Bool {
        guard let pd = unsafe api.pointee.alloc_pd(context) else { return false }
        defer { _ = unsafe api.pointee.dealloc_pd(pd) }
        guard let cq = unsafe api.pointee.create_cq(context, 1, nil, nil, 0) else { return false }
        defer { _ = unsafe api.pointee.destroy_cq(cq) }
        return unsafe canTakeCalls(api, pd, cq)
    }
}
