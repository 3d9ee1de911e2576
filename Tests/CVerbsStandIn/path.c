// The data path of the stand-in: what happens to requests.
#include "standin.h"

static struct te_standin *network_of(struct ibv_context *context) { return ((struct device *)context->device)->network; }

struct receives te_standin_receives_new(uint32_t capacity) {
    return (struct receives){calloc(capacity, sizeof(struct receive)), capacity, 0, 0};
}

static void push(struct ibv_cq *base, struct ibv_wc wc) {
    struct cq *cq = (struct cq *)base;
    if (cq->tail - cq->head == (uint32_t)base->cqe) {
        network_of(base->context)->books.completion_overruns++;
        return;
    }
    cq->entries[cq->tail++ % (uint32_t)base->cqe] = wc;
    if (!cq->is_armed) return;
    uint64_t one = 1;
    cq->is_armed = 0;
    ((struct channel *)base->channel)->last = base;
    if (write(base->channel->fd, &one, sizeof one) < 0) abort();
}

void te_standin_clean(struct cq *cq, uint32_t qp) {
    uint32_t kept = cq->head;
    for (uint32_t at = cq->head; at != cq->tail; at++) {
        struct ibv_wc wc = cq->entries[at % (uint32_t)cq->cq.cqe];
        if (wc.qp_num != qp) cq->entries[kept++ % (uint32_t)cq->cq.cqe] = wc;
    }
    cq->tail = kept;
}

static void complete(struct qp *qp, const struct ibv_send_wr *request, enum ibv_wc_status status, uint32_t vendor) {
    if (status == IBV_WC_SUCCESS && !(request->send_flags & IBV_SEND_SIGNALED)) return;
    // Only these fields of a failed entry mean something: the others hold what must not be read.
    struct ibv_wc wc = {.wr_id = request->wr_id, .status = status, .qp_num = qp->qp.qp_num, .vendor_err = vendor};
    wc.opcode = status == IBV_WC_SUCCESS ? IBV_WC_RDMA_WRITE : (enum ibv_wc_opcode)0x7F;
    if (status != IBV_WC_SUCCESS) wc.byte_len = wc.imm_data = 0xDEADBEEF;
    push(qp->qp.send_cq, wc);
}

void te_standin_flush(struct qp *qp) {
    while (qp->head != qp->tail) {
        struct send *send = &qp->sends[qp->head++ % qp->depth];
        if (!network_of(qp->qp.context)->books.is_mute) complete(qp, &send->request, IBV_WC_WR_FLUSH_ERR, 0);
    }
}

static void fail(struct qp *qp, struct send *send, enum ibv_wc_status status, uint32_t vendor) {
    complete(qp, &send->request, status, vendor);
    qp->head++;
    qp->qp.state = IBV_QPS_ERR;
    te_standin_flush(qp);
}

static struct receive *take(struct qp *qp) {
    struct srq *srq = (struct srq *)qp->qp.srq;
    struct receives *receives = srq ? &srq->receives : &qp->receives;
    if (receives->head == receives->tail) return NULL;
    struct receive *receive = &receives->entries[receives->head++ % receives->capacity];
    if (srq && srq->limit && receives->tail - receives->head < srq->limit) {
        srq->limit = 0;
        te_standin_event(
            qp->qp.context, (struct ibv_async_event){.event_type = IBV_EVENT_SRQ_LIMIT_REACHED, .element.srq = &srq->srq});
    }
    return receive;
}

/// Whether acknowledgements are lost: what is carried out is not reported.
static int is_unheard;

/// Carries out the first request of a queue pair; 0 when it has to wait.
static int advance(struct qp *qp) {
    struct te_standin *network = network_of(qp->qp.context);
    struct te_standin_books *books = &network->books;
    if (qp->head == qp->tail || qp->qp.state != IBV_QPS_RTS || books->is_mute) return 0;
    struct send *send = &qp->sends[qp->head % qp->depth];
    struct ibv_send_wr *request = &send->request;
    uint32_t length = request->num_sge ? send->part.length : 0;
    if (books->fail_status != IBV_WC_SUCCESS) {
        enum ibv_wc_status status = books->fail_status;
        books->fail_status = IBV_WC_SUCCESS;
        fail(qp, send, status, books->fail_vendor);
        return 1;
    }
    const void *source = send->copy;
    if (length && !(request->send_flags & IBV_SEND_INLINE)) {
        source = te_standin_translate(network, send->part.lkey, send->part.addr, length, 0);
        if (!source) {
            fail(qp, send, IBV_WC_LOC_PROT_ERR, 0);
            return 1;
        }
    }
    struct qp *peer = te_standin_find_qp(network, qp->peer);
    if (!peer || peer->qp.state < IBV_QPS_RTR || peer->qp.state > IBV_QPS_RTS || peer->peer != qp->qp.qp_num ||
        peer->receive_psn != qp->send_psn) {
        fail(qp, send, IBV_WC_RETRY_EXC_ERR, 0x81);
        return 1;
    }
    struct ibv_wc arrived = {.qp_num = peer->qp.qp_num, .byte_len = length, .imm_data = request->imm_data};
    int is_write = request->opcode != IBV_WR_SEND;
    void *target = NULL;
    if (is_write && length) {
        target = te_standin_translate(
            network, request->wr.rdma.rkey, request->wr.rdma.remote_addr, length, IBV_ACCESS_REMOTE_WRITE);
        if (!target) {
            peer->qp.state = IBV_QPS_ERR;
            te_standin_flush(peer);
            fail(qp, send, IBV_WC_REM_ACCESS_ERR, 0x88);
            return 1;
        }
    }
    if (request->opcode != IBV_WR_RDMA_WRITE) {
        struct receive *receive = take(peer);
        if (!receive) {
            books->not_ready++;
            return 0;
        }
        arrived.wr_id = receive->wr_id;
        arrived.opcode = is_write ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
        arrived.wc_flags = is_write ? IBV_WC_WITH_IMM : 0;
        if (!is_write) target = (void *)(uintptr_t)receive->part.addr;
        if (!is_write && length > (receive->parts ? receive->part.length : 0)) {
            arrived.status = IBV_WC_LOC_LEN_ERR;
            push(peer->qp.recv_cq, arrived);
            fail(qp, send, IBV_WC_REM_INV_REQ_ERR, 0);
            return 1;
        }
    }
    if (length) memcpy(target, source, length);
    if (request->opcode != IBV_WR_RDMA_WRITE) push(peer->qp.recv_cq, arrived);
    if (!is_unheard) complete(qp, request, IBV_WC_SUCCESS, 0);
    qp->head++;
    return 1;
}

int te_standin_deafen(struct te_standin *network, uint32_t number, int count) {
    LOCK();
    struct qp *qp = te_standin_find_qp(network, number);
    int done = 0;
    if (qp && qp->head != qp->tail) {
        uint32_t first = qp->head;
        is_unheard = 1;
        while (done < count && advance(qp)) done++;
        is_unheard = 0;
        qp->head = first;
        fail(qp, &qp->sends[first % qp->depth], IBV_WC_RETRY_EXC_ERR, 0x81);
    }
    UNLOCK();
    return done;
}

static int advance_all(struct qp *qp) {
    int done = 0;
    if (qp->qp.qp_type == IBV_QPT_RC)
        while (advance(qp)) done++;
    return done;
}

static int run_left;
static int run_some(struct qp *qp) {
    int done = 0;
    if (qp->qp.qp_type == IBV_QPT_RC)
        while (run_left > 0 && advance(qp)) {
            run_left--;
            done++;
        }
    return done;
}
int te_standin_run(struct te_standin *network, int count) {
    LOCK();
    run_left = count;
    int done = te_standin_each_qp(network, run_some);
    UNLOCK();
    return done;
}

// MARK: Datagrams

static void deliver(struct te_standin *network, const struct datagram *datagram) {
    struct qp *peer = te_standin_find_qp(network, datagram->qp);
    if (!peer || peer->qp.qp_type != IBV_QPT_UD || peer->key != datagram->key) return;
    struct receive *receive = take(peer);
    if (!receive || datagram->length + 40 > receive->part.length) return;
    memcpy((char *)(uintptr_t)receive->part.addr + 40, datagram->bytes, datagram->length);
    push(peer->qp.recv_cq, (struct ibv_wc){
        .wr_id = receive->wr_id, .opcode = IBV_WC_RECV, .byte_len = (uint32_t)datagram->length + 40,
        .qp_num = peer->qp.qp_num, .wc_flags = IBV_WC_GRH});
}

static void send_datagram(struct te_standin *network, const struct datagram *datagram) {
    struct te_standin_books *books = &network->books;
    books->datagrams++;
    network->chance = network->chance * 6364136223846793005u + 1442695040888963407u;
    if (books->lose_datagrams || (network->chance >> 33) % 100 < books->lose_percent) {
        if (books->lose_datagrams) books->lose_datagrams--;
        books->datagrams_dropped++;
        return;
    }
    if (books->hold_datagrams) {
        if (network->held_count < HELD) network->held[network->held_count++] = *datagram;
        return;
    }
    deliver(network, datagram);
    if (books->double_datagrams) deliver(network, datagram);
}

void te_standin_release(struct te_standin *network, int is_backwards) {
    LOCK();
    int count = network->held_count;
    network->held_count = 0;
    for (int i = 0; i < count; i++) deliver(network, &network->held[is_backwards ? count - 1 - i : i]);
    UNLOCK();
}

static int found_key;
static uint32_t found_number;
static struct ibv_device *wanted;
static int find_datagrams(struct qp *qp) {
    if (qp->qp.qp_type == IBV_QPT_UD && qp->qp.context->device == wanted) {
        found_number = qp->qp.qp_num;
        found_key = (int)qp->key;
    }
    return 0;
}
void te_standin_datagram(struct te_standin *network, int device, const void *bytes, size_t length) {
    LOCK();
    wanted = &network->devices[device].device;
    te_standin_each_qp(network, find_datagrams);
    struct datagram datagram = {.qp = found_number, .key = (uint32_t)found_key, .length = length};
    memcpy(datagram.bytes, bytes, length < sizeof datagram.bytes ? length : sizeof datagram.bytes);
    deliver(network, &datagram);
    UNLOCK();
}

// MARK: Posting and polling

static void keep_record(struct te_standin_books *books, const struct qp *qp, const struct ibv_send_wr *wr) {
    books->records[books->record_count++ % TE_STANDIN_RECORDS] = (struct te_standin_record){
        .wr_id = wr->wr_id, .remote_address = wr->wr.rdma.remote_addr, .opcode = wr->opcode, .flags = wr->send_flags,
        .length = wr->num_sge ? wr->sg_list->length : 0, .immediate = ntohl(wr->imm_data), .qp = qp->qp.qp_num,
        .key = wr->wr.rdma.rkey, .parts = wr->num_sge};
}

/// Whether all of some requests can be taken; 0 or an error number.
static int admits(struct qp *qp, const struct ibv_send_wr *wr) {
    struct te_standin_books *books = &network_of(qp->qp.context)->books;
    uint32_t count = 0;
    for (; wr; wr = wr->next) count++;
    if (books->refuse_error && books->refuse_after < count) {
        int error = books->refuse_error;
        books->refuse_error = 0;
        return error;
    }
    if (qp->tail - qp->head + count <= qp->depth) return 0;
    books->queue_overruns++;
    return ENOMEM;
}

/// Takes requests up to the first that cannot be, or all or none.
static int post(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad, int is_whole) {
    struct qp *qp = (struct qp *)base;
    struct te_standin *network = network_of(base->context);
    struct te_standin_books *books = &network->books;
    int error = 0;
    LOCK();
    if (base->qp_type == IBV_QPT_UD) {
        struct datagram datagram = {.qp = wr->wr.ud.remote_qpn, .key = wr->wr.ud.remote_qkey, .length = wr->sg_list->length};
        memcpy(datagram.bytes, (void *)(uintptr_t)wr->sg_list->addr, datagram.length);
        if (!books->is_mute) {
            send_datagram(network, &datagram);
            complete(qp, wr, IBV_WC_SUCCESS, 0);
        }
        UNLOCK();
        return 0;
    }
    books->doorbells++;
    uint64_t length = 0;
    if (is_whole) {
        books->called++;
        error = admits(qp, wr);
        if (error) wr = NULL;
    }
    for (; wr; wr = wr->next) {
        if (books->refuse_error && books->refuse_after-- == 0) {
            error = books->refuse_error;
            books->refuse_error = 0;
            break;
        }
        if (qp->qp.state < IBV_QPS_RTS) {
            error = EINVAL;
            break;
        }
        if (qp->tail - qp->head == qp->depth) {
            books->queue_overruns++;
            error = ENOMEM;
            break;
        }
        length++;
        books->requests++;
        if (wr->send_flags & IBV_SEND_SIGNALED) books->signaled++;
        keep_record(books, qp, wr);
        struct send *send = &qp->sends[qp->tail++ % qp->depth];
        send->request = *wr;
        if (wr->num_sge) send->part = *wr->sg_list;
        if (wr->num_sge && wr->send_flags & IBV_SEND_INLINE)
            memcpy(send->copy, (void *)(uintptr_t)wr->sg_list->addr, wr->sg_list->length);
        if (qp->qp.state == IBV_QPS_ERR) te_standin_flush(qp);
    }
    if (error && bad) *bad = wr;
    if (length > books->longest_chain) books->longest_chain = length;
    if (!books->hold_requests) advance_all(qp);
    UNLOCK();
    return error;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
    return post(qp, wr, bad, 0);
}

// By calls. What a device may rely on is insisted on: start and complete in turn, and data, if only none, for each request.

static void wr_start(struct ibv_qp_ex *calls) {
    struct qp *qp = (struct qp *)calls;
    if (qp->is_building) abort();
    qp->is_building = 1;
    qp->built = qp->build_error = qp->lacks_data = 0;
}
static void build(struct ibv_qp_ex *calls, enum ibv_wr_opcode opcode, uint32_t key, uint64_t address, __be32 immediate) {
    struct qp *qp = (struct qp *)calls;
    if (!qp->is_building) abort();
    if (qp->lacks_data) qp->build_error = EINVAL;
    if (qp->built == BUILDS) qp->build_error = ENOMEM;
    if (qp->build_error) return;
    struct build *build = &qp->builds[qp->built++];
    build->request = (struct ibv_send_wr){
        .wr_id = calls->wr_id, .opcode = opcode, .send_flags = calls->wr_flags, .sg_list = &build->part,
        .imm_data = immediate, .wr.rdma = {.remote_addr = address, .rkey = key}};
    qp->lacks_data = 1;
}
static void wr_write(struct ibv_qp_ex *calls, uint32_t key, uint64_t address) {
    build(calls, IBV_WR_RDMA_WRITE, key, address, 0);
}
static void wr_write_imm(struct ibv_qp_ex *calls, uint32_t key, uint64_t address, __be32 immediate) {
    build(calls, IBV_WR_RDMA_WRITE_WITH_IMM, key, address, immediate);
}
static void wr_send(struct ibv_qp_ex *calls) { build(calls, IBV_WR_SEND, 0, 0, 0); }
static struct build *unfinished(struct ibv_qp_ex *calls) {
    struct qp *qp = (struct qp *)calls;
    if (!qp->is_building || !(qp->lacks_data || qp->build_error)) abort();
    if (qp->build_error) return NULL;
    qp->lacks_data = 0;
    return &qp->builds[qp->built - 1];
}
static void wr_set_sge(struct ibv_qp_ex *calls, uint32_t key, uint64_t address, uint32_t length) {
    struct build *build = unfinished(calls);
    // A length of 0 would be read as 2^31 bytes.
    if (!length) ((struct qp *)calls)->build_error = EINVAL;
    if (!build) return;
    build->part = (struct ibv_sge){address, length, key};
    build->request.num_sge = 1;
}
static void wr_set_sge_list(struct ibv_qp_ex *calls, size_t count, const struct ibv_sge *parts) {
    if (count) ((struct qp *)calls)->build_error = EINVAL;
    unfinished(calls);
}
static void wr_set_inline_data(struct ibv_qp_ex *calls, void *bytes, size_t length) {
    struct build *build = unfinished(calls);
    // Soft-RoCE goes by the flag, not by the call.
    if (length > INLINE_BYTES || (build && !(build->request.send_flags & IBV_SEND_INLINE)))
        ((struct qp *)calls)->build_error = EINVAL;
    if (!build || length > INLINE_BYTES) return;
    memcpy(build->copy, bytes, length);
    build->part = (struct ibv_sge){(uintptr_t)build->copy, (uint32_t)length, 0};
    build->request.num_sge = 1;
}
static int wr_complete(struct ibv_qp_ex *calls) {
    struct qp *qp = (struct qp *)calls;
    if (!qp->is_building) abort();
    qp->is_building = 0;
    if (qp->lacks_data) return EINVAL;
    if (qp->build_error) return qp->build_error;
    for (int i = 0; i + 1 < qp->built; i++) qp->builds[i].request.next = &qp->builds[i + 1].request;
    return qp->built ? post(&qp->qp, &qp->builds[0].request, NULL, 1) : 0;
}
static void wr_abort(struct ibv_qp_ex *calls) { ((struct qp *)calls)->is_building = 0; }

static int add(struct receives *receives, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    for (; wr; wr = wr->next) {
        if (receives->tail - receives->head == receives->capacity) {
            *bad = wr;
            return ENOMEM;
        }
        struct receive *receive = &receives->entries[receives->tail++ % receives->capacity];
        receive->wr_id = wr->wr_id;
        receive->parts = wr->num_sge;
        if (wr->num_sge) receive->part = *wr->sg_list;
    }
    return 0;
}
static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    LOCK();
    int error = add(&((struct qp *)qp)->receives, wr, bad);
    UNLOCK();
    return error;
}
static int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    LOCK();
    int error = add(&((struct srq *)srq)->receives, wr, bad);
    UNLOCK();
    return error;
}

static int poll_cq(struct ibv_cq *base, int count, struct ibv_wc *wc) {
    struct cq *cq = (struct cq *)base;
    struct te_standin *network = network_of(base->context);
    LOCK();
    network->books.polls++;
    // Requests that found no receive are tried again, as a NIC does.
    if (network->books.not_ready && !network->books.hold_requests && network->books.polls % 16 == 0)
        te_standin_each_qp(network, advance_all);
    int taken = 0;
    while (taken < count && cq->head != cq->tail) wc[taken++] = cq->entries[cq->head++ % (uint32_t)base->cqe];
    UNLOCK();
    return taken;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited) {
    LOCK();
    ((struct cq *)cq)->is_armed = 1;
    UNLOCK();
    return 0;
}

void te_standin_stray(struct te_standin *network, int device, uint64_t wr_id, enum ibv_wc_status status) {
    LOCK();
    wanted = &network->devices[device].device;
    te_standin_each_qp(network, find_datagrams);
    struct qp *qp = te_standin_find_qp(network, found_number);
    if (qp) push(qp->qp.send_cq, (struct ibv_wc){.wr_id = wr_id, .status = status});
    UNLOCK();
}

// MARK: Sink

static struct ibv_wc sink[4096];
static uint32_t sink_head, sink_tail;

static int sink_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
    for (; wr; wr = wr->next)
        if (wr->send_flags & IBV_SEND_SIGNALED) {
            struct ibv_wc *wc = &sink[sink_tail++ % 4096];
            wc->wr_id = wr->wr_id;
            wc->status = IBV_WC_SUCCESS;
        }
    return 0;
}
static void sink_start(struct ibv_qp_ex *calls) {}
static void sink_write_imm(struct ibv_qp_ex *calls, uint32_t key, uint64_t address, __be32 immediate) {
    if (!(calls->wr_flags & IBV_SEND_SIGNALED)) return;
    struct ibv_wc *wc = &sink[sink_tail++ % 4096];
    wc->wr_id = calls->wr_id;
    wc->status = IBV_WC_SUCCESS;
}
static void sink_write(struct ibv_qp_ex *calls, uint32_t key, uint64_t address) { sink_write_imm(calls, key, address, 0); }
static void sink_set_sge(struct ibv_qp_ex *calls, uint32_t key, uint64_t address, uint32_t length) {}
static void sink_set_sge_list(struct ibv_qp_ex *calls, size_t count, const struct ibv_sge *parts) {}
static void sink_set_inline_data(struct ibv_qp_ex *calls, void *bytes, size_t length) {}
static int sink_complete(struct ibv_qp_ex *calls) { return 0; }
static int sink_receive(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) { return 0; }
static int sink_poll(struct ibv_cq *cq, int count, struct ibv_wc *wc) {
    int taken = 0;
    while (taken < count && sink_head != sink_tail) wc[taken++] = sink[sink_head++ % 4096];
    return taken;
}

void te_standin_arrive(struct te_standin *network, int count, uint32_t qp) {
    for (int i = 0; i < count; i++) {
        struct ibv_wc *wc = &sink[sink_tail++ % 4096];
        *wc = (struct ibv_wc){
            .wr_id = (uint64_t)5 << 61, .opcode = IBV_WC_RECV_RDMA_WITH_IMM, .wc_flags = IBV_WC_WITH_IMM, .qp_num = qp,
            .imm_data = htonl(7)};
    }
}

void te_standin_set_ops(struct ibv_context *context, int is_sink) {
    context->ops.post_send = is_sink ? sink_send : post_send;
    context->ops.post_recv = post_recv;
    context->ops.post_srq_recv = is_sink ? sink_receive : post_srq_recv;
    context->ops.poll_cq = is_sink ? sink_poll : poll_cq;
    context->ops.req_notify_cq = req_notify_cq;
}
void te_standin_set_calls(struct qp *qp, int is_sink) {
    struct ibv_qp_ex *calls = &qp->calls;
    calls->wr_start = is_sink ? sink_start : wr_start;
    calls->wr_rdma_write = is_sink ? sink_write : wr_write;
    calls->wr_rdma_write_imm = is_sink ? sink_write_imm : wr_write_imm;
    calls->wr_send = wr_send;
    calls->wr_set_sge = is_sink ? sink_set_sge : wr_set_sge;
    calls->wr_set_sge_list = is_sink ? sink_set_sge_list : wr_set_sge_list;
    calls->wr_set_inline_data = is_sink ? sink_set_inline_data : wr_set_inline_data;
    calls->wr_complete = is_sink ? sink_complete : wr_complete;
    calls->wr_abort = wr_abort;
}
static int sink_calls(struct qp *qp) {
    if (qp->builds) te_standin_set_calls(qp, 1);
    return 0;
}
void te_standin_sink(struct te_standin *network) {
    te_standin_each_qp(network, sink_calls);
    for (int i = 0; i < network->device_count; i++)
        for (struct context *c = network->devices[i].contexts; c; c = c->next) te_standin_set_ops(&c->context, 1);
}
