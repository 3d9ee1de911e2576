// Weighted sums of rows, in FP32 and in the order of the rows; ExpertParallel's Kernels says what for.
#include "CPlatform.h"
#include <string.h>

// A multiplication and an addition that became one would round once, and on some processors only.
#pragma STDC FP_CONTRACT OFF
// Vectors are passed to functions that are always inlined only: there is no calling convention to disagree about.
#pragma clang diagnostic ignored "-Wpsabi"

#define INLINE static inline __attribute__((always_inline))

enum { lanes = 16, most = 8 };
typedef uint32_t words __attribute__((vector_size(4 * lanes)));
typedef float floats __attribute__((vector_size(4 * lanes)));
typedef _Float16 halves __attribute__((vector_size(2 * lanes)));

// Two times sixteen neighbouring values. Of BF16 the even and the odd ones, since then widening is a shift and a mask; of other
// types the lower and the upper ones.
typedef struct {
    floats first, second;
} values;

INLINE floats floats_at(const char *place) {
    floats value;
    memcpy(&value, place, sizeof value);
    return value;
}

INLINE floats halves_at(const char *place) {
    halves value;
    memcpy(&value, place, sizeof value);
    return __builtin_convertvector(value, floats);
}

INLINE values load(const char *row, size_t index, int type) {
    if (type == te_float32) return (values){floats_at(row + index * 4), floats_at(row + index * 4 + 4 * lanes)};
    if (type == te_float16) return (values){halves_at(row + index * 2), halves_at(row + index * 2 + 2 * lanes)};
    words pairs;
    memcpy(&pairs, row + index * 2, sizeof pairs);
    return (values){(floats)(pairs << 16), (floats)(pairs & 0xFFFF0000)};
}

// BF16 in the upper halves of words: the nearest, ties to even; a NaN stays one, whatever its lower bits are.
INLINE words rounded(floats value) {
    words bits = (words)value, near = bits + 0x7FFF + (bits >> 16 & 1);
    words is_nan = (words)(value != value);
    return (near & ~is_nan) | ((bits | 0x400000) & is_nan);
}

INLINE values even_and_odd(values v) {
    return (values){
        __builtin_shufflevector(v.first, v.second, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
        __builtin_shufflevector(v.first, v.second, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
}

INLINE values lower_and_upper(values v) {
    return (values){
        __builtin_shufflevector(v.first, v.second, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
        __builtin_shufflevector(v.first, v.second, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
}

INLINE void store(char *row, size_t index, int type, values v) {
    if (type == te_float32) {
        memcpy(row + index * 4, &v.first, sizeof v.first);
        memcpy(row + index * 4 + 4 * lanes, &v.second, sizeof v.second);
    } else if (type == te_float16) {
        halves first = __builtin_convertvector(v.first, halves), second = __builtin_convertvector(v.second, halves);
        memcpy(row + index * 2, &first, sizeof first);
        memcpy(row + index * 2 + 2 * lanes, &second, sizeof second);
    } else {
        words pairs = rounded(v.first) >> 16 | (rounded(v.second) & 0xFFFF0000);
        memcpy(row + index * 2, &pairs, sizeof pairs);
    }
}

INLINE values rearranged(values v, int is_paired, int wants_paired) {
    if (is_paired && !wants_paired) return lower_and_upper(v);
    if (!is_paired && wants_paired) return even_and_odd(v);
    return v;
}

INLINE values plus(values all, values next, float weight) {
    return (values){all.first + next.first * weight, all.second + next.second * weight};
}

// Others' sums, arranged as rows of the type are.
INLINE values plus_parts(values all, const void *const *parts, size_t count, int type, size_t index) {
    for (size_t part = 0; part < count; part++)
        all = plus(all, rearranged(load(parts[part], index, te_float32), 0, type == te_bfloat16), 1);
    return all;
}

INLINE void sum_rows(struct te_terms terms, size_t count, int type, char *target, int target_type, size_t length) {
    // Copies that nothing that is stored can be, for all that the compiler knows: they stay in registers.
    const void *copies[most];
    float factors[most];
    for (size_t row = 0; row < count && count <= most; row++)
        copies[row] = terms.rows[row], factors[row] = terms.weights[row];
    const void *const *rows = count <= most ? copies : terms.rows;
    const float *weights = count <= most ? factors : terms.weights;
    const void *const *behind = terms.parts + terms.before;
    size_t before = terms.before, behind_count = terms.part_count - before;
    for (size_t block = 0; block < length; block += 2 * lanes) {
        // What the last block and the one before it have in common is written twice, and the same.
        size_t index = block + 2 * lanes <= length ? block : length - 2 * lanes;
        values own = {{0}, {0}};
        for (size_t row = 0; row < count; row++) own = plus(own, load(rows[row], index, type), weights[row]);
        if (terms.part_count > 0) {
            values all = plus_parts((values){{0}, {0}}, terms.parts, before, type, index);
            own = plus_parts(plus(all, own, 1), behind, behind_count, type, index);
        }
        store(target, index, target_type, rearranged(own, type == te_bfloat16, target_type == te_bfloat16));
    }
}

// A loop of its own for each usual number of rows is twice as fast.
INLINE void sum(struct te_terms terms, int type, char *target, int target_type, size_t length) {
    if (type == te_float16 || target_type == te_float16)
        return sum_rows(terms, terms.count, type, target, target_type, length);
    switch (terms.count) {
    case 1: return sum_rows(terms, 1, type, target, target_type, length);
    case 2: return sum_rows(terms, 2, type, target, target_type, length);
    case 3: return sum_rows(terms, 3, type, target, target_type, length);
    case 4: return sum_rows(terms, 4, type, target, target_type, length);
    case 5: return sum_rows(terms, 5, type, target, target_type, length);
    case 6: return sum_rows(terms, 6, type, target, target_type, length);
    case 7: return sum_rows(terms, 7, type, target, target_type, length);
    case 8: return sum_rows(terms, 8, type, target, target_type, length);
    default: return sum_rows(terms, terms.count, type, target, target_type, length);
    }
}

// Rows that are shorter than a block, as blocks of which the rest is zero.
static void sum_short(const struct te_terms *terms, int type, char *target, int target_type, size_t length) {
    char line[8 * lanes] = {0};
    values own = {{0}, {0}}, all = own;
    for (size_t row = 0; row < terms->count; row++) {
        memcpy(line, terms->rows[row], length * (type == te_float32 ? 4 : 2));
        own = plus(own, load(line, 0, type), terms->weights[row]);
    }
    own = rearranged(own, type == te_bfloat16, 0);
    for (size_t part = 0; part <= terms->part_count; part++) {
        if (part == terms->before) all = plus(all, own, 1);
        if (part == terms->part_count) break;
        memcpy(line, terms->parts[part], length * 4);
        all = plus(all, load(line, 0, te_float32), 1);
    }
    store(line, 0, target_type, rearranged(all, 0, target_type == te_bfloat16));
    memcpy(target, line, length * (target_type == te_float32 ? 4 : 2));
}

// The types become constants here: a loop for each pair.
INLINE void sum_of(struct te_terms terms, int type, char *target, int target_type, size_t length) {
    if (target_type == te_float32) sum(terms, type, target, te_float32, length);
    else if (target_type == te_float16) sum(terms, type, target, te_float16, length);
    else sum(terms, type, target, te_bfloat16, length);
}

#define SUM(name, attributes) \
    attributes static void name( \
        const struct te_terms *terms, int type, char *target, int target_type, size_t length) { \
        if (type == te_float32) sum_of(*terms, te_float32, target, target_type, length); \
        else if (type == te_float16) sum_of(*terms, te_float16, target, target_type, length); \
        else sum_of(*terms, te_bfloat16, target, target_type, length); \
    }

SUM(sum_plain, )
#if defined(__x86_64__)
SUM(sum_avx2, __attribute__((target("avx2,f16c"))))
SUM(sum_avx512, __attribute__((target("avx512f,avx512bw,avx512vl,f16c"))))
#endif

typedef void summer(const struct te_terms *, int, char *, int, size_t);
static summer *best = sum_plain;

// The variant, or nothing when this processor does not have it.
static summer *variant(int number) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (number == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? sum_avx2 : NULL;
    if (number == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c")
            ? sum_avx512
            : NULL;
#endif
    return number == 0 ? sum_plain : NULL;
}

__attribute__((constructor)) static void choose(void) {
    for (int number = 1; number <= 2; number++)
        if (variant(number)) best = variant(number);
}

void te_weighted_sum(const struct te_terms *terms, int type, void *target, int target_type, size_t length) {
    if (length < 2 * lanes) sum_short(terms, type, target, target_type, length);
    else best(terms, type, target, target_type, length);
}

int te_weighted_sum_variant(
    int number, const struct te_terms *terms, int type, void *target, int target_type, size_t length) {
    summer *chosen = variant(number);
    if (chosen && length < 2 * lanes) sum_short(terms, type, target, target_type, length);
    else if (chosen) chosen(terms, type, target, target_type, length);
    return chosen != NULL;
}
