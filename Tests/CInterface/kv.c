// Prefillers and decoders through C: sizes, what they do, and every function with NULL, 0, another type, released and twice.
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <transfer_engine/kv.h>
#include <unistd.h>

#include "check.h"

enum { LAYERS = 3, PAGES = 16, PAGE_TOKENS = 8, PAGE = 2048, BYTES = LAYERS * PAGES * PAGE };

#define LAYOUT(type, size, last, offset) \
  CHECK(sizeof(type) == (size));         \
  CHECK(offsetof(type, last) == (offset))

static void sizes(void) {
  LAYOUT(te_kv_group, 48, layer_count, 40);
  LAYOUT(te_kv_layout, 64, all_tensor_ranks, 60);
  LAYOUT(te_kv_plane, 32, page_count, 24);
  LAYOUT(te_kv_rank, 48, plane_count, 40);
  LAYOUT(te_kv_config, 48, reserved, 44);
  LAYOUT(te_kv_event, 288, reason, 32);
  LAYOUT(te_kv_peer_state, 344, reason, 88);
  LAYOUT(te_kv_table, 24, count, 16);
  LAYOUT(te_kv_tail, 24, byte_count, 16);
  LAYOUT(te_kv_question, 88, timeout_ns, 80);
  LAYOUT(te_kv_job_info, 304, decoder, 48);
  LAYOUT(te_kv_chunk, 24, end, 16);
}

static const uint32_t all_layers[LAYERS] = {0, 1, 2};

typedef struct {
  te_engine engine;
  te_region region;
  char *bytes;
  te_kv_role role;
} side;

static te_engine open_engine(uint32_t progress) {
  te_config config = TE_CONFIG_INIT;
  config.progress = progress;
  config.timeout_ns = 5000000000;
  te_engine engine = 0;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  return engine;
}

static te_kv_config quick(void) {
  te_kv_config config = TE_KV_CONFIG_INIT;
  config.name = "role";
  config.heartbeat_ns = 100000000;
  config.heartbeats = 100;  // a busy machine may not let anybody speak for a while
  config.cancel_timeout_ns = 1000000000;
  return config;
}

// Opens a role; `group` and `layout` may be changed by `spoil` before.
static int32_t open_role(side *s, int is_decoder, void (*spoil)(te_kv_layout *, te_kv_group *, te_kv_rank *, te_kv_config *)) {
  te_kv_group group = TE_KV_GROUP_INIT;
  te_kv_layout layout = TE_KV_LAYOUT_INIT;
  te_kv_rank rank = TE_KV_RANK_INIT;
  te_kv_config config = quick();
  te_kv_plane planes[LAYERS];
  for (uint64_t layer = 0; layer < LAYERS; layer++)
    planes[layer] = (te_kv_plane){0, 0, layer * PAGES * PAGE, PAGE, PAGES};
  group.heads = 4;
  group.key_bytes = 64;
  group.page_tokens = PAGE_TOKENS;
  group.layers = all_layers;
  group.layer_count = LAYERS;
  layout.model = "m@1";
  layout.element_type = "bf16";
  layout.groups = &group;
  layout.group_count = 1;
  rank.engine = s->engine;
  rank.regions = &s->region;
  rank.region_count = 1;
  rank.planes = planes;
  rank.plane_count = LAYERS;
  if (spoil) spoil(&layout, &group, &rank, &config);
  return (is_decoder ? te_kv_decoder_open : te_kv_prefiller_open)(&config, &layout, &rank, 1, &s->role);
}

static side make(int is_decoder) {
  side s = {0};
  uint64_t length;
  void *memory;
  s.engine = open_engine(TE_PROGRESS_ADAPTIVE);
  EXPECT(TE_OK, te_region_allocate(s.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &s.region));
  EXPECT(TE_OK, te_region_memory(s.region, &memory, &length));
  s.bytes = memory;
  EXPECT(TE_OK, open_role(&s, is_decoder, NULL));
  EXPECT(TE_OK, te_region_memory(s.region, &memory, &length));  // also while it is lent
  return s;
}

static void drop(side *s) {
  EXPECT(TE_EBUSY, te_engine_close(s->engine));
  EXPECT(TE_OK, te_kv_close(s->role));
  EXPECT(TE_OK, te_region_deregister(s->region));
  EXPECT(TE_OK, te_engine_close(s->engine));
}

static void shorten(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { c->size = 39; (void)l, (void)g, (void)r; }
static void as_before(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) {
  c->size = 40;
  c->digests = 7;  // not the library's to read
  l->size = 56;
  l->all_tensor_ranks = 7;
  (void)g, (void)r;
}

// A program that was compiled when te_kv_config ended with quarantine_ns, and te_kv_layout with stage_count.
static void older_callers(void) {
  side s = {0};
  s.engine = open_engine(TE_PROGRESS_ADAPTIVE);
  EXPECT(TE_OK, te_region_allocate(s.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &s.region));
  EXPECT(TE_EINVALID, open_role(&s, 1, shorten));
  EXPECT(TE_OK, open_role(&s, 1, as_before));
  drop(&s);
}

static te_kv_event next(te_kv_role role, uint32_t kind) {
  te_kv_event event = {0};
  uint64_t count = 0;
  EXPECT(TE_OK, te_kv_poll(role, &event, 1, 10000000000, &count));
  CHECK(count == 1 && event.kind == kind);
  return event;
}

static te_kv_peer meet(const side *d, const side *p) {
  char address[4096];
  uint64_t length;
  te_kv_peer peer = 0;
  EXPECT(TE_OK, te_engine_address(p->engine, address, sizeof address, &length));
  EXPECT(TE_OK, te_kv_connect(d->role, address, length, &peer));
  return peer;
}

static te_kv_question question_of(te_kv_peer peer, const te_kv_table *table, uint64_t end) {
  te_kv_question question = TE_KV_QUESTION_INIT;
  question.tag = 7;
  question.prefiller = peer;
  question.end = end;
  question.tables = table;
  question.table_count = 1;
  question.input = "prompt";
  question.input_bytes = 6;
  return question;
}

static void transfer(void) {
  side p = make(0), d = make(1);
  for (int i = 0; i < BYTES; i++) p.bytes[i] = (char)(i / PAGE + 1);
  te_kv_peer peer = meet(&d, &p);
  uint32_t targets[2] = {5, 1}, sources[2] = {2, 9};
  te_kv_table target = {0, targets, 2}, source = {0, sources, 2};
  te_kv_question question = question_of(peer, &target, 2 * PAGE_TOKENS);
  question.flags = TE_KV_LAYERWISE;
  te_kv_request request = 0;
  uint64_t asked = 0, jobs = 0, tokens = 0;
  EXPECT(TE_OK, te_kv_ask(d.role, &question, 1, &request, &asked));
  CHECK(request && asked == 1);
  int32_t fd = -1;
  EXPECT(TE_OK, te_kv_fd(p.role, &fd));
  struct pollfd wait = {fd, POLLIN, 0};
  CHECK(poll(&wait, 1, 10000) == 1);
  te_kv_event event = next(p.role, TE_KV_JOB);
  CHECK(poll(&wait, 1, 0) == 0);
  te_kv_job job = event.object;
  te_kv_job_info info = {0};
  char input[16];
  EXPECT(TE_EINVALID, te_kv_job_read(job, &info, input, sizeof input));  // size is 0
  info.size = sizeof info;
  EXPECT(TE_EOUTOFRANGE, te_kv_job_read(job, &info, input, 5));
  CHECK(info.input_bytes == 6);
  EXPECT(TE_OK, te_kv_job_read(job, &info, input, sizeof input));
  CHECK(info.end == 16 && info.cached == 0 && !info.has_tail && memcmp(input, "prompt", 6) == 0);
  CHECK(strcmp(info.decoder, "role") == 0 && info.timeout_ns > 0);
  EXPECT(TE_EINVALID, te_kv_extend(job, &source, 1));  // not accepted yet
  EXPECT(TE_OK, te_kv_accept(job, &source, 1, 9));
  EXPECT(TE_EINVALID, te_kv_accept(job, &source, 1, 9));
  EXPECT(TE_OK, te_kv_load(p.role, &jobs, &tokens));
  CHECK(jobs == 1 && tokens == 16);
  EXPECT(TE_EINVALID, te_kv_write_tail(job, 0, 0, 0));
  te_kv_chunk chunk = {job, 0, 16};
  EXPECT(TE_OK, te_kv_forward(p.role, 0, &chunk, 1));
  EXPECT(TE_OK, te_kv_computed(p.role, 0, 1));
  CHECK(next(d.role, TE_KV_LAYER).layer == 0);
  CHECK(d.bytes[5 * PAGE] == 3 && d.bytes[PAGE] == 10);
  EXPECT(TE_OK, te_kv_computed(p.role, 0, LAYERS));
  next(d.role, TE_KV_LAYER);
  next(d.role, TE_KV_LAYER);
  event = next(d.role, TE_KV_READY);
  CHECK(event.tag == 7 && event.object == request && event.code == TE_KV_NO_REASON);
  CHECK(d.bytes[(2 * PAGES + 5) * PAGE + PAGE - 1] == 2 * PAGES + 3);
  event = next(p.role, TE_KV_RELEASED);
  CHECK(event.tag == 9 && event.object == job);
  // After its end: nothing to do, and no job to be read or accepted.
  EXPECT(TE_OK, te_kv_cancel(request));
  EXPECT(TE_OK, te_kv_abort(job, "late"));
  EXPECT(TE_OK, te_kv_extend(job, &source, 1));
  EXPECT(TE_OK, te_kv_forward(p.role, 0, &chunk, 1));
  EXPECT(TE_EBADHANDLE, te_kv_accept(job, &source, 1, 9));
  EXPECT(TE_EBADHANDLE, te_kv_job_read(job, &info, input, sizeof input));
  drop(&d);
  drop(&p);
}

static void end_with_work(void) {
  side p = make(0), d = make(1);
  te_kv_peer peer = meet(&d, &p);
  uint32_t page = 0;
  te_kv_table table = {0, &page, 1};
  te_kv_question question = question_of(peer, &table, PAGE_TOKENS);
  te_kv_peer_state state = {0};
  state.size = sizeof state;
  EXPECT(TE_OK, te_kv_ask(d.role, &question, 1, NULL, NULL));
  te_kv_event event = next(p.role, TE_KV_JOB);
  EXPECT(TE_OK, te_kv_accept(event.object, &table, 1, 1));
  EXPECT(TE_OK, te_kv_ask(d.role, &question, 1, NULL, NULL));
  event = next(p.role, TE_KV_JOB);
  EXPECT(TE_OK, te_kv_abort(event.object, "no"));
  event = next(d.role, TE_KV_FAILED);
  CHECK(event.code == TE_KV_REFUSED && strcmp(event.reason, "no") == 0);
  next(d.role, TE_KV_PAGES_FREE);
  EXPECT(TE_OK, te_kv_drain(p.role));
  EXPECT(TE_OK, te_kv_ask(d.role, &question, 1, NULL, NULL));
  CHECK(next(d.role, TE_KV_FAILED).code == TE_KV_REFUSED);
  EXPECT(TE_OK, te_kv_peer_status(peer, &state));
  CHECK(state.code == TE_KV_NO_REASON);
  // The first one is under way still: a closed decoder has nobody who writes into its pages.
  drop(&d);
  drop(&p);
}

static void spoil_model(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { l->model = NULL; (void)g, (void)r, (void)c; }
static void spoil_groups(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { l->groups = NULL; (void)g, (void)r, (void)c; }
static void spoil_ranks(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { l->tensor_ranks = 0; (void)g, (void)r, (void)c; }
static void spoil_part(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { l->first_tensor_rank = l->all_tensor_ranks = 2; (void)g, (void)r, (void)c; }
static void spoil_first(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { l->first_tensor_rank = 1; (void)g, (void)r, (void)c; }
static void spoil_heads(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { g->heads = 0; (void)l, (void)r, (void)c; }
static void spoil_order(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { g->order = 9; (void)l, (void)r, (void)c; }
static void spoil_layers(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { g->layer_count = 1u << 30; (void)l, (void)r, (void)c; }
static void spoil_planes(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { r->plane_count = 2; (void)l, (void)g, (void)c; }
static void spoil_regions(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { r->region_count = 0; (void)l, (void)g, (void)c; }
static void spoil_name(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { c->name = NULL; (void)l, (void)g, (void)r; }
static void spoil_beats(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) { c->heartbeats = 1; (void)l, (void)g, (void)r; }
static const uint32_t backwards[2] = {3, 1};
static void spoil_stages(te_kv_layout *l, te_kv_group *g, te_kv_rank *r, te_kv_config *c) {
  l->stage_ends = backwards;
  l->stage_count = 2;
  (void)g, (void)r, (void)c;
}

static void bad_roles(void) {
  side s = {0};
  te_kv_config config = quick();
  te_kv_layout layout = TE_KV_LAYOUT_INIT;
  s.engine = open_engine(TE_PROGRESS_ADAPTIVE);
  EXPECT(TE_OK, te_region_allocate(s.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &s.region));
  EXPECT(TE_EINVALID, te_kv_decoder_open(NULL, &layout, NULL, 0, &s.role));
  EXPECT(TE_EINVALID, te_kv_decoder_open(&config, NULL, NULL, 0, &s.role));
  EXPECT(TE_EINVALID, te_kv_decoder_open(&config, &layout, NULL, 1, &s.role));
  EXPECT(TE_EINVALID, te_kv_prefiller_open(&config, &layout, NULL, 1, NULL));
  void (*spoils[])(te_kv_layout *, te_kv_group *, te_kv_rank *, te_kv_config *) = {
      spoil_model,  spoil_groups, spoil_ranks, spoil_heads, spoil_order, spoil_layers,
      spoil_planes, spoil_regions, spoil_name, spoil_beats, spoil_stages, spoil_part, spoil_first};
  for (size_t i = 0; i < sizeof spoils / sizeof *spoils; i++)
    for (int is_decoder = 0; is_decoder < 2; is_decoder++) {
      int32_t status = open_role(&s, is_decoder, spoils[i]);
      CHECK(status == TE_EINVALID || status == TE_ELIMIT);
    }
  // Nothing was taken by what failed.
  EXPECT(TE_OK, open_role(&s, 1, NULL));
  side again = s;
  EXPECT(TE_EBUSY, open_role(&again, 0, NULL));
  EXPECT(TE_EBUSY, te_region_deregister(s.region));
  EXPECT(TE_EBUSY, te_region_revoke(s.region));
  drop(&s);
  s.engine = open_engine(TE_PROGRESS_MANUAL);
  EXPECT(TE_OK, te_region_allocate(s.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &s.region));
  EXPECT(TE_EINVALID, open_role(&s, 0, NULL));
  EXPECT(TE_OK, te_engine_close(s.engine));
}

// Every function with a handle that is none of its type. `kind` is the type that the handle has, if any.
static void refuse(uint64_t h, uint64_t kind) {
  te_kv_event event;
  te_kv_job_info info = {0};
  te_kv_peer_state state = {0};
  uint64_t number;
  int32_t fd;
  info.size = sizeof info;
  state.size = sizeof state;
  if (kind != 8 && kind != 9) {
    EXPECT(TE_EBADHANDLE, te_kv_close(h));
    EXPECT(TE_EBADHANDLE, te_kv_poll(h, &event, 1, 0, &number));
    EXPECT(TE_EBADHANDLE, te_kv_fd(h, &fd));
  }
  if (kind != 8) {
    EXPECT(TE_EBADHANDLE, te_kv_forward(h, 0, NULL, 0));
    EXPECT(TE_EBADHANDLE, te_kv_computed(h, 0, 0));
    EXPECT(TE_EBADHANDLE, te_kv_watch(h, 0, 0, 0));
    EXPECT(TE_EBADHANDLE, te_kv_drain(h));
    EXPECT(TE_EBADHANDLE, te_kv_load(h, NULL, NULL));
  }
  if (kind != 9) {
    EXPECT(TE_EBADHANDLE, te_kv_connect(h, "x", 1, &number));
    EXPECT(TE_EBADHANDLE, te_kv_ask(h, NULL, 0, NULL, NULL));
  }
  if (kind != 10) {
    EXPECT(TE_EBADHANDLE, te_kv_disconnect(h));
    EXPECT(TE_EBADHANDLE, te_kv_peer_status(h, &state));
  }
  if (kind != 11) EXPECT(TE_EBADHANDLE, te_kv_cancel(h));
  if (kind != 12) {
    EXPECT(TE_EBADHANDLE, te_kv_job_read(h, &info, NULL, 0));
    EXPECT(TE_EBADHANDLE, te_kv_accept(h, NULL, 0, 0));
    EXPECT(TE_EBADHANDLE, te_kv_extend(h, NULL, 0));
    EXPECT(TE_EBADHANDLE, te_kv_abort(h, "x"));
    EXPECT(TE_EBADHANDLE, te_kv_write_tail(h, 0, 0, 0));
  }
}

static void misuse(void) {
  side p = make(0), d = make(1);
  te_kv_peer peer = meet(&d, &p), none;
  uint32_t page = 0;
  te_kv_table table = {0, &page, 1}, null_pages = {0, NULL, 1};
  te_kv_question question = question_of(peer, &table, PAGE_TOKENS);
  te_kv_request request;
  te_kv_event event;
  uint64_t count = 9, asked = 9;
  EXPECT(TE_OK, te_kv_ask(d.role, &question, 1, &request, NULL));
  te_kv_job job = next(p.role, TE_KV_JOB).object;
  uint64_t handles[] = {p.role, d.role, peer, request, job};
  for (int i = 0; i < 5; i++) refuse(handles[i], handles[i] >> 60);
  for (int i = 0; i < 5; i++) refuse(handles[i] ^ (1ull << 40), 0);                 // of a role that there is not
  for (int i = 2; i < 5; i++) refuse(handles[i] | 0xFFFFFFFF, 0);                   // of a number that there is not
  uint64_t garbage[] = {0, 1, ~0ull, d.engine, d.region, 8ull << 60, 15ull << 60};
  for (int i = 0; i < 7; i++) refuse(garbage[i], 0);
  // NULL and what can never be.
  EXPECT(TE_EINVALID, te_kv_poll(d.role, NULL, 1, 0, &count));
  EXPECT(TE_EINVALID, te_kv_poll(d.role, &event, 1, 0, NULL));
  EXPECT(TE_EINVALID, te_kv_poll(d.role, &event, 0, 0, &count));
  EXPECT(TE_EINVALID, te_kv_fd(d.role, NULL));
  EXPECT(TE_EINVALID, te_kv_connect(d.role, "x", 1, NULL));
  EXPECT(TE_EINVALID, te_kv_connect(d.role, NULL, 1, &none));
  EXPECT(TE_EMALFORMED, te_kv_connect(d.role, "nonsense", 8, &none));
  EXPECT(TE_EINVALID, te_kv_peer_status(peer, NULL));
  EXPECT(TE_EINVALID, te_kv_ask(d.role, NULL, 1, NULL, &asked));
  CHECK(asked == 0);
  te_kv_question bad = question;
  bad.tables = &null_pages;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.tables = NULL;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.cached = 9;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.flags = 8;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.size = 3;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.input = NULL;
  EXPECT(TE_EINVALID, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  bad = question;
  bad.prefiller = p.role;
  EXPECT(TE_EBADHANDLE, te_kv_ask(d.role, &bad, 1, NULL, NULL));
  EXPECT(TE_EINVALID, te_kv_job_read(job, NULL, NULL, 0));
  EXPECT(TE_EINVALID, te_kv_accept(job, &null_pages, 1, 0));
  EXPECT(TE_EINVALID, te_kv_accept(job, NULL, 1, 0));
  EXPECT(TE_EINVALID, te_kv_abort(job, NULL));
  EXPECT(TE_EINVALID, te_kv_forward(p.role, 0, NULL, 1));
  EXPECT(TE_EINVALID, te_kv_forward(p.role, 1, NULL, 0));
  EXPECT(TE_EINVALID, te_kv_computed(p.role, 1, 1));
  te_kv_chunk chunk = {job, 8, 0};
  EXPECT(TE_EINVALID, te_kv_forward(p.role, 0, &chunk, 1));
  EXPECT(TE_EBADHANDLE, te_kv_watch(p.role, 0, d.region, 0));
  EXPECT(TE_EBUSY, te_kv_watch(p.role, 0, p.region, 0));
  EXPECT(TE_EINVALID, te_kv_watch(p.role, 7, p.region, 0));
  EXPECT(TE_OK, te_kv_disconnect(peer));
  EXPECT(TE_EBADHANDLE, te_kv_disconnect(peer));
  pid_t child = fork();
  if (child == 0) {
    failures = 0;
    EXPECT(TE_EWRONGTHREAD, te_kv_poll(d.role, &event, 1, 0, &count));
    EXPECT(TE_EWRONGTHREAD, te_kv_close(d.role));
    _exit(failures != 0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  drop(&d);
  drop(&p);
  for (int i = 0; i < 5; i++) refuse(handles[i], 0);  // closed
}

int main(void) {
  alarm(120);
  sizes();
  older_callers();
  transfer();
  end_with_work();
  bad_roles();
  misuse();
  return report("kv");
}
