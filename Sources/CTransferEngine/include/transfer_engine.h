/*
 * transfer_engine.h - point-to-point transfers for LLM systems: the C interface of the engine.
 *
 * One-sided writes whose arrival the receiver counts. Nothing is ordered after anything else: a receiver knows that data is
 * there when it has counted the immediates that came with it, and in no other way.
 *
 *   te_config config = TE_CONFIG_INIT;
 *   te_engine engine;
 *   if (te_engine_open(&config, &engine) != TE_OK) die(te_last_error()->message);
 *
 *   te_operation write;                              // 4096 bytes; the receiver counts immediate 7 once
 *   te_prepare_write(&write, source, 0, 4096, target, 0, 7);
 *   te_transfer transfer;
 *   te_submit(engine, &write, 1, &transfer, NULL);
 *   te_wait(&transfer, 1, TE_DEFAULT_TIMEOUT, NULL); // the source may be reused
 *
 * Conventions
 *
 * - Results. Functions return TE_OK (0), TE_PENDING (1) where that is said, or a negative TE_E*; te_last_error() then has the
 *   text and what to do, for this thread. Out-parameters are written only on success, unless that is said.
 * - Handles are numbers and 0 is none. Each carries its type, its engine and its use: one that is 0, was released, belongs to
 *   another engine or is of another type is refused with TE_EBADHANDLE. Transfers need not be released.
 * - Threads. All functions may be called from any thread. An engine with TE_PROGRESS_MANUAL or TE_PROGRESS_EVENT_LOOP
 *   is for one thread at a time; a second one gets TE_EWRONGTHREAD.
 * - Callbacks run on the thread that makes progress. They may submit; what waits or closes returns TE_EWRONGTHREAD there.
 * - fork. An engine belongs to the process that opened it; in a child its handles are refused with TE_EWRONGTHREAD.
 * - Waits. Every operation has a deadline. `timeout_ns` of a wait: 0 looks and returns, TE_DEFAULT_TIMEOUT is the engine's.
 * - Memory. Pointers are read or written during the call only, unless that is said. Memory that is registered, and the
 *   source of a transfer, must stay as they are until te_region_deregister or the end of the transfer.
 *
 * Versions
 *
 * Symbols are never changed or removed within one soname (libtransferengine.so.TE_ABI_MAJOR). Structures that the caller fills
 * begin with their size: a library that is newer takes shorter ones, one that is older takes longer ones as long as what it does
 * not know is 0, and refuses them otherwise (TE_EUNSUPPORTEDVERSION). Fields are added at the end only.
 * What stands on the engine has headers of its own beside this one (transfer_engine/<system>.h) and takes a te_engine.
 */
#ifndef TRANSFER_ENGINE_H
#define TRANSFER_ENGINE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TE_ABI_MAJOR 0
#define TE_ABI_MINOR 1
/** What te_abi_version() returns for this header: major << 16 | minor. */
#define TE_ABI_VERSION ((uint32_t)TE_ABI_MAJOR << 16 | TE_ABI_MINOR)

/* ---------------------------------------------------------------- Handles */

typedef uint64_t te_engine;   /**< One engine: one device of this process, with all of its NICs. */
typedef uint64_t te_region;   /**< Registered memory of this process. */
typedef uint64_t te_remote;   /**< A peer's region, attached: a target of writes. */
typedef uint64_t te_peer;     /**< An engine that was connected to: a target of messages, immediates and barriers. */
typedef uint64_t te_group;    /**< Remotes or peers resolved once: a target of scatters and barriers. */
typedef uint64_t te_watcher;  /**< A watched word. */
typedef uint64_t te_transfer; /**< A submitted operation. Never 0. Need not be released. */

/* ----------------------------------------------------------------- Errors */

enum {
  TE_OK = 0,
  TE_PENDING = 1,               /**< Not an error: the transfer has not ended. */
  TE_EINVALID = -1,             /**< An argument that can never work. */
  TE_EOUTOFRANGE = -2,          /**< Bytes outside of a region; a buffer that is too short. */
  TE_EMALFORMED = -3,           /**< Not a descriptor, or altered. */
  TE_EUNSUPPORTEDVERSION = -4,  /**< A descriptor or a structure of another version. */
  TE_EACCESS = -5,              /**< The region does not allow this, or its key is wrong. */
  TE_ESTALE = -6,               /**< The region was deregistered or revoked by its owner. */
  TE_EBACKPRESSURE = -7,        /**< A queue is full: poll, and submit again. */
  TE_ELIMIT = -8,               /**< A limit of the library or the system was reached. */
  TE_EUNREACHABLE = -9,         /**< No NIC of this engine reaches the peer. */
  TE_EPEERLOST = -10,           /**< The peer went away. */
  TE_EPROVIDER = -11,           /**< The fabric reported an error. */
  TE_ESTALLED = -12,            /**< The transfer's deadline passed; the text is a report of how far it got. */
  TE_ECANCELLED = -13,          /**< Ended by te_cancel. */
  TE_EUNAVAILABLE = -14,        /**< A NIC or a library is not present on this machine. */
  TE_ECLOSED = -15,             /**< The engine was closed meanwhile. */
  TE_EDIGEST = -16,             /**< Data is not what its sender digested. */
  TE_EBADHANDLE = -17,          /**< 0, released, of another type, or of another engine. */
  TE_EBUSY = -18,               /**< In use by transfers that have not ended. */
  TE_ETIMEDOUT = -19,           /**< The time of this wait passed; what it waited for goes on. */
  TE_EUNPROVEN = -20,           /**< A receipt: bytes of the cancelled transfer may still land. */
  TE_EUNAUTHENTICATED = -22,    /**< Not signed, and this engine has a cluster key. */
  TE_EFORGED = -23,             /**< Not what its owner signed, or signed with another cluster key. */
  TE_EREPLAYED = -24,           /**< A message that has been taken before. */
  TE_EEXPIRED = -25,            /**< The descriptor's time is over. */
  TE_EWRONGTHREAD = -21         /**< Not from a callback, a second thread (manual progress), or a child process. */
};

/** The last error of the calling thread. */
typedef struct te_error {
  int32_t code;        /**< TE_E*; 0 when no call of this thread has failed. */
  uint32_t reserved;
  const char *message; /**< What happened, to whom. UTF-8, never NULL. */
  const char *remedy;  /**< What to do about errors of this code. UTF-8, never NULL. */
} te_error;

/** Why the last call of this thread that failed did so. Never NULL; valid until the thread's next failing call. */
const te_error *te_last_error(void);
/** The name of a code, for example "TE_EBUSY"; never NULL. */
const char *te_status_name(int32_t status);
/** What to do about a code; never NULL. */
const char *te_status_remedy(int32_t status);
/** TE_ABI_VERSION of the library. A program that was built against a newer minor version must not use what it lacks. */
uint32_t te_abi_version(void);

/* ----------------------------------------------------------------- Engine */

enum { TE_NIC_SHARED_MEMORY = 0, TE_NIC_LIBFABRIC = 1, TE_NIC_VERBS = 2 };
enum { TE_CALLER_MEMORY_AUTOMATIC = 0, TE_CALLER_MEMORY_PROCESS_WRITE = 1, TE_CALLER_MEMORY_BOUNCE = 2 };
enum { TE_FRAMING_AUTOMATIC = 0, TE_FRAMING_NEVER = 1 };

/** One NIC of the engine's device. Strings are NUL-terminated UTF-8; NULL is the default. */
typedef struct te_nic {
  uint32_t size;                /**< sizeof(te_nic) */
  uint32_t kind;                /**< TE_NIC_* */
  const char *provider;         /**< libfabric: "tcp" (the default), "efa", "verbs;ofi_rxm", ... */
  const char *device;           /**< libfabric: interface, device or address; verbs: device. NULL takes the first. */
  uint32_t megabits_per_second; /**< Overrides the speed that the NIC reports; 0 does not. */
  uint32_t caller_memory;       /**< Shared memory: TE_CALLER_MEMORY_*, how memory is written that cannot be mapped. */
  uint32_t framing;             /**< libfabric: TE_FRAMING_* */
  int32_t port;                 /**< verbs: from 1; 0 is the first active one. */
  int32_t gid_index;            /**< verbs: place in the port's table; -1 applies the rule. */
  uint32_t mtu;                 /**< verbs: largest path MTU in bytes; 0 takes what the port has. */
  const char *subnet;           /**< verbs: only GIDs in it, for example "10.1.0.0/16". */
  uint32_t service_level;       /**< verbs: 0 to 15. */
  uint32_t traffic_class;       /**< verbs: 0 to 255. */
} te_nic;

#define TE_NIC_INIT {(uint32_t)sizeof(te_nic), 0, NULL, NULL, 0, 0, 0, 0, -1, 0, NULL, 0, 0}

enum {
  TE_PROGRESS_ADAPTIVE = 0, /**< A thread that spins for spin_ns after the last event, then sleeps in the kernel. */
  TE_PROGRESS_BUSY = 1,     /**< A thread that spins for ever: lowest latency, one core. */
  TE_PROGRESS_MANUAL = 2,   /**< No thread: the caller calls te_engine_progress, te_wait or te_poll. */
  TE_PROGRESS_EVENT_LOOP = 3 /**< As TE_PROGRESS_MANUAL, and NICs wake the loop that waits for te_engine_fd. */
};

/** How an engine is set up. 0 and NULL are the defaults, except where TE_CONFIG_INIT has something else. */
typedef struct te_config {
  uint32_t size;                  /**< sizeof(te_config) */
  uint32_t progress;              /**< TE_PROGRESS_* */
  const char *name;               /**< Appears in errors; at most 63 bytes are kept. Default "engine". */
  const te_nic *nics;             /**< 1 to 8; NULL is shared memory. Of several fabrics the first that reaches a peer is used. */
  uint64_t nic_count;
  int64_t spin_ns;                /**< Of TE_PROGRESS_ADAPTIVE; negative is the default, 20 microseconds. */
  int32_t processor;              /**< The engine's thread is pinned to it; negative is not pinned. */
  uint32_t liveness_intervals;    /**< Silent intervals after which a peer is lost, at least 2; default 3. */
  uint64_t liveness_interval_ns;  /**< When a silent peer is asked whether it lives; default 1 s. */
  uint64_t timeout_ns;            /**< Of transfers and waits that name none; default 30 s. */
  uint64_t stripe_bytes;          /**< Writes of twice as many bytes go over several NICs; default 64 KiB. */
  uint32_t trace_events;          /**< Of the flight recorder, 32 bytes each; default 8192. UINT32_MAX is none. */
  uint32_t event_capacity;        /**< Events that may be due or waiting to be polled; default 16384. */
  uint32_t message_capacity;      /**< Messages that wait for te_receive before senders are pushed back; default 1024. */
  uint32_t reserved;
  const char *trace_directory;    /**< Gets traces of stalls, for `te trace`; NULL is none. */
} te_config;

#define TE_CONFIG_INIT {(uint32_t)sizeof(te_config), 0, NULL, NULL, 0, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, NULL}

/** Opens an engine and starts its thread. At most 255 are open at a time. */
int32_t te_engine_open(const te_config *config, te_engine *engine);
/** Ends an engine: its thread, its registrations, its NICs, all of its handles. Calls of other threads that wait return
 *  TE_ECLOSED, and it returns when they have. Transfers in flight are not waited for. */
int32_t te_engine_close(te_engine engine);
/** A random number that identifies the engine to its peers. */
int32_t te_engine_id(te_engine engine, uint64_t *id);
/** How peers reach the engine, for te_peer_connect: send it by any channel. `length` gets its length even when `capacity` is
 *  too small (TE_EOUTOFRANGE); 4096 bytes always suffice. */
int32_t te_engine_address(te_engine engine, void *buffer, uint64_t capacity, uint64_t *length);
/** Makes progress (engines without a thread only). `happened` (may be NULL) says whether there was anything to do. */
int32_t te_engine_progress(te_engine engine, int32_t *happened);
/** A file descriptor that is readable while te_poll has something to return, for event loops; closed with the engine. Without
 *  a thread: while te_poll has something to do, which may bring no event. Each te_poll of such an engine then ends with telling its
 *  peers to wake it. With TE_PROGRESS_MANUAL and NICs other than shared memory it is readable all the time. */
int32_t te_engine_fd(te_engine engine, int32_t *fd);
/** Writes the flight recorder to a new file, for `te trace`. */
int32_t te_engine_write_trace(te_engine engine, const char *path);

/** What an engine has and has done since it was opened. */
typedef struct te_statistics {
  uint32_t size;               /**< sizeof(te_statistics), set by the caller. */
  uint32_t pending_transfers;  /**< Transfers and counter waits that have not ended. */
  uint64_t submitted;          /**< Operations accepted. */
  uint64_t refused;            /**< Operations refused. */
  uint64_t bytes;              /**< Payload of accepted writes, pages, slices and messages. */
  uint64_t pages;              /**< Of accepted paged writes. */
  uint64_t events;             /**< Returned by te_poll. */
  uint64_t waiting_events;     /**< Not polled yet. */
  uint64_t messages;           /**< Received. */
  uint64_t waiting_messages;   /**< Not taken yet. */
  uint32_t regions, remotes, peers, groups, watchers;
  uint32_t reserved;
} te_statistics;

int32_t te_engine_statistics(te_engine engine, te_statistics *statistics);

/* ----------------------------------------------------------------- Memory */

enum { TE_LOCAL_ONLY = 0, TE_REMOTE_WRITE = 1 };
/** `nics` of a registration: bit i is position i in te_config.nics. */
#define TE_ALL_NICS 0u
/** te_region_allocate: pages come into being when they are touched, not now. */
#define TE_UNPOPULATED 1u

/** Allocates and registers zeroed, page-aligned memory that peers on this host can map: a write is one copy. */
int32_t te_region_allocate(te_engine engine, uint64_t byte_count, uint32_t access, uint32_t nics, uint32_t flags,
                           te_region *region);
/** Registers memory of the caller. */
int32_t te_region_register(te_engine engine, void *memory, uint64_t byte_count, uint32_t access, uint32_t nics,
                           te_region *region);
/** Ends a registration: nobody can write into the memory afterwards, and memory that te_region_allocate made is gone.
 *  TE_EBUSY while a transfer has it as its source. */
int32_t te_region_deregister(te_region region);
/** Ends every peer's right to write into the region, and returns when that is true. The handle stays good; peers need
 *  te_region_descriptor anew. TE_EBUSY as above. */
int32_t te_region_revoke(te_region region);
/** First byte and length. Peers may be writing: read what a counter has announced. */
int32_t te_region_memory(te_region region, void **memory, uint64_t *byte_count);
/** What a peer needs to write into the region, for te_remote_attach. Lengths as for te_engine_address. */
int32_t te_region_descriptor(te_region region, void *buffer, uint64_t capacity, uint64_t *length);

/* ------------------------------------------------------------------ Peers */

/** How urgent the writes to an attached region are. While more urgent traffic is around, less urgent transfers of the same
 *  engine keep little in flight, so that urgent ones do not wait behind them; they still move on. */
enum te_traffic {
  TE_TRAFFIC_NORMAL = 0, /**< KV caches, and what nothing else is known of. */
  TE_TRAFFIC_URGENT = 1, /**< Latency decides: dispatch and combine of experts. Never held back. */
  TE_TRAFFIC_BULK = 2,   /**< Others come first: weights. Cut into requests of at most 1 MiB. */
};
/** Makes a peer's region ready to be written into: resolves its NICs, connects, maps. traffic is one of te_traffic, and holds
 *  for all writes to this handle. */
int32_t te_remote_attach(te_engine engine, const void *descriptor, uint64_t length, uint32_t traffic,
                         te_remote *remote);
/** Ends an attachment. TE_EBUSY while a transfer to it has not ended. Groups that contain it refuse to be used. */
int32_t te_remote_detach(te_remote remote);
/** Length of the region, and the engine that owns it. Either pointer may be NULL. */
int32_t te_remote_info(te_remote remote, uint64_t *byte_count, uint64_t *engine_id);
/** Connects to an engine by its te_engine_address. */
int32_t te_peer_connect(te_engine engine, const void *address, uint64_t length, te_peer *peer);
/** Ends a connection. TE_EBUSY while a transfer to it has not ended. */
int32_t te_peer_disconnect(te_peer peer);
/** The peer's te_engine_id, and its name: at most `capacity` bytes with the NUL, cut where that is too short; 64 suffice.
 *  `engine_id` and `name` may be NULL. */
int32_t te_peer_info(te_peer peer, uint64_t *engine_id, char *name, uint64_t capacity);
/** Makes a group of `count` te_remote or te_peer handles, at most 4096. Scatters need remotes. */
int32_t te_group_create(te_engine engine, const uint64_t *members, uint64_t count, te_group *group);
/** Forgets a group; transfers to it go on. */
int32_t te_group_destroy(te_group group);

/* ------------------------------------------------------------- Operations */

enum {
  TE_WRITE = 1,     /**< One range. 0 bytes are an immediate without data. Counted once. */
  TE_PAGED = 2,     /**< Page source_pages[i] of the source to page target_pages[i] of the target. Counted once a page. */
  TE_SCATTER = 3,   /**< slices[i] to member i of a group. Counted once by each. */
  TE_IMMEDIATE = 4, /**< An immediate to a te_remote's owner or a te_peer. Counted once. */
  TE_BARRIER = 5,   /**< An immediate to each member of a group, and the wait for as many. */
  TE_SEND = 6,      /**< A message of at most 16384 bytes to a te_peer; copied. Not counted. */
  TE_EXPECT = 7     /**< Waits until the immediate has been counted `count` times, and takes them away. Early arrivals count. */
};

/** An immediate is below 2^30; this is none: nothing is counted. */
#define TE_NO_IMMEDIATE 0xFFFFFFFFu
/** A flag of an operation: its end is an event for te_poll, with `tag`. */
#define TE_NOTIFY 1u
/** A timeout of a wait: the engine's. */
#define TE_DEFAULT_TIMEOUT ((int64_t)-1)

/** One target of a scatter. */
typedef struct te_slice {
  uint64_t source_offset;
  uint64_t byte_count;
  uint64_t target_offset;
} te_slice;

/** Called once at the end of a transfer, on the thread that makes progress, never from inside te_submit. When `status` is an
 *  error, te_last_error() says more during the call. */
typedef void (*te_callback)(void *context, int32_t status);

/** One operation. Fields that its kind does not use are ignored; lists are read during te_submit only. Page i of a region begins
 *  at offset + pages[i] * stride. */
typedef struct te_operation {
  uint32_t size;                /**< sizeof(te_operation) */
  uint32_t kind;                /**< TE_WRITE, ... */
  uint32_t flags;               /**< TE_NOTIFY */
  uint32_t immediate;           /**< What is counted; or TE_NO_IMMEDIATE. */
  uint64_t tag;                 /**< Comes back in the event. */
  int64_t timeout_ns;           /**< How long the transfer may take; 0 or TE_DEFAULT_TIMEOUT is the engine's. */
  te_callback callback;         /**< NULL, or called at the end, before the event of TE_NOTIFY is there. */
  void *context;                /**< For the callback. */
  te_region source;             /**< Write, paged, scatter. */
  uint64_t target;              /**< te_remote (write, paged, immediate), te_peer (immediate, send), te_group. */
  uint64_t source_offset;       /**< Write, paged. */
  uint64_t target_offset;       /**< Write, paged. */
  uint64_t byte_count;          /**< Of the range, of one page, of the message. */
  uint64_t source_stride;       /**< Paged: bytes from one page to the next. */
  uint64_t target_stride;
  const uint32_t *source_pages; /**< Paged: `count` page numbers; they may repeat. */
  const uint32_t *target_pages;
  uint64_t count;               /**< Pages; slices; arrivals to expect. */
  const te_slice *slices;       /**< Scatter: in the order of the group. */
  const void *payload;          /**< Send. */
  const te_peer *senders;       /**< Expect: the wait fails when one of these peers is lost. */
  uint64_t sender_count;
} te_operation;

/** Submits operations in order, without waiting. They all have the size of the first.
 *
 *  `transfers` (may be NULL) gets one handle for each that was accepted, and `accepted` (may be NULL) how many: written also when an
 *  operation is refused, which ends the batch. Those before it go on. TE_EBACKPRESSURE: poll, and submit the rest again.
 *  Thread-safe; O(operations, pages, slices). */
int32_t te_submit(te_engine engine, const te_operation *operations, uint64_t count, te_transfer *transfers,
                  uint64_t *accepted);

static inline void te_prepare(te_operation *operation, uint32_t kind, uint64_t target, uint32_t immediate) {
  memset(operation, 0, sizeof *operation);
  operation->size = (uint32_t)sizeof *operation;
  operation->kind = kind;
  operation->target = target;
  operation->immediate = immediate;
}

static inline void te_prepare_write(te_operation *operation, te_region source, uint64_t source_offset,
                                    uint64_t byte_count, te_remote target, uint64_t target_offset,
                                    uint32_t immediate) {
  te_prepare(operation, TE_WRITE, target, immediate);
  operation->source = source;
  operation->source_offset = source_offset;
  operation->byte_count = byte_count;
  operation->target_offset = target_offset;
}

/** Both sides are taken as arrays of pages of `page_bytes`; set strides and offsets afterwards where they are not. */
static inline void te_prepare_paged(te_operation *operation, te_region source, const uint32_t *source_pages,
                                    te_remote target, const uint32_t *target_pages, uint64_t page_count,
                                    uint64_t page_bytes, uint32_t immediate) {
  te_prepare(operation, TE_PAGED, target, immediate);
  operation->source = source;
  operation->source_pages = source_pages;
  operation->target_pages = target_pages;
  operation->count = page_count;
  operation->byte_count = operation->source_stride = operation->target_stride = page_bytes;
}

static inline void te_prepare_scatter(te_operation *operation, te_region source, const te_slice *slices,
                                      uint64_t slice_count, te_group target, uint32_t immediate) {
  te_prepare(operation, TE_SCATTER, target, immediate);
  operation->source = source;
  operation->slices = slices;
  operation->count = slice_count;
}

static inline void te_prepare_send(te_operation *operation, te_peer peer, const void *payload, uint64_t byte_count) {
  te_prepare(operation, TE_SEND, peer, TE_NO_IMMEDIATE);
  operation->payload = payload;
  operation->byte_count = byte_count;
}

static inline void te_prepare_expect(te_operation *operation, uint32_t immediate, uint64_t count) {
  te_prepare(operation, TE_EXPECT, 0, immediate);
  operation->count = count;
}

/* -------------------------------------------------------------- Transfers */

/** TE_OK when the transfer has ended well - its source may be reused, and nothing of it can touch remote memory any more -
 *  TE_PENDING, or why it failed. The reasons of the last 1024 failures are kept; older ones read TE_OK. O(1). */
int32_t te_transfer_status(te_transfer transfer);
/** Waits until all of `count` transfers of one engine have ended, or the time has passed (TE_ETIMEDOUT). Returns the first
 *  failure; `statuses` (may be NULL) gets each one's status, whatever is returned. */
int32_t te_wait(const te_transfer *transfers, uint64_t count, int64_t timeout_ns, int32_t *statuses);
/** Makes the end of a transfer an event with `tag`, also when it has ended already. */
int32_t te_notify(te_transfer transfer, uint64_t tag);
/** Ends a transfer now, with TE_ECANCELLED, and waits for the receipt: TE_OK when no byte of it can land any more and no
 *  immediate can be counted, TE_EUNPROVEN when that could not be proven in `timeout_ns`: then the target's owner revokes
 *  the region before its memory is reused. A transfer that has ended is fine. */
int32_t te_cancel(te_transfer transfer, int64_t timeout_ns);
/** As te_cancel, without waiting: the receipt is an event of kind TE_EVENT_RECEIPT with `tag`. */
int32_t te_cancel_notify(te_transfer transfer, int64_t timeout_ns, uint64_t tag);

/* ----------------------------------------------------------------- Events */

enum {
  TE_EVENT_TRANSFER = 1, /**< `object` (a te_transfer) has ended with `status`. */
  TE_EVENT_RECEIPT = 2,  /**< The receipt of te_cancel_notify for `object`: TE_OK or TE_EUNPROVEN. */
  TE_EVENT_WATCH = 3,    /**< The word of `object` (a te_watcher) went from old_value to new_value. */
  TE_EVENT_MESSAGE = 4   /**< te_receive has something. */
};

typedef struct te_event {
  uint32_t kind;
  int32_t status;
  uint64_t tag;
  uint64_t object;
  uint64_t old_value;
  uint64_t new_value;
} te_event;

/** Takes at most `capacity` events; `count` gets how many. Waits for the first one until `timeout_ns` has passed: then `count`
 *  is 0 and the result TE_OK. Any number of threads may poll; each event goes to one of them. */
int32_t te_poll(te_engine engine, te_event *events, uint64_t capacity, int64_t timeout_ns, uint64_t *count);

/* --------------------------------------------------- Counters and watchers */

/** How often `immediate` has been counted and not been taken. Data that was counted is visible afterwards. Some 50 ns. */
int32_t te_count(te_engine engine, uint32_t immediate, uint64_t *count);
/** Takes `count` away if the counter has got that far; `taken` says whether. One consumer at a time for each immediate. */
int32_t te_consume(te_engine engine, uint32_t immediate, uint64_t count, int32_t *taken);

/** Immediates that belong to one use; what arrives after its end is counted nowhere. */
typedef struct te_lease {
  uint32_t first; /**< The first immediate, in the upper half of the 30 bits. */
  uint32_t count;
  uint64_t epoch;
} te_lease;

/** Hands out 1 to 65536 immediates that nobody else uses and whose counters are 0. */
int32_t te_lease_begin(te_engine engine, uint32_t count, te_lease *lease);
/** Ends a lease. `is_quiet`: nothing can arrive any more; otherwise its immediates are in quarantine until te_lease_reclaim. */
int32_t te_lease_end(te_engine engine, const te_lease *lease, int32_t is_quiet);
/** Takes a lease out of quarantine; `late` (may be NULL) gets how many arrivals came after its end. */
int32_t te_lease_reclaim(te_engine engine, const te_lease *lease, uint64_t *late);

/** Watches an aligned 64-bit word of a region that somebody increments: changes are events with `tag`. Changes that are not
 *  polled yet are joined. */
int32_t te_watch(te_region region, uint64_t offset, uint64_t tag, te_watcher *watcher);
/** Ends a watcher; events of it that have not been polled are dropped. */
int32_t te_unwatch(te_watcher watcher);

/* --------------------------------------------------------------- Messages */

/** A message in the buffer of te_receive. */
typedef struct te_message {
  uint64_t sender; /**< te_engine_id of the sender. */
  uint64_t offset; /**< Where its bytes begin in the buffer. */
  uint64_t length;
} te_message;

/** Takes messages that have come, as many as fit in both `messages` and `buffer`; `count` gets how many, 0 when there are none.
 *  TE_EOUTOFRANGE when the buffer is shorter than the first message; 16384 bytes suffice for one. Does not wait. */
int32_t te_receive(te_engine engine, te_message *messages, uint64_t message_capacity, void *buffer,
                   uint64_t buffer_bytes, uint64_t *count);

/* ---------------------------------------------------------------- Digests */

/** 128 bits that depend on every byte and on where it goes, not on the order of arrival; they are added modulo 2^64. */
typedef struct te_digest {
  uint64_t low;
  uint64_t high;
} te_digest;

/** The digest of a range that goes to, or has arrived at, `target_offset` of the target region: the sender and the receiver
 *  compare theirs. O(byte_count). */
int32_t te_digest_range(te_region region, uint64_t offset, uint64_t byte_count, uint64_t target_offset,
                        te_digest *digest);
/** The digest of a paged write: `operation` as it was submitted. The receiver gives its region as `source`, and its pages,
 *  stride and offset on both sides. */
int32_t te_digest_paged(const te_operation *operation, te_digest *digest);

#ifdef __cplusplus
}
#endif
#endif
