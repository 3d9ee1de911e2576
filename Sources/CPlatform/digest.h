// What digest.c shares with kernels that digest what they make.
#include <stddef.h>
#include <stdint.h>

enum { te_granule_bytes = 4096, te_step_bytes = 64, te_granule_steps = te_granule_bytes / te_step_bytes };
typedef uint32_t te_words __attribute__((vector_size(te_step_bytes)));
typedef uint64_t te_sums __attribute__((vector_size(te_step_bytes)));

/// The two sums of products over a granule, not yet added up over the lanes.
struct te_granule {
    te_sums first, second;
};

/// One set of words for each step of a granule, and one more: the second sum is one step ahead of the first.
extern te_words te_digest_keys[te_granule_steps + 1] __attribute__((visibility("hidden")));

static inline __attribute__((always_inline)) void te_add_step(
    struct te_granule *sums, const te_words *bytes, size_t step) {
    te_sums x = (te_sums)(*bytes + te_digest_keys[step]), y = (te_sums)(*bytes + te_digest_keys[step + 1]);
    sums->first += (x & 0xFFFFFFFFu) * (x >> 32);
    sums->second += (y & 0xFFFFFFFFu) * (y >> 32);
}

/// Adds a granule of `length` bytes that go to `offset` of a region to `digest`.
void te_digest_add_granule(
    const struct te_granule *sums, uint64_t offset, size_t length, uint64_t digest[2])
    __attribute__((visibility("hidden")));
