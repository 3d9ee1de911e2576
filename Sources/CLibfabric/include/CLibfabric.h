// libfabric without linking it: its headers, and the six real symbols looked up at run time. Everything else
// in the headers is a static inline that calls through a table of the object it is given, so Swift calls it
// directly.
#ifndef CLIBFABRIC_H
#define CLIBFABRIC_H
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>

/// Loads libfabric.so.1 once. Returns 0, or -1 with the loader's words in `te_fabric_load_error`.
int te_fabric_load(void);
const char *te_fabric_load_error(void);

/// The real symbols. Only after a successful `te_fabric_load`.
int te_fi_getinfo(
    uint32_t version, const char *node, uint64_t flags, const struct fi_info *hints, struct fi_info **info);
void te_fi_freeinfo(struct fi_info *info);
struct fi_info *te_fi_allocinfo(void);
struct fi_info *te_fi_dupinfo(const struct fi_info *info);
int te_fi_fabric(struct fi_fabric_attr *attributes, struct fid_fabric **fabric);
const char *te_fi_strerror(int error);
uint32_t te_fi_version(void);

/// Function-like macros and constants that Swift cannot read.
static inline uint32_t te_fi_make_version(uint32_t major, uint32_t minor) { return FI_VERSION(major, minor); }
static const fi_addr_t te_fi_address_unspecified = FI_ADDR_UNSPEC;
static const uint32_t te_fi_header_version = FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION);

/// Endpoint options newer than some of the headers this compiles with.
enum { TE_FI_OPT_CUDA_API_PERMITTED = 10, TE_FI_OPT_SHARED_MEMORY_PERMITTED = 11 };

/// A newer library may write a longer error entry than these headers declare.
struct te_fi_error_entry {
    struct fi_cq_err_entry entry;
    char slack[128];
};

/// A descriptor that is readable when one of two is, or -1 when one of them is -1; the caller closes it.
int te_join_descriptors(int first, int second);

/// Lets the kernel find out within half a minute that nobody is at the other end any more of this process's TCP connections at the address
/// `own`, or to one of `count` addresses `stride` bytes apart. Others with the same addresses may be among them: it does them no harm.
/// Does not allocate. O(open descriptors, and for those from the same host, addresses).
void te_keep_alive(const void *own, size_t length, const void *addresses, size_t stride, size_t count);

/// The numeric form of an IPv4 or IPv6 socket address; 0, or -1 when it is something else.
int te_socket_address_text(const void *address, size_t length, char *text, size_t capacity);
#endif
