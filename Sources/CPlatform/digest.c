// The digest of transferred bytes (docs/reliability.md has the construction and its bound, docs/wire-format.md the numbers).
#include "digest.h"
#include "CPlatform.h"
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "digests are defined for little-endian machines"
#endif

#define GAMMA 0x9E3779B97F4A7C15ull

// The output function of SplitMix64 (Steele, Lea and Flood 2014).
static inline uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return z ^ z >> 31;
}

te_words te_digest_keys[te_granule_steps + 1];

// The sums over at most one granule.
static inline __attribute__((always_inline)) void add_up(const char *bytes, size_t length, struct te_granule *out) {
    struct te_granule sums = {{0}, {0}};
    size_t i = 0;
    for (; (i + 1) * te_step_bytes <= length; i++) {
        te_words m;
        memcpy(&m, bytes + i * te_step_bytes, te_step_bytes);
        te_add_step(&sums, &m, i);
    }
    if (i * te_step_bytes < length) {
        te_words m = {0};
        memcpy(&m, bytes + i * te_step_bytes, length - i * te_step_bytes);
        te_add_step(&sums, &m, i);
    }
    *out = sums;
}

static void add_up_plain(const char *bytes, size_t length, struct te_granule *out) { add_up(bytes, length, out); }
#if defined(__x86_64__)
__attribute__((target("avx2"))) static void add_up_avx2(const char *bytes, size_t length, struct te_granule *out) {
    add_up(bytes, length, out);
}
__attribute__((target("avx512f"))) static void add_up_avx512(const char *bytes, size_t length, struct te_granule *out) {
    add_up(bytes, length, out);
}
#endif

typedef void (*variant)(const char *, size_t, struct te_granule *);
static variant chosen = add_up_plain;

__attribute__((constructor)) static void prepare(void) {
    uint64_t state = 0x54452D4449474553ull;
    for (int i = 0; i <= te_granule_steps; i++)
        for (int word = 0; word < te_step_bytes / 4; word += 2) {
            uint64_t z = mix(state += GAMMA);
            te_digest_keys[i][word] = (uint32_t)z;
            te_digest_keys[i][word + 1] = (uint32_t)(z >> 32);
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

void te_digest_add_granule(
    const struct te_granule *sums, uint64_t offset, size_t length, uint64_t digest[2]) {
    uint64_t sum[2] = {0, 0};
    for (int lane = 0; lane < te_step_bytes / 8; lane++) {
        sum[0] += sums->first[lane];
        sum[1] += sums->second[lane];
    }
    finish(sum, offset, length);
    digest[0] += sum[0];
    digest[1] += sum[1];
}

static void add_digest(variant variant, const char *bytes, size_t length, uint64_t offset, uint64_t digest[2]) {
    for (size_t done = 0; done < length; done += te_granule_bytes) {
        size_t count = length - done < te_granule_bytes ? length - done : te_granule_bytes;
        struct te_granule sums;
        variant(bytes + done, count, &sums);
        te_digest_add_granule(&sums, offset + done, count, digest);
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
