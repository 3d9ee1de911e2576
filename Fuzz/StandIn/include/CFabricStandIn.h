// A stand-in for an open endpoint of libfabric: it moves nothing, and completes what and when it is told.
#ifndef CFABRICSTANDIN_H
#define CFABRICSTANDIN_H
#include "CLibfabric.h"
#include <stdbool.h>

struct te_fabric_standin;
struct te_fabric_standin *te_fabric_standin_new(void);
void te_fabric_standin_free(struct te_fabric_standin *fabric);

struct fi_info *te_fabric_standin_info(struct te_fabric_standin *fabric);
struct fid_fabric *te_fabric_standin_fabric(struct te_fabric_standin *fabric);
struct fid_domain *te_fabric_standin_domain(struct te_fabric_standin *fabric);
struct fid_cq *te_fabric_standin_completions(struct te_fabric_standin *fabric);
struct fid_av *te_fabric_standin_addresses(struct te_fabric_standin *fabric);
struct fid_ep *te_fabric_standin_endpoint(struct te_fabric_standin *fabric);

/// Forgets all that was posted, before the buffers go.
void te_fabric_standin_reset(struct te_fabric_standin *fabric);
/// The buffer of the oldest posted receive, or null; its length goes to `capacity`.
void *te_fabric_standin_receive_buffer(struct te_fabric_standin *fabric, size_t *capacity);
/// Completes the oldest receive with so many bytes. The address sanitizer reports whoever looks behind them, until the buffer
/// is posted again or all is forgotten.
void te_fabric_standin_deliver(struct te_fabric_standin *fabric, size_t length);
/// Completes the oldest send or write: with an error number, or 0. Whether there was one.
bool te_fabric_standin_finish(struct te_fabric_standin *fabric, int error);
/// The data of a write that came.
void te_fabric_standin_arrive(struct te_fabric_standin *fabric, uint64_t data);
/// The next so many posts are refused with an error number.
void te_fabric_standin_refuse(struct te_fabric_standin *fabric, int posts, int error);
/// How many are still to be refused.
int te_fabric_standin_refusals(struct te_fabric_standin *fabric);
#endif
