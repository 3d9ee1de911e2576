#include "CFabricStandIn.h"

// There are none without the address sanitizer.
__attribute__((weak)) void __asan_poison_memory_region(void const volatile *address, size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile *address, size_t size);

static void unlock(const void *bytes, size_t length) {
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bytes, length);
}

enum { capacity = 4096 };

struct posted {
    void *context, *buffer;
    size_t length;
};

struct queue {
    struct posted items[capacity];
    size_t first, end;
};

struct te_fabric_standin {
    struct fid_cq cq;
    struct fid_av av;
    struct fid_ep ep;
    struct fi_info info;
    struct fi_tx_attr tx;
    struct fi_ep_attr ep_attr;
    struct fi_domain_attr domain_attr;
    struct fi_ops_cq cq_ops;
    struct fi_ops_av av_ops;
    struct fi_ops_msg msg;
    struct fi_ops_rma rma;
    struct queue receives, sends, delivered;
    struct fi_cq_data_entry done[capacity];
    size_t done_first, done_end;
    struct fi_cq_err_entry failure;
    int has_failure, refusals, refusal;
    fi_addr_t addresses;
};

#define OWNER(object, field) ((struct te_fabric_standin *)((char *)(object)-offsetof(struct te_fabric_standin, field)))

static ssize_t append(struct queue *queue, void *context, void *buffer, size_t length) {
    if (queue->end - queue->first == capacity) return -FI_EAGAIN;
    queue->items[queue->end++ % capacity] = (struct posted){context, buffer, length};
    return 0;
}

static void complete(struct te_fabric_standin *fabric, struct fi_cq_data_entry entry) {
    if (fabric->done_end - fabric->done_first < capacity) fabric->done[fabric->done_end++ % capacity] = entry;
}

static ssize_t post(struct te_fabric_standin *fabric, void *context, const void *buffer, size_t length) {
    if (!fabric->refusals) return append(&fabric->sends, context, (void *)buffer, length);
    fabric->refusals--;
    return -fabric->refusal;
}

static ssize_t cq_read(struct fid_cq *cq, void *buffer, size_t count) {
    struct te_fabric_standin *fabric = OWNER(cq, cq);
    struct fi_cq_data_entry *out = buffer;
    if (fabric->has_failure) return -FI_EAVAIL;
    size_t got = 0;
    while (got < count && fabric->done_first < fabric->done_end)
        out[got++] = fabric->done[fabric->done_first++ % capacity];
    return got ? (ssize_t)got : -FI_EAGAIN;
}

static ssize_t cq_readerr(struct fid_cq *cq, struct fi_cq_err_entry *buffer, uint64_t flags) {
    (void)flags;
    struct te_fabric_standin *fabric = OWNER(cq, cq);
    if (!fabric->has_failure) return -FI_EAGAIN;
    fabric->has_failure = 0;
    *buffer = fabric->failure;
    return 1;
}

static ssize_t ep_recv(
    struct fid_ep *ep, void *buffer, size_t length, void *descriptor, fi_addr_t source, void *context) {
    (void)descriptor, (void)source;
    unlock(buffer, length);
    return append(&OWNER(ep, ep)->receives, context, buffer, length);
}

static ssize_t ep_send(
    struct fid_ep *ep, const void *buffer, size_t length, void *descriptor, fi_addr_t target, void *context) {
    (void)descriptor, (void)target;
    return post(OWNER(ep, ep), context, buffer, length);
}

static ssize_t ep_writemsg(struct fid_ep *ep, const struct fi_msg_rma *message, uint64_t flags) {
    (void)flags;
    return post(OWNER(ep, ep), message->context, 0, 0);
}

static int av_insert(
    struct fid_av *av, const void *address, size_t count, fi_addr_t *out, uint64_t flags, void *context) {
    (void)address, (void)flags, (void)context;
    *out = OWNER(av, av)->addresses++;
    return (int)count;
}

static int av_remove(struct fid_av *av, fi_addr_t *address, size_t count, uint64_t flags) {
    (void)av, (void)address, (void)count, (void)flags;
    return 0;
}

struct te_fabric_standin *te_fabric_standin_new(void) {
    struct te_fabric_standin *fabric = calloc(1, sizeof *fabric);
    if (!fabric) abort();
    fabric->cq_ops = (struct fi_ops_cq){.size = sizeof fabric->cq_ops, .read = cq_read, .readerr = cq_readerr};
    fabric->av_ops = (struct fi_ops_av){.size = sizeof fabric->av_ops, .insert = av_insert, .remove = av_remove};
    fabric->msg = (struct fi_ops_msg){.size = sizeof fabric->msg, .recv = ep_recv, .send = ep_send};
    fabric->rma = (struct fi_ops_rma){.size = sizeof fabric->rma, .writemsg = ep_writemsg};
    fabric->cq.ops = &fabric->cq_ops;
    fabric->av.ops = &fabric->av_ops;
    fabric->ep.msg = &fabric->msg;
    fabric->ep.rma = &fabric->rma;
    fabric->tx.size = 256;
    fabric->ep_attr.max_msg_size = (size_t)1 << 30;
    fabric->info.tx_attr = &fabric->tx;
    fabric->info.ep_attr = &fabric->ep_attr;
    fabric->info.domain_attr = &fabric->domain_attr;
    return fabric;
}

void te_fabric_standin_free(struct te_fabric_standin *fabric) { free(fabric); }
struct fi_info *te_fabric_standin_info(struct te_fabric_standin *fabric) { return &fabric->info; }
// Nothing looks into these two.
struct fid_fabric *te_fabric_standin_fabric(struct te_fabric_standin *fabric) { return (void *)fabric; }
struct fid_domain *te_fabric_standin_domain(struct te_fabric_standin *fabric) { return (void *)fabric; }
struct fid_cq *te_fabric_standin_completions(struct te_fabric_standin *fabric) { return &fabric->cq; }
struct fid_av *te_fabric_standin_addresses(struct te_fabric_standin *fabric) { return &fabric->av; }
struct fid_ep *te_fabric_standin_endpoint(struct te_fabric_standin *fabric) { return &fabric->ep; }

void te_fabric_standin_reset(struct te_fabric_standin *fabric) {
    for (; fabric->delivered.first < fabric->delivered.end; fabric->delivered.first++) {
        struct posted *posted = &fabric->delivered.items[fabric->delivered.first % capacity];
        unlock(posted->buffer, posted->length);
    }
    fabric->receives.first = fabric->receives.end = 0;
    fabric->sends.first = fabric->sends.end = 0;
    fabric->done_first = fabric->done_end = 0;
    fabric->has_failure = fabric->refusals = 0;
    fabric->addresses = 0;
}

void *te_fabric_standin_receive_buffer(struct te_fabric_standin *fabric, size_t *room) {
    struct queue *queue = &fabric->receives;
    if (queue->first == queue->end) return 0;
    *room = queue->items[queue->first % capacity].length;
    return queue->items[queue->first % capacity].buffer;
}

void te_fabric_standin_deliver(struct te_fabric_standin *fabric, size_t length) {
    struct queue *queue = &fabric->receives;
    if (queue->first == queue->end) return;
    struct posted posted = queue->items[queue->first++ % capacity];
    if (__asan_poison_memory_region && length < posted.length)
        __asan_poison_memory_region((char *)posted.buffer + length, posted.length - length);
    append(&fabric->delivered, 0, posted.buffer, posted.length);
    complete(fabric, (struct fi_cq_data_entry){.op_context = posted.context, .flags = FI_RECV, .len = length});
}

bool te_fabric_standin_finish(struct te_fabric_standin *fabric, int error) {
    struct queue *queue = &fabric->sends;
    if (queue->first == queue->end || (error && fabric->has_failure)) return false;
    struct posted posted = queue->items[queue->first++ % capacity];
    if (!error) {
        complete(fabric, (struct fi_cq_data_entry){.op_context = posted.context, .flags = FI_SEND});
    } else {
        fabric->failure = (struct fi_cq_err_entry){.op_context = posted.context, .err = error};
        fabric->has_failure = 1;
    }
    return true;
}

void te_fabric_standin_arrive(struct te_fabric_standin *fabric, uint64_t data) {
    complete(fabric, (struct fi_cq_data_entry){.flags = FI_REMOTE_CQ_DATA | FI_RMA, .data = data});
}

void te_fabric_standin_refuse(struct te_fabric_standin *fabric, int posts, int error) {
    fabric->refusals = posts;
    fabric->refusal = error;
}

int te_fabric_standin_refusals(struct te_fabric_standin *fabric) { return fabric->refusals; }
