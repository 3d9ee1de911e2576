// libibverbs without linking it: its headers, and its entry points in a table that is filled at run time. What the
// headers define as static inline (ibv_post_send, ibv_wr_start, ibv_poll_cq, ...) calls through the table of the context or queue
// pair that it is given, so Swift calls it directly. Tests make a table of their own and contexts to go with it.
#ifndef CVERBS_H
#define CVERBS_H
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/// The entry points that the provider uses. Results are those of libibverbs, unless said otherwise.
struct te_verbs_api {
    struct ibv_device **(*get_device_list)(int *count);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attributes);
    int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attributes);
    ssize_t (*query_gid_table)(
        struct ibv_context *context, struct ibv_gid_entry *entries, size_t capacity, uint32_t flags,
        size_t entry_size);

    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr_iova2)(
        struct ibv_pd *pd, void *address, size_t length, uint64_t iova, unsigned int access);
    /// NULL in libraries that are older than rdma-core 34.
    struct ibv_mr *(*reg_dmabuf_mr)(
        struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access);
    int (*dereg_mr)(struct ibv_mr *mr);

    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(
        struct ibv_context *context, int entries, void *cq_context, struct ibv_comp_channel *channel, int vector);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned int count);
    struct ibv_srq *(*create_srq)(struct ibv_pd *pd, struct ibv_srq_init_attr *attributes);
    int (*modify_srq)(struct ibv_srq *srq, struct ibv_srq_attr *attributes, int mask);
    int (*destroy_srq)(struct ibv_srq *srq);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes);
    /// NULL with EOPNOTSUPP where the device does not know it.
    struct ibv_qp *(*create_qp_ex)(struct ibv_context *context, struct ibv_qp_init_attr_ex *attributes);
    /// NULL in libraries without ibv_wr_*.
    struct ibv_qp_ex *(*qp_to_qp_ex)(struct ibv_qp *qp);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask);
    int (*destroy_qp)(struct ibv_qp *qp);
    struct ibv_ah *(*create_ah)(struct ibv_pd *pd, struct ibv_ah_attr *attributes);
    int (*destroy_ah)(struct ibv_ah *ah);

    int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
};

/// The table of libibverbs.so.1, loaded once; NULL with the loader's words in `te_verbs_load_error` when it is not there.
const struct te_verbs_api *te_verbs_load(void);
const char *te_verbs_load_error(void);

/// Makes reads of a file return at once. 0 or -errno.
int te_verbs_unblock(int file);
#endif
