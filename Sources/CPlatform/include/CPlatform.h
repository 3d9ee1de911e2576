// The few Linux calls that Swift cannot say: variadic functions, function-like macros, GNU extensions.
// Every function returns 0 or a non-negative value on success and -errno on failure, unless said otherwise.
#ifndef CPLATFORM_H
#define CPLATFORM_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/// Tells the core that this is a spin loop.
static inline void te_cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/// Keeps the compiler from moving loads and stores over this place; the processor may.
static inline void te_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
/// Lets te_remote_barrier of any process act on this one.
int te_allow_remote_barrier(void);
/// Returns once every core that runs a process that has allowed it has passed a full barrier. Some microseconds.
int te_remote_barrier(void);

/// Nanoseconds of CLOCK_MONOTONIC.
uint64_t te_monotonic_nanoseconds(void);
/// The processor's own clock, for stamps that must cost nothing. Its unit is not known beforehand: compare two moments with
/// te_monotonic_nanoseconds. Steady on machines whose time stamp counter neither stops nor changes speed.
static inline uint64_t te_ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return te_monotonic_nanoseconds();
#endif
}
/// Whether te_ticks neither stops nor changes speed on this machine.
int te_ticks_are_steady(void);
/// Nanoseconds of CLOCK_REALTIME.
uint64_t te_wall_nanoseconds(void);
/// Whether a time service keeps the calendar's clock: 1, 0, or -1 when the kernel does not say.
int te_wall_clock_is_kept(void);
/// Nanoseconds of CPU time that the whole process has used.
uint64_t te_process_cpu_nanoseconds(void);

/// A number that is different for every running thread: the address of a thread-local.
uintptr_t te_thread_token(void);

int te_pin_self(int cpu);
int te_allowed_cpus(int *cpus, int capacity);
int te_name_thread(const char *name);

/// A new memory file of `length` bytes, sparse. `huge` asks for huge pages and fails when there are none.
int te_memory_file(const char *name, uint64_t length, int huge);

/// Bytes of a file.
int64_t te_file_length(int file);
/// Writes a new file at `path` that only this user can read; fails when there is one already.
int te_write_new_file(const char *path, const void *bytes, size_t length);

int te_event_new(void);
int te_event_signal(int fd);
int te_event_drain(int fd);
void te_close(int file);

/// A file that is readable while one of those that have been added is, and a timer to be added. The file or -errno.
int te_wait_new(void);
int te_wait_add(int wait, int file);
int te_timer_new(void);
/// Sets the timer to run out, and be readable, in so many nanoseconds; 0 stops it. Clears an expiry that was not read.
void te_timer_set(int timer, uint64_t nanoseconds);
/// Waits until one of at most 64 files is readable. Returns how many are; 0 when the time has passed.
int te_wait_readable(const int *files, int count, int milliseconds);
/// Sleeps while the 32-bit word at `word` is `expected`, for at most `nanoseconds`; wakes all who sleep on it.
void te_futex_wait(const void *word, uint32_t expected, uint64_t nanoseconds);
void te_futex_wake(const void *word);

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

/// A contiguous range in this or in another process; the layout of struct iovec.
struct te_range {
    uint64_t base;
    uint64_t length;
};

/// process_vm_writev of equally many source and target ranges. Returns the bytes written.
long te_write_process(int pid, const struct te_range *source, const struct te_range *target, int count);
/// Brings the first lines of each 4 KiB of a range, 16 KiB of it at most, towards the cache: what the processor's own
/// prefetcher only learns after the first misses. `writes` says that they will be written.
static inline void te_prefetch_page(const void *start, size_t length, int writes) {
    const char *byte = (const char *)start;
    if (length > 16384) length = 16384;
    for (size_t page = 0; page < length; page += 4096)
        for (size_t line = page; line < page + 512 && line < length; line += 64) {
            if (writes) __builtin_prefetch(byte + line, 1);
            else __builtin_prefetch(byte + line, 0);
        }
}

/// memcpy past the cache: the target's lines are neither read nor kept. For lists longer than a core's cache. Not visible
/// to others before `te_copy_fence`.
void te_copy_streaming(void *target, const void *source, size_t length);
void te_copy_fence(void);
/// A copy past the cache or not, and what is worth doing a little before it.
static inline void te_prefetch_copy(const void *target, const void *source, size_t length, int streams) {
    te_prefetch_page(source, length, 0);
    if (!streams) te_prefetch_page(target, length, 1);
}
static inline void te_copy(void *target, const void *source, size_t length, int streams) {
    if (streams) te_copy_streaming(target, source, length);
    else memcpy(target, source, length);
}
/// Pages of more bytes are memcpy's, which does not read their targets either: on Intel's processors, with `rep movsb`.
size_t te_copy_streaming_limit(void);

/// Quantises one block of BF16 numbers to FP8 (E4M3), and says with which scale; see WeightTransfer's BlockQuantisation.
/// Strides are in elements.
void te_quantise_block(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scale);
/// The same by one of the variants for different processors: 0 to 2. Returns 0 when this processor does not have it.
int te_quantise_block_variant(
    int number, const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target,
    size_t target_stride, float *scale);
/// Quantises a row of blocks, at most 128 rows and any columns, to a place whose lines are neither read nor kept, and adds the
/// digest of what it wrote to `digest`. That is one range when `target_stride` is `columns`, which begins at `offset`; else each
/// row is one, `target_stride` behind the one before. Not visible to others before `te_copy_fence`.
void te_quantise_rows(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scales, uint64_t offset, uint64_t digest[2]);
/// The same by one of the variants for different processors: 0 to 2. Returns 0 when this processor does not have it.
int te_quantise_rows_variant(
    int number, const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target,
    size_t target_stride, float *scales, uint64_t offset, uint64_t digest[2]);
/// The E4M3 code nearest to a number of at most 448 and a rounding error.
uint8_t te_e4m3(float value);

/// Adds the digest of `length` bytes that go to `offset` of a region to `digest`.
void te_digest_add(const void *bytes, size_t length, uint64_t offset, uint64_t digest[2]);
/// The same by one of the variants for different processors: 0 to 2. Returns 0 when this processor does not have it.
int te_digest_variant(int number, const void *bytes, size_t length, uint64_t offset, uint64_t digest[2]);

/// What the values of a row are; the numbers are those of ExpertParallel's ElementType.
enum te_row_type { te_float32 = 0, te_bfloat16 = 1, te_float16 = 2 };
/// Rows to be added up with weights, and sums of FP32 that others have made of theirs: `before` of them come before that of
/// the rows. Nothing is aligned.
struct te_terms {
    const void *const *rows;
    const float *weights;
    size_t count;
    const void *const *parts;
    size_t part_count, before;
};
/// `target[i] = parts[0][i] + ... + (weights[0] * rows[0][i] + weights[1] * rows[1][i] + ...) + parts[before][i] + ...` for
/// `length` values, in FP32 and in this order; every multiplication and addition is rounded by itself, so that all processors
/// agree. FP8 is not among the types.
void te_weighted_sum(const struct te_terms *terms, int type, void *target, int target_type, size_t length);
/// The same by one of the variants for different processors: 0 to 2. Returns 0 when this processor does not have it.
int te_weighted_sum_variant(
    int number, const struct te_terms *terms, int type, void *target, int target_type, size_t length);

/// Kills the calling process when its parent dies.
int te_die_with_parent(void);
#endif
