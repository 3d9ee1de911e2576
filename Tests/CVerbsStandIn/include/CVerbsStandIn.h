// A stand-in for libibverbs: devices that exist only in this process. It carries out what is posted as a reliable NIC
// would, keeps books on what was posted, and fails when and how a test says.
#ifndef CVERBSSTANDIN_H
#define CVERBSSTANDIN_H
#include "CVerbs.h"
#include <arpa/inet.h>

enum { TE_STANDIN_RECORDS = 4096 };

/// A request as it was posted.
struct te_standin_record {
    uint64_t wr_id;
    uint64_t remote_address;
    uint32_t opcode, flags, length, immediate, qp, key;
    int32_t parts;
};

/// What happened on a network, and what is to happen.
struct te_standin_books {
    // Counted; `called` are the doorbells rung by ibv_wr_complete.
    uint64_t doorbells, called, requests, signaled, longest_chain, datagrams, datagrams_dropped, not_ready, polls;
    uint64_t completion_overruns, queue_overruns;
    int64_t contexts, domains, regions, channels, completion_queues, shared_receives, queue_pairs, handles;
    struct te_standin_record records[TE_STANDIN_RECORDS];
    uint64_t record_count;

    // Asked for.
    /// The next so many datagrams are lost; a share of all is lost, by chance but the same in every run; all come twice.
    uint64_t lose_datagrams, lose_percent, double_datagrams;
    /// Datagrams are kept until `te_standin_release`.
    int hold_datagrams;
    /// Requests of reliable connections are kept until `te_standin_run`.
    int hold_requests;
    /// The next request that is carried out fails so; success is none.
    enum ibv_wc_status fail_status;
    uint32_t fail_vendor;
    /// Posting fails with this number after so many more requests.
    int refuse_error;
    uint64_t refuse_after;
    /// Nothing completes any more.
    int is_mute;
    /// Creating a queue pair that copies data into requests, or the next object of any kind, fails.
    int refuse_inline, refuse_creation;
    /// Devices have no ibv_wr_*.
    int refuse_calls;
};

struct te_standin;
/// A network with so many devices of one port each, on which only they can talk. `gids` IPv4 addresses for each.
struct te_standin *te_standin_new(int devices, int is_ethernet);
void te_standin_free(struct te_standin *network);
struct te_standin_books *te_standin_books(struct te_standin *network);
/// Polls so far, for who looks while others poll.
uint64_t te_standin_polls(struct te_standin *network);
/// The name of a device, for as long as the network lives.
const char *te_standin_name(struct te_standin *network, int device);
/// The table to open devices with; it finds the devices of all networks.
const struct te_verbs_api *te_standin_api(void);

/// Carries out at most `count` requests that are held. Returns how many.
int te_standin_run(struct te_standin *network, int count);
/// Delivers the datagrams that are held, the last one first if asked.
void te_standin_release(struct te_standin *network, int is_backwards);
/// Makes an asynchronous event of a device; `qp` for events of queue pairs.
void te_standin_raise(struct te_standin *network, int device, enum ibv_event_type type, uint32_t qp);
/// Puts something into a device's completion queue that it has no reason for.
void te_standin_stray(struct te_standin *network, int device, uint64_t wr_id, enum ibv_wc_status status);
/// Carries out at most `count` requests of a queue pair, all of whose acknowledgements are lost: it gives up and breaks.
/// Returns how many were carried out.
int te_standin_deafen(struct te_standin *network, uint32_t qp, int count);
/// Sends a datagram of `length` bytes to a device's first queue pair of unreliable datagrams.
void te_standin_datagram(struct te_standin *network, int device, const void *bytes, size_t length);
/// From now on posting and polling do next to nothing, so that what is left is the cost of the caller: signaled requests
/// succeed, and `te_standin_arrive` makes immediates arrive.
void te_standin_sink(struct te_standin *network);
void te_standin_arrive(struct te_standin *network, int count, uint32_t qp);
/// The write queue pair that was created last.
uint32_t te_standin_last_qp(struct te_standin *network, int device);
#endif
