// The digest of transferred bytes (docs/reliability.md has the construction and its bound, docs/wire-format.md the numbers).
#include "CPlatform.h"
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "digests are defined for little-endian machines"
#endif

enum { granule = 4096, step = 64, steps = granule / step };
typedef uint32_t words __attribute__((vector_size(step)));
typedef uint64_t sums __attribute__((vector_size(step)));

#define GAMMA 0x9E3779B97F4A7C15ull

// The output function of SplitMix64 (Steele, Lea and Flood 2014).
static inline uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

// One set of words for each step of a granule, and one more: the second sum is one step ahead of the first.
static words keys[steps + 1];

static inline __attribute__((always_inline)) void add_step(const words *m, const words *key, sums *a, sums *b) {
    sums x = (sums)(*m + key[0]), y = (sums)(*m + key[1]);
    *a += (x & 0xFFFFFFFFu) * (x >> 32);
    *b += (y & 0xFFFFFFFFu) * (y >> 32);
}

// Two sums of products over at most one granule.
static inline __attribute__((always_inline)) void add_up(const char *bytes, size_t length, uint64_t out[2]) {
    sums a = {0}, b = {0};
    size_t i = 0;
    for (; (i + 1) * step <= length; i++) {
        words m;
        memcpy(&m, bytes + i * step, step);
        add_step(&m, &keys[i], &a, &b);
    }
    if (i * step < length) {
        words m = {0};
        memcpy(&m, bytes + i * step, length - i * step);
        add_step(&m, &keys[i], &a, &b);
    }
    uint64_t first = 0, second = 0;
    for (int lane = 0; lane < step / 8; lane++) {
        first += a[lane];
        second += b[lane];
    }
    out[0] = first;
    out[1] = second;
}

static void add_up_plain(const char *bytes, size_t length, uint64_t out[2]) { add_up(bytes, length, out); }
#if defined(__x86_64__)
__attribute__((target("avx2"))) static void add_up_avx2(const char *bytes, size_t length, uint64_t out[2]) {
    add_up(bytes, length, out);
}
__attribute__((target("avx512f"))) static void add_up_avx512(const char *bytes, size_t length, uint64_t out[2]) {
    add_up(bytes, length, out);
}
#endif

typedef void (*variant)(const char *, size_t, uint64_t[2]);
static variant chosen = add_up_plain;

__attribute__((constructor)) static void prepare(void) {
    uint64_t state = 0x54452D4449474553ull;
    for (int i = 0; i <= steps; i++)
        for (int word = 0; word < step / 4; word += 2) {
            uint64_t z = mix(state += GAMMA);
            keys[i][word] = (uint32_t)z;
            keys[i][word + 1] = (uint32_t)(z >> 32);
        }
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) chosen = add_up_avx512;
    else if (__builtin_cpu_supports("avx2")) chosen = add_up_avx2;
#endif
}

// For a given place the two sums are permuted, so that different sums stay different.
static void finish(uint64_t sum[2], uint64_t offset, uint64_t length) {
    uint64_t place = mix(offset + GAMMA), a = sum[0] ^ place, b = sum[1] ^ mix(place + length);
    a ^= mix(b + 1 * GAMMA);
    b ^= mix(a + 2 * GAMMA);
    a ^= mix(b + 3 * GAMMA);
    b ^= mix(a + 4 * GAMMA);
    sum[0] = a;
    sum[1] = b;
}

static void add_digest(variant variant, const char *bytes, size_t length, uint64_t offset, uint64_t digest[2]) {
    for (size_t done = 0; done < length; done += granule) {
        size_t count = length - done < granule ? length - done : granule;
        uint64_t sum[2];
        variant(bytes + done, count, sum);
        finish(sum, offset + done, count);
        digest[0] += sum[0];
        digest[1] += sum[1];
    }
}

void te_digest_add(const void *bytes, size_t length, uint64_t offset, uint64_t digest[2]) {
    add_digest(chosen, bytes, length, offset, digest);
}

int te_digest_variant(int number, const void *bytes, size_t length, uint64_t offset, uint64_t digest[2]) {
    variant it = number == 0 ? add_up_plain : 0;
#if defined(__x86_64__)
    if (number == 1 && __builtin_cpu_supports("avx2")) it = add_up_avx2;
    if (number == 2 && __builtin_cpu_supports("avx512f")) it = add_up_avx512;
#endif
    if (!it) return 0;
    add_digest(it, bytes, length, offset, digest);
    return 1;
}
