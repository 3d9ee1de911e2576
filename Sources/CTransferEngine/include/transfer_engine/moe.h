/*
 * transfer_engine/moe.h - dispatches the tokens of mixtures of experts to the ranks of their experts, and combines the results.
 *
 * All ranks open an exchange of the same shape on their engines, hand each other the bytes of te_moe_address by any channel, and
 * give all of them to te_moe_connect. Then each step of a micro-batch is, on every rank:
 *
 *   te_moe_dispatch_send                                    tokens leave
 *   do {
 *     te_moe_dispatch_receive   -> tokens in the order of this rank's experts, each of them behind each other
 *     the experts               write their results into te_moe_received.outputs
 *     te_moe_combine_send       results leave
 *   } while (!is_last)                                      one pass as a rule, more where memory is short
 *   te_moe_combine_receive      -> the weighted sums of this rank's tokens
 *
 * Sums are the same to the bit from run to run, whatever arrives when. A rank that is lost, or keeps others waiting for longer
 * than deadline_ns, is left out from then on: te_moe_result says how many results are missing, te_moe_missing whose. After that,
 * and to change the number of ranks, all ranks open new exchanges. docs/moe.md has the algorithm, the memory and the figures.
 *
 * Conventions are those of transfer_engine.h. An exchange is used by one thread at a time: another one that comes in meanwhile
 * gets TE_EBUSY. The four calls wait, at most for deadline_ns; nothing is allocated once an exchange is warm. With manual
 * progress they make progress. The engine cannot be closed before its exchanges.
 */
#ifndef TRANSFER_ENGINE_MOE_H
#define TRANSFER_ENGINE_MOE_H

#include "../transfer_engine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t te_moe_exchange; /**< One rank of an exchange. */

/** What values are. TE_MOE_FLOAT8 is e4m3fn, and not for results. */
enum { TE_MOE_FLOAT32 = 0, TE_MOE_BFLOAT16 = 1, TE_MOE_FLOAT16 = 2, TE_MOE_FLOAT8 = 3 };

/** Where a token's results are added: by its own rank, from results in combine_element, the same for any number of ranks; or by the
 *  experts' ranks, so that one FP32 row travels for each token and rank. */
enum { TE_MOE_AT_RECEIVER = 0, TE_MOE_AT_SENDER = 1 };

/** The shape; all ranks have the same but for rank and spins. 0 is the default where there is one. */
typedef struct te_moe_config {
  uint32_t size;             /**< sizeof(te_moe_config) */
  uint32_t rank;             /**< This one, from 0. */
  uint32_t ranks;            /**< 1 to 4096. */
  uint32_t experts;          /**< In all; the first `experts % ranks` ranks have one more than the others. */
  uint32_t top_k;            /**< Experts in the list of a token, 1 to 64. */
  uint32_t hidden;           /**< Values of a token. */
  uint32_t maximum_tokens;   /**< Most tokens of a rank in one step. */
  uint32_t dispatch_element; /**< What tokens are made of. */
  uint32_t combine_element;  /**< What results and sums are made of. */
  uint32_t scale_block;      /**< Values of a token that share an FP32 scale, which travels along; 0 is no scales. */
  uint32_t reduction;        /**< TE_MOE_AT_RECEIVER or TE_MOE_AT_SENDER. */
  uint32_t replicas;         /**< Neighbouring ranks that hold the same tokens; default 1. */
  uint32_t padding;          /**< The rows of each expert begin at a multiple of this; default 1. */
  uint32_t micro_batches;    /**< Steps in flight at a time, 1 to 16; default 2. */
  uint32_t private_rows;     /**< Rows that may leave before the receiver has said where to; default: by the memory. */
  uint32_t spins;            /**< Turns of a wait before the processor is offered to others; default 1000. */
  uint64_t memory_budget;    /**< Bytes of a micro-batch on this rank; default: balanced routing and half as much again. */
  uint64_t deadline_ns;      /**< How long a rank that lives may keep others waiting; default 30 s. */
  uint32_t nodes;            /**< Of equally many neighbouring ranks: a token travels once to each, and is forwarded inside, with
                              *   TE_MOE_AT_SENDER only; 0 is one exchange of all ranks. */
  uint32_t reserved;
} te_moe_config;

/** Bytes of te_moe_address. */
typedef struct te_moe_bytes {
  const void *bytes;
  uint64_t length;
} te_moe_bytes;

/** The tokens of a step; nobody changes them until te_moe_combine_receive has returned. */
typedef struct te_moe_tokens {
  uint32_t size;          /**< sizeof(te_moe_tokens) */
  uint32_t count;         /**< 0 to maximum_tokens. */
  const void *tokens;     /**< `hidden` values of dispatch_element each. */
  uint64_t stride;        /**< Bytes from one token to the next; 0 is no gap. */
  te_region region;       /**< In which they lie, if they do: on one host they are then copied once. 0 is none. */
  const float *scales;    /**< For each token as many as hidden has blocks; NULL without scale_block. */
  const int32_t *experts; /**< top_k of each token; -1 is none. */
  const float *weights;   /**< top_k of each token. */
} te_moe_tokens;

/** What one pass brought; valid until te_moe_combine_send. */
typedef struct te_moe_received {
  uint32_t size;           /**< sizeof(te_moe_received) */
  uint32_t is_last;        /**< Whether this is the last pass of the step. */
  uint64_t row_count;      /**< Rows of tokens and outputs, padding included. */
  void *tokens;            /**< `hidden` values of dispatch_element each; padding is 0. */
  float *scales;           /**< Of each row; NULL without scale_block. */
  void *outputs;           /**< Where results go: `hidden` values of combine_element each. Padding is not read. */
  uint64_t expert_count;   /**< Experts of this rank. */
  const uint32_t *counts;  /**< Rows of each of them, without padding. */
  const uint32_t *offsets; /**< The first row of each of them. */
} te_moe_received;

/** What a step came to. */
typedef struct te_moe_result {
  uint32_t size;            /**< sizeof(te_moe_result) */
  uint32_t missing_ranks;   /**< How many ranks are left out. */
  uint64_t dropped_entries; /**< Entries of the tokens' lists whose experts did not contribute. */
} te_moe_result;

#define TE_MOE_CONFIG_INIT \
  {(uint32_t)sizeof(te_moe_config), 0, 0, 0, 0, 0, 0, TE_MOE_BFLOAT16, TE_MOE_BFLOAT16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
#define TE_MOE_TOKENS_INIT {(uint32_t)sizeof(te_moe_tokens), 0, NULL, 0, 0, NULL, NULL, NULL}
#define TE_MOE_RECEIVED_INIT {(uint32_t)sizeof(te_moe_received), 0, 0, NULL, NULL, NULL, 0, NULL, NULL}
#define TE_MOE_RESULT_INIT {(uint32_t)sizeof(te_moe_result), 0, 0}

/** Allocates the memory of this rank. TE_EINVAL names what cannot be. */
int32_t te_moe_open(te_engine engine, const te_moe_config *config, te_moe_exchange *exchange);
/** What the other ranks need. `length` is set even when the buffer is too small (TE_EOUTOFRANGE). */
int32_t te_moe_address(te_moe_exchange exchange, void *buffer, uint64_t capacity, uint64_t *length);
/** Meets the others: the addresses of all ranks in their order; that of this one is not looked at. */
int32_t te_moe_connect(te_moe_exchange exchange, const te_moe_bytes *addresses, uint64_t count);
/** Begins a step of a micro-batch whose last step has ended. Copies count x top_k x hidden values at most. */
int32_t te_moe_dispatch_send(te_moe_exchange exchange, uint32_t batch, const te_moe_tokens *tokens);
/** Waits for the tokens of a pass. `received->size` says how much is wanted. */
int32_t te_moe_dispatch_receive(te_moe_exchange exchange, uint32_t batch, te_moe_received *received);
/** Sends the results of a pass. */
int32_t te_moe_combine_send(te_moe_exchange exchange, uint32_t batch);
/** Waits for the results of this rank's tokens, and adds them: a row of `hidden` values of combine_element for each token, every
 *  `stride` bytes (0 is no gap); zero for a token without experts. */
int32_t te_moe_combine_receive(te_moe_exchange exchange, uint32_t batch, void *sums, uint64_t stride, te_moe_result *result);
/** The ranks that are left out; `count` is set even when there is no room for them (TE_EOUTOFRANGE). */
int32_t te_moe_missing(te_moe_exchange exchange, uint32_t *ranks, uint64_t capacity, uint64_t *count);
/** Why a rank is left out, as a function that has failed says it: its code, and te_last_error. TE_OK for a rank that is not. */
int32_t te_moe_failure(te_moe_exchange exchange, uint32_t rank);
/** Ends the exchange: nobody writes into its memory any more. Steps that have not ended are given up. */
int32_t te_moe_close(te_moe_exchange exchange);

#ifdef __cplusplus
}
#endif

#endif
