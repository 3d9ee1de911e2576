// Every function with NULL, 0, garbage, another type, another engine's, released and released twice: an error, never a crash.
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { BYTES = 1 << 20, PAGE = 4096 };

// One of everything, on an engine that writes to itself through shared memory.
typedef struct {
  te_engine engine;
  te_region region;
  te_remote remote;
  te_peer peer;
  te_group group;
  te_watcher watcher;
  te_transfer transfer;
} objects;

static te_engine open_engine(uint32_t progress) {
  te_config config = TE_CONFIG_INIT;
  config.progress = progress;
  config.timeout_ns = 5000000000;
  te_engine engine = 0;
  EXPECT(TE_OK, te_engine_open(&config, &engine));
  return engine;
}

static objects make(uint32_t progress) {
  objects o;
  char bytes[4096];
  uint64_t length;
  o.engine = open_engine(progress);
  EXPECT(TE_OK, te_region_allocate(o.engine, BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &o.region));
  EXPECT(TE_OK, te_region_descriptor(o.region, bytes, sizeof bytes, &length));
  EXPECT(TE_OK, te_remote_attach(o.engine, bytes, length, TE_TRAFFIC_NORMAL, &o.remote));
  EXPECT(TE_OK, te_engine_address(o.engine, bytes, sizeof bytes, &length));
  EXPECT(TE_OK, te_peer_connect(o.engine, bytes, length, &o.peer));
  EXPECT(TE_OK, te_group_create(o.engine, &o.remote, 1, &o.group));
  EXPECT(TE_OK, te_watch(o.region, 8, 5, &o.watcher));
  te_operation write;
  te_prepare_write(&write, o.region, 0, 64, o.remote, PAGE, 3);
  EXPECT(TE_OK, te_submit(o.engine, &write, 1, &o.transfer, NULL));
  EXPECT(TE_OK, te_wait(&o.transfer, 1, TE_DEFAULT_TIMEOUT, NULL));
  return o;
}

// Every function that takes a handle, with one that is none of its type. `h` may be anything.
static void refuse_handle(uint64_t h, const objects *good, uint64_t kind) {
  char buffer[4096];
  uint64_t number = 1;
  int32_t flag;
  void *memory;
  te_event event;
  te_message message;
  te_statistics statistics = {0};
  te_lease lease = {0, 0, 0};
  te_digest digest;
  statistics.size = sizeof statistics;
  if (kind != 1) {
    EXPECT(TE_EBADHANDLE, te_engine_close(h));
    EXPECT(TE_EBADHANDLE, te_engine_id(h, &number));
    EXPECT(TE_EBADHANDLE, te_engine_address(h, buffer, sizeof buffer, &number));
    EXPECT(TE_EBADHANDLE, te_engine_progress(h, &flag));
    EXPECT(TE_EBADHANDLE, te_engine_fd(h, &flag));
    EXPECT(TE_EBADHANDLE, te_engine_write_trace(h, "/nonexistent/trace"));
    EXPECT(TE_EBADHANDLE, te_engine_statistics(h, &statistics));
    EXPECT(TE_EBADHANDLE, te_region_allocate(h, 1, 0, 0, 0, &number));
    EXPECT(TE_EBADHANDLE, te_region_register(h, buffer, 1, 0, 0, &number));
    EXPECT(TE_EBADHANDLE, te_remote_attach(h, buffer, 1, TE_TRAFFIC_NORMAL, &number));
    EXPECT(TE_EBADHANDLE, te_peer_connect(h, buffer, 1, &number));
    EXPECT(TE_EBADHANDLE, te_group_create(h, &number, 1, &number));
    EXPECT(TE_EBADHANDLE, te_submit(h, NULL, 0, NULL, NULL));
    EXPECT(TE_EBADHANDLE, te_poll(h, &event, 1, 0, &number));
    EXPECT(TE_EBADHANDLE, te_count(h, 0, &number));
    EXPECT(TE_EBADHANDLE, te_consume(h, 0, 1, &flag));
    EXPECT(TE_EBADHANDLE, te_lease_begin(h, 1, &lease));
    EXPECT(TE_EBADHANDLE, te_lease_end(h, &lease, 1));
    EXPECT(TE_EBADHANDLE, te_lease_reclaim(h, &lease, &number));
    EXPECT(TE_EBADHANDLE, te_receive(h, &message, 1, buffer, sizeof buffer, &number));
  }
  if (kind != 2) {
    EXPECT(TE_EBADHANDLE, te_region_deregister(h));
    EXPECT(TE_EBADHANDLE, te_region_revoke(h));
    EXPECT(TE_EBADHANDLE, te_region_memory(h, &memory, &number));
    EXPECT(TE_EBADHANDLE, te_region_descriptor(h, buffer, sizeof buffer, &number));
    EXPECT(TE_EBADHANDLE, te_watch(h, 0, 0, &number));
    EXPECT(TE_EBADHANDLE, te_digest_range(h, 0, 0, 0, &digest));
  }
  if (kind != 3) {
    EXPECT(TE_EBADHANDLE, te_remote_detach(h));
    EXPECT(TE_EBADHANDLE, te_remote_info(h, &number, NULL));
  }
  if (kind != 4) {
    EXPECT(TE_EBADHANDLE, te_peer_disconnect(h));
    EXPECT(TE_EBADHANDLE, te_peer_info(h, &number, buffer, sizeof buffer));
  }
  if (kind != 5) EXPECT(TE_EBADHANDLE, te_group_destroy(h));
  if (kind != 6) EXPECT(TE_EBADHANDLE, te_unwatch(h));
  if (kind != 7) {
    EXPECT(TE_EBADHANDLE, te_transfer_status(h));
    EXPECT(TE_EBADHANDLE, te_wait(&h, 1, 0, NULL));
    EXPECT(TE_EBADHANDLE, te_notify(h, 0));
    EXPECT(TE_EBADHANDLE, te_cancel(h, 0));
    EXPECT(TE_EBADHANDLE, te_cancel_notify(h, 0, 0));
  }
  if (!good) return;
  te_operation operation;
  uint32_t page = 0;
  te_slice slice = {0, 1, 0};
  uint64_t accepted = 9;
  if (kind != 2) {
    te_prepare_write(&operation, h, 0, 1, good->remote, 0, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, &accepted));
    CHECK(accepted == 0);
    te_prepare_paged(&operation, h, &page, good->remote, &page, 1, 1, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
    EXPECT(TE_EBADHANDLE, te_digest_paged(&operation, &digest));
    te_prepare_scatter(&operation, h, &slice, 1, good->group, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
  }
  if (kind != 3) {
    te_prepare_write(&operation, good->region, 0, 1, h, 0, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
    te_prepare_paged(&operation, good->region, &page, h, &page, 1, 1, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
  }
  if (kind != 3 && kind != 4) {
    te_prepare(&operation, TE_IMMEDIATE, h, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
    EXPECT(TE_EBADHANDLE, te_group_create(good->engine, &h, 1, &number));
  }
  if (kind != 4) {
    te_prepare_send(&operation, h, "x", 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
    te_prepare_expect(&operation, 1, 1);
    operation.senders = &h;
    operation.sender_count = 1;
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
  }
  if (kind != 5) {
    te_prepare_scatter(&operation, good->region, &slice, 1, h, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
    te_prepare(&operation, TE_BARRIER, h, 1);
    EXPECT(TE_EBADHANDLE, te_submit(good->engine, &operation, 1, NULL, NULL));
  }
}

static void wrong_handles(void) {
  objects o = make(TE_PROGRESS_ADAPTIVE);
  const uint64_t garbage[] = {0, 1, 42, UINT64_MAX, 0x1234567812345678, UINT64_MAX >> 4};
  for (size_t i = 0; i < sizeof garbage / sizeof *garbage; i++) refuse_handle(garbage[i], &o, 0);
  for (uint64_t kind = 1; kind < 16; kind++) refuse_handle(kind << 60 | 0x0FFFFFFF00000001, &o, 0);
  // The right kind for one function is the wrong one for all others.
  refuse_handle(o.engine, &o, 1);
  refuse_handle(o.region, &o, 2);
  refuse_handle(o.remote, &o, 3);
  refuse_handle(o.peer, &o, 4);
  refuse_handle(o.group, &o, 5);
  refuse_handle(o.watcher, &o, 6);
  refuse_handle(o.transfer, &o, 7);

  // Another engine's.
  objects other = make(TE_PROGRESS_ADAPTIVE);
  te_operation write;
  te_prepare_write(&write, other.region, 0, 1, o.remote, 0, 1);
  EXPECT(TE_EBADHANDLE, te_submit(o.engine, &write, 1, NULL, NULL));
  te_prepare_write(&write, o.region, 0, 1, other.remote, 0, 1);
  EXPECT(TE_EBADHANDLE, te_submit(o.engine, &write, 1, NULL, NULL));
  te_transfer mixed[2] = {o.transfer, other.transfer};
  EXPECT(TE_EBADHANDLE, te_wait(mixed, 2, 0, NULL));

  // Released, and released twice.
  EXPECT(TE_EBUSY, te_region_deregister(o.region));  // it is watched
  EXPECT(TE_OK, te_unwatch(o.watcher));
  EXPECT(TE_OK, te_group_destroy(o.group));
  EXPECT(TE_OK, te_peer_disconnect(o.peer));
  EXPECT(TE_OK, te_remote_detach(o.remote));
  EXPECT(TE_OK, te_region_deregister(o.region));
  refuse_handle(o.watcher, &other, 0);
  refuse_handle(o.group, &other, 0);
  refuse_handle(o.peer, &other, 0);
  refuse_handle(o.remote, &other, 0);
  refuse_handle(o.region, &other, 0);
  EXPECT(TE_OK, te_transfer_status(o.transfer));
  EXPECT(TE_OK, te_engine_close(o.engine));
  refuse_handle(o.engine, &other, 0);
  refuse_handle(o.transfer, &other, 0);

  // A place that is used again.
  for (int i = 0; i < 300; i++) EXPECT(TE_OK, te_engine_close(open_engine(TE_PROGRESS_MANUAL)));
  refuse_handle(o.engine, &other, 0);
  // With the engine everything goes.
  EXPECT(TE_OK, te_engine_close(other.engine));
  refuse_handle(other.region, NULL, 0);
  refuse_handle(other.watcher, NULL, 0);
}

static void null_pointers(void) {
  objects o = make(TE_PROGRESS_ADAPTIVE);
  te_config config = TE_CONFIG_INIT;
  uint64_t number;
  char bytes[8];
  te_event event;
  te_message message;
  te_lease lease;
  EXPECT(TE_EINVALID, te_engine_open(NULL, &number));
  EXPECT(TE_EINVALID, te_engine_open(&config, NULL));
  EXPECT(TE_EINVALID, te_engine_id(o.engine, NULL));
  EXPECT(TE_EINVALID, te_engine_address(o.engine, NULL, 4096, &number));
  EXPECT(TE_EINVALID, te_engine_address(o.engine, bytes, 8, NULL));
  EXPECT(TE_EOUTOFRANGE, te_engine_address(o.engine, bytes, 8, &number));
  CHECK(number > 8 && number <= 4096);
  EXPECT(TE_EINVALID, te_engine_progress(o.engine, NULL));  // it has a thread
  EXPECT(TE_EINVALID, te_engine_fd(o.engine, NULL));
  EXPECT(TE_EINVALID, te_engine_write_trace(o.engine, NULL));
  EXPECT(TE_EUNAVAILABLE, te_engine_write_trace(o.engine, "/nonexistent/trace"));
  EXPECT(TE_EINVALID, te_engine_statistics(o.engine, NULL));
  EXPECT(TE_EINVALID, te_region_allocate(o.engine, 1, 0, 0, 0, NULL));
  EXPECT(TE_EINVALID, te_region_allocate(o.engine, 0, 0, 0, 0, &number));
  EXPECT(TE_EOUTOFRANGE, te_region_allocate(o.engine, UINT64_MAX, 0, 0, 0, &number));
  EXPECT(TE_EINVALID, te_region_allocate(o.engine, 1, 7, 0, 0, &number));
  EXPECT(TE_EINVALID, te_region_allocate(o.engine, 1, 0, 2, 0, &number));  // no second NIC
  EXPECT(TE_EINVALID, te_region_allocate(o.engine, 1, 0, 0, 8, &number));
  EXPECT(TE_EINVALID, te_region_register(o.engine, NULL, 1, 0, 0, &number));
  EXPECT(TE_EINVALID, te_region_register(o.engine, bytes, 0, 0, 0, &number));
  EXPECT(TE_EINVALID, te_region_register(o.engine, bytes, 8, 0, 0, NULL));
  EXPECT(TE_EINVALID, te_region_memory(o.region, NULL, &number));
  EXPECT(TE_EINVALID, te_region_descriptor(o.region, NULL, 4096, &number));
  EXPECT(TE_EINVALID, te_remote_attach(o.engine, bytes, 8, 3, &number));
  EXPECT(TE_EINVALID, te_remote_attach(o.engine, NULL, 8, TE_TRAFFIC_NORMAL, &number));
  EXPECT(TE_EINVALID, te_remote_attach(o.engine, bytes, 8, TE_TRAFFIC_NORMAL, NULL));
  memset(bytes, 0, sizeof bytes);
  EXPECT(TE_EMALFORMED, te_remote_attach(o.engine, bytes, 8, TE_TRAFFIC_NORMAL, &number));
  EXPECT(TE_EMALFORMED, te_remote_attach(o.engine, NULL, 0, TE_TRAFFIC_NORMAL, &number));
  EXPECT(TE_EMALFORMED, te_remote_attach(o.engine, bytes, UINT64_MAX, TE_TRAFFIC_NORMAL, &number));
  EXPECT(TE_EMALFORMED, te_peer_connect(o.engine, bytes, 8, &number));
  EXPECT(TE_EINVALID, te_peer_connect(o.engine, bytes, 8, NULL));
  EXPECT(TE_OK, te_remote_info(o.remote, NULL, NULL));
  EXPECT(TE_OK, te_peer_info(o.peer, NULL, NULL, 0));
  EXPECT(TE_EINVALID, te_group_create(o.engine, NULL, 1, &number));
  EXPECT(TE_EINVALID, te_group_create(o.engine, &o.remote, 1, NULL));
  EXPECT(TE_ELIMIT, te_group_create(o.engine, &o.remote, 1000000, &number));
  EXPECT(TE_EINVALID, te_submit(o.engine, NULL, 1, NULL, NULL));
  EXPECT(TE_EINVALID, te_wait(NULL, 1, 0, NULL));
  EXPECT(TE_OK, te_wait(NULL, 0, 0, NULL));
  EXPECT(TE_EINVALID, te_poll(o.engine, NULL, 1, 0, &number));
  EXPECT(TE_EINVALID, te_poll(o.engine, &event, 0, 0, &number));
  EXPECT(TE_EINVALID, te_poll(o.engine, &event, 1, 0, NULL));
  EXPECT(TE_EINVALID, te_count(o.engine, 0, NULL));
  EXPECT(TE_EINVALID, te_count(o.engine, 1u << 30, &number));
  EXPECT(TE_EINVALID, te_consume(o.engine, 0, 1, NULL));
  EXPECT(TE_EINVALID, te_watch(o.region, 0, 0, NULL));
  EXPECT(TE_EINVALID, te_watch(o.region, 4, 0, &number));
  EXPECT(TE_EOUTOFRANGE, te_watch(o.region, BYTES, 0, &number));
  EXPECT(TE_EINVALID, te_receive(o.engine, NULL, 1, bytes, 8, &number));
  EXPECT(TE_EINVALID, te_receive(o.engine, &message, 1, NULL, 8, &number));
  EXPECT(TE_EINVALID, te_receive(o.engine, &message, 1, bytes, 8, NULL));
  EXPECT(TE_EINVALID, te_lease_begin(o.engine, 1, NULL));
  EXPECT(TE_EINVALID, te_lease_begin(o.engine, 0, &lease));
  EXPECT(TE_EINVALID, te_lease_end(o.engine, NULL, 1));
  EXPECT(TE_EINVALID, te_lease_reclaim(o.engine, NULL, NULL));
  EXPECT(TE_OK, te_lease_begin(o.engine, 2, &lease));
  EXPECT(TE_EINVALID, te_lease_reclaim(o.engine, &lease, NULL));  // not in quarantine
  lease.count = 3;
  EXPECT(TE_EBADHANDLE, te_lease_end(o.engine, &lease, 1));
  lease.count = 2;
  EXPECT(TE_OK, te_lease_end(o.engine, &lease, 0));
  EXPECT(TE_OK, te_lease_reclaim(o.engine, &lease, &number));
  EXPECT(TE_EBADHANDLE, te_lease_reclaim(o.engine, &lease, &number));
  EXPECT(TE_EINVALID, te_digest_range(o.region, 0, 1, 0, NULL));
  EXPECT(TE_EINVALID, te_digest_paged(NULL, NULL));
  EXPECT(TE_OK, te_engine_close(o.engine));
}

static void bad_operations(void) {
  objects o = make(TE_PROGRESS_ADAPTIVE);
  uint32_t pages[2] = {0, 1};
  te_operation operation;
  uint64_t accepted;
#define REFUSED(status, change)                                                     \
  do {                                                                              \
    te_prepare_write(&operation, o.region, 0, 1, o.remote, 0, 1);                   \
    change;                                                                         \
    EXPECT(status, te_submit(o.engine, &operation, 1, NULL, NULL));                 \
  } while (0)
  REFUSED(TE_EINVALID, operation.size = 0);
  REFUSED(TE_EINVALID, operation.size = 8);
  REFUSED(TE_EINVALID, operation.size = UINT32_MAX);
  REFUSED(TE_EINVALID, operation.kind = 0);
  REFUSED(TE_EINVALID, operation.kind = 99);
  REFUSED(TE_EINVALID, operation.flags = 2);
  REFUSED(TE_EINVALID, operation.immediate = 1u << 30);
  REFUSED(TE_EOUTOFRANGE, operation.byte_count = BYTES + 1);
  REFUSED(TE_EOUTOFRANGE, operation.byte_count = UINT64_MAX);
  REFUSED(TE_EOUTOFRANGE, operation.source_offset = BYTES);
  REFUSED(TE_EOUTOFRANGE, operation.target_offset = UINT64_MAX);
  REFUSED(TE_EINVALID, operation.kind = TE_PAGED; operation.count = 2);
  REFUSED(TE_EINVALID, te_prepare_paged(&operation, o.region, pages, o.remote, NULL, 2, PAGE, 1));
  REFUSED(TE_EOUTOFRANGE, te_prepare_paged(&operation, o.region, pages, o.remote, pages, 2, BYTES, 1));
  REFUSED(TE_EOUTOFRANGE, te_prepare_paged(&operation, o.region, pages, o.remote, pages, UINT64_MAX, PAGE, 1));
  REFUSED(TE_EINVALID, te_prepare_scatter(&operation, o.region, NULL, 1, o.group, 1));
  te_slice slices[2] = {{0, 1, 0}, {0, 1, 0}};
  REFUSED(TE_EINVALID, te_prepare_scatter(&operation, o.region, slices, 2, o.group, 1));
  REFUSED(TE_EINVALID, te_prepare(&operation, TE_IMMEDIATE, o.peer, TE_NO_IMMEDIATE));
  REFUSED(TE_EINVALID, te_prepare_send(&operation, o.peer, NULL, 1));
  REFUSED(TE_EOUTOFRANGE, te_prepare_send(&operation, o.peer, &o, 16385));
  REFUSED(TE_EOUTOFRANGE, te_prepare_expect(&operation, 1, UINT64_MAX));
  REFUSED(TE_EINVALID, te_prepare_expect(&operation, 1, 1); operation.sender_count = 1);

  // The first that is refused ends the batch; those before it go on.
  te_operation batch[3];
  te_transfer transfers[3] = {0, 0, 0};
  for (int i = 0; i < 3; i++) te_prepare_write(&batch[i], o.region, 0, 8, o.remote, 64, 9);
  batch[1].byte_count = BYTES + 1;
  EXPECT(TE_EOUTOFRANGE, te_submit(o.engine, batch, 3, transfers, &accepted));
  CHECK(accepted == 1 && transfers[0] != 0 && transfers[1] == 0);
  EXPECT(TE_OK, te_wait(transfers, 1, TE_DEFAULT_TIMEOUT, NULL));

  // A caller that is newer: what we do not know must be 0.
  struct {
    te_operation known;
    uint64_t unknown;
  } newer[2];
  memset(newer, 0, sizeof newer);
  for (int i = 0; i < 2; i++) {
    te_prepare_write(&newer[i].known, o.region, 0, 8, o.remote, 64, 10);
    newer[i].known.size = sizeof newer[i];
  }
  EXPECT(TE_OK, te_submit(o.engine, &newer[0].known, 2, transfers, &accepted));
  CHECK(accepted == 2);
  EXPECT(TE_OK, te_wait(transfers, 2, TE_DEFAULT_TIMEOUT, NULL));
  newer[0].unknown = 1;
  EXPECT(TE_EUNSUPPORTEDVERSION, te_submit(o.engine, &newer[0].known, 2, NULL, &accepted));

  // A configuration.
  te_engine engine;
#define NOT_OPENED(status, change)                     \
  do {                                                 \
    te_config config = TE_CONFIG_INIT;                 \
    te_nic nic = TE_NIC_INIT;                          \
    config.nics = &nic;                                \
    config.nic_count = 1;                              \
    change;                                            \
    EXPECT(status, te_engine_open(&config, &engine));  \
  } while (0)
  NOT_OPENED(TE_EINVALID, config.size = 4);
  NOT_OPENED(TE_EINVALID, config.progress = 9);
  NOT_OPENED(TE_EINVALID, config.nic_count = 0);
  NOT_OPENED(TE_EINVALID, config.nic_count = 9);
  NOT_OPENED(TE_EINVALID, config.nics = NULL);
  NOT_OPENED(TE_EINVALID, config.liveness_intervals = 1);
  NOT_OPENED(TE_EINVALID, nic.kind = 9);
  NOT_OPENED(TE_EINVALID, nic.size = 0);
  NOT_OPENED(TE_EINVALID, nic.caller_memory = 9);
  NOT_OPENED(TE_EINVALID, nic.kind = TE_NIC_VERBS; nic.port = 1000);
  NOT_OPENED(TE_EUNAVAILABLE, nic.kind = TE_NIC_LIBFABRIC; nic.provider = "none such");
  EXPECT(TE_OK, te_engine_close(o.engine));
}

// What is in use is not released.
static void busy(void) {
  objects o = make(TE_PROGRESS_MANUAL);
  te_operation operation;
  te_transfer pending;
  uint32_t page = 0;
  // Manual progress: nothing happens by itself, so this stays pending.
  EXPECT(TE_OK, te_unwatch(o.watcher));
  te_prepare_paged(&operation, o.region, &page, o.remote, &page, 1, PAGE, 1);
  te_prepare(&operation, TE_BARRIER, o.group, 12);
  EXPECT(TE_OK, te_submit(o.engine, &operation, 1, &pending, NULL));
  te_prepare_expect(&operation, 77, 1);
  te_transfer wait;
  EXPECT(TE_OK, te_submit(o.engine, &operation, 1, &wait, NULL));
  if (te_transfer_status(pending) == TE_PENDING) EXPECT(TE_EBUSY, te_remote_detach(o.remote));
  EXPECT(TE_ETIMEDOUT, te_wait(&wait, 1, 1000000, NULL));
  int32_t status = 0;
  EXPECT(TE_ETIMEDOUT, te_wait(&wait, 1, 0, &status));
  CHECK(status == TE_PENDING);
  EXPECT(TE_PENDING, te_transfer_status(wait));
  EXPECT(TE_OK, te_cancel(wait, TE_DEFAULT_TIMEOUT));
  EXPECT(TE_ECANCELLED, te_transfer_status(wait));
  EXPECT(TE_OK, te_cancel(wait, TE_DEFAULT_TIMEOUT));
  EXPECT(TE_ECANCELLED, te_wait(&wait, 1, TE_DEFAULT_TIMEOUT, &status));
  CHECK(status == TE_ECANCELLED);
  EXPECT(TE_OK, te_wait(&pending, 1, TE_DEFAULT_TIMEOUT, NULL));
  EXPECT(TE_OK, te_engine_close(o.engine));
}

static void *close_later(void *engine) {
  usleep(50000);
  EXPECT(TE_OK, te_engine_close(*(te_engine *)engine));
  return NULL;
}

static void *poll_for_ever(void *engine) {
  te_event event;
  uint64_t count;
  EXPECT(TE_ECLOSED, te_poll(*(te_engine *)engine, &event, 1, 60000000000, &count));
  return NULL;
}

// Closing ends the waits of other threads.
static void closed_meanwhile(void) {
  objects o = make(TE_PROGRESS_ADAPTIVE);
  pthread_t closer, poller;
  te_operation expect;
  te_transfer transfer;
  te_prepare_expect(&expect, 123, 1);
  expect.timeout_ns = 60000000000;
  EXPECT(TE_OK, te_submit(o.engine, &expect, 1, &transfer, NULL));
  pthread_create(&closer, NULL, close_later, &o.engine);
  pthread_create(&poller, NULL, poll_for_ever, &o.engine);
  EXPECT(TE_ECLOSED, te_wait(&transfer, 1, 60000000000, NULL));
  pthread_join(closer, NULL);
  pthread_join(poller, NULL);
}

typedef struct {
  objects *objects;
  volatile int calls;
} context;

static void misbehave(void *argument, int32_t status) {
  context *c = argument;
  te_operation operation;
  te_event event;
  uint64_t count;
  int32_t happened;
  CHECK(status == TE_OK);
  EXPECT(TE_EWRONGTHREAD, te_wait(&c->objects->transfer, 1, TE_DEFAULT_TIMEOUT, NULL));
  EXPECT(TE_EWRONGTHREAD, te_cancel(c->objects->transfer, TE_DEFAULT_TIMEOUT));
  EXPECT(TE_EWRONGTHREAD, te_poll(c->objects->engine, &event, 1, 1000, &count));
  EXPECT(TE_EWRONGTHREAD, te_engine_progress(c->objects->engine, &happened));
  EXPECT(TE_EWRONGTHREAD, te_engine_close(c->objects->engine));
  EXPECT(TE_OK, te_poll(c->objects->engine, &event, 1, 0, &count));
  te_prepare_write(&operation, c->objects->region, 0, 8, c->objects->remote, 64, 9);
  if (c->calls++ < 3) {
    operation.callback = misbehave;
    operation.context = c;
  }
  EXPECT(TE_OK, te_submit(c->objects->engine, &operation, 1, NULL, NULL));
}

static void callbacks(uint32_t progress) {
  objects o = make(progress);
  context c = {&o, 0};
  te_operation operation;
  te_prepare_write(&operation, o.region, 0, 8, o.remote, 64, 9);
  operation.callback = misbehave;
  operation.context = &c;
  EXPECT(TE_OK, te_submit(o.engine, &operation, 1, NULL, NULL));
  te_prepare_expect(&operation, 9, 5);
  te_transfer all;
  EXPECT(TE_OK, te_submit(o.engine, &operation, 1, &all, NULL));
  EXPECT(TE_OK, te_wait(&all, 1, TE_DEFAULT_TIMEOUT, NULL));
  EXPECT(TE_OK, te_engine_close(o.engine));
  CHECK(c.calls == 4);
}

static void *intrude(void *engine) {
  uint64_t count;
  usleep(20000);
  EXPECT(TE_EWRONGTHREAD, te_count(*(te_engine *)engine, 1, &count));
  EXPECT(TE_EWRONGTHREAD, te_engine_close(*(te_engine *)engine));
  return NULL;
}

static void second_thread(void) {
  objects o = make(TE_PROGRESS_MANUAL);
  pthread_t thread;
  te_event event;
  uint64_t count;
  pthread_create(&thread, NULL, intrude, &o.engine);
  EXPECT(TE_OK, te_poll(o.engine, &event, 1, 200000000, &count));
  CHECK(count == 0);
  pthread_join(thread, NULL);
  EXPECT(TE_OK, te_engine_close(o.engine));
}

static void child_process(void) {
  objects o = make(TE_PROGRESS_ADAPTIVE);
  pid_t child = fork();
  if (child == 0) {
    uint64_t number;
    failures = 0;
    EXPECT(TE_EWRONGTHREAD, te_engine_id(o.engine, &number));
    EXPECT(TE_EWRONGTHREAD, te_region_deregister(o.region));
    EXPECT(TE_EWRONGTHREAD, te_wait(&o.transfer, 1, TE_DEFAULT_TIMEOUT, NULL));
    EXPECT(TE_EWRONGTHREAD, te_engine_close(o.engine));
    objects own = make(TE_PROGRESS_ADAPTIVE);  // its own engine works
    EXPECT(TE_OK, te_engine_close(own.engine));
    _exit(failures != 0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  CHECK(status == 0);
  EXPECT(TE_OK, te_transfer_status(o.transfer));
  EXPECT(TE_OK, te_engine_close(o.engine));
}

int main(void) {
  alarm(120);
  wrong_handles();
  null_pointers();
  bad_operations();
  busy();
  closed_meanwhile();
  callbacks(TE_PROGRESS_ADAPTIVE);
  callbacks(TE_PROGRESS_MANUAL);
  second_thread();
  child_process();
  return report("misuse");
}
