#include "CVerbs.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>

static struct te_verbs_api library;
static int (*compat_query_port)(struct ibv_context *, uint8_t, struct ibv_port_attr *);
static char load_error[256];
static int is_loaded;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;

// What the header's macro ibv_query_port does: the symbol of that name fills the short structure of old programs.
static int query_port(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attributes) {
    struct verbs_context *extended = verbs_get_ctx_op(context, query_port);
    memset(attributes, 0, sizeof *attributes);
    if (!extended) return compat_query_port(context, port, attributes);
    return extended->query_port(context, port, attributes, sizeof *attributes);
}

// What the header's inline function does, without its reference to a symbol of the library.
static struct ibv_qp *create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attributes) {
    struct verbs_context *extended = verbs_get_ctx_op(context, create_qp_ex);
    if (extended) return extended->create_qp_ex(context, attributes);
    errno = EOPNOTSUPP;
    return NULL;
}

static int find(void *handle, const char *name, void *slot) {
    void *symbol = dlsym(handle, name);
    if (!symbol) {
        snprintf(load_error, sizeof load_error, "libibverbs.so.1 has no %s: rdma-core 33 or later is needed", name);
        return -1;
    }
    memcpy(slot, &symbol, sizeof symbol);
    return 0;
}

static void load(void) {
    void *handle = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        snprintf(load_error, sizeof load_error, "%s", why ? why : "libibverbs.so.1 cannot be loaded");
        return;
    }
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {
        {"ibv_get_device_list", &library.get_device_list},
        {"ibv_free_device_list", &library.free_device_list},
        {"ibv_get_device_name", &library.get_device_name},
        {"ibv_open_device", &library.open_device},
        {"ibv_close_device", &library.close_device},
        {"ibv_query_device", &library.query_device},
        {"ibv_query_port", &compat_query_port},
        {"_ibv_query_gid_table", &library.query_gid_table},
        {"ibv_alloc_pd", &library.alloc_pd},
        {"ibv_dealloc_pd", &library.dealloc_pd},
        {"ibv_reg_mr_iova2", &library.reg_mr_iova2},
        {"ibv_dereg_mr", &library.dereg_mr},
        {"ibv_create_comp_channel", &library.create_comp_channel},
        {"ibv_destroy_comp_channel", &library.destroy_comp_channel},
        {"ibv_create_cq", &library.create_cq},
        {"ibv_destroy_cq", &library.destroy_cq},
        {"ibv_get_cq_event", &library.get_cq_event},
        {"ibv_ack_cq_events", &library.ack_cq_events},
        {"ibv_create_srq", &library.create_srq},
        {"ibv_modify_srq", &library.modify_srq},
        {"ibv_destroy_srq", &library.destroy_srq},
        {"ibv_create_qp", &library.create_qp},
        {"ibv_modify_qp", &library.modify_qp},
        {"ibv_destroy_qp", &library.destroy_qp},
        {"ibv_create_ah", &library.create_ah},
        {"ibv_destroy_ah", &library.destroy_ah},
        {"ibv_get_async_event", &library.get_async_event},
        {"ibv_ack_async_event", &library.ack_async_event},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++)
        if (find(handle, symbols[i].name, symbols[i].slot)) return;
    library.query_port = query_port;
    library.create_qp_ex = create_qp_ex;
    void *optional = dlsym(handle, "ibv_qp_to_qp_ex");
    memcpy(&library.qp_to_qp_ex, &optional, sizeof optional);
    optional = dlsym(handle, "ibv_reg_dmabuf_mr");
    memcpy(&library.reg_dmabuf_mr, &optional, sizeof optional);
    is_loaded = 1;
}

const struct te_verbs_api *te_verbs_load(void) {
    pthread_once(&load_once, load);
    return is_loaded ? &library : NULL;
}
const char *te_verbs_load_error(void) { return load_error; }

int te_verbs_unblock(int file) {
    int flags = fcntl(file, F_GETFL);
    if (flags < 0 || fcntl(file, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
    return 0;
}
