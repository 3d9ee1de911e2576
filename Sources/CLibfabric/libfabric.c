#define _GNU_SOURCE
#include "CLibfabric.h"
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

static struct {
    int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const struct fi_info *, struct fi_info **);
    void (*freeinfo)(struct fi_info *);
    struct fi_info *(*dupinfo)(const struct fi_info *);
    int (*fabric)(struct fi_fabric_attr *, struct fid_fabric **, void *);
    const char *(*strerror)(int);
    uint32_t (*version)(void);
} library;
static char load_error[256];
static int load_result = -1;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;

static int find(void *handle, const char *name, void *slot) {
    void *symbol = dlsym(handle, name);
    if (!symbol) {
        snprintf(load_error, sizeof load_error, "libfabric.so.1 has no %s", name);
        return -1;
    }
    memcpy(slot, &symbol, sizeof symbol);
    return 0;
}

static void load(void) {
    // A frame of LibfabricProvider (64 KiB) has to fit into what ofi_rxm sends at once. With its default of 16 KiB
    // each frame is fetched by a read of the receiver's, at a fraction of the speed. Read once, by the first getinfo.
    setenv("FI_OFI_RXM_EAGER_LIMIT", "67584", 0);
    // Over tcp data goes past its own buffers. Elsewhere a frame of messages (20 KiB) has to fit into them; there are 1024 for
    // each endpoint, 26 MB.
    setenv("FI_OFI_RXM_BUFFER_SIZE", "24576", 0);
    // So many buffers it posts for each endpoint.
    setenv("FI_OFI_RXM_MSG_RX_SIZE", "128", 0);
    // With its cache of registrations verbs keeps memory open to peers after it was deregistered.
    setenv("FI_MR_CACHE_MAX_COUNT", "0", 0);
    void *handle = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        snprintf(load_error, sizeof load_error, "%s", why ? why : "libfabric.so.1 cannot be loaded");
        return;
    }
    if (find(handle, "fi_getinfo", &library.getinfo) || find(handle, "fi_freeinfo", &library.freeinfo) ||
        find(handle, "fi_dupinfo", &library.dupinfo) || find(handle, "fi_fabric", &library.fabric) ||
        find(handle, "fi_strerror", &library.strerror) || find(handle, "fi_version", &library.version))
        return;
    load_result = 0;
}

int te_fabric_load(void) {
    pthread_once(&load_once, load);
    return load_result;
}
const char *te_fabric_load_error(void) { return load_error; }

int te_fi_getinfo(
    uint32_t version, const char *node, uint64_t flags, const struct fi_info *hints, struct fi_info **info) {
    return library.getinfo(version, node, NULL, flags, hints, info);
}
void te_fi_freeinfo(struct fi_info *info) { library.freeinfo(info); }
struct fi_info *te_fi_allocinfo(void) { return library.dupinfo(NULL); }
struct fi_info *te_fi_dupinfo(const struct fi_info *info) { return library.dupinfo(info); }
int te_fi_fabric(struct fi_fabric_attr *attributes, struct fid_fabric **fabric) {
    return library.fabric(attributes, fabric, NULL);
}
const char *te_fi_strerror(int error) { return library.strerror(error); }
uint32_t te_fi_version(void) { return library.version(); }

int te_join_descriptors(int first, int second) {
    if (first < 0 || second < 0) return -1;
    int joined = epoll_create1(EPOLL_CLOEXEC);
    if (joined < 0) return -1;
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(joined, EPOLL_CTL_ADD, first, &event) || epoll_ctl(joined, EPOLL_CTL_ADD, second, &event)) {
        close(joined);
        return -1;
    }
    return joined;
}

enum { idle_seconds = 10, probe_seconds = 5, probes = 4 };

/// Whether two socket addresses are the same, or with `host` only their hosts.
static int is_same(const struct sockaddr_storage *a, const void *other, int host) {
    struct sockaddr_storage b;
    memcpy(&b.ss_family, other, sizeof b.ss_family);
    if (a->ss_family != b.ss_family) return 0;
    memcpy(&b, other, a->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *x = (const void *)a, *y = (const void *)&b;
        return x->sin_addr.s_addr == y->sin_addr.s_addr && (host || x->sin_port == y->sin_port);
    }
    const struct sockaddr_in6 *x = (const void *)a, *y = (const void *)&b;
    return !memcmp(&x->sin6_addr, &y->sin6_addr, sizeof x->sin6_addr) && (host || x->sin6_port == y->sin6_port);
}

static void keep_alive(int descriptor, const void *own, const char *addresses, size_t stride, size_t count) {
    struct sockaddr_storage local, remote;
    socklen_t length = sizeof local, flag_length = sizeof(int);
    int is_kept = 0;
    if (getsockname(descriptor, (void *)&local, &length)) return;
    if (local.ss_family != AF_INET && local.ss_family != AF_INET6) return;
    if (!is_same(&local, own, 1)) return;
    if (getsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &is_kept, &flag_length) || is_kept) return;
    int is_ours = is_same(&local, own, 0);
    length = sizeof remote;
    if (!is_ours && !getpeername(descriptor, (void *)&remote, &length))
        for (size_t i = 0; i < count && !is_ours; i++) is_ours = is_same(&remote, addresses + i * stride, 0);
    if (!is_ours) return;
    int on = 1, idle = idle_seconds, interval = probe_seconds, limit = probes;
    // A connection that is accepted has them from what listens.
    setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPCNT, &limit, sizeof limit);
    setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

void te_keep_alive(const void *own, size_t length, const void *addresses, size_t stride, size_t count) {
    sa_family_t family = AF_UNSPEC;
    if (length >= sizeof family) memcpy(&family, own, sizeof family);
    size_t needed = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    if ((family != AF_INET && family != AF_INET6) || length < needed) return;
    int directory = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;
    _Alignas(struct dirent64) char buffer[4096];
    ssize_t got;
    while ((got = getdents64(directory, buffer, sizeof buffer)) > 0)
        for (ssize_t at = 0; at < got;) {
            const struct dirent64 *entry = (const void *)(buffer + at);
            int descriptor = atoi(entry->d_name);
            if (descriptor > 2 && descriptor != directory) keep_alive(descriptor, own, addresses, stride, count);
            at += entry->d_reclen;
        }
    close(directory);
}

int te_socket_address_text(const void *address, size_t length, char *text, size_t capacity) {
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    sa_family_t family;
    if (!address || length < sizeof family) return -1;
    memcpy(&family, address, sizeof family);
    if (family == AF_INET && length >= sizeof v4) {
        memcpy(&v4, address, sizeof v4);
        return inet_ntop(AF_INET, &v4.sin_addr, text, (socklen_t)capacity) ? 0 : -1;
    }
    if (family == AF_INET6 && length >= sizeof v6) {
        memcpy(&v6, address, sizeof v6);
        return inet_ntop(AF_INET6, &v6.sin6_addr, text, (socklen_t)capacity) ? 0 : -1;
    }
    return -1;
}
