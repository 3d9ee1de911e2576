// Exchanges of experts through C: sizes, steps of two ranks against a computation in one place, and misuse of every function.
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <transfer_engine/moe.h>
#include <unistd.h>

#include "check.h"

enum { RANKS = 2, EXPERTS = 5, TOP = 2, HIDDEN = 48, TOKENS = 7, STEPS = 3 };

#define LAYOUT(type, size, last, offset) \
  CHECK(sizeof(type) == (size));         \
  CHECK(offsetof(type, last) == (offset))

static void sizes(void) {
  LAYOUT(te_moe_config, 88, reserved, 84);
  LAYOUT(te_moe_bytes, 16, length, 8);
  LAYOUT(te_moe_tokens, 56, weights, 48);
  LAYOUT(te_moe_received, 64, offsets, 56);
  LAYOUT(te_moe_result, 16, dropped_entries, 8);
}

typedef struct {
  uint32_t rank;
  te_engine engine;
  te_moe_exchange exchange;
  char address[4096];
  uint64_t length;
  float sums[STEPS][TOKENS][HIDDEN];
} side;

static side sides[RANKS];

static te_engine open_engine(void) {
  te_config config = TE_CONFIG_INIT;
  config.timeout_ns = 5000000000;
  te_engine engine = 0;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  return engine;
}

static te_moe_config shape(uint32_t rank) {
  te_moe_config config = TE_MOE_CONFIG_INIT;
  config.rank = rank;
  config.ranks = RANKS;
  config.experts = EXPERTS;
  config.top_k = TOP;
  config.hidden = HIDDEN;
  config.maximum_tokens = TOKENS;
  config.dispatch_element = TE_MOE_FLOAT32;
  config.combine_element = TE_MOE_FLOAT32;
  config.spins = 1;
  config.deadline_ns = 20000000000;
  return config;
}

static float value(int step, int rank, int token, int place) { return (float)(step * 7 + rank * 5 + token * 3 + place % 11) / 8; }
static int32_t expert_of(int step, int rank, int token, int entry) {
  if (token == 2) return -1;
  return (step + rank * 3 + token * 2 + entry * (token % 2 ? 0 : 1)) % EXPERTS;
}
static float weight(int token, int entry) { return entry ? 0.25f : (float)(token + 1) / 4; }
// What an expert makes of a value.
static float apply(int expert, float x) { return x * (float)(expert + 1) + (float)expert; }

static void *run_rank(void *argument) {
  side *s = argument;
  const int ranks_experts[RANKS + 1] = {0, 3, EXPERTS};
  for (int step = 0; step < STEPS; step++) {
    // One rank has no tokens in the second step.
    uint32_t count = step == 1 && s->rank == 1 ? 0 : TOKENS;
    float tokens[TOKENS][HIDDEN];
    int32_t experts[TOKENS][TOP];
    float weights[TOKENS][TOP];
    for (int t = 0; t < TOKENS; t++) {
      for (int i = 0; i < HIDDEN; i++) tokens[t][i] = value(step, (int)s->rank, t, i);
      for (int k = 0; k < TOP; k++) {
        experts[t][k] = expert_of(step, (int)s->rank, t, k);
        weights[t][k] = weight(t, k);
      }
    }
    te_moe_tokens batch = TE_MOE_TOKENS_INIT;
    batch.count = count;
    batch.tokens = count ? tokens : NULL;
    batch.experts = count ? &experts[0][0] : NULL;
    batch.weights = count ? &weights[0][0] : NULL;
    EXPECT(TE_OK, te_moe_dispatch_send(s->exchange, 0, &batch));
    te_moe_received pass = TE_MOE_RECEIVED_INIT;
    do {
      EXPECT(TE_OK, te_moe_dispatch_receive(s->exchange, 0, &pass));
      CHECK(pass.expert_count == (uint64_t)(ranks_experts[s->rank + 1] - ranks_experts[s->rank]));
      CHECK(pass.scales == NULL);
      const float *in = pass.tokens;
      float *out = pass.outputs;
      for (uint64_t e = 0; e < pass.expert_count; e++)
        for (uint32_t row = pass.offsets[e]; row < pass.offsets[e] + pass.counts[e]; row++)
          for (int i = 0; i < HIDDEN; i++)
            out[row * HIDDEN + i] = apply(ranks_experts[s->rank] + (int)e, in[row * HIDDEN + i]);
      EXPECT(TE_OK, te_moe_combine_send(s->exchange, 0));
    } while (!pass.is_last);
    te_moe_result result = TE_MOE_RESULT_INIT;
    EXPECT(TE_OK, te_moe_combine_receive(s->exchange, 0, s->sums[step], 0, &result));
    CHECK(result.missing_ranks == 0 && result.dropped_entries == 0);
  }
  return NULL;
}

static void connect_all(void) {
  for (uint32_t rank = 0; rank < RANKS; rank++) {
    side *s = &sides[rank];
    s->rank = rank;
    s->engine = open_engine();
    te_moe_config config = shape(rank);
    EXPECT(TE_OK, te_moe_open(s->engine, &config, &s->exchange));
    EXPECT(TE_OK, te_moe_address(s->exchange, s->address, sizeof s->address, &s->length));
  }
  te_moe_bytes addresses[RANKS];
  for (int rank = 0; rank < RANKS; rank++) {
    addresses[rank].bytes = sides[rank].address;
    addresses[rank].length = sides[rank].length;
  }
  for (int rank = 0; rank < RANKS; rank++) EXPECT(TE_OK, te_moe_connect(sides[rank].exchange, addresses, RANKS));
}

static void close_all(void) {
  for (int rank = 0; rank < RANKS; rank++) {
    EXPECT(TE_EBUSY, te_engine_close(sides[rank].engine));
    EXPECT(TE_OK, te_moe_close(sides[rank].exchange));
    EXPECT(TE_EBADHANDLE, te_moe_close(sides[rank].exchange));
    EXPECT(TE_OK, te_engine_close(sides[rank].engine));
  }
}

static void steps(void) {
  connect_all();
  pthread_t threads[RANKS];
  for (int rank = 0; rank < RANKS; rank++) CHECK(pthread_create(&threads[rank], NULL, run_rank, &sides[rank]) == 0);
  for (int rank = 0; rank < RANKS; rank++) pthread_join(threads[rank], NULL);
  for (int rank = 0; rank < RANKS; rank++)
    for (int step = 0; step < STEPS; step++)
      for (int t = 0; t < TOKENS && !(step == 1 && rank == 1); t++) {
        int wrong = 0;
        for (int i = 0; i < HIDDEN; i++) {
          double sum = 0;
          for (int k = 0; k < TOP; k++) {
            int expert = expert_of(step, rank, t, k);
            if (expert >= 0) sum += (double)weight(t, k) * (double)apply(expert, value(step, rank, t, i));
          }
          wrong += fabs(sum - (double)sides[rank].sums[step][t][i]) > 1e-4;
        }
        CHECK(wrong == 0);
      }
  uint64_t count = 9;
  EXPECT(TE_OK, te_moe_missing(sides[0].exchange, NULL, 0, &count));
  CHECK(count == 0);
  close_all();
}

static void *receive_one(void *argument) {
  te_moe_received pass = TE_MOE_RECEIVED_INIT;
  *(int32_t *)argument = te_moe_dispatch_receive(sides[0].exchange, 0, &pass);
  return NULL;
}

static void misuse(void) {
  te_engine engine = open_engine();
  te_moe_config good = shape(0), bad;
  te_moe_exchange exchange = 0;
  EXPECT(TE_EBADHANDLE, te_moe_open(0, &good, &exchange));
  EXPECT(TE_EBADHANDLE, te_moe_open(12345, &good, &exchange));
  EXPECT(TE_EINVALID, te_moe_open(engine, NULL, &exchange));
  EXPECT(TE_EINVALID, te_moe_open(engine, &good, NULL));
#define SPOILT(field, wrong)  \
  bad = good;                 \
  bad.field = wrong;          \
  EXPECT(TE_EINVALID, te_moe_open(engine, &bad, &exchange))
  SPOILT(size, 8);
  SPOILT(rank, RANKS);
  SPOILT(ranks, 0);
  SPOILT(ranks, 5000);
  SPOILT(experts, 0);
  SPOILT(top_k, 65);
  SPOILT(hidden, 0);
  SPOILT(maximum_tokens, 0);
  SPOILT(dispatch_element, 9);
  SPOILT(combine_element, TE_MOE_FLOAT8);
  SPOILT(reduction, 2);
  SPOILT(replicas, 3);
  SPOILT(padding, 70000);
  SPOILT(micro_batches, 17);
  SPOILT(deadline_ns, UINT64_MAX);
  SPOILT(nodes, 2);  // results are added at the receiver
  SPOILT(nodes, 5);
  // A program that was compiled when te_moe_config ended with deadline_ns.
  bad = good;
  bad.size = 80;
  bad.nodes = 5;  // not the library's to read
  EXPECT(TE_OK, te_moe_open(engine, &bad, &exchange));
  EXPECT(TE_OK, te_moe_close(exchange));
  EXPECT(TE_OK, te_moe_open(engine, &good, &exchange));

  // Nothing before the others are known, and nothing with another handle, or none.
  te_moe_tokens tokens = TE_MOE_TOKENS_INIT;
  te_moe_received pass = TE_MOE_RECEIVED_INIT;
  te_moe_result result = TE_MOE_RESULT_INIT;
  float sums[TOKENS * HIDDEN];
  char buffer[16];
  uint64_t length = 0;
  uint32_t ranks[RANKS];
  te_moe_bytes addresses[RANKS] = {{NULL, 0}, {buffer, sizeof buffer}};
  memset(buffer, 0, sizeof buffer);
  EXPECT(TE_ECLOSED, te_moe_dispatch_send(exchange, 0, &tokens));
  EXPECT(TE_ECLOSED, te_moe_dispatch_receive(exchange, 0, &pass));
  EXPECT(TE_ECLOSED, te_moe_combine_send(exchange, 0));
  EXPECT(TE_ECLOSED, te_moe_combine_receive(exchange, 0, sums, 0, &result));
  te_moe_exchange wrong[] = {0, engine, exchange + 1, UINT64_MAX};
  for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    EXPECT(TE_EBADHANDLE, te_moe_address(wrong[i], buffer, sizeof buffer, &length));
    EXPECT(TE_EBADHANDLE, te_moe_connect(wrong[i], addresses, RANKS));
    EXPECT(TE_EBADHANDLE, te_moe_dispatch_send(wrong[i], 0, &tokens));
    EXPECT(TE_EBADHANDLE, te_moe_dispatch_receive(wrong[i], 0, &pass));
    EXPECT(TE_EBADHANDLE, te_moe_combine_send(wrong[i], 0));
    EXPECT(TE_EBADHANDLE, te_moe_combine_receive(wrong[i], 0, sums, 0, &result));
    EXPECT(TE_EBADHANDLE, te_moe_missing(wrong[i], ranks, RANKS, &length));
    EXPECT(TE_EBADHANDLE, te_moe_failure(wrong[i], 0));
    EXPECT(TE_EBADHANDLE, te_moe_close(wrong[i]));
  }
  EXPECT(TE_EINVALID, te_moe_address(exchange, buffer, sizeof buffer, NULL));
  EXPECT(TE_EOUTOFRANGE, te_moe_address(exchange, buffer, sizeof buffer, &length));
  CHECK(length > sizeof buffer);
  EXPECT(TE_EINVALID, te_moe_address(exchange, NULL, 4096, &length));
  EXPECT(TE_EINVALID, te_moe_connect(exchange, NULL, RANKS));
  EXPECT(TE_EINVALID, te_moe_connect(exchange, addresses, 1));
  EXPECT(TE_EMALFORMED, te_moe_connect(exchange, addresses, RANKS));
  addresses[1].bytes = NULL;
  EXPECT(TE_EINVALID, te_moe_connect(exchange, addresses, RANKS));
  EXPECT(TE_EINVALID, te_moe_missing(exchange, ranks, RANKS, NULL));
  EXPECT(TE_EINVALID, te_moe_failure(exchange, RANKS));
  EXPECT(TE_OK, te_moe_failure(exchange, RANKS - 1));
  EXPECT(TE_OK, te_moe_close(exchange));
  EXPECT(TE_OK, te_engine_close(engine));

  connect_all();
  exchange = sides[0].exchange;
  int32_t experts[TOP] = {0, 1}, outside[TOP] = {EXPERTS, 0};
  float weights[TOP] = {1, 1}, token[HIDDEN] = {0}, scale[1] = {1};
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, NULL));
#define TOKEN(field, wrong)   \
  tokens.count = 1;           \
  tokens.tokens = token;      \
  tokens.stride = 0;          \
  tokens.region = 0;          \
  tokens.scales = NULL;       \
  tokens.experts = experts;   \
  tokens.weights = weights;   \
  tokens.field = wrong
  TOKEN(tokens, NULL);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(experts, NULL);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(weights, NULL);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(scales, scale);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(stride, 8);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(region, 77);
  EXPECT(TE_EBADHANDLE, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(count, TOKENS + 1);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(experts, outside);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));
  TOKEN(count, 1);
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 9, &tokens));
  EXPECT(TE_EINVALID, te_moe_dispatch_receive(exchange, 0, &pass));  // nothing was sent
  EXPECT(TE_OK, te_moe_dispatch_send(exchange, 0, &tokens));
  EXPECT(TE_EINVALID, te_moe_dispatch_send(exchange, 0, &tokens));   // twice
  EXPECT(TE_EINVALID, te_moe_combine_send(exchange, 0));             // not received
  EXPECT(TE_EINVALID, te_moe_combine_receive(exchange, 0, sums, 0, &result));
  EXPECT(TE_EINVALID, te_moe_dispatch_receive(exchange, 0, NULL));
  EXPECT(TE_EINVALID, te_moe_combine_receive(exchange, 0, NULL, 0, &result));
  EXPECT(TE_EINVALID, te_moe_combine_receive(exchange, 0, sums, 8, &result));
  EXPECT(TE_EINVALID, te_moe_combine_receive(exchange, 0, sums, 0, NULL));
  // Somebody waits inside: others are told so, and he goes on when the other rank sends.
  int32_t status = TE_EINVALID;
  pthread_t waiting;
  CHECK(pthread_create(&waiting, NULL, receive_one, &status) == 0);
  int32_t busy = TE_OK;
  for (int i = 0; i < 2000 && busy != TE_EBUSY; i++) {
    busy = te_moe_missing(exchange, ranks, RANKS, &length);
    usleep(1000);
  }
  EXPECT(TE_EBUSY, busy);
  EXPECT(TE_EBUSY, te_moe_close(exchange));
  tokens.count = 0;
  EXPECT(TE_OK, te_moe_dispatch_send(sides[1].exchange, 0, &tokens));
  pthread_join(waiting, NULL);
  EXPECT(TE_OK, status);
  close_all();
}

int main(void) {
  sizes();
  steps();
  misuse();
  return report("moe");
}
