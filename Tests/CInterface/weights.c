// Updates of weights through C: sizes, plans, two trainers and a receiver on engines of their own, and misuse of every function.
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <transfer_engine/weights.h>
#include <unistd.h>

#include "check.h"

enum { TRAINERS = 2, HIDDEN = 48, PARAMETERS = 5, PATIENCE = 20000 };

#define LAYOUT(type, size, last, offset) \
  CHECK(sizeof(type) == (size));         \
  CHECK(offsetof(type, last) == (offset))

static void sizes(void) {
  LAYOUT(te_weights_layouts, 48, task_bytes, 40);
  LAYOUT(te_weights_shard, 112, length, 104);
  LAYOUT(te_weights_target, 104, scale_shape, 80);
  LAYOUT(te_weights_options, 40, update_timeout_ns, 32);
  LAYOUT(te_weights_state, 56, current_version, 48);
  LAYOUT(te_weights_reading, 40, length, 32);
}

// Query, key and value become one matrix at the receiver; its columns are theirs.
static const struct {
  const char *name, *target;
  int rows, columns, first_row;
} parameters[PARAMETERS] = {
    {"model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.qkv_proj.weight", 64, HIDDEN, 0},
    {"model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj.weight", 32, HIDDEN, 64},
    {"model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.qkv_proj.weight", 32, HIDDEN, 96},
    {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj.weight", HIDDEN, 64, 0},
    {"model.norm.weight", "model.norm.weight", HIDDEN, 1, 0},
};

static uint16_t value(int parameter, int place, int version) {
  // One parameter does not change from version to version.
  return (uint16_t)(place * 31 + parameter * 977 + (parameter == 3 ? 0 : version * 4099));
}

static char model[4096];

static void describe_model(void) {
  size_t place = (size_t)sprintf(model, "{\"name\": \"small\", \"attention\": {\"heads\": 4, \"key_value_heads\": 2, "
                                        "\"head_size\": 16}, \"tensors\": [");
  for (int i = 0; i < PARAMETERS; i++) {
    place += (size_t)sprintf(model + place, "%s{\"name\": \"%s\", \"dtype\": \"BF16\", \"shape\": [%d", i ? ", " : "",
                             parameters[i].name, parameters[i].rows);
    if (parameters[i].columns > 1) place += (size_t)sprintf(model + place, ", %d", parameters[i].columns);
    place += (size_t)sprintf(model + place, "]}");
  }
  sprintf(model + place, "]}");
}

static te_weights_plan make_plan(const char *trainers, const char *inference) {
  te_weights_layouts layouts = TE_WEIGHTS_LAYOUTS_INIT;
  layouts.model = model;
  layouts.trainers = trainers;
  layouts.inference = inference;
  layouts.task_bytes = 2048;
  te_weights_plan plan = 0;
  EXPECT(TE_OK, te_weights_plan_make(&layouts, &plan));
  return plan;
}

static te_engine open_engine(uint32_t progress) {
  te_config config = TE_CONFIG_INIT;
  config.timeout_ns = 5000000000;
  config.progress = progress;
  te_engine engine = 0;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  return engine;
}

// MARK: Plans

static void plans(void) {
  te_weights_plan plan = make_plan("fsdp=2", "tp=2"), again = 0;
  uint64_t length = 0, count = 0;
  uint32_t findings = 7, trainers = 0, receivers = 0;
  EXPECT(TE_OK, te_weights_plan_lint(plan, NULL, 0, &length, &findings));
  CHECK(findings == 0 && length == 0);
  EXPECT(TE_OK, te_weights_plan_ranks(plan, &trainers, &receivers));
  CHECK(trainers == 2 && receivers == 2);
  EXPECT(TE_OK, te_weights_plan_ranks(plan, NULL, NULL));

  char small[4], *bytes, *others;
  EXPECT(TE_EOUTOFRANGE, te_weights_plan_encode(plan, small, sizeof small, &length));
  bytes = malloc(length);
  others = malloc(length);
  EXPECT(TE_OK, te_weights_plan_encode(plan, bytes, length, &length));
  EXPECT(TE_OK, te_weights_plan_decode(bytes, length, &again));
  EXPECT(TE_OK, te_weights_plan_encode(again, others, length, &count));
  CHECK(count == length && memcmp(bytes, others, length) == 0);
  EXPECT(TE_OK, te_weights_plan_release(again));

  char text[4096];
  EXPECT(TE_OK, te_weights_plan_summary(plan, text, sizeof text - 1, &count));
  text[count] = 0;
  CHECK(strstr(text, "\"model\"") && strstr(text, "small") && strstr(text, "sent_bytes"));

  // Both halves of each parameter, and both ranks' halves by heads.
  for (uint32_t rank = 0; rank < 2; rank++) {
    te_weights_shard shards[PARAMETERS] = {TE_WEIGHTS_SHARD_INIT};
    EXPECT(TE_EOUTOFRANGE, te_weights_plan_shards(plan, rank, NULL, 0, &count));
    CHECK(count == PARAMETERS);
    EXPECT(TE_OK, te_weights_plan_shards(plan, rank, shards, PARAMETERS, &count));
    for (int i = 0; i < PARAMETERS; i++) {
      const te_weights_shard *s = &shards[i];
      uint64_t half = (uint64_t)parameters[i].rows / 2, columns = (uint64_t)parameters[i].columns;
      int is_vector = columns == 1;
      CHECK(s->size == sizeof *s && s->type == TE_WEIGHTS_BF16 && strcmp(s->name, parameters[i].name) == 0);
      CHECK(s->dimensions == (is_vector ? 1 : 2) && s->shape[0] == 2 * half && s->shape[2] == 0);
      CHECK(s->first[0] == rank * half && s->first[1] == 0 && s->extent[0] == half);
      CHECK(s->shape[1] == (is_vector ? 0 : columns) && s->extent[1] == (is_vector ? 0 : columns));
      CHECK(s->length == half * columns * 2 && s->offset % 256 == 0);
      CHECK(i == 0 || s->offset >= shards[i - 1].offset + shards[i - 1].length);
    }
    te_weights_target targets[3] = {TE_WEIGHTS_TARGET_INIT};
    EXPECT(TE_OK, te_weights_plan_targets(plan, rank, targets, 3, &count));
    CHECK(count == 3 && strcmp(targets[0].name, "model.layers.0.self_attn.qkv_proj.weight") == 0);
    CHECK(targets[0].dimensions == 2 && targets[0].shape[0] == 64 && targets[0].shape[1] == HIDDEN && targets[0].shape[2] == 0);
    CHECK(targets[0].length == 64 * HIDDEN * 2 && targets[0].scale_length == 0 && targets[0].scale_shape[0] == 0);
    CHECK(targets[1].shape[0] == HIDDEN && targets[1].shape[1] == 32 && targets[2].dimensions == 1);
  }
  // A newer caller's structures are longer.
  struct { te_weights_shard shard; uint64_t more[2]; } longer[PARAMETERS];
  memset(longer, 0, sizeof longer);
  longer[0].shard.size = sizeof *longer;
  EXPECT(TE_OK, te_weights_plan_shards(plan, 0, &longer[0].shard, PARAMETERS, &count));
  CHECK(longer[PARAMETERS - 1].shard.size == sizeof *longer && strcmp(longer[1].shard.name, parameters[1].name) == 0);
  longer[0].more[1] = 1;
  EXPECT(TE_EUNSUPPORTEDVERSION, te_weights_plan_shards(plan, 0, &longer[0].shard, PARAMETERS, &count));

  // Scales.
  te_weights_plan quantised = make_plan("fsdp=2", "tp=1,fp8=1,unfused=1");
  te_weights_target targets[PARAMETERS] = {TE_WEIGHTS_TARGET_INIT};
  EXPECT(TE_OK, te_weights_plan_targets(quantised, 0, targets, PARAMETERS, &count));
  CHECK(count == PARAMETERS && targets[0].type == TE_WEIGHTS_F8_E4M3 && targets[0].length == 64 * HIDDEN);
  CHECK(targets[0].scale_length == 4 && targets[0].scale_shape[0] == 1 && targets[0].scale_shape[1] == 1);
  CHECK(targets[0].scale_offset >= targets[0].length && targets[PARAMETERS - 1].scale_length == 0);
  EXPECT(TE_OK, te_weights_plan_release(quantised));

  // Misuse
  te_weights_layouts layouts = TE_WEIGHTS_LAYOUTS_INIT, bad;
  layouts.model = model;
  layouts.trainers = "fsdp=2";
  layouts.inference = "tp=2";
  EXPECT(TE_EINVALID, te_weights_plan_make(NULL, &again));
  EXPECT(TE_EINVALID, te_weights_plan_make(&layouts, NULL));
#define SPOILT(status, field, wrong) \
  bad = layouts;                     \
  bad.field = wrong;                 \
  EXPECT(status, te_weights_plan_make(&bad, &again))
  SPOILT(TE_EINVALID, size, 8);
  SPOILT(TE_EINVALID, policy, 2);
  SPOILT(TE_EINVALID, model, NULL);
  SPOILT(TE_EINVALID, model, "no such model");
  SPOILT(TE_EINVALID, model, "/dev");
  SPOILT(TE_EMALFORMED, model, "{");
  SPOILT(TE_EMALFORMED, model, "{\"name\": \"x\", \"tensors\": [{\"name\": \"y\", \"shape\": [4], \"dtype\": \"Z\"}]}");
  SPOILT(TE_EMALFORMED, model, "/dev/null");
  SPOILT(TE_EINVALID, trainers, NULL);
  SPOILT(TE_EINVALID, trainers, "fsdp=0");
  SPOILT(TE_EINVALID, trainers, "gpus=4");
  SPOILT(TE_EINVALID, trainers, "fsdp=1000000,replicas=1000000,tp=1000000,pp=1000000,ep=1000000");
  SPOILT(TE_EINVALID, inference, NULL);
  SPOILT(TE_EINVALID, inference, "tp=3");
  SPOILT(TE_EINVALID, inference, "tp=1000000,dp=1000000");
  SPOILT(TE_EINVALID, watermark_bytes, UINT64_MAX);
  SPOILT(TE_EINVALID, task_bytes, UINT64_MAX);
  EXPECT(TE_EINVALID, te_weights_plan_decode(NULL, 10, &again));
  EXPECT(TE_EINVALID, te_weights_plan_decode(bytes, length, NULL));
  EXPECT(TE_EMALFORMED, te_weights_plan_decode(NULL, 0, &again));
  EXPECT(TE_EMALFORMED, te_weights_plan_decode(bytes, length - 1, &again));
  bytes[4] += 1;
  EXPECT(TE_EUNSUPPORTEDVERSION, te_weights_plan_decode(bytes, length, &again));
  bytes[4] -= 1;
  bytes[length / 2] += 1;
  EXPECT(TE_EMALFORMED, te_weights_plan_decode(bytes, length, &again));
  te_weights_shard shard = TE_WEIGHTS_SHARD_INIT;
  te_weights_target target = TE_WEIGHTS_TARGET_INIT;
  EXPECT(TE_EINVALID, te_weights_plan_encode(plan, bytes, length, NULL));
  EXPECT(TE_EINVALID, te_weights_plan_encode(plan, NULL, length, &count));
  EXPECT(TE_EINVALID, te_weights_plan_lint(plan, NULL, 0, NULL, &findings));
  EXPECT(TE_EINVALID, te_weights_plan_summary(plan, text, sizeof text, NULL));
  EXPECT(TE_EINVALID, te_weights_plan_summary(plan, NULL, sizeof text, &count));
  EXPECT(TE_EINVALID, te_weights_plan_shards(plan, 2, &shard, 1, &count));
  EXPECT(TE_EINVALID, te_weights_plan_shards(plan, 0, &shard, 1, NULL));
  EXPECT(TE_EINVALID, te_weights_plan_shards(plan, 0, NULL, 100, &count));
  EXPECT(TE_EOUTOFRANGE, te_weights_plan_shards(plan, 0, &shard, 1, &count));
  EXPECT(TE_EINVALID, te_weights_plan_targets(plan, 2, &target, 1, &count));
  EXPECT(TE_EINVALID, te_weights_plan_targets(plan, 0, &target, 1, NULL));
  EXPECT(TE_EINVALID, te_weights_plan_targets(plan, 0, NULL, 100, &count));
  EXPECT(TE_EOUTOFRANGE, te_weights_plan_targets(plan, 0, &target, 1, &count));
  longer[0].shard.size = 4;
  EXPECT(TE_EINVALID, te_weights_plan_shards(plan, 0, &longer[0].shard, PARAMETERS, &count));
  EXPECT(TE_OK, te_weights_plan_release(plan));
  te_weights_plan wrong[] = {0, plan, plan + 1000, 77, UINT64_MAX};
  for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    EXPECT(TE_EBADHANDLE, te_weights_plan_encode(wrong[i], bytes, length, &count));
    EXPECT(TE_EBADHANDLE, te_weights_plan_lint(wrong[i], text, sizeof text, &count, &findings));
    EXPECT(TE_EBADHANDLE, te_weights_plan_summary(wrong[i], text, sizeof text, &count));
    EXPECT(TE_EBADHANDLE, te_weights_plan_ranks(wrong[i], &trainers, &receivers));
    EXPECT(TE_EBADHANDLE, te_weights_plan_shards(wrong[i], 0, &shard, 1, &count));
    EXPECT(TE_EBADHANDLE, te_weights_plan_targets(wrong[i], 0, &target, 1, &count));
    EXPECT(TE_EBADHANDLE, te_weights_plan_release(wrong[i]));
  }
  free(bytes);
  free(others);
}

// A plan whose checksum is right may still say anything; none of it ends the process.
static void made_up_plans(void) {
  te_weights_plan plan = make_plan("fsdp=2", "tp=2,fp8=1");
  uint64_t length = 0;
  (void)te_weights_plan_encode(plan, NULL, 0, &length);
  unsigned char *bytes = malloc(length), *spoilt = malloc(length);
  EXPECT(TE_OK, te_weights_plan_encode(plan, bytes, length, &length));
  int taken = 0, refused = 0;
  uint64_t seed = 1;
  for (int round = 0; round < 4000; round++) {
    memcpy(spoilt, bytes, length);
    for (int i = 0; i < 1 + round % 3; i++) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      spoilt[5 + (seed >> 33) % (length - 13)] = (unsigned char)(seed >> 25);
    }
    uint64_t sum = 0xCBF29CE484222325u;
    for (uint64_t i = 0; i < length - 8; i++) sum = (sum ^ spoilt[i]) * 0x100000001B3u;
    for (int i = 0; i < 8; i++) spoilt[length - 8 + (uint64_t)i] = (unsigned char)(sum >> 8 * i);
    te_weights_plan found = 0;
    if (te_weights_plan_decode(spoilt, length, &found) != TE_OK) {
      refused++;
      continue;
    }
    taken++;
    char text[65536];
    uint64_t count = 0;
    uint32_t findings = 0;
    te_weights_shard shards[64] = {TE_WEIGHTS_SHARD_INIT};
    te_weights_target targets[64] = {TE_WEIGHTS_TARGET_INIT};
    (void)te_weights_plan_lint(found, text, sizeof text, &count, &findings);
    (void)te_weights_plan_summary(found, text, sizeof text, &count);
    (void)te_weights_plan_shards(found, 1, shards, 64, &count);
    (void)te_weights_plan_targets(found, 1, targets, 64, &count);
    EXPECT(TE_OK, te_weights_plan_release(found));
  }
  CHECK(taken > 100 && refused > 100);
  free(bytes);
  free(spoilt);
  EXPECT(TE_OK, te_weights_plan_release(plan));
}

// MARK: Updates

typedef struct {
  te_engine engine;
  te_weights_endpoint endpoint;
} side;

static side sides[TRAINERS + 1];  // the last is the receiver's
static te_weights_plan plan;
#define LEADER sides[0].endpoint
#define RECEIVER sides[TRAINERS].endpoint

static void open_all(uint32_t progress) {
  char address[4096];
  uint64_t length = 0;
  for (int i = 0; i <= TRAINERS; i++) {
    sides[i].engine = open_engine(progress);
    if (i == 0) EXPECT(TE_OK, te_engine_address(sides[0].engine, address, sizeof address, &length));
    EXPECT(TE_OK, te_weights_open(sides[i].engine, plan, &sides[i].endpoint));
    EXPECT(TE_EBUSY, te_weights_open(sides[i].engine, plan, &sides[i].endpoint));
    if (i > 0) EXPECT(TE_OK, te_weights_follow(sides[i].endpoint, address, length));
    if (i < TRAINERS) EXPECT(TE_OK, te_weights_train(sides[i].endpoint, (uint32_t)i));
    else EXPECT(TE_OK, te_weights_serve(sides[i].endpoint, 0));
  }
  te_weights_options options = TE_WEIGHTS_OPTIONS_INIT;
  options.phase_timeout_ns = 10000000000;
  EXPECT(TE_OK, te_weights_lead(LEADER, &options));
}

static void close_all(void) {
  for (int i = 0; i <= TRAINERS; i++) {
    EXPECT(TE_EBUSY, te_engine_close(sides[i].engine));
    EXPECT(TE_OK, te_weights_close(sides[i].endpoint));
    EXPECT(TE_EBADHANDLE, te_weights_close(sides[i].endpoint));
    EXPECT(TE_OK, te_engine_close(sides[i].engine));
  }
}

// Polls everybody until something has happened to one of them.
static int32_t run_until(te_weights_endpoint endpoint, uint32_t what, uint64_t version) {
  int32_t status = TE_ETIMEDOUT;
  for (int i = 0; i < PATIENCE && status == TE_ETIMEDOUT; i++) {
    int32_t is_busy = 0, any = 0;
    for (int k = 0; k <= TRAINERS; k++) {
      EXPECT(TE_OK, te_weights_poll(sides[k].endpoint, &is_busy));
      any |= is_busy;
    }
    status = te_weights_wait(endpoint, what, version, 0);
    if (!any) usleep(500);
  }
  return status;
}

static void publish(int version) {
  uint16_t whole[64 * HIDDEN];
  for (int i = 0; i < TRAINERS; i++) {
    int32_t status = TE_EBACKPRESSURE;
    for (int k = 0; k < PATIENCE && status == TE_EBACKPRESSURE; k++) {
      EXPECT(TE_OK, te_weights_poll(sides[i].endpoint, NULL));
      status = te_weights_withdraw(sides[i].endpoint);
    }
    EXPECT(TE_OK, status);
    for (int p = 0; p < PARAMETERS; p++) {
      int count = parameters[p].rows * parameters[p].columns;
      for (int place = 0; place < count; place++) whole[place] = value(p, place, version);
      EXPECT(TE_OK, te_weights_fill(sides[i].endpoint, parameters[p].name, whole, (uint64_t)count * 2));
    }
    EXPECT(TE_OK, te_weights_publish(sides[i].endpoint, (uint64_t)version));
    EXPECT(TE_EBUSY, te_weights_fill(sides[i].endpoint, parameters[0].name, whole, 64 * HIDDEN * 2));
  }
}

// Compares every byte that is lent.
static int wrong_values(const te_weights_reading *reading, int version) {
  te_weights_target targets[3] = {TE_WEIGHTS_TARGET_INIT};
  uint64_t count = 0;
  int wrong = 0;
  EXPECT(TE_OK, te_weights_plan_targets(plan, 0, targets, 3, &count));
  for (int p = 0; p < PARAMETERS; p++) {
    const te_weights_target *target = targets;
    while (target < targets + count && strcmp(target->name, parameters[p].target) != 0) target++;
    CHECK(target < targets + count && target->offset + target->length <= reading->length);
    const uint16_t *values = (const uint16_t *)(const void *)((const char *)reading->weights + target->offset);
    values += parameters[p].first_row * parameters[p].columns;
    for (int place = 0; place < parameters[p].rows * parameters[p].columns; place++)
      wrong += values[place] != value(p, place, version);
  }
  return wrong;
}

static void expect_served(int version) {
  te_weights_reading reading = TE_WEIGHTS_READING_INIT;
  uint64_t served = 0;
  EXPECT(TE_OK, te_weights_version(RECEIVER, &served));
  CHECK(served == (uint64_t)version);
  EXPECT(TE_OK, te_weights_read_begin(RECEIVER, &reading));
  CHECK(reading.version == (uint64_t)version);
  CHECK(wrong_values(&reading, version) == 0);
  EXPECT(TE_OK, te_weights_read_end(RECEIVER, reading.number));
}

static void update(int version) {
  uint64_t left_out = 9;
  EXPECT(TE_OK, te_weights_update(LEADER, (uint64_t)version));
  EXPECT(TE_PENDING, te_weights_outcome(LEADER, (uint64_t)version, NULL, 0, &left_out));
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_OUTCOME, (uint64_t)version));
  EXPECT(TE_OK, te_weights_outcome(LEADER, (uint64_t)version, NULL, 0, &left_out));
  CHECK(left_out == 0);
}

static void updates(uint32_t progress) {
  open_all(progress);
  te_weights_reading first = TE_WEIGHTS_READING_INIT, second = TE_WEIGHTS_READING_INIT;
  uint64_t served = 9, left_out = 9, length = 0;
  EXPECT(TE_PENDING, te_weights_read_begin(RECEIVER, &first));
  EXPECT(TE_OK, te_weights_version(RECEIVER, &served));
  CHECK(served == 0);
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_COMPLETE, 0));
  publish(1);
  update(1);
  expect_served(1);
  EXPECT(TE_OK, run_until(sides[1].endpoint, TE_WEIGHTS_PUSHED, 1));

  // What is lent stays as it is while the next version comes.
  EXPECT(TE_OK, te_weights_read_begin(RECEIVER, &first));
  publish(2);
  update(2);
  EXPECT(TE_OK, run_until(RECEIVER, TE_WEIGHTS_SERVED, 2));
  expect_served(2);
  CHECK(first.version == 1 && wrong_values(&first, 1) == 0);
  EXPECT(TE_OK, te_weights_read_begin(RECEIVER, &second));
  CHECK(second.version == 2 && second.weights != first.weights && second.number != first.number);

  te_weights_state state = TE_WEIGHTS_STATE_INIT;
  EXPECT(TE_OK, te_weights_status(LEADER, &state));
  CHECK(state.is_leading == 1 && state.is_complete == 1 && state.receiver_count == 1 && state.current_version == 2);
  CHECK(state.is_updating == 0 && state.is_sending == 0 && state.served_version == 0);
  EXPECT(TE_OK, te_weights_status(sides[1].endpoint, &state));
  CHECK(state.sent_bytes > 0 && state.is_leading == 0 && state.receiver_count == 0);
  EXPECT(TE_OK, te_weights_status(RECEIVER, &state));
  CHECK(state.served_version == 2 && state.sent_bytes == 0);

  // Back to the version before, which is still lent to us.
  EXPECT(TE_EINVALID, te_weights_rollback_outcome(LEADER, NULL, 0, &left_out));
  EXPECT(TE_EINVALID, te_weights_rollback(LEADER, 2));
  EXPECT(TE_OK, te_weights_rollback(LEADER, 1));
  EXPECT(TE_PENDING, te_weights_rollback_outcome(LEADER, NULL, 0, &left_out));
  EXPECT(TE_EBACKPRESSURE, te_weights_rollback(LEADER, 1));
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_ROLLBACK, 0));
  EXPECT(TE_OK, te_weights_rollback_outcome(LEADER, NULL, 0, &left_out));
  CHECK(left_out == 0);
  expect_served(1);
  EXPECT(TE_OK, te_weights_rollback(LEADER, 77));
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_ROLLBACK, 0));
  EXPECT(TE_EINVALID, te_weights_rollback_outcome(LEADER, NULL, 0, &left_out));

  // Nothing is overwritten under a reader: an update waits for him.
  publish(3);
  EXPECT(TE_OK, te_weights_update(LEADER, 3));
  for (int i = 0; i < 200; i++)
    for (int k = 0; k <= TRAINERS; k++) EXPECT(TE_OK, te_weights_poll(sides[k].endpoint, NULL));
  EXPECT(TE_PENDING, te_weights_outcome(LEADER, 3, NULL, 0, &left_out));
  CHECK(wrong_values(&first, 1) == 0 && wrong_values(&second, 2) == 0);
  EXPECT(TE_EBUSY, te_weights_close(RECEIVER));
  EXPECT(TE_OK, te_weights_read_end(RECEIVER, second.number));
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_OUTCOME, 3));
  EXPECT(TE_OK, te_weights_outcome(LEADER, 3, NULL, 0, &left_out));
  expect_served(3);
  EXPECT(TE_OK, te_weights_read_end(RECEIVER, first.number));
  EXPECT(TE_EINVALID, te_weights_read_end(RECEIVER, first.number));

  // Ended by the one who leads; the version's number is used up.
  publish(4);
  EXPECT(TE_OK, te_weights_update(LEADER, 4));
  EXPECT(TE_EBACKPRESSURE, te_weights_update(LEADER, 5));
  EXPECT(TE_OK, te_weights_cancel(LEADER));
  EXPECT(TE_ECANCELLED, te_weights_outcome(LEADER, 4, NULL, 0, &left_out));
  EXPECT(TE_EINVALID, te_weights_update(LEADER, 4));
  expect_served(3);
  char text[4096];
  EXPECT(TE_OK, te_weights_describe(LEADER, text, sizeof text, &length));
  CHECK(length > 0 && memcmp(text, "idle", 4) == 0);
  // Somebody else leads: of a lower term than before nobody does.
  te_weights_options options = TE_WEIGHTS_OPTIONS_INIT;
  EXPECT(TE_EINVALID, te_weights_lead(LEADER, &options));
  options.term = 2;
  EXPECT(TE_OK, te_weights_lead(LEADER, &options));
  EXPECT(TE_EINVALID, te_weights_outcome(LEADER, 3, NULL, 0, &left_out));
  EXPECT(TE_OK, run_until(LEADER, TE_WEIGHTS_COMPLETE, 0));
  publish(5);
  update(5);
  expect_served(5);
  // After an endpoint its engine's messages are the interface's again: another one may stand on it.
  EXPECT(TE_OK, te_weights_close(RECEIVER));
  EXPECT(TE_OK, te_weights_open(sides[TRAINERS].engine, plan, &RECEIVER));
  close_all();
}

// MARK: Threads

static volatile int is_over;

typedef struct {
  te_weights_endpoint endpoint;
  volatile int is_over;
  pthread_t thread;
} poller;

static void *keep_polling(void *argument) {
  poller *p = argument;
  while (!p->is_over) {
    int32_t status = te_weights_wait(p->endpoint, TE_WEIGHTS_TIME, 0, 20000000);
    CHECK(status == TE_OK || status == TE_EBUSY);
  }
  return NULL;
}

static void start(poller *p, te_weights_endpoint endpoint) {
  p->endpoint = endpoint;
  p->is_over = 0;
  CHECK(pthread_create(&p->thread, NULL, keep_polling, p) == 0);
}

static void stop(poller *p) {
  p->is_over = 1;
  pthread_join(p->thread, NULL);
}

// Reads all the time: what is lent is one version, whole.
static void *keep_reading(void *argument) {
  int *counts = argument;
  uint64_t last = 0;
  while (!is_over) {
    te_weights_reading reading = TE_WEIGHTS_READING_INIT;
    int32_t status = te_weights_read_begin(RECEIVER, &reading);
    if (status == TE_OK) {
      CHECK(wrong_values(&reading, (int)reading.version) == 0 && reading.version >= last);
      last = reading.version;
      counts[reading.version < 8 ? reading.version : 0]++;
      EXPECT(TE_OK, te_weights_read_end(RECEIVER, reading.number));
    } else {
      CHECK(status == TE_PENDING);
    }
    usleep(200);
  }
  return NULL;
}

static void threads(void) {
  open_all(TE_PROGRESS_ADAPTIVE);
  pthread_t reading;
  poller receiver, trainer;
  int counts[8] = {0};
  start(&receiver, RECEIVER);
  is_over = 0;
  CHECK(pthread_create(&reading, NULL, keep_reading, counts) == 0);
  // Somebody waits inside: others are told so, and may only read.
  int32_t busy = TE_OK;
  for (int i = 0; i < 2000 && busy != TE_EBUSY; i++) {
    busy = te_weights_poll(RECEIVER, NULL);
    usleep(1000);
  }
  EXPECT(TE_EBUSY, busy);
  uint64_t served = 9, left_out = 9;
  EXPECT(TE_OK, te_weights_version(RECEIVER, &served));
  for (int version = 1; version <= 4; version++) {
    publish(version);
    start(&trainer, sides[1].endpoint);
    EXPECT(TE_OK, te_weights_wait(LEADER, TE_WEIGHTS_COMPLETE, 0, 20000000000));
    EXPECT(TE_OK, te_weights_update(LEADER, (uint64_t)version));
    EXPECT(TE_OK, te_weights_wait(LEADER, TE_WEIGHTS_OUTCOME, (uint64_t)version, 20000000000));
    EXPECT(TE_OK, te_weights_outcome(LEADER, (uint64_t)version, NULL, 0, &left_out));
    EXPECT(TE_OK, te_weights_wait(LEADER, TE_WEIGHTS_TIME, 0, 50000000));
    stop(&trainer);
  }
  is_over = 1;
  pthread_join(reading, NULL);
  stop(&receiver);
  CHECK(counts[4] > 0 && counts[0] == 0);
  close_all();
}

// MARK: Misuse

static void misuse(void) {
  te_engine engine = open_engine(TE_PROGRESS_ADAPTIVE);
  te_weights_endpoint endpoint = 0, again = 0;
  char bytes[64] = {0};
  EXPECT(TE_EBADHANDLE, te_weights_open(0, plan, &endpoint));
  EXPECT(TE_EBADHANDLE, te_weights_open(plan, plan, &endpoint));
  EXPECT(TE_EBADHANDLE, te_weights_open(engine, 0, &endpoint));
  EXPECT(TE_EBADHANDLE, te_weights_open(engine, engine, &endpoint));
  EXPECT(TE_EINVALID, te_weights_open(engine, plan, NULL));
  te_weights_layouts layouts = TE_WEIGHTS_LAYOUTS_INIT;
  te_weights_plan gathered = 0;
  layouts.model = model;
  layouts.trainers = "fsdp=2";
  layouts.inference = "tp=1";
  layouts.policy = TE_WEIGHTS_FULL_TENSOR;
  EXPECT(TE_OK, te_weights_plan_make(&layouts, &gathered));
  EXPECT(TE_EINVALID, te_weights_open(engine, gathered, &endpoint));
  EXPECT(TE_OK, te_weights_plan_release(gathered));
  EXPECT(TE_OK, te_weights_open(engine, plan, &endpoint));
  EXPECT(TE_EBUSY, te_weights_open(engine, plan, &again));
  EXPECT(TE_EBUSY, te_engine_close(engine));

  // With another handle, or none.
  te_weights_state state = TE_WEIGHTS_STATE_INIT;
  te_weights_reading reading = TE_WEIGHTS_READING_INIT;
  te_weights_options options = TE_WEIGHTS_OPTIONS_INIT, bad;
  uint64_t number = 0, count = 0;
  int32_t is_busy = 0;
  void *address = NULL;
  uint32_t ranks[4];
  uint16_t whole[64 * HIDDEN];
  memset(whole, 0, sizeof whole);
  const char *name = parameters[0].name;
  te_weights_endpoint wrong[] = {0, engine, plan, endpoint + 1, UINT64_MAX};
  for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    EXPECT(TE_EBADHANDLE, te_weights_follow(wrong[i], bytes, sizeof bytes));
    EXPECT(TE_EBADHANDLE, te_weights_poll(wrong[i], &is_busy));
    EXPECT(TE_EBADHANDLE, te_weights_wait(wrong[i], TE_WEIGHTS_TIME, 0, 0));
    EXPECT(TE_EBADHANDLE, te_weights_status(wrong[i], &state));
    EXPECT(TE_EBADHANDLE, te_weights_describe(wrong[i], bytes, sizeof bytes, &count));
    EXPECT(TE_EBADHANDLE, te_weights_train(wrong[i], 0));
    EXPECT(TE_EBADHANDLE, te_weights_memory(wrong[i], &address, &count));
    EXPECT(TE_EBADHANDLE, te_weights_fill(wrong[i], name, whole, sizeof whole));
    EXPECT(TE_EBADHANDLE, te_weights_publish(wrong[i], 1));
    EXPECT(TE_EBADHANDLE, te_weights_withdraw(wrong[i]));
    EXPECT(TE_EBADHANDLE, te_weights_serve(wrong[i], 0));
    EXPECT(TE_EBADHANDLE, te_weights_version(wrong[i], &number));
    EXPECT(TE_EBADHANDLE, te_weights_read_begin(wrong[i], &reading));
    EXPECT(TE_EBADHANDLE, te_weights_read_end(wrong[i], 1));
    EXPECT(TE_EBADHANDLE, te_weights_lead(wrong[i], &options));
    EXPECT(TE_EBADHANDLE, te_weights_update(wrong[i], 1));
    EXPECT(TE_EBADHANDLE, te_weights_outcome(wrong[i], 1, ranks, 4, &count));
    EXPECT(TE_EBADHANDLE, te_weights_rollback(wrong[i], 1));
    EXPECT(TE_EBADHANDLE, te_weights_rollback_outcome(wrong[i], ranks, 4, &count));
    EXPECT(TE_EBADHANDLE, te_weights_cancel(wrong[i]));
    EXPECT(TE_EBADHANDLE, te_weights_close(wrong[i]));
  }

  // What it has no role for.
  EXPECT(TE_EINVALID, te_weights_memory(endpoint, &address, &count));
  EXPECT(TE_EINVALID, te_weights_fill(endpoint, name, whole, sizeof whole));
  EXPECT(TE_EINVALID, te_weights_publish(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_withdraw(endpoint));
  EXPECT(TE_EINVALID, te_weights_version(endpoint, &number));
  EXPECT(TE_EINVALID, te_weights_read_begin(endpoint, &reading));
  EXPECT(TE_EINVALID, te_weights_read_end(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_describe(endpoint, bytes, sizeof bytes, &count));
  EXPECT(TE_EINVALID, te_weights_update(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_outcome(endpoint, 1, ranks, 4, &count));
  EXPECT(TE_EINVALID, te_weights_rollback(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_rollback_outcome(endpoint, ranks, 4, &count));
  EXPECT(TE_EINVALID, te_weights_cancel(endpoint));
  for (uint32_t what = TE_WEIGHTS_COMPLETE; what <= TE_WEIGHTS_PUSHED + 1; what++)
    EXPECT(TE_EINVALID, te_weights_wait(endpoint, what, 1, 0));

  // Arguments
  EXPECT(TE_EINVALID, te_weights_follow(endpoint, NULL, 10));
  EXPECT(TE_EMALFORMED, te_weights_follow(endpoint, NULL, 0));
  EXPECT(TE_EMALFORMED, te_weights_follow(endpoint, bytes, sizeof bytes));
  EXPECT(TE_EINVALID, te_weights_status(endpoint, NULL));
  state.size = 8;
  EXPECT(TE_EINVALID, te_weights_status(endpoint, &state));
  EXPECT(TE_EINVALID, te_weights_train(endpoint, TRAINERS));
  EXPECT(TE_OK, te_weights_train(endpoint, 0));
  EXPECT(TE_EINVALID, te_weights_train(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_memory(endpoint, NULL, &count));
  EXPECT(TE_EINVALID, te_weights_memory(endpoint, &address, NULL));
  EXPECT(TE_OK, te_weights_memory(endpoint, &address, &count));
  CHECK(address && count >= 64 * HIDDEN);
  EXPECT(TE_EINVALID, te_weights_fill(endpoint, NULL, whole, sizeof whole));
  EXPECT(TE_EINVALID, te_weights_fill(endpoint, "model.nothing.weight", whole, sizeof whole));
  EXPECT(TE_EINVALID, te_weights_fill(endpoint, name, NULL, sizeof whole));
  EXPECT(TE_EINVALID, te_weights_fill(endpoint, name, whole, sizeof whole - 2));
  EXPECT(TE_OK, te_weights_fill(endpoint, name, whole, sizeof whole));
  EXPECT(TE_EINVALID, te_weights_publish(endpoint, 0));
  EXPECT(TE_EINVALID, te_weights_serve(endpoint, 1));
  EXPECT(TE_OK, te_weights_serve(endpoint, 0));
  EXPECT(TE_EINVALID, te_weights_serve(endpoint, 0));
  EXPECT(TE_EINVALID, te_weights_version(endpoint, NULL));
  EXPECT(TE_EINVALID, te_weights_read_begin(endpoint, NULL));
  reading.size = 4;
  EXPECT(TE_EINVALID, te_weights_read_begin(endpoint, &reading));
  EXPECT(TE_EINVALID, te_weights_read_end(endpoint, 1));
#define WRONG_OPTION(field, wrong) \
  bad = options;                   \
  bad.field = wrong;               \
  EXPECT(TE_EINVALID, te_weights_lead(endpoint, &bad))
  WRONG_OPTION(size, 8);
  WRONG_OPTION(term, 65536);
  WRONG_OPTION(attempts, UINT32_MAX);
  WRONG_OPTION(sendings, UINT32_MAX);
  WRONG_OPTION(repeat_interval_ns, UINT64_MAX);
  WRONG_OPTION(phase_timeout_ns, UINT64_MAX);
  WRONG_OPTION(update_timeout_ns, UINT64_MAX);
  EXPECT(TE_OK, te_weights_lead(endpoint, NULL));
  EXPECT(TE_EINVALID, te_weights_lead(endpoint, NULL));
  EXPECT(TE_EINVALID, te_weights_update(endpoint, 0));
  EXPECT(TE_EINVALID, te_weights_outcome(endpoint, 1, ranks, 4, &count));
  EXPECT(TE_EINVALID, te_weights_wait(endpoint, TE_WEIGHTS_OUTCOME, 1, 0));
  EXPECT(TE_EINVALID, te_weights_wait(endpoint, TE_WEIGHTS_ROLLBACK, 0, 0));
  EXPECT(TE_OK, te_weights_update(endpoint, 1));
  EXPECT(TE_EINVALID, te_weights_outcome(endpoint, 1, ranks, 4, NULL));
  EXPECT(TE_EINVALID, te_weights_rollback_outcome(endpoint, ranks, 4, NULL));
  EXPECT(TE_EINVALID, te_weights_describe(endpoint, bytes, sizeof bytes, NULL));
  EXPECT(TE_EOUTOFRANGE, te_weights_describe(endpoint, bytes, 1, &count));
  EXPECT(TE_ETIMEDOUT, te_weights_wait(endpoint, TE_WEIGHTS_COMPLETE, 0, 1000000));
  EXPECT(TE_ETIMEDOUT, te_weights_wait(endpoint, TE_WEIGHTS_SERVED, 1, 0));
  EXPECT(TE_OK, te_weights_close(endpoint));  // with an update under way
  EXPECT(TE_EBADHANDLE, te_weights_poll(endpoint, NULL));
  EXPECT(TE_EBADHANDLE, te_weights_read_begin(endpoint, &reading));
  EXPECT(TE_OK, te_engine_close(engine));

  // A plan is kept by its endpoints.
  te_weights_plan own = make_plan("fsdp=1", "tp=1");
  engine = open_engine(TE_PROGRESS_ADAPTIVE);
  EXPECT(TE_OK, te_weights_open(engine, own, &endpoint));
  EXPECT(TE_OK, te_weights_plan_release(own));
  EXPECT(TE_OK, te_weights_train(endpoint, 0));
  EXPECT(TE_OK, te_weights_fill(endpoint, name, whole, sizeof whole));
  EXPECT(TE_OK, te_weights_close(endpoint));
  EXPECT(TE_OK, te_engine_close(engine));
}

// Who leads alone says that nobody is there.
static void failures_have_codes(void) {
  te_engine engine = open_engine(TE_PROGRESS_ADAPTIVE);
  te_weights_endpoint endpoint = 0;
  te_weights_options options = TE_WEIGHTS_OPTIONS_INIT;
  uint64_t count = 0;
  options.phase_timeout_ns = 50000000;
  options.update_timeout_ns = 100000000;
  EXPECT(TE_OK, te_weights_open(engine, plan, &endpoint));
  EXPECT(TE_OK, te_weights_lead(endpoint, &options));
  EXPECT(TE_OK, te_weights_update(endpoint, 1));
  EXPECT(TE_OK, te_weights_wait(endpoint, TE_WEIGHTS_OUTCOME, 1, 5000000000));
  EXPECT(TE_EPEERLOST, te_weights_outcome(endpoint, 1, NULL, 0, &count));
  CHECK(strstr(te_last_error()->message, "no trainer is there"));
  // A receiver, and one trainer of two.
  EXPECT(TE_OK, te_weights_serve(endpoint, 0));
  EXPECT(TE_OK, te_weights_train(endpoint, 0));
  EXPECT(TE_OK, te_weights_wait(endpoint, TE_WEIGHTS_TIME, 0, 400000000));  // until they have joined
  EXPECT(TE_OK, te_weights_update(endpoint, 2));
  EXPECT(TE_OK, te_weights_wait(endpoint, TE_WEIGHTS_OUTCOME, 2, 5000000000));
  EXPECT(TE_EPEERLOST, te_weights_outcome(endpoint, 2, NULL, 0, &count));
  CHECK(strstr(te_last_error()->message, "lost trainer ranks"));
  EXPECT(TE_OK, te_weights_close(endpoint));
  EXPECT(TE_OK, te_engine_close(engine));
}

int main(void) {
  describe_model();
  sizes();
  plans();
  made_up_plans();
  plan = make_plan("fsdp=2", "tp=1");
  updates(TE_PROGRESS_ADAPTIVE);
  updates(TE_PROGRESS_MANUAL);
  threads();
  misuse();
  failures_have_codes();
  EXPECT(TE_OK, te_weights_plan_release(plan));
  return report("weights");
}
