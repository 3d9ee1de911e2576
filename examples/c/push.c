/* Two processes: the child writes pages into the parent's memory, and the parent counts their immediates.
 *
 *   cc push.c $(pkg-config --cflags --libs transfer-engine) -o push && ./push
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <transfer_engine.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, PAGES = 64, IMMEDIATE = 7 };

static void check(int32_t status, const char *what) {
  if (status >= 0) return;
  const te_error *error = te_last_error();
  fprintf(stderr, "%s: %s: %s\n%s\n", what, te_status_name(error->code), error->message, error->remedy);
  exit(1);
}

static te_engine open_engine(const char *name) {
  te_config config = TE_CONFIG_INIT;
  te_engine engine;
  config.name = name;
  check(te_engine_open(&config, &engine), "open");
  return engine;
}

static void await(te_transfer transfer, const char *what) {
  check(te_wait(&transfer, 1, TE_DEFAULT_TIMEOUT, NULL), what);
}

static void receive(int channel) {
  te_engine engine = open_engine("receiver");
  te_region region;
  check(te_region_allocate(engine, PAGES * PAGE_BYTES, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &region), "allocate");
  char descriptor[4096];
  uint64_t length;
  check(te_region_descriptor(region, descriptor, sizeof descriptor, &length), "descriptor");

  te_operation expect;
  te_transfer arrival;
  te_prepare_expect(&expect, IMMEDIATE, PAGES);
  check(te_submit(engine, &expect, 1, &arrival, NULL), "expect");
  if (write(channel, descriptor, length) != (ssize_t)length) exit(1);
  await(arrival, "arrival");

  void *memory;
  uint64_t bytes;
  check(te_region_memory(region, &memory, &bytes), "memory");
  for (int page = 0; page < PAGES; page++)
    if (*((unsigned char *)memory + page * PAGE_BYTES) != PAGES - 1 - page) exit(1);
  printf("%d pages of %d bytes have arrived, in reverse order\n", PAGES, PAGE_BYTES);
  check(te_engine_close(engine), "close");
}

static void push(int channel) {
  te_engine engine = open_engine("sender");
  unsigned char *pages = aligned_alloc(4096, PAGES * PAGE_BYTES);
  uint32_t from[PAGES], to[PAGES];
  for (uint32_t page = 0; page < PAGES; page++) {
    memset(pages + page * PAGE_BYTES, (int)page, PAGE_BYTES);
    from[page] = page;
    to[page] = PAGES - 1 - page;
  }
  te_region source;
  check(te_region_register(engine, pages, PAGES * PAGE_BYTES, TE_LOCAL_ONLY, TE_ALL_NICS, &source), "register");
  char descriptor[4096];
  ssize_t length = read(channel, descriptor, sizeof descriptor);
  if (length <= 0) exit(1);
  te_remote target;
  check(te_remote_attach(engine, descriptor, (uint64_t)length, TE_TRAFFIC_NORMAL, &target), "attach");

  te_operation paged;
  te_transfer transfer;
  te_prepare_paged(&paged, source, from, target, to, PAGES, PAGE_BYTES, IMMEDIATE);
  check(te_submit(engine, &paged, 1, &transfer, NULL), "submit");
  await(transfer, "write");
  check(te_engine_close(engine), "close");
  free(pages);
}

int main(void) {
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, channel)) return 1;
  pid_t child = fork(); /* before an engine is opened: engines do not survive fork */
  if (child == 0) {
    push(channel[1]);
    return 0;
  }
  receive(channel[0]);
  int status = 1;
  waitpid(child, &status, 0);
  return status != 0;
}
