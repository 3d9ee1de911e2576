// What each operation and each event does, between two engines of one process.
#include <poll.h>
#include <unistd.h>

#include "check.h"

enum { BYTES = 1 << 20 };

typedef struct {
  te_engine engine;
  te_region region;
  unsigned char *memory;
} side;

static side open_side(const char *name, uint32_t events, uint32_t messages) {
  side s;
  te_config config = TE_CONFIG_INIT;
  config.name = name;
  config.event_capacity = events;
  config.message_capacity = messages;
  config.timeout_ns = 10000000000;
  EXPECT(TE_OK, te_engine_open(&config, &s.engine));
  EXPECT(TE_OK, te_region_allocate(s.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &s.region));
  void *memory;
  uint64_t bytes;
  EXPECT(TE_OK, te_region_memory(s.region, &memory, &bytes));
  CHECK(bytes == BYTES);
  s.memory = memory;
  return s;
}

static te_remote attach(te_engine engine, te_region region) {
  char bytes[4096];
  uint64_t length;
  te_remote remote = 0;
  EXPECT(TE_OK, te_region_descriptor(region, bytes, sizeof bytes, &length));
  EXPECT(TE_OK, te_remote_attach(engine, bytes, length, TE_TRAFFIC_NORMAL, &remote));
  return remote;
}

static te_peer connect_to(te_engine engine, te_engine other) {
  char bytes[4096];
  uint64_t length;
  te_peer peer = 0;
  EXPECT(TE_OK, te_engine_address(other, bytes, sizeof bytes, &length));
  EXPECT(TE_OK, te_peer_connect(engine, bytes, length, &peer));
  return peer;
}

static te_transfer submit(te_engine engine, const te_operation *operation) {
  te_transfer transfer = 0;
  EXPECT(TE_OK, te_submit(engine, operation, 1, &transfer, NULL));
  return transfer;
}

static void finish(te_engine engine, const te_operation *operation) {
  te_transfer transfer = submit(engine, operation);
  EXPECT(TE_OK, te_wait(&transfer, 1, TE_DEFAULT_TIMEOUT, NULL));
}

static void expect_count(te_engine engine, uint32_t immediate, uint64_t expected) {
  uint64_t count = 99;
  EXPECT(TE_OK, te_count(engine, immediate, &count));
  CHECK(count == expected);
}

static void operations(void) {
  side a = open_side("a", 0, 0), b = open_side("b", 0, 0);
  te_remote remote = attach(a.engine, b.region);
  uint64_t bytes, id, owner;
  EXPECT(TE_OK, te_engine_id(b.engine, &id));
  EXPECT(TE_OK, te_remote_info(remote, &bytes, &owner));
  CHECK(bytes == BYTES && owner == id);
  for (int i = 0; i < BYTES; i++) a.memory[i] = (unsigned char)(i * 7 + i / 4096);

  te_operation operation;
  te_prepare_write(&operation, a.region, 5, 1000, remote, 70000, 1);
  finish(a.engine, &operation);
  expect_count(b.engine, 1, 1);
  CHECK(memcmp(a.memory + 5, b.memory + 70000, 1000) == 0 && b.memory[69999] == 0 && b.memory[71000] == 0);

  const uint32_t from[] = {3, 1, 1}, to[] = {0, 2, 4};
  te_prepare_paged(&operation, a.region, from, remote, to, 3, 512, 2);
  operation.source_stride = 1024;
  operation.target_offset = 4096;
  finish(a.engine, &operation);
  expect_count(b.engine, 2, 3);
  for (int i = 0; i < 3; i++)
    CHECK(memcmp(a.memory + from[i] * 1024, b.memory + 4096 + to[i] * 512, 512) == 0);
  te_digest sent, arrived;
  EXPECT(TE_OK, te_digest_paged(&operation, &sent));
  operation.source = b.region;
  operation.source_pages = to;
  operation.source_stride = 512;
  operation.source_offset = 4096;
  EXPECT(TE_OK, te_digest_paged(&operation, &arrived));
  CHECK(sent.low == arrived.low && sent.high == arrived.high);
  b.memory[4096] ^= 1;
  EXPECT(TE_OK, te_digest_paged(&operation, &arrived));
  CHECK(sent.low != arrived.low);
  EXPECT(TE_OK, te_digest_range(a.region, 5, 1000, 70000, &sent));
  EXPECT(TE_OK, te_digest_range(b.region, 70000, 1000, 70000, &arrived));
  CHECK(sent.low == arrived.low && sent.high == arrived.high);

  te_remote other = attach(a.engine, b.region);  // the same region: another handle
  const uint64_t members[] = {remote, other};
  const te_slice slices[] = {{0, 100, 200000}, {100, 0, 300000}};
  te_group group;
  EXPECT(TE_OK, te_group_create(a.engine, members, 2, &group));
  te_prepare_scatter(&operation, a.region, slices, 2, group, 3);
  finish(a.engine, &operation);
  expect_count(b.engine, 3, 2);
  CHECK(memcmp(a.memory, b.memory + 200000, 100) == 0);
  EXPECT(TE_OK, te_remote_detach(other));
  te_prepare_write(&operation, a.region, 0, 8, remote, 0, 1);  // still attached
  finish(a.engine, &operation);

  te_peer peer = connect_to(a.engine, b.engine), back = connect_to(b.engine, a.engine);
  te_prepare(&operation, TE_IMMEDIATE, peer, 4);
  finish(a.engine, &operation);
  expect_count(b.engine, 4, 1);
  int32_t taken;
  EXPECT(TE_OK, te_consume(b.engine, 4, 2, &taken));
  CHECK(taken == 0);
  EXPECT(TE_OK, te_consume(b.engine, 4, 1, &taken));
  CHECK(taken == 1);
  expect_count(b.engine, 4, 0);

  te_group to_b, to_a;
  EXPECT(TE_OK, te_group_create(a.engine, &peer, 1, &to_b));
  EXPECT(TE_OK, te_group_create(b.engine, &back, 1, &to_a));
  te_prepare(&operation, TE_BARRIER, to_b, 5);
  te_transfer waiting = submit(a.engine, &operation);
  EXPECT(TE_PENDING, te_transfer_status(waiting));
  te_prepare(&operation, TE_BARRIER, to_a, 5);
  finish(b.engine, &operation);
  EXPECT(TE_OK, te_wait(&waiting, 1, TE_DEFAULT_TIMEOUT, NULL));

  // A revoked region: the handle stays good, descriptors of before do not.
  EXPECT(TE_OK, te_region_revoke(b.region));
  te_prepare_write(&operation, a.region, 0, 8, remote, 0, 6);
  te_transfer refused = submit(a.engine, &operation);
  EXPECT(TE_ESTALE, te_wait(&refused, 1, TE_DEFAULT_TIMEOUT, NULL));
  expect_count(b.engine, 6, 0);
  te_remote renewed = attach(a.engine, b.region);
  te_prepare_write(&operation, a.region, 0, 8, renewed, 0, 6);
  finish(a.engine, &operation);
  expect_count(b.engine, 6, 1);

  char name[64];
  EXPECT(TE_OK, te_peer_info(peer, &owner, name, sizeof name));
  CHECK(owner == id && strcmp(name, "b") == 0);
  EXPECT(TE_OK, te_peer_info(peer, NULL, name, 1));
  CHECK(name[0] == 0);
  te_statistics statistics = {0};
  statistics.size = sizeof statistics;
  EXPECT(TE_OK, te_engine_statistics(a.engine, &statistics));
  CHECK(statistics.pages == 3 && statistics.submitted == 8 && statistics.refused == 0 && statistics.regions == 1);
  CHECK(statistics.remotes == 2 && statistics.peers == 1 && statistics.groups == 2);
  CHECK(statistics.bytes == 1000 + 3 * 512 + 100 + 8 + 8 + 8);
  EXPECT(TE_OK, te_engine_close(a.engine));
  EXPECT(TE_OK, te_engine_close(b.engine));
}

static int readable(int fd) {
  struct pollfd waiting = {fd, POLLIN, 0};
  return poll(&waiting, 1, 0) == 1;
}

static uint64_t take(te_engine engine, te_event *event) {
  uint64_t count = 0;
  EXPECT(TE_OK, te_poll(engine, event, 1, 5000000000, &count));
  return count;
}

static void events(void) {
  side a = open_side("a", 4, 2), b = open_side("b", 0, 2);
  te_remote remote = attach(a.engine, b.region);
  te_peer peer = connect_to(a.engine, b.engine);
  te_event event;
  uint64_t count;
  int fd, other;
  EXPECT(TE_OK, te_engine_fd(a.engine, &fd));
  CHECK(!readable(fd));

  // At most four may be due: the fifth is pushed back until one was polled.
  te_operation batch[5];
  te_transfer transfers[5];
  uint64_t accepted;
  for (uint64_t i = 0; i < 5; i++) {
    te_prepare_write(&batch[i], a.region, 0, 8, remote, 0, 1);
    batch[i].flags = TE_NOTIFY;
    batch[i].tag = 100 + i;
  }
  EXPECT(TE_EBACKPRESSURE, te_submit(a.engine, batch, 5, transfers, &accepted));
  CHECK(accepted == 4);
  int seen = 0;
  for (uint64_t i = 0; i < 4; i++) {
    CHECK(take(a.engine, &event) == 1 && event.kind == TE_EVENT_TRANSFER && event.status == TE_OK);
    CHECK(event.tag >= 100 && event.tag < 104 && event.object == transfers[event.tag - 100]);
    seen |= 1 << (event.tag - 100);
  }
  CHECK(seen == 15 && !readable(fd));
  EXPECT(TE_OK, te_submit(a.engine, batch + 4, 1, transfers, NULL));
  CHECK(take(a.engine, &event) == 1 && event.tag == 104);

  // Late interest in the end, of a transfer that has ended and of one that has not.
  EXPECT(TE_OK, te_notify(transfers[0], 7));
  CHECK(readable(fd) && take(a.engine, &event) == 1 && event.tag == 7 && event.object == transfers[0]);
  CHECK(!readable(fd));
  te_operation expect;
  te_prepare_expect(&expect, 55, 1);
  te_transfer wait = submit(a.engine, &expect);
  EXPECT(TE_OK, te_notify(wait, 8));
  EXPECT(TE_OK, te_poll(a.engine, &event, 1, 1000000, &count));
  CHECK(count == 0);
  EXPECT(TE_OK, te_cancel_notify(wait, TE_DEFAULT_TIMEOUT, 9));
  CHECK(take(a.engine, &event) == 1 && event.tag == 8 && event.status == TE_ECANCELLED);
  CHECK(take(a.engine, &event) == 1 && event.tag == 9 && event.kind == TE_EVENT_RECEIPT && event.status == TE_OK);
  // A deadline of its own.
  expect.timeout_ns = 1000000;
  wait = submit(a.engine, &expect);
  EXPECT(TE_ESTALLED, te_wait(&wait, 1, TE_DEFAULT_TIMEOUT, NULL));

  // Words: changes that are not polled are joined.
  te_watcher watcher;
  EXPECT(TE_OK, te_watch(a.region, 64, 77, &watcher));
  __atomic_store_n((uint64_t *)(a.memory + 64), 5, __ATOMIC_RELEASE);
  CHECK(take(a.engine, &event) == 1 && event.kind == TE_EVENT_WATCH && event.tag == 77 && event.object == watcher);
  CHECK(event.old_value == 0 && event.new_value == 5);
  EXPECT(TE_OK, te_unwatch(watcher));
  __atomic_store_n((uint64_t *)(a.memory + 64), 6, __ATOMIC_RELEASE);
  EXPECT(TE_OK, te_poll(a.engine, &event, 1, 50000000, &count));
  CHECK(count == 0);

  // Messages: two wait, more are pushed back, none is lost.
  EXPECT(TE_OK, te_engine_fd(b.engine, &other));
  for (uint32_t i = 0; i < 300; i++) {
    te_operation send;
    te_prepare_send(&send, peer, &i, sizeof i);
    submit(a.engine, &send);
  }
  char buffer[10];
  te_message messages[8];
  int received[300] = {0}, total = 0;
  struct pollfd waiting = {other, POLLIN, 0};
  while (total < 300 && poll(&waiting, 1, 5000) == 1) {
    EXPECT(TE_OK, te_poll(b.engine, &event, 1, 0, &count));
    CHECK(count == 1 && event.kind == TE_EVENT_MESSAGE);
    for (;;) {
      EXPECT(TE_OK, te_receive(b.engine, messages, 8, buffer, sizeof buffer, &count));
      CHECK(count <= 2);  // as many as fit into the buffer
      if (count == 0) break;
      for (uint64_t i = 0; i < count; i++) {
        uint32_t number = 0;
        memcpy(&number, buffer + messages[i].offset, messages[i].length);
        CHECK(messages[i].length == 4 && number < 300);
        received[number % 300]++;
        total++;
      }
    }
  }
  for (int i = 0; i < 300; i++) CHECK(received[i] == 1);
  uint32_t text = 1;
  te_operation send;
  te_prepare_send(&send, peer, &text, 4);
  finish(a.engine, &send);
  CHECK(take(b.engine, &event) == 1);
  EXPECT(TE_EOUTOFRANGE, te_receive(b.engine, messages, 8, buffer, 3, &count));
  EXPECT(TE_OK, te_receive(b.engine, messages, 8, buffer, 4, &count));
  CHECK(count == 1);
  EXPECT(TE_OK, te_engine_close(a.engine));
  EXPECT(TE_OK, te_engine_close(b.engine));
}

// What arrives after the end of a lease is counted nowhere, and seen.
static void leases(void) {
  side a = open_side("a", 0, 0), b = open_side("b", 0, 0);
  te_peer peer = connect_to(a.engine, b.engine);
  te_lease lease;
  te_operation operation;
  uint64_t late;
  EXPECT(TE_OK, te_lease_begin(b.engine, 3, &lease));
  CHECK(lease.count == 3 && lease.first >= 1u << 29);
  te_prepare(&operation, TE_IMMEDIATE, peer, lease.first + 1);
  finish(a.engine, &operation);
  expect_count(b.engine, lease.first + 1, 1);
  EXPECT(TE_OK, te_lease_end(b.engine, &lease, 0));
  finish(a.engine, &operation);
  expect_count(b.engine, lease.first + 1, 0);
  EXPECT(TE_OK, te_lease_reclaim(b.engine, &lease, &late));
  CHECK(late == 1);
  EXPECT(TE_OK, te_engine_close(a.engine));
  EXPECT(TE_OK, te_engine_close(b.engine));
}

// Memory of the caller, other options, and the flight recorder.
static void caller_memory(void) {
  te_nic nics[2] = {TE_NIC_INIT, TE_NIC_INIT};
  nics[1].caller_memory = TE_CALLER_MEMORY_BOUNCE;
  te_config config = TE_CONFIG_INIT;
  config.nics = nics;
  config.nic_count = 2;
  config.progress = TE_PROGRESS_BUSY;
  te_engine engine;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  static unsigned char source[100000], target[100000];
  for (int i = 0; i < 100000; i++) source[i] = (unsigned char)(i % 251);
  te_region from, to;
  EXPECT(TE_OK, te_region_register(engine, source, sizeof source, TE_LOCAL_ONLY, TE_ALL_NICS, &from));
  EXPECT(TE_OK, te_region_register(engine, target, sizeof target, TE_REMOTE_WRITE, 1u << 1, &to));
  te_remote remote = attach(engine, to), closed;
  te_operation write;
  te_prepare_write(&write, from, 0, sizeof source, remote, 0, 1);
  finish(engine, &write);
  expect_count(engine, 1, 1);
  CHECK(memcmp(source, target, sizeof source) == 0);
  char bytes[4096];
  uint64_t length;
  EXPECT(TE_OK, te_region_descriptor(from, bytes, sizeof bytes, &length));
  EXPECT(TE_EACCESS, te_remote_attach(engine, bytes, length, TE_TRAFFIC_NORMAL, &closed));
  char path[64];
  snprintf(path, sizeof path, "/tmp/te-behaviour-%d.trace", (int)getpid());
  EXPECT(TE_OK, te_engine_write_trace(engine, path));
  CHECK(unlink(path) == 0);
  EXPECT(TE_OK, te_engine_close(engine));
}

// As an event loop does it, until an event comes or the file is not readable for so long. Returns the number of events.
static uint64_t loop(te_engine engine, int fd, int milliseconds, te_event *event) {
  struct pollfd waiting = {fd, POLLIN, 0};
  uint64_t count = 0;
  while (count == 0 && poll(&waiting, 1, milliseconds) == 1) EXPECT(TE_OK, te_poll(engine, event, 1, 0, &count));
  return count;
}

// An engine without a thread: whoever brings something makes its file readable.
static void event_loop(void) {
  side a = open_side("a", 0, 0);
  te_config config = TE_CONFIG_INIT;
  config.name = "b";
  config.progress = TE_PROGRESS_EVENT_LOOP;
  te_engine engine;
  te_region region;
  te_event event;
  int fd, again;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  EXPECT(TE_OK, te_region_allocate(engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &region));
  te_remote remote = attach(a.engine, region);
  EXPECT(TE_OK, te_engine_fd(engine, &fd));
  EXPECT(TE_OK, te_engine_fd(engine, &again));
  CHECK(fd == again && readable(fd));
  CHECK(loop(engine, fd, 50, &event) == 0);
  te_operation expect, write;
  te_prepare_expect(&expect, 5, 1);
  expect.flags = TE_NOTIFY;
  expect.tag = 6;
  submit(engine, &expect);
  CHECK(readable(fd));  // there is a deadline now
  CHECK(loop(engine, fd, 50, &event) == 0);
  te_prepare_write(&write, a.region, 0, 8, remote, 0, 5);
  finish(a.engine, &write);
  CHECK(loop(engine, fd, 5000, &event) == 1 && event.tag == 6 && event.status == TE_OK);
  expect.timeout_ns = 1000000;
  submit(engine, &expect);
  CHECK(loop(engine, fd, 5000, &event) == 1 && event.tag == 6 && event.status == TE_ESTALLED);
  CHECK(loop(engine, fd, 50, &event) == 0);
  EXPECT(TE_OK, te_engine_close(engine));
  EXPECT(TE_OK, te_engine_close(a.engine));
}

int main(void) {
  alarm(120);
  operations();
  events();
  event_loop();
  leases();
  caller_memory();
  return report("behaviour");
}
