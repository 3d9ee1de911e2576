// Raw libfabric with one thread a side, measured as `te bench p2p` measures the engine: writes with an immediate each,
// lists of random pages with an immediate a page, and an 8-byte ping-pong.
//
// usage: libfabric PROVIDER SECONDS      one JSON object a line: {"test", "size", "gbps"} or {"test", "size", "us"}
//
// The process forks before libfabric starts. The initiator runs on the first processor that it may use, the target on
// the second. Time ends when the target has counted every immediate. Before the clock starts, the target has compared
// what was written with what it must be.
#define _GNU_SOURCE
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REGION = 256 << 20, PAGES = 1024, SETS = 4, CONTEXTS = 2048, DATA = 1, PING = 2 };
enum command { COUNT, CLEAR, COMPARE, END };

// Ranges that were written: the same numbers on both sides.
struct batch {
    size_t bytes, count;
    const uint32_t *from, *to;
};

// What the two processes share; the batch's lists are copied into it.
struct board {
    _Alignas(128) _Atomic long counted;
    _Alignas(128) _Atomic int command;
    _Alignas(128) _Atomic int answered;
    int is_right;
    size_t bytes, count;
    uint32_t from[PAGES], to[PAGES];
};

static struct board *board;
static char *memory;
static struct fi_info *info;
static struct fid_ep *endpoint;
static struct fid_cq *queue;
static void *memory_descriptor;
static fi_addr_t peer;
static uint64_t peer_key, peer_base;
static struct fi_context2 contexts[CONTEXTS];
static long completed, arrived;

static void fail(const char *what, long error) {
    fprintf(stderr, "%s: %s\n", what, fi_strerror((int)(error < 0 ? -error : error)));
    exit(1);
}

static long must(long result, const char *what) {
    if (result < 0) fail(what, result);
    return result;
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pin(const cpu_set_t *allowed, int number) {
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, allowed) || number-- > 0) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

// The 64-bit word that the source holds at a word's index.
static uint64_t stamp(size_t word) { return (word + 1) * 0x9E3779B97F4A7C15u; }

// MARK: libfabric

struct introduction {
    char name[128];
    size_t length;
    uint64_t key, base;
};

static void start(const char *provider, int side, int channel) {
    struct fi_info *hints = fi_allocinfo();
    if (!hints) fail("fi_allocinfo", FI_ENOMEM);
    hints->caps = FI_MSG | FI_RMA;
    hints->mode = FI_CONTEXT | FI_CONTEXT2;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
    hints->domain_attr->mr_mode =
        FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY | FI_MR_ENDPOINT;
    hints->fabric_attr->prov_name = strdup(provider);
    bool is_socket = strncmp(provider, "tcp", 3) == 0;
    must(fi_getinfo(FI_VERSION(1, 17), is_socket ? "127.0.0.1" : NULL, NULL, is_socket ? FI_SOURCE : 0, hints, &info),
         "fi_getinfo");
    fi_freeinfo(hints);
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_av *addresses;
    struct fid_mr *registration;
    must(fi_fabric(info->fabric_attr, &fabric, NULL), "fi_fabric");
    must(fi_domain(fabric, info, &domain, NULL), "fi_domain");
    struct fi_cq_attr queue_attributes = {.size = 4 * CONTEXTS, .format = FI_CQ_FORMAT_DATA};
    must(fi_cq_open(domain, &queue_attributes, &queue, NULL), "fi_cq_open");
    struct fi_av_attr address_attributes = {.type = FI_AV_UNSPEC, .count = 1};
    must(fi_av_open(domain, &address_attributes, &addresses, NULL), "fi_av_open");
    must(fi_endpoint(domain, info, &endpoint, NULL), "fi_endpoint");
    must(fi_ep_bind(endpoint, &queue->fid, FI_TRANSMIT | FI_RECV), "binding the queue");
    must(fi_ep_bind(endpoint, &addresses->fid, 0), "binding the addresses");
    must(fi_enable(endpoint), "fi_enable");
    must(fi_mr_reg(domain, memory, REGION, FI_WRITE | FI_REMOTE_WRITE, 0, (uint64_t)side + 1, 0, &registration, NULL),
         "fi_mr_reg");
    if (info->domain_attr->mr_mode & FI_MR_ENDPOINT) {
        must(fi_mr_bind(registration, &endpoint->fid, 0), "fi_mr_bind");
        must(fi_mr_enable(registration), "fi_mr_enable");
    }
    memory_descriptor = fi_mr_desc(registration);
    struct introduction own = {.length = sizeof own.name, .key = fi_mr_key(registration)}, other;
    if (info->domain_attr->mr_mode & FI_MR_VIRT_ADDR) own.base = (uintptr_t)memory;
    must(fi_getname(&endpoint->fid, own.name, &own.length), "fi_getname");
    if (write(channel, &own, sizeof own) != sizeof own
        || recv(channel, &other, sizeof other, MSG_WAITALL) != sizeof other)
        fail("meeting the other side", FI_EIO);
    if (fi_av_insert(addresses, other.name, 1, &peer, 0, NULL) != 1) fail("fi_av_insert", FI_EINVAL);
    peer_key = other.key;
    peer_base = other.base;
}

static void ping(void);

// Reads completions once; an arriving ping is answered at once if `answers`.
static long poll_queue(bool answers) {
    struct fi_cq_data_entry entries[64];
    ssize_t count = fi_cq_read(queue, entries, 64);
    if (count == -FI_EAGAIN) return 0;
    if (count < 0) {
        struct fi_cq_err_entry error = {0};
        if (count == -FI_EAVAIL) fi_cq_readerr(queue, &error, 0);
        fail("a completion", error.err ? error.err : count);
    }
    int pings = 0;
    for (ssize_t i = 0; i < count; i++) {
        if (!(entries[i].flags & FI_REMOTE_CQ_DATA)) {
            completed++;
        } else {
            arrived++;
            pings += entries[i].data == PING;
        }
    }
    for (; answers && pings > 0; pings--) ping();
    return count;
}

static void write_range(size_t from, size_t to, size_t bytes, long number) {
    ssize_t result;
    while ((result = fi_writedata(endpoint, memory + from, bytes, memory_descriptor, DATA, peer, peer_base + to, peer_key,
                                  &contexts[number % CONTEXTS])) == -FI_EAGAIN)
        poll_queue(false);
    must(result, "fi_writedata");
}

static void ping(void) {
    ssize_t result;
    while ((result = fi_inject_writedata(endpoint, memory, 8, PING, peer, peer_base, peer_key)) == -FI_EAGAIN)
        poll_queue(false);
    must(result, "fi_inject_writedata");
}

// MARK: Target

// Whether exactly the ranges of the board hold what the source holds there; the rest must be zero.
static bool is_right(void) {
    const uint64_t *words = (const uint64_t *)memory;
    size_t width = board->bytes / 8;
    bool *is_written = calloc(REGION / board->bytes, sizeof *is_written);
    bool right = true;
    for (size_t i = 0; i < board->count; i++) {
        is_written[board->to[i]] = true;
        for (size_t w = 0; w < width; w++)
            right = right && words[board->to[i] * width + w] == stamp(board->from[i] * width + w);
    }
    for (size_t range = 0; range < REGION / board->bytes; range++)
        for (size_t w = 0; w < width && !is_written[range]; w++) right = right && words[range * width + w] == 0;
    free(is_written);
    return right;
}

static void run_target(void) {
    int seen = 0;
    while (true) {
        if (poll_queue(true)) atomic_store_explicit(&board->counted, arrived, memory_order_release);
        int command = atomic_load_explicit(&board->command, memory_order_acquire);
        if (command == seen) continue;
        seen = command;
        if (command % 4 == END) return;
        if (command % 4 == CLEAR) memset(memory, 0, REGION);
        if (command % 4 == COMPARE) board->is_right = is_right();
        atomic_store_explicit(&board->answered, command, memory_order_release);
    }
}

// MARK: Initiator

static int command_number;

static void command(enum command what) {
    command_number += 4;
    int value = command_number + (int)what;
    atomic_store_explicit(&board->command, value, memory_order_release);
    while (what != END && atomic_load_explicit(&board->answered, memory_order_acquire) != value) poll_queue(false);
}

static void await_count(long count) {
    while (atomic_load_explicit(&board->counted, memory_order_acquire) < count) poll_queue(false);
}

static void row(const char *test, size_t size, const char *unit, double value) {
    printf("{\"test\": \"%s\", \"size\": %zu, \"%s\": %.4f}\n", test, size, unit, value);
    fflush(stdout);
}

static long posted;

// Writes a batch and waits until all of it has been completed.
static void write_batch(struct batch batch) {
    long end = completed + (long)batch.count;
    for (size_t i = 0; i < batch.count; i++)
        write_range(batch.from[i] * batch.bytes, batch.to[i] * batch.bytes, batch.bytes, (long)i);
    while (completed < end) poll_queue(false);
    posted += (long)batch.count;
}

// Writes a batch once and lets the target compare it.
static void verify(const char *test, struct batch batch) {
    command(CLEAR);
    write_batch(batch);
    await_count(posted);
    board->bytes = batch.bytes;
    board->count = batch.count;
    memcpy(board->from, batch.from, batch.count * sizeof *batch.from);
    memcpy(board->to, batch.to, batch.count * sizeof *batch.to);
    command(COMPARE);
    if (!board->is_right) {
        fprintf(stderr, "%s of %zu bytes: wrong content\n", test, batch.bytes);
        exit(1);
    }
}

static void measure_writes(size_t size, long window, double seconds) {
    long slots = (long)(REGION / size);
    uint32_t list[64];
    for (uint32_t i = 0; i < 64; i++) list[i] = i;
    verify("write", (struct batch){size, (size_t)window, list, list});
    for (int is_measured = 0; is_measured < 2; is_measured++) {
        long first = completed, count = 0;
        double begin = seconds_now(), length = is_measured ? seconds : 0.03;
        do {
            for (int burst = size < 1 << 20 ? 16 : 1; burst > 0; burst--, count++) {
                while (count - (completed - first) >= window) poll_queue(false);
                size_t offset = (size_t)(count % slots) * size;
                write_range(offset, offset, size, count);
            }
        } while (seconds_now() - begin < length);
        posted += count;
        await_count(posted);
        double elapsed = seconds_now() - begin;
        while (completed - first < count) poll_queue(false);
        if (is_measured) row("write", size, "gbps", (double)count * (double)size / elapsed / 1e9);
    }
}

// The first `wanted` of a random order of the numbers below `total`.
static uint32_t *shuffled(uint32_t total, uint32_t wanted) {
    uint32_t *list = malloc(total * sizeof *list);
    if (!list) fail("malloc", FI_ENOMEM);
    for (uint32_t i = 0; i < total; i++) list[i] = i;
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t other = i + (uint32_t)(drand48() * (total - i)), kept = list[i];
        list[i] = list[other];
        list[other] = kept;
    }
    return list;
}

static void measure_pages(size_t size, double seconds) {
    uint32_t *from = shuffled((uint32_t)(REGION / size), PAGES * SETS);
    uint32_t *to = shuffled((uint32_t)(REGION / size), PAGES * SETS);
    verify("pages", (struct batch){size, PAGES, from, to});
    long count = 0;
    double begin = seconds_now();
    do {
        long first = count++ % SETS * PAGES;
        write_batch((struct batch){size, PAGES, from + first, to + first});
    } while (seconds_now() - begin < seconds);
    await_count(posted);
    row("pages", size, "gbps", (double)count * PAGES * (double)size / (seconds_now() - begin) / 1e9);
    free(from);
    free(to);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure_ping_pong(double seconds) {
    enum { CAPACITY = 1 << 16, BATCH = 20 };
    static double samples[CAPACITY];
    size_t count = 0;
    for (double begin = seconds_now(); count < CAPACITY && seconds_now() - begin < seconds; count++) {
        double start_of_batch = seconds_now();
        for (int i = 0; i < BATCH; i++) {
            long before = arrived;
            ping();
            while (arrived == before) poll_queue(false);
        }
        samples[count] = (seconds_now() - start_of_batch) / (2 * BATCH) * 1e6;
    }
    qsort(samples, count, sizeof *samples, ascending);
    row("pingpong", 8, "us", samples[count / 2]);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: libfabric PROVIDER SECONDS\n");
        return 2;
    }
    double seconds = atof(argv[2]);
    cpu_set_t allowed;
    sched_getaffinity(0, sizeof allowed, &allowed);
    setenv("FI_TCP_IFACE", "lo", 0);
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = mmap(NULL, REGION, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int channel[2];
    if (board == MAP_FAILED || memory == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, channel)) {
        perror("set-up");
        return 1;
    }
    alarm((unsigned)(30 + 20 * seconds));
    pid_t target = fork();
    if (target < 0) {
        perror("fork");
        return 1;
    }
    int side = target == 0;
    close(channel[1 - side]);
    pin(&allowed, side);
    if (side) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == 1) return 1;
        memset(memory, 0, REGION);
        start(argv[1], side, channel[1]);
        run_target();
        return 0;
    }
    for (size_t word = 0; word < REGION / 8; word++) ((uint64_t *)memory)[word] = stamp(word);
    start(argv[1], side, channel[0]);
    const struct { size_t size; long window; } writes[] = {
        {4096, 64}, {65536, 32}, {262144, 16}, {1 << 20, 8}, {32 << 20, 2}};
    const size_t pages[] = {1024, 8192, 16384, 65536};
    for (int i = 0; i < 5; i++) measure_writes(writes[i].size, writes[i].window, seconds);
    for (int i = 0; i < 4; i++) measure_pages(pages[i], seconds);
    measure_ping_pong(seconds);
    command(END);
    waitpid(target, NULL, 0);
    return 0;
}
