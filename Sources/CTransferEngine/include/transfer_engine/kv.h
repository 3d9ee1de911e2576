/*
 * transfer_engine/kv.h - pushes the KV cache of requests from the prefiller that computes it into the decoder's pages.
 *
 * A decoder owns its pages: it asks a prefiller for a request, and says into which pages. The prefiller writes each layer as
 * soon as it has been computed. Both sides compute from the two layouts what is written, so that the decoder begins when it has
 * counted that much: nobody sends a message to say so. The protocol is docs/kv-protocol.md.
 *
 *   decoder    te_kv_connect, te_kv_ask          ->  TE_KV_LAYER..., TE_KV_READY
 *                                                or  TE_KV_FAILED, and later TE_KV_PAGES_FREE
 *   prefiller  TE_KV_JOB  ->  te_kv_accept, and for each forward pass te_kv_forward, te_kv_computed for each layer
 *                         ->  perhaps TE_KV_STOP, and TE_KV_RELEASED
 *
 * Pages that are being written to, or read from, are not the application's: after TE_KV_FAILED only TE_KV_PAGES_FREE gives
 * them back, and on the prefiller only TE_KV_RELEASED.
 *
 * Conventions are those of transfer_engine.h. No function here waits, except te_kv_poll and te_kv_close. Events come through
 * te_kv_poll, or when te_kv_fd is readable. A role has one thread of its own, which sends heartbeats and looks at deadlines.
 * Handles belong to their role; those of requests and jobs need not be released.
 */
#ifndef TRANSFER_ENGINE_KV_H
#define TRANSFER_ENGINE_KV_H

#include "../transfer_engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t te_kv_prefiller; /**< Writes the caches of jobs. */
typedef uint64_t te_kv_decoder;   /**< Asks for caches. */
typedef uint64_t te_kv_role;      /**< Either. */
typedef uint64_t te_kv_peer;      /**< A prefiller that a decoder works with. */
typedef uint64_t te_kv_request;   /**< What a decoder has asked for. */
typedef uint64_t te_kv_job;       /**< A request as its prefiller sees it. */

/* ---------------------------------------------------------------- Layouts */

enum { TE_KV_HEADS_FIRST = 0, TE_KV_TOKENS_FIRST = 1 };
enum { TE_KV_SEPARATE = 0, TE_KV_TOGETHER = 1 };

/** Layers that are cached alike, and what a page of them looks like. */
typedef struct te_kv_group {
  uint32_t size;          /**< sizeof(te_kv_group) */
  uint32_t heads;         /**< KV heads of all tensor ranks together. MLA: 1. */
  uint32_t key_bytes;     /**< Of one head and token. Where keys and values alternate: both, and no value_bytes. */
  uint32_t value_bytes;   /**< Of one head and token; 0 when there is nothing besides the key. */
  uint32_t window;        /**< Only so many of the last tokens are ever read again; 0 is all. A recurrent state: 1. */
  uint32_t page_tokens;   /**< Tokens of a page. */
  uint32_t order;         /**< TE_KV_HEADS_FIRST or TE_KV_TOKENS_FIRST: the outer dimension of a page. */
  uint32_t arrangement;   /**< TE_KV_TOGETHER: values behind the keys in a page; TE_KV_SEPARATE: in a plane of their own. */
  const uint32_t *layers; /**< The model's layers, ascending. */
  uint64_t layer_count;
} te_kv_group;

/** How an instance keeps the cache of a model. Both sides of a transfer have the same model - name, element type, and of each
 *  group layers, heads, bytes and window - and may differ in all else. */
typedef struct te_kv_layout {
  uint32_t size;             /**< sizeof(te_kv_layout) */
  uint32_t tensor_ranks;     /**< Of each stage. */
  const char *model;         /**< Name and revision, or a fingerprint of what else must be equal; at most 255 bytes. */
  const char *element_type;  /**< For example "bf16". */
  const te_kv_group *groups; /**< Together they name each layer once. */
  uint64_t group_count;
  const uint32_t *stage_ends; /**< The layer after the last one of each pipeline stage; NULL is one stage. */
  uint64_t stage_count;
  uint32_t first_tensor_rank; /**< Where ranks are processes, each has a role with a part of them: which is the first. */
  uint32_t all_tensor_ranks;  /**< Of each stage in all roles of the instance; 0 when all are here. */
} te_kv_layout;

/** Equally long pages of one layer. */
typedef struct te_kv_plane {
  uint32_t region;     /**< Which of the rank's regions. */
  uint32_t reserved;
  uint64_t offset;     /**< Bytes of the region before page 0. */
  uint64_t stride;     /**< Bytes from one page to the next. */
  uint64_t page_count;
} te_kv_plane;

/** One rank: its engine, which has a progress thread and no other role, and where its pages lie. */
typedef struct te_kv_rank {
  uint32_t size;             /**< sizeof(te_kv_rank) */
  uint32_t reserved;
  te_engine engine;
  const te_region *regions;  /**< Lent to the role until te_kv_close: other functions refuse them with TE_EBUSY. */
  uint64_t region_count;
  const te_kv_plane *planes; /**< Of each layer of the rank's stage in order: 1, or 2 with TE_KV_SEPARATE and values. */
  uint64_t plane_count;
} te_kv_rank;

/** 0 and NULL are the defaults. */
typedef struct te_kv_config {
  uint32_t size;              /**< sizeof(te_kv_config) */
  uint32_t heartbeats;        /**< After the silence of so many a peer is lost; at least 2, default 3. */
  const char *name;           /**< Appears in errors, and tells a decoder that has come back. Required. */
  uint64_t heartbeat_ns;      /**< Default 1 s. */
  uint64_t cancel_timeout_ns; /**< How long a receipt may take before pages go into quarantine; default 5 s. */
  uint64_t quarantine_ns;     /**< How long pages stay there while other requests go on; default 5 s. */
  uint32_t digests;           /**< Decoder: not 0 compares what arrives with digests of what was sent, before TE_KV_READY. */
  uint32_t reserved;
} te_kv_config;

#define TE_KV_GROUP_INIT {(uint32_t)sizeof(te_kv_group), 0, 0, 0, 0, 0, TE_KV_HEADS_FIRST, TE_KV_TOGETHER, NULL, 0}
#define TE_KV_LAYOUT_INIT {(uint32_t)sizeof(te_kv_layout), 1, NULL, NULL, NULL, 0, NULL, 0, 0, 0}
#define TE_KV_RANK_INIT {(uint32_t)sizeof(te_kv_rank), 0, 0, NULL, 0, NULL, 0}
#define TE_KV_CONFIG_INIT {(uint32_t)sizeof(te_kv_config), 0, NULL, 0, 0, 0, 0, 0}

/** Opens a prefiller. Rank r is ranks[r]; decoders reach it at the te_engine_address of rank 0, whose messages it takes. */
int32_t te_kv_prefiller_open(const te_kv_config *config, const te_kv_layout *layout, const te_kv_rank *ranks,
                             uint64_t rank_count, te_kv_prefiller *prefiller);
/** Opens a decoder. Its regions must have been registered with TE_REMOTE_WRITE. */
int32_t te_kv_decoder_open(const te_kv_config *config, const te_kv_layout *layout, const te_kv_rank *ranks,
                           uint64_t rank_count, te_kv_decoder *decoder);
/** Ends a role and what it has under way, and gives its regions back: afterwards nobody writes into them or reads from them for
 *  it. May wait for some seconds for writes to end. Its engine cannot be closed before (TE_EBUSY). */
int32_t te_kv_close(te_kv_role role);

/* ----------------------------------------------------------------- Events */

enum {
  TE_KV_LAYER = 1,      /**< Decoder: `layer` of `object` has arrived on all ranks. Only with TE_KV_LAYERWISE. */
  TE_KV_READY = 2,      /**< Decoder: all of `object` has arrived; the pages are the application's. The last event of it. */
  TE_KV_FAILED = 3,     /**< Decoder: `object` will not arrive, for `reason`. Its pages may still be written to. */
  TE_KV_PAGES_FREE = 4, /**< Decoder: nothing can be written into the pages any more. The last event of `object`. */
  TE_KV_JOB = 5,        /**< Prefiller: `object` is a new te_kv_job; accept or abort it. */
  TE_KV_STOP = 6,       /**< Prefiller: compute no more for `object`, for `reason`. At most once. */
  TE_KV_RELEASED = 7    /**< Prefiller: nothing reads the pages of `object` any more. Once for each that was accepted. */
};

/** Why a request failed or a job has to stop. */
enum {
  TE_KV_NO_REASON = 0,
  TE_KV_INVALID_LAYOUT = 1,      /**< A layout, a page or a range of tokens that does not exist. */
  TE_KV_INCOMPATIBLE = 2,        /**< The two sides keep different things; the text names the field and both values. */
  TE_KV_UNSUPPORTED_VERSION = 3, /**< The other side speaks another version of the protocol. */
  TE_KV_MALFORMED_MESSAGE = 4,
  TE_KV_REFUSED = 5,             /**< The prefiller drains, is full, or does not know the session. */
  TE_KV_PEER_LOST = 6,           /**< The other side has been silent for too long, or its engine is gone. */
  TE_KV_DEADLINE = 7,
  TE_KV_CANCELLED = 8,           /**< By the decoder. */
  TE_KV_ABORTED = 9,             /**< By the prefiller. */
  TE_KV_TRANSFER_FAILED = 10,
  TE_KV_NO_PAGES = 11,
  TE_KV_DIGEST_MISMATCH = 12
};

typedef struct te_kv_event {
  uint32_t kind;    /**< TE_KV_LAYER, ... */
  uint32_t code;    /**< TE_KV_NO_REASON, ... */
  uint64_t tag;     /**< Of the request, or of te_kv_accept. */
  uint64_t object;  /**< te_kv_request or te_kv_job. */
  uint64_t layer;
  char reason[256]; /**< For people; NUL-terminated UTF-8. */
} te_kv_event;

/** Takes at most `capacity` events, as te_poll does. */
int32_t te_kv_poll(te_kv_role role, te_kv_event *events, uint64_t capacity, int64_t timeout_ns, uint64_t *count);
/** A file descriptor that is readable while te_kv_poll has something to return; closed with the role. */
int32_t te_kv_fd(te_kv_role role, int32_t *fd);

/* ---------------------------------------------------------------- Decoder */

/** Begins to work with a prefiller; requests may be made at once. One that was lost is reached again by connecting anew. */
int32_t te_kv_connect(te_kv_decoder decoder, const void *address, uint64_t length, te_kv_peer *peer);
/** Ends the work with a prefiller: what it has of ours is cancelled. */
int32_t te_kv_disconnect(te_kv_peer peer);

/** What prefillers tell of themselves. */
typedef struct te_kv_peer_state {
  uint32_t size;        /**< sizeof(te_kv_peer_state), set by the caller. */
  uint32_t is_draining; /**< It takes no new requests. */
  uint64_t load;        /**< Tokens that wait to be computed, as of its last heartbeat. */
  uint32_t code;        /**< Why it is lost; TE_KV_NO_REASON when it is not. */
  uint32_t reserved;
  char name[64];        /**< Of its engine. */
  char reason[256];
} te_kv_peer_state;

int32_t te_kv_peer_status(te_kv_peer peer, te_kv_peer_state *state);

/** The pages of a request in one group. */
typedef struct te_kv_table {
  uint64_t first;        /**< Which page of the request pages[0] is: page n holds the tokens from n * page_tokens on. */
  const uint32_t *pages; /**< Pages of the planes. */
  uint64_t count;
} te_kv_table;

/** A place for the last hidden state or the logits. */
typedef struct te_kv_tail {
  uint32_t rank;   /**< Of the decoder. */
  uint32_t region; /**< Of that rank. */
  uint64_t offset;
  uint64_t byte_count;
} te_kv_tail;

/** A flag of a question: each layer is an event. */
#define TE_KV_LAYERWISE 1u

/** What a decoder wants from a prefiller. Lists are read during te_kv_ask only. */
typedef struct te_kv_question {
  uint32_t size;             /**< sizeof(te_kv_question) */
  uint32_t flags;            /**< TE_KV_LAYERWISE */
  uint64_t tag;              /**< Comes back in events. */
  te_kv_peer prefiller;
  uint64_t cached;           /**< Tokens at the beginning that the decoder has already. */
  uint64_t end;              /**< Tokens whose cache it needs to begin, those included. */
  const te_kv_table *tables; /**< The pages to be written, for each group; nobody else's until the request has ended. */
  uint64_t table_count;
  const te_kv_tail *tail;    /**< NULL is none. */
  const void *input;         /**< What the prefiller's application needs; at most 1 MiB. */
  uint64_t input_bytes;
  int64_t timeout_ns;        /**< Until all has arrived; 0 or TE_DEFAULT_TIMEOUT is 30 s. */
} te_kv_question;

#define TE_KV_QUESTION_INIT {(uint32_t)sizeof(te_kv_question), 0, 0, 0, 0, 0, NULL, 0, NULL, NULL, 0, 0}

/** Asks for caches, in order, without waiting. `requests` (may be NULL) gets a handle for each that was taken, `asked` (may be
 *  NULL) how many, also when one is refused, which ends the batch. What is wrong with pages or tokens is told by an event. */
int32_t te_kv_ask(te_kv_decoder decoder, const te_kv_question *questions, uint64_t count, te_kv_request *requests,
                  uint64_t *asked);
/** Ends a request before its time: TE_KV_FAILED, and TE_KV_PAGES_FREE after the prefiller's receipt. Fine for one that has
 *  ended. */
int32_t te_kv_cancel(te_kv_request request);

/* -------------------------------------------------------------- Prefiller */

/** What a decoder wants. */
typedef struct te_kv_job_info {
  uint32_t size;        /**< sizeof(te_kv_job_info), set by the caller. */
  uint32_t has_tail;    /**< te_kv_write_tail ends the job. */
  uint64_t cached;      /**< Tokens that need not be written, though they may have to be computed. */
  uint64_t end;
  uint64_t tail_bytes;
  uint64_t input_bytes;
  int64_t timeout_ns;   /**< How long the decoder waits, from the event on. */
  char decoder[256];    /**< Its name. */
} te_kv_job_info;

/** Reads a job that has not ended. `input` gets the decoder's input when `capacity` suffices; TE_EOUTOFRANGE, with `info`
 *  filled, when it does not. `input` may be NULL when `capacity` is 0 and there is none. */
int32_t te_kv_job_read(te_kv_job job, te_kv_job_info *info, void *input, uint64_t capacity);
/** Takes a job on, with the pages that its model computes into, for each group: as many as there are by now. Once. */
int32_t te_kv_accept(te_kv_job job, const te_kv_table *tables, uint64_t table_count, uint64_t tag);
/** Replaces the pages by more: those of before, and those that the job has got since. Fine for one that has ended. */
int32_t te_kv_extend(te_kv_job job, const te_kv_table *tables, uint64_t table_count);
/** Gives a job up, or does not take it on: the decoder is told `reason` (TE_KV_REFUSED before te_kv_accept, TE_KV_ABORTED after
 *  it). Fine for one that has ended. */
int32_t te_kv_abort(te_kv_job job, const char *reason);

/** Tokens of a job that a forward pass computes; the chunks of a job follow each other from its first token on. */
typedef struct te_kv_chunk {
  te_kv_job job;
  uint64_t begin;
  uint64_t end;
} te_kv_chunk;

/** Announces a forward pass of a stage before it begins: every pass, also one that computes nothing for a job. Chunks of jobs
 *  that have ended are passed over. */
int32_t te_kv_forward(te_kv_prefiller prefiller, uint32_t stage, const te_kv_chunk *chunks, uint64_t count);
/** Says how many layers a stage has finished in all, since the prefiller was opened: the writes of the new ones begin. */
int32_t te_kv_computed(te_kv_prefiller prefiller, uint32_t stage, uint64_t layers);
/** Looks at an aligned 64-bit word that the rank's model increments with each finished layer, instead of te_kv_computed. `region`
 *  is one of that engine's that the role does not have; it is watched until te_kv_close. */
int32_t te_kv_watch(te_kv_prefiller prefiller, uint32_t rank, te_region region, uint64_t offset);
/** Writes the tail of a job, from one of the role's regions. */
int32_t te_kv_write_tail(te_kv_job job, uint32_t rank, uint32_t region, uint64_t offset);
/** Takes no new jobs from now on; decoders learn of it with the next heartbeat. */
int32_t te_kv_drain(te_kv_prefiller prefiller);
/** Jobs that have not ended and the tokens that they have left. Either pointer may be NULL. */
int32_t te_kv_load(te_kv_prefiller prefiller, uint64_t *jobs, uint64_t *tokens);

#ifdef __cplusplus
}
#endif
#endif
