// The few Linux calls that Swift cannot say: variadic functions, function-like macros, GNU extensions.
// Every function returns 0 or a non-negative value on success and -errno on failure, unless said otherwise.
#ifndef CPLATFORM_H
#define CPLATFORM_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/// Tells the core that this is a spin loop.
static inline void te_cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/// Nanoseconds of CLOCK_MONOTONIC.
static inline uint64_t te_monotonic_nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/// Nanoseconds of CPU time that the whole process has used.
static inline uint64_t te_process_cpu_nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/// A number that is different for every running thread: the address of a thread-local.
uintptr_t te_thread_token(void);

int te_pin_self(int cpu);
int te_allowed_cpus(int *cpus, int capacity);
int te_name_thread(const char *name);

/// A new memory file of `length` bytes, sparse. `huge` asks for huge pages and fails when there are none.
int te_memory_file(const char *name, uint64_t length, int huge);

int te_event_new(void);
int te_event_signal(int fd);
int te_event_drain(int fd);

/// Listens on, or connects to, the abstract Unix socket `name` (SOCK_SEQPACKET).
int te_unix_listen(const char *name);
int te_unix_connect(const char *name);
/// Accepts one connection and refuses other users than our own (-EPERM).
int te_unix_accept(int fd);
/// One packet with up to 4 file descriptors. Receive returns the packet's length.
int te_unix_send(int fd, const void *bytes, size_t length, const int *fds, int fd_count);
int te_unix_receive(int fd, void *bytes, size_t capacity, int *fds, int fd_capacity, int *fd_count);
/// Process id of the other end of a Unix socket.
int te_unix_peer_process(int fd);

/// process_vm_writev of one contiguous range.
long te_write_process(int pid, const void *source, uint64_t target, size_t length);
#endif
