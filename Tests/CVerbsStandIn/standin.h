#ifndef STANDIN_H
#define STANDIN_H
#include "CVerbsStandIn.h"
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>

enum { DEVICES = 16, QP_PLACES = 8192, MR_PLACES = 65536, EVENTS = 64, HELD = 1024, INLINE_BYTES = 256, BUILDS = 64 };

extern pthread_mutex_t te_standin_lock;
#define LOCK() pthread_mutex_lock(&te_standin_lock)
#define UNLOCK() pthread_mutex_unlock(&te_standin_lock)

struct context {
    struct ibv_context context;
    struct ibv_async_event events[EVENTS];
    unsigned event_head, event_tail;
    struct context *next;
};
struct device {
    struct ibv_device device;
    struct te_standin *network;
    struct context *contexts;
    int number;
};
struct datagram {
    uint32_t qp, key;
    size_t length;
    char bytes[512];
};
struct te_standin {
    struct te_standin_books books;
    struct device devices[DEVICES];
    int device_count, is_ethernet;
    struct datagram held[HELD];
    int held_count;
    uint64_t chance;
    struct te_standin *next;
};

struct receive {
    uint64_t wr_id;
    struct ibv_sge part;
    int parts;
};
struct receives {
    struct receive *entries;
    uint32_t capacity, head, tail;
};
struct pd {
    struct ibv_pd pd;
};
struct mr {
    struct ibv_mr mr;
    uint64_t iova;
    unsigned access;
};
struct channel {
    struct ibv_comp_channel channel;
    struct ibv_cq *last;
};
struct cq {
    struct ibv_cq cq;
    struct ibv_wc *entries;
    uint32_t head, tail;
    int is_armed;
};
struct srq {
    struct ibv_srq srq;
    struct receives receives;
    uint32_t limit;
};
struct ah {
    struct ibv_ah ah;
};
struct send {
    struct ibv_send_wr request;
    struct ibv_sge part;
    char copy[INLINE_BYTES];
};
struct build {
    struct ibv_send_wr request;
    struct ibv_sge part;
    char copy[INLINE_BYTES];
};
struct qp {
    union {
        struct ibv_qp qp;
        struct ibv_qp_ex calls;
    };
    // Made for calls: what has been built since the last start.
    struct build *builds;
    int built, build_error, is_building, lacks_data;
    struct send *sends;
    uint32_t depth, head, tail;
    struct receives receives;
    uint32_t key, peer, receive_psn, send_psn;
};

struct receives te_standin_receives_new(uint32_t capacity);
struct qp *te_standin_find_qp(struct te_standin *network, uint32_t number);
int te_standin_each_qp(struct te_standin *network, int (*body)(struct qp *));
void *te_standin_translate(struct te_standin *network, uint32_t key, uint64_t address, uint64_t length, unsigned access);
void te_standin_event(struct ibv_context *context, struct ibv_async_event event);
void te_standin_set_ops(struct ibv_context *context, int is_sink);
void te_standin_set_calls(struct qp *qp, int is_sink);
void te_standin_flush(struct qp *qp);
void te_standin_clean(struct cq *cq, uint32_t qp);
#endif
