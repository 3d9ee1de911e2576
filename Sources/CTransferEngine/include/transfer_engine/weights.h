/*
 * transfer_engine/weights.h - updates of a model's weights from trainer ranks to inference ranks: a plan that can be read and
 * proved, a push in which each rank prepares what it holds, and a switch that happens on all receivers or on none.
 *
 * All processes have the same plan: one makes it and hands on the bytes of te_weights_plan_encode. Each opens an endpoint on an
 * engine of its own and takes up roles; one of them leads, and the others follow the address of its engine:
 *
 *   te_weights_open(engine, plan, &endpoint);
 *   te_weights_lead(endpoint, NULL);                       // one process, as a rule that of trainer 0
 *   te_weights_follow(endpoint, address, length);          // the others: te_engine_address of the one that leads
 *
 *   te_weights_train(endpoint, rank);                      // a trainer
 *   te_weights_fill(endpoint, "model.norm.weight", ...);   // or its shards, in te_weights_memory
 *   te_weights_publish(endpoint, 1);
 *
 *   te_weights_serve(endpoint, rank);                      // a receiver
 *   te_weights_read_begin(endpoint, &reading);             // lends what is served, on any thread
 *
 *   te_weights_wait(endpoint, TE_WEIGHTS_COMPLETE, 0, timeout);   // who leads
 *   te_weights_update(endpoint, 1);
 *   te_weights_wait(endpoint, TE_WEIGHTS_OUTCOME, 1, timeout);
 *   te_weights_outcome(endpoint, 1, NULL, 0, &left_out);
 *
 * Nothing happens by itself: whoever has an endpoint calls te_weights_poll often, or te_weights_wait, until it is closed. The
 * clock is CLOCK_MONOTONIC. With manual progress both make progress. docs/weights.md has the protocol, and what becomes of
 * failures.
 *
 * Conventions are those of transfer_engine.h. An endpoint is used by one thread at a time: another one that comes in meanwhile
 * gets TE_EBUSY, but for te_weights_version, te_weights_read_begin and te_weights_read_end, which any thread may call at any
 * time. Plans do not change, and any thread may use them. An endpoint takes the messages of its engine, which cannot be closed
 * before it.
 */
#ifndef TRANSFER_ENGINE_WEIGHTS_H
#define TRANSFER_ENGINE_WEIGHTS_H

#include "../transfer_engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t te_weights_plan;     /**< Who sends what to whom. */
typedef uint64_t te_weights_endpoint; /**< One process of updates: its engine, and the roles that it has. */

/** What elements are. TE_WEIGHTS_F8_E4M3 is e4m3fn. */
enum {
  TE_WEIGHTS_BF16 = 0,
  TE_WEIGHTS_F16 = 1,
  TE_WEIGHTS_F32 = 2,
  TE_WEIGHTS_F8_E4M3 = 3,
  TE_WEIGHTS_U8 = 4,
  TE_WEIGHTS_I32 = 5,
  TE_WEIGHTS_I64 = 6
};

/** Who prepares what: each rank what it holds; or all ranks gather whole parameters, which can be predicted and not done. */
enum { TE_WEIGHTS_DIRECT = 0, TE_WEIGHTS_FULL_TENSOR = 1 };

/** What te_weights_wait waits for. */
enum {
  TE_WEIGHTS_TIME = 0,     /**< That the time passes: to be there for others. */
  TE_WEIGHTS_COMPLETE = 1, /**< That all ranks of the plan have joined. Who leads. */
  TE_WEIGHTS_OUTCOME = 2,  /**< An outcome of the update to the version. Who leads. */
  TE_WEIGHTS_ROLLBACK = 3, /**< An outcome of the rollback. Who leads. */
  TE_WEIGHTS_SERVED = 4,   /**< That the version is served here. A receiver. */
  TE_WEIGHTS_PUSHED = 5    /**< That the version is served everywhere, as who leads says. A trainer. */
};

/** What a plan is made from: the texts of `te weights plan`. */
typedef struct te_weights_layouts {
  uint32_t size;            /**< sizeof(te_weights_layouts) */
  uint32_t policy;          /**< TE_WEIGHTS_DIRECT or TE_WEIGHTS_FULL_TENSOR. */
  const char *model;        /**< A published one ("llama-3.1-8b"), JSON or its path, a safetensors file, or a directory. */
  const char *trainers;     /**< "fsdp=4,tp=2": fsdp, replicas, tp, pp, ep, node (ranks of a host). */
  const char *inference;    /**< "tp=2,fp8=1": tp, ep, dp; fp8=1 quantises, unfused=1 keeps projections apart. */
  uint64_t watermark_bytes; /**< Most temporary memory of a trainer rank; default 2 GiB. */
  uint64_t task_bytes;      /**< Larger pieces of work are divided; default 32 MiB, at most a quarter of the watermark. */
} te_weights_layouts;

/** What a trainer rank holds of a parameter, in te_weights_memory: row by row, without gaps. */
typedef struct te_weights_shard {
  uint32_t size;       /**< sizeof(te_weights_shard), in the first of a list */
  uint32_t type;       /**< TE_WEIGHTS_BF16 and so on. */
  const char *name;    /**< Of the parameter; valid until te_weights_plan_release. */
  uint64_t dimensions; /**< 1 to 3. */
  uint64_t shape[3];   /**< Of the whole parameter; 0 beyond its dimensions, as below. */
  uint64_t first[3];   /**< Where in it the shard begins. */
  uint64_t extent[3];  /**< The shape of the shard. */
  uint64_t offset;     /**< Its first byte. */
  uint64_t length;     /**< Bytes. */
} te_weights_shard;

/** What a receiver gets, in te_weights_reading: row by row, without gaps. */
typedef struct te_weights_target {
  uint32_t size;           /**< sizeof(te_weights_target), in the first of a list */
  uint32_t type;           /**< TE_WEIGHTS_BF16 and so on. */
  const char *name;        /**< As inference engines call it, "...qkv_proj.weight"; valid until te_weights_plan_release. */
  uint64_t dimensions;     /**< 1 to 3. */
  uint64_t shape[3];       /**< Of this rank's part; 0 beyond its dimensions. */
  uint64_t offset;         /**< Its first byte. */
  uint64_t length;         /**< Bytes. */
  uint64_t scale_offset;   /**< The first byte of its scales, a float for each block of 128 rows and 128 columns. */
  uint64_t scale_length;   /**< Bytes of them; 0 without. */
  uint64_t scale_shape[3]; /**< Their shape, of as many dimensions. */
} te_weights_target;

/** How to lead. 0 is the default. */
typedef struct te_weights_options {
  uint32_t size;               /**< sizeof(te_weights_options) */
  uint32_t term;               /**< Higher than that of anybody who led before, up to 65535; default 1. */
  uint32_t attempts;           /**< At one version; default 8. */
  uint32_t sendings;           /**< How often what arrives damaged is sent before the update fails; default 3. */
  uint64_t repeat_interval_ns; /**< Unanswered messages are repeated after this; default 50 ms. */
  uint64_t phase_timeout_ns;   /**< A phase that takes longer begins another attempt; default 60 s. */
  uint64_t update_timeout_ns;  /**< All attempts together; default 600 s. */
} te_weights_options;

/** How an endpoint is doing. What is of a role that it has not is 0. */
typedef struct te_weights_state {
  uint32_t size;            /**< sizeof(te_weights_state) */
  uint32_t is_sending;      /**< A trainer: whether its memory must stay as it is. */
  uint64_t sent_bytes;      /**< A trainer: bytes written to receivers since the beginning. */
  uint64_t pushed_version;  /**< A trainer: what is served everywhere, as who leads says. */
  uint64_t served_version;  /**< A receiver: what it serves. */
  uint32_t is_leading;      /**< Who leads: 1. */
  uint32_t is_updating;     /**< Who leads: whether an update or a rollback is under way. */
  uint32_t is_complete;     /**< Who leads: whether all ranks of the plan are there. */
  uint32_t receiver_count;  /**< Who leads: receivers that are there. */
  uint64_t current_version; /**< Who leads: what is decided. */
} te_weights_state;

/** Weights that are lent. */
typedef struct te_weights_reading {
  uint32_t size;       /**< sizeof(te_weights_reading) */
  uint32_t reserved;
  uint64_t number;     /**< For te_weights_read_end. */
  uint64_t version;    /**< Which version they are. */
  const void *weights; /**< Where the rank's tensors lie, by te_weights_plan_targets. */
  uint64_t length;     /**< Bytes. */
} te_weights_reading;

#define TE_WEIGHTS_LAYOUTS_INIT {(uint32_t)sizeof(te_weights_layouts), TE_WEIGHTS_DIRECT, NULL, NULL, NULL, 0, 0}
#define TE_WEIGHTS_SHARD_INIT {(uint32_t)sizeof(te_weights_shard), 0, NULL, 0, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, 0, 0}
#define TE_WEIGHTS_TARGET_INIT \
  {(uint32_t)sizeof(te_weights_target), 0, NULL, 0, {0, 0, 0}, 0, 0, 0, 0, {0, 0, 0}}
#define TE_WEIGHTS_OPTIONS_INIT {(uint32_t)sizeof(te_weights_options), 0, 0, 0, 0, 0, 0}
#define TE_WEIGHTS_STATE_INIT {(uint32_t)sizeof(te_weights_state), 0, 0, 0, 0, 0, 0, 0, 0, 0}
#define TE_WEIGHTS_READING_INIT {(uint32_t)sizeof(te_weights_reading), 0, 0, 0, NULL, 0}

/* ------------------------------------------------------------------ Plans */

/** Makes a plan. TE_EINVALID names what does not fit; reads files where the model is one. Kimi-K2 takes some seconds. */
int32_t te_weights_plan_make(const te_weights_layouts *layouts, te_weights_plan *plan);
/** Reads what te_weights_plan_encode or `te weights plan --output` wrote: TE_EMALFORMED, TE_EUNSUPPORTEDVERSION. */
int32_t te_weights_plan_decode(const void *bytes, uint64_t length, te_weights_plan *plan);
/** The same bytes for equal plans. `length` is set even when the buffer is too small (TE_EOUTOFRANGE), here and below. */
int32_t te_weights_plan_encode(te_weights_plan plan, void *buffer, uint64_t capacity, uint64_t *length);
/** Proves that the plan does what it must: then there are no findings, and no text. Otherwise each has a line. Only plans
 *  without findings, but for the balance of work, can be done. */
int32_t te_weights_plan_lint(te_weights_plan plan, char *text, uint64_t capacity, uint64_t *length, uint32_t *findings);
/** Figures of the plan, as a JSON object; no NUL at its end. */
int32_t te_weights_plan_summary(te_weights_plan plan, char *text, uint64_t capacity, uint64_t *length);
/** How many ranks there are. Either may be NULL. */
int32_t te_weights_plan_ranks(te_weights_plan plan, uint32_t *trainers, uint32_t *receivers);
/** What a trainer rank holds, in the model's order. With a capacity `shards->size` says how far apart they are. `count` is set
 *  even when there is no room for them (TE_EOUTOFRANGE), here and below. */
int32_t te_weights_plan_shards(te_weights_plan plan, uint32_t rank, te_weights_shard *shards, uint64_t capacity, uint64_t *count);
/** What a receiver gets, in the plan's order. With a capacity `targets->size` says how far apart they are. */
int32_t te_weights_plan_targets(te_weights_plan plan, uint32_t rank, te_weights_target *targets, uint64_t capacity,
                                uint64_t *count);
/** Endpoints that have it keep it. */
int32_t te_weights_plan_release(te_weights_plan plan);

/* -------------------------------------------------------------- Endpoints */

/** Takes the engine's messages. TE_EINVALID for a plan that is not good, or not TE_WEIGHTS_DIRECT. */
int32_t te_weights_open(te_engine engine, te_weights_plan plan, te_weights_endpoint *endpoint);
/** Who leads: the te_engine_address of its engine. Without it this process does. May change, when somebody else leads. */
int32_t te_weights_follow(te_weights_endpoint endpoint, const void *address, uint64_t length);
/** Does what is to be done now. `is_busy`, unless NULL: whether anything was. */
int32_t te_weights_poll(te_weights_endpoint endpoint, int32_t *is_busy);
/** Polls until something has happened, TE_WEIGHTS_*, or the time has passed: TE_ETIMEDOUT, but for TE_WEIGHTS_TIME. */
int32_t te_weights_wait(te_weights_endpoint endpoint, uint32_t what, uint64_t version, int64_t timeout_ns);
/** How it is doing. `state->size` says how much is wanted. */
int32_t te_weights_status(te_weights_endpoint endpoint, te_weights_state *state);
/** For people: what who leads waits for, and a line for each attempt that was given up; no NUL at its end. */
int32_t te_weights_describe(te_weights_endpoint endpoint, char *text, uint64_t capacity, uint64_t *length);
/** Ends its roles: nobody writes into their memory any more, which is gone. TE_EBUSY while weights are lent. */
int32_t te_weights_close(te_weights_endpoint endpoint);

/* --------------------------------------------------------------- Trainers */

/** Becomes a trainer rank, once; allocates the memory of its shards. */
int32_t te_weights_train(te_weights_endpoint endpoint, uint32_t rank);
/** Where its shards lie, by te_weights_plan_shards; valid until te_weights_close. */
int32_t te_weights_memory(te_weights_endpoint endpoint, void **address, uint64_t *length);
/** Copies this rank's shard out of a whole parameter; nothing where it holds none of it. */
int32_t te_weights_fill(te_weights_endpoint endpoint, const char *name, const void *whole, uint64_t length);
/** The memory holds a version, above 0, and stays as it is until the version is served everywhere or te_weights_withdraw. */
int32_t te_weights_publish(te_weights_endpoint endpoint, uint64_t version);
/** The memory is about to change: nothing of it is sent until the next publish. TE_EBACKPRESSURE while something is under way. */
int32_t te_weights_withdraw(te_weights_endpoint endpoint);

/* -------------------------------------------------------------- Receivers */

/** Becomes an inference rank, once; allocates memory for two versions. */
int32_t te_weights_serve(te_weights_endpoint endpoint, uint32_t rank);
/** The version that is served; 0 before the first. */
int32_t te_weights_version(te_weights_endpoint endpoint, uint64_t *version);
/** Lends what is served; TE_PENDING before the first version. It stays as it is, and no update overwrites it, until
 *  te_weights_read_end: an update to the version after next waits for that. `reading->size` says how much is wanted. */
int32_t te_weights_read_begin(te_weights_endpoint endpoint, te_weights_reading *reading);
/** Ends a reading, once. */
int32_t te_weights_read_end(te_weights_endpoint endpoint, uint64_t number);

/* -------------------------------------------------------------- Who leads */

/** Leads updates from now on; `options` may be NULL. Again with a higher term to lead after somebody else has. */
int32_t te_weights_lead(te_weights_endpoint endpoint, const te_weights_options *options);
/** Begins an update of all receivers that are there to a version that all trainers have published or will publish. */
int32_t te_weights_update(te_weights_endpoint endpoint, uint64_t version);
/** How an update went. TE_OK: the version is decided; `left_out` are receivers that were lost after that, and get it when they
 *  are back. TE_PENDING: it is under way. Otherwise nobody serves it: TE_EPEERLOST nobody there, or shards lost; TE_EDIGEST what
 *  arrived was damaged each time; TE_ESTALLED attempts or time used up; TE_ECANCELLED cancelled, or another version came
 *  first. */
int32_t te_weights_outcome(te_weights_endpoint endpoint, uint64_t version, uint32_t *left_out, uint64_t capacity,
                           uint64_t *count);
/** Lets all receivers that are there serve the version before, if all of them still have it; otherwise none does. */
int32_t te_weights_rollback(te_weights_endpoint endpoint, uint64_t version);
/** How the last rollback went; like te_weights_outcome, and TE_EINVALID where a receiver no longer has the version. */
int32_t te_weights_rollback_outcome(te_weights_endpoint endpoint, uint32_t *left_out, uint64_t capacity, uint64_t *count);
/** Ends the update that is under way: nobody serves it. */
int32_t te_weights_cancel(te_weights_endpoint endpoint);

#ifdef __cplusplus
}
#endif

#endif
