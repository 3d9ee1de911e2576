#include "standin.h"

static struct te_standin *networks;
static struct qp *queue_pairs[QP_PLACES];
static struct mr *regions[MR_PLACES];
static uint32_t next_qp = 0x100, next_mr = 0x10, next_network;
pthread_mutex_t te_standin_lock = PTHREAD_MUTEX_INITIALIZER;

static struct te_standin *network_of(struct ibv_context *context) { return ((struct device *)context->device)->network; }

struct qp *te_standin_find_qp(struct te_standin *network, uint32_t number) {
    struct qp *qp = queue_pairs[number % QP_PLACES];
    return qp && qp->qp.qp_num == number && network_of(qp->qp.context) == network ? qp : NULL;
}

int te_standin_each_qp(struct te_standin *network, int (*body)(struct qp *)) {
    int total = 0;
    for (int i = 0; i < QP_PLACES; i++)
        if (queue_pairs[i] && network_of(queue_pairs[i]->qp.context) == network) total += body(queue_pairs[i]);
    return total;
}

void *te_standin_translate(struct te_standin *network, uint32_t key, uint64_t address, uint64_t length, unsigned access) {
    struct mr *mr = regions[(key >> 8) % MR_PLACES];
    if (!mr || mr->mr.lkey != key || network_of(mr->mr.context) != network || (mr->access & access) != access) return NULL;
    if (address < mr->iova || length > mr->mr.length || address - mr->iova > mr->mr.length - length) return NULL;
    return (char *)mr->mr.addr + (address - mr->iova);
}

// MARK: Devices

static struct ibv_device **get_device_list(int *count) {
    LOCK();
    int total = 0;
    for (struct te_standin *n = networks; n; n = n->next) total += n->device_count;
    struct ibv_device **list = calloc((size_t)total + 1, sizeof *list);
    int at = 0;
    for (struct te_standin *n = networks; n; n = n->next)
        for (int i = 0; i < n->device_count; i++) list[at++] = &n->devices[i].device;
    *count = total;
    UNLOCK();
    return list;
}
static void free_device_list(struct ibv_device **list) { free(list); }
static const char *get_device_name(struct ibv_device *device) { return device->name; }

static struct ibv_context *open_device(struct ibv_device *device) {
    struct device *d = (struct device *)device;
    struct context *c = calloc(1, sizeof *c);
    c->context.device = device;
    te_standin_set_ops(&c->context, 0);
    c->context.async_fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
    LOCK();
    d->network->books.contexts++;
    c->next = d->contexts;
    d->contexts = c;
    UNLOCK();
    return &c->context;
}
static int close_device(struct ibv_context *context) {
    struct device *d = (struct device *)context->device;
    LOCK();
    for (struct context **p = &d->contexts; *p; p = &(*p)->next)
        if (&(*p)->context == context) {
            *p = (*p)->next;
            break;
        }
    d->network->books.contexts--;
    UNLOCK();
    close(context->async_fd);
    free(context);
    return 0;
}

static int query_device(struct ibv_context *context, struct ibv_device_attr *a) {
    memset(a, 0, sizeof *a);
    a->phys_port_cnt = 1;
    a->max_qp_wr = 8192;
    a->max_cqe = 32767;
    a->max_srq_wr = 16384;
    return 0;
}
static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *a) {
    struct device *d = (struct device *)context->device;
    if (port != 1) return EINVAL;
    memset(a, 0, sizeof *a);
    a->state = IBV_PORT_ACTIVE;
    a->active_mtu = IBV_MTU_4096;
    a->max_msg_sz = 1u << 31;
    a->lid = d->network->is_ethernet ? 0 : (uint16_t)(d->number + 1);
    a->link_layer = d->network->is_ethernet ? IBV_LINK_LAYER_ETHERNET : IBV_LINK_LAYER_INFINIBAND;
    a->active_speed = 32;
    a->active_width = 2;
    return 0;
}
static ssize_t query_gid_table(
    struct ibv_context *context, struct ibv_gid_entry *entries, size_t capacity, uint32_t flags, size_t size) {
    struct device *d = (struct device *)context->device;
    const uint8_t local[] = {0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, (uint8_t)d->number};
    const uint8_t mapped[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 1, 0, (uint8_t)(d->number + 1)};
    ssize_t count = d->network->is_ethernet ? 2 : 1;
    for (ssize_t i = 0; i < count && (size_t)i < capacity; i++) {
        memset(&entries[i], 0, sizeof *entries);
        memcpy(entries[i].gid.raw, i ? mapped : local, 16);
        entries[i].gid_index = (uint32_t)i;
        entries[i].port_num = 1;
        entries[i].gid_type = d->network->is_ethernet ? IBV_GID_TYPE_ROCE_V2 : IBV_GID_TYPE_IB;
    }
    return count;
}

// MARK: Objects

static int is_refused(struct te_standin *network) {
    if (!network->books.refuse_creation || --network->books.refuse_creation) return 0;
    errno = ENOMEM;
    return 1;
}

#define MAKE(type, kind, books_field, context_)                        \
    struct te_standin *network = network_of(context_);                 \
    LOCK();                                                            \
    int refused = is_refused(network);                                 \
    if (!refused) network->books.books_field++;                        \
    UNLOCK();                                                          \
    if (refused) return NULL;                                          \
    struct type *made = calloc(1, sizeof *made);                       \
    made->kind.context = context_;

static void forget(struct ibv_context *context, int64_t *count) {
    LOCK();
    --*count;
    UNLOCK();
    (void)context;
}

static struct ibv_pd *alloc_pd(struct ibv_context *context) {
    MAKE(pd, pd, domains, context)
    return &made->pd;
}
static int dealloc_pd(struct ibv_pd *pd) {
    forget(pd->context, &network_of(pd->context)->books.domains);
    free(pd);
    return 0;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *address, size_t length, uint64_t iova, unsigned access) {
    MAKE(mr, mr, regions, pd->context)
    made->mr.pd = pd;
    made->mr.addr = address;
    made->mr.length = length;
    made->iova = iova;
    made->access = access;
    LOCK();
    while (regions[next_mr % MR_PLACES]) next_mr++;
    made->mr.lkey = made->mr.rkey = next_mr << 8 | (next_mr * 37 & 0xFF);
    regions[next_mr++ % MR_PLACES] = made;
    UNLOCK();
    return &made->mr;
}
static int dereg_mr(struct ibv_mr *mr) {
    LOCK();
    regions[(mr->lkey >> 8) % MR_PLACES] = NULL;
    UNLOCK();
    forget(mr->context, &network_of(mr->context)->books.regions);
    free(mr);
    return 0;
}
static struct ibv_mr *reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access) {
    errno = EOPNOTSUPP;
    return NULL;
}

static struct ibv_comp_channel *create_comp_channel(struct ibv_context *context) {
    MAKE(channel, channel, channels, context)
    made->channel.fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
    return &made->channel;
}
static int destroy_comp_channel(struct ibv_comp_channel *channel) {
    forget(channel->context, &network_of(channel->context)->books.channels);
    close(channel->fd);
    free(channel);
    return 0;
}

static struct ibv_cq *create_cq(
    struct ibv_context *context, int entries, void *cq_context, struct ibv_comp_channel *channel, int vector) {
    MAKE(cq, cq, completion_queues, context)
    made->cq.channel = channel;
    made->cq.cqe = entries;
    made->entries = calloc((size_t)entries, sizeof *made->entries);
    return &made->cq;
}
static int destroy_cq(struct ibv_cq *cq) {
    forget(cq->context, &network_of(cq->context)->books.completion_queues);
    free(((struct cq *)cq)->entries);
    free(cq);
    return 0;
}
static int get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **context) {
    uint64_t one;
    if (read(channel->fd, &one, sizeof one) < 0) return -1;
    *cq = ((struct channel *)channel)->last;
    *context = NULL;
    return 0;
}
static void ack_cq_events(struct ibv_cq *cq, unsigned int count) {}

static struct ibv_srq *create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *a) {
    MAKE(srq, srq, shared_receives, pd->context)
    made->srq.pd = pd;
    made->receives = te_standin_receives_new(a->attr.max_wr);
    return &made->srq;
}
static int modify_srq(struct ibv_srq *srq, struct ibv_srq_attr *a, int mask) {
    LOCK();
    if (mask & IBV_SRQ_LIMIT) ((struct srq *)srq)->limit = a->srq_limit;
    UNLOCK();
    return 0;
}
static int destroy_srq(struct ibv_srq *srq) {
    forget(srq->context, &network_of(srq->context)->books.shared_receives);
    free(((struct srq *)srq)->receives.entries);
    free(srq);
    return 0;
}

static struct ibv_qp *create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a) {
    if (a->cap.max_inline_data && network_of(pd->context)->books.refuse_inline) {
        errno = EINVAL;
        return NULL;
    }
    MAKE(qp, qp, queue_pairs, pd->context)
    made->qp.pd = pd;
    made->qp.send_cq = a->send_cq;
    made->qp.recv_cq = a->recv_cq;
    made->qp.srq = a->srq;
    made->qp.qp_type = a->qp_type;
    made->qp.state = IBV_QPS_RESET;
    made->depth = a->cap.max_send_wr;
    made->sends = calloc(made->depth, sizeof *made->sends);
    if (!a->srq) made->receives = te_standin_receives_new(a->cap.max_recv_wr);
    LOCK();
    while (queue_pairs[next_qp % QP_PLACES]) next_qp++;
    made->qp.qp_num = next_qp & 0xFFFFFF;
    queue_pairs[next_qp++ % QP_PLACES] = made;
    UNLOCK();
    return &made->qp;
}
static struct ibv_qp *create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *a) {
    const uint64_t known = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND;
    if (network_of(context)->books.refuse_calls || a->comp_mask != (IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) ||
        a->send_ops_flags & ~known) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    // The attributes begin alike.
    struct qp *qp = (struct qp *)create_qp(a->pd, (struct ibv_qp_init_attr *)a);
    if (!qp) return NULL;
    qp->builds = calloc(BUILDS, sizeof *qp->builds);
    te_standin_set_calls(qp, 0);
    return &qp->qp;
}
static struct ibv_qp_ex *qp_to_qp_ex(struct ibv_qp *qp) { return ((struct qp *)qp)->builds ? (struct ibv_qp_ex *)qp : NULL; }
static int modify_qp(struct ibv_qp *base, struct ibv_qp_attr *a, int mask) {
    struct qp *qp = (struct qp *)base;
    LOCK();
    if (mask & IBV_QP_QKEY) qp->key = a->qkey;
    if (mask & IBV_QP_DEST_QPN) qp->peer = a->dest_qp_num;
    if (mask & IBV_QP_RQ_PSN) qp->receive_psn = a->rq_psn;
    if (mask & IBV_QP_SQ_PSN) qp->send_psn = a->sq_psn;
    if (mask & IBV_QP_STATE) {
        // RESET -> INIT -> RTR -> RTS, and anything -> RESET or ERR.
        int from = (int)base->state, to = (int)a->qp_state;
        if (to != IBV_QPS_RESET && to != IBV_QPS_ERR && to != from + 1) {
            UNLOCK();
            return EINVAL;
        }
        base->state = a->qp_state;
        if (to == IBV_QPS_RESET) qp->head = qp->tail = 0;
        if (to == IBV_QPS_ERR) te_standin_flush(qp);
    }
    UNLOCK();
    return 0;
}
static int destroy_qp(struct ibv_qp *base) {
    struct qp *qp = (struct qp *)base;
    LOCK();
    queue_pairs[base->qp_num % QP_PLACES] = NULL;
    te_standin_clean((struct cq *)base->send_cq, base->qp_num);
    UNLOCK();
    forget(base->context, &network_of(base->context)->books.queue_pairs);
    free(qp->sends);
    free(qp->builds);
    free(qp->receives.entries);
    free(qp);
    return 0;
}

static struct ibv_ah *create_ah(struct ibv_pd *pd, struct ibv_ah_attr *a) {
    MAKE(ah, ah, handles, pd->context)
    made->ah.pd = pd;
    return &made->ah;
}
static int destroy_ah(struct ibv_ah *ah) {
    forget(ah->context, &network_of(ah->context)->books.handles);
    free(ah);
    return 0;
}

// MARK: Events

static int get_async_event(struct ibv_context *context, struct ibv_async_event *event) {
    uint64_t one;
    if (read(context->async_fd, &one, sizeof one) < 0) return -1;
    struct context *c = (struct context *)context;
    LOCK();
    *event = c->events[c->event_head++ % EVENTS];
    UNLOCK();
    return 0;
}
static void ack_async_event(struct ibv_async_event *event) {}

void te_standin_event(struct ibv_context *context, struct ibv_async_event event) {
    struct context *c = (struct context *)context;
    uint64_t one = 1;
    c->events[c->event_tail++ % EVENTS] = event;
    if (write(context->async_fd, &one, sizeof one) < 0) abort();
}

// MARK: The test's side

static const struct te_verbs_api api = {
    get_device_list, free_device_list, get_device_name, open_device, close_device, query_device, query_port,
    query_gid_table, alloc_pd, dealloc_pd, reg_mr, reg_dmabuf_mr, dereg_mr, create_comp_channel, destroy_comp_channel,
    create_cq, destroy_cq, get_cq_event, ack_cq_events, create_srq, modify_srq, destroy_srq, create_qp, create_qp_ex,
    qp_to_qp_ex, modify_qp, destroy_qp, create_ah, destroy_ah, get_async_event, ack_async_event,
};
const struct te_verbs_api *te_standin_api(void) { return &api; }

struct te_standin *te_standin_new(int devices, int is_ethernet) {
    struct te_standin *n = calloc(1, sizeof *n);
    n->device_count = devices < DEVICES ? devices : DEVICES;
    n->is_ethernet = is_ethernet;
    LOCK();
    n->next = networks;
    networks = n;
    uint32_t id = next_network++;
    for (int i = 0; i < n->device_count; i++) {
        n->devices[i].network = n;
        n->devices[i].number = i;
        snprintf(n->devices[i].device.name, IBV_SYSFS_NAME_MAX, "standin%u_%d", id, i);
    }
    UNLOCK();
    return n;
}
void te_standin_free(struct te_standin *network) {
    LOCK();
    for (struct te_standin **p = &networks; *p; p = &(*p)->next)
        if (*p == network) {
            *p = network->next;
            break;
        }
    UNLOCK();
    free(network);
}
struct te_standin_books *te_standin_books(struct te_standin *network) { return &network->books; }
uint64_t te_standin_polls(struct te_standin *network) {
    LOCK();
    uint64_t polls = network->books.polls;
    UNLOCK();
    return polls;
}
const char *te_standin_name(struct te_standin *network, int device) { return network->devices[device].device.name; }

void te_standin_raise(struct te_standin *network, int device, enum ibv_event_type type, uint32_t qp) {
    LOCK();
    struct ibv_async_event event = {.event_type = type};
    struct qp *found = te_standin_find_qp(network, qp);
    if (found) event.element.qp = &found->qp;
    if (network->devices[device].contexts) te_standin_event(&network->devices[device].contexts->context, event);
    UNLOCK();
}

uint32_t te_standin_last_qp(struct te_standin *network, int device) {
    uint32_t newest = 0;
    LOCK();
    for (int i = 0; i < QP_PLACES; i++) {
        struct qp *qp = queue_pairs[i];
        if (!qp || qp->qp.context->device != &network->devices[device].device || qp->qp.qp_type != IBV_QPT_RC) continue;
        // A connection's write queue pair comes first, its message queue pair next.
        if (qp->depth > 64 && qp->qp.qp_num > newest) newest = qp->qp.qp_num;
    }
    UNLOCK();
    return newest;
}
