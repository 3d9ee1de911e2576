#define _GNU_SOURCE
#include "CPlatform.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/timex.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int member(int command) { return syscall(SYS_membarrier, command, 0, 0) ? -errno : 0; }
int te_allow_remote_barrier(void) { return member(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED); }
int te_remote_barrier(void) { return member(MEMBARRIER_CMD_GLOBAL_EXPEDITED); }

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
uint64_t te_monotonic_nanoseconds(void) { return nanoseconds(CLOCK_MONOTONIC); }

#if defined(__x86_64__)
// The kernel keeps time by this counter only while it finds it steady; a virtual machine may have one without saying so.
static int kernel_trusts_ticks(void) {
    char name[4] = {0};
    int file = open("/sys/devices/system/clocksource/clocksource0/current_clocksource", O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, name, sizeof name);
    close(file);
    return length == sizeof name && memcmp(name, "tsc\n", sizeof name) == 0;
}
#endif

int te_ticks_are_steady(void) {
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(0x80000007u, &a, &b, &c, &d) && (d & 1u << 8) != 0) return 1;
    return kernel_trusts_ticks();
#elif defined(__aarch64__)
    return 1;
#else
    return 0;
#endif
}

uint64_t te_wall_nanoseconds(void) { return nanoseconds(CLOCK_REALTIME); }
int te_wall_clock_is_kept(void) {
    struct timex state = {0};
    int result = adjtimex(&state);
    return result < 0 ? -1 : result != TIME_ERROR;
}
uint64_t te_process_cpu_nanoseconds(void) { return nanoseconds(CLOCK_PROCESS_CPUTIME_ID); }

static _Thread_local char thread_token;
uintptr_t te_thread_token(void) { return (uintptr_t)&thread_token; }

int te_pin_self(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) ? -errno : 0;
}

int te_allowed_cpus(int *cpus, int capacity) {
    cpu_set_t set;
    int count = 0;
    if (sched_getaffinity(0, sizeof set, &set)) return -errno;
    for (int cpu = 0; cpu < CPU_SETSIZE && count < capacity; cpu++)
        if (CPU_ISSET(cpu, &set)) cpus[count++] = cpu;
    return count;
}

int te_name_thread(const char *name) {
    return -pthread_setname_np(pthread_self(), name);
}

int te_memory_file(const char *name, uint64_t length, int huge) {
    int fd = memfd_create(name, MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0));
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)length)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int64_t te_file_length(int file) {
    struct stat status;
    return fstat(file, &status) ? -errno : status.st_size;
}

int te_write_new_file(const char *path, const void *bytes, size_t length) {
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return -errno;
    int failure = 0;
    for (size_t done = 0; done < length && !failure;) {
        ssize_t count = write(file, (const char *)bytes + done, length - done);
        if (count > 0) done += (size_t)count;
        else if (count == 0 || errno != EINTR) failure = count == 0 ? EIO : errno;
    }
    if (close(file) && !failure) failure = errno;
    if (failure) unlink(path);
    return -failure;
}

int te_event_new(void) {
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

int te_event_signal(int fd) {
    uint64_t one = 1;
    return write(fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0;
}

int te_event_drain(int fd) {
    uint64_t count;
    return read(fd, &count, sizeof count) < 0 && errno != EAGAIN ? -errno : 0;
}

static socklen_t abstract_address(const char *name, struct sockaddr_un *address) {
    size_t length = strlen(name);
    if (length > sizeof address->sun_path - 1) length = sizeof address->sun_path - 1;
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path + 1, name, length);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
}

int te_unix_listen(const char *name) {
    struct sockaddr_un address;
    socklen_t length = abstract_address(name, &address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (bind(fd, (struct sockaddr *)&address, length) || listen(fd, 128)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int te_unix_connect(const char *name) {
    struct sockaddr_un address;
    socklen_t length = abstract_address(name, &address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    struct timeval patience = {.tv_sec = 10};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, length)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int te_unix_accept(int listener) {
    int fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
    if (fd < 0) return -errno;
    struct ucred other;
    socklen_t length = sizeof other;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &other, &length) || other.uid != geteuid()) {
        close(fd);
        return -EPERM;
    }
    return fd;
}

int te_unix_peer_process(int fd) {
    struct ucred other;
    socklen_t length = sizeof other;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &other, &length) ? -errno : other.pid;
}

int te_unix_send(int fd, const void *bytes, size_t length, const int *fds, int fd_count) {
    union {
        char space[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr alignment;
    } control;
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count > 4) return -EINVAL;
    if (fd_count > 0) {
        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, (size_t)fd_count * sizeof(int));
    }
    ssize_t sent;
    do sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : 0;
}

int te_unix_receive(int fd, void *bytes, size_t capacity, int *fds, int fd_capacity, int *fd_count) {
    union {
        char space[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr alignment;
    } control;
    struct iovec part = {.iov_base = bytes, .iov_len = capacity};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    ssize_t got;
    *fd_count = 0;
    do got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0) return -errno;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        int count = (int)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < count; i++) {
            int one;
            memcpy(&one, CMSG_DATA(h) + (size_t)i * sizeof one, sizeof one);
            if (*fd_count < fd_capacity) fds[(*fd_count)++] = one;
            else close(one);
        }
    }
    return (int)got;
}

_Static_assert(sizeof(struct te_range) == sizeof(struct iovec), "te_range is an iovec");

long te_write_process(int pid, const struct te_range *source, const struct te_range *target, int count) {
    ssize_t done = process_vm_writev(
        pid, (const struct iovec *)source, (unsigned long)count, (const struct iovec *)target, (unsigned long)count, 0);
    return done < 0 ? -errno : done;
}

int te_die_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0; }

void te_close(int file) { close(file); }

int te_wait_new(void) {
    int wait = epoll_create1(EPOLL_CLOEXEC);
    return wait < 0 ? -errno : wait;
}

int te_wait_add(int wait, int file) {
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(wait, EPOLL_CTL_ADD, file, &event) ? -errno : 0;
}

int te_timer_new(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    return timer < 0 ? -errno : timer;
}

void te_timer_set(int timer, uint64_t nanoseconds) {
    struct itimerspec time = {
        .it_value = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)}};
    timerfd_settime(timer, 0, &time, NULL);
}

int te_wait_readable(const int *files, int count, int milliseconds) {
    struct pollfd entries[64];
    if (count > 64) count = 64;
    for (int i = 0; i < count; i++) entries[i] = (struct pollfd){.fd = files[i], .events = POLLIN};
    int ready = poll(entries, (nfds_t)count, milliseconds);
    return ready < 0 ? -errno : ready;
}

void te_futex_wait(const void *word, uint32_t expected, uint64_t nanoseconds) {
    struct timespec t = {(time_t)(nanoseconds / 1000000000), (long)(nanoseconds % 1000000000)};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &t, 0, 0);
}

void te_futex_wake(const void *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0); }
