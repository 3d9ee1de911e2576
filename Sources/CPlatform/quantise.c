// BF16 to FP8 (E4M3) with one scale for a block; WeightTransfer's BlockQuantisation says what and why.
#include "digest.h"
#include "CPlatform.h"
#include <string.h>

// A multiplication and an addition that became one would round once where PyTorch rounds twice.
#pragma STDC FP_CONTRACT OFF

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The code of a number without sign, at most 448 and a rounding error.
//
// Adding a power of two that is 2^20 times the number's own lets the addition round to three bits of mantissa, to even; below
// the smallest normal number, 2^-6, the step stays 2^-9. What the sum has more than that power of two is 8 to 16 then (or 0 to
// 8), and joined with the exponent above that of 2^-6 it is the code.
static inline __attribute__((always_inline)) uint32_t code_of(float magnitude) {
    const uint32_t least = 0x3C800000;
    uint32_t exponent = bits_of(magnitude) & 0x7F800000;
    exponent = exponent < least ? least : exponent;
    uint32_t power = exponent + (20u << 23);
    float sum = magnitude + float_of(power);
    return bits_of(sum) - power + ((exponent - least) >> 20);
}

uint8_t te_e4m3(float value) {
    uint32_t bits = bits_of(value);
    return (uint8_t)(code_of(float_of(bits & 0x7FFFFFFF)) | (bits >> 24 & 0x80));
}

// Vectors are passed to functions that are always inlined only: there is no calling convention to disagree about.
#pragma clang diagnostic ignored "-Wpsabi"

enum { lanes = 32 };
typedef int16_t halves __attribute__((vector_size(2 * lanes)));
typedef uint32_t words __attribute__((vector_size(2 * lanes)));
typedef float floats __attribute__((vector_size(2 * lanes)));
typedef uint8_t codes __attribute__((vector_size(lanes)));

static inline __attribute__((always_inline)) halves load(const uint16_t *source) {
    halves value;
    memcpy(&value, source, sizeof value);
    return value;
}

// As code_of, for sixteen numbers.
static inline __attribute__((always_inline)) words codes_of(words magnitudes, float factor) {
    floats value = (floats)magnitudes * factor;
    words least = (words){0} + 0x3C800000;
    words exponent = __builtin_elementwise_max((words)value & 0x7F800000, least);
    words power = exponent + (20u << 23);
    floats sum = value + (floats)power;
    return (words)sum - power + ((exponent - least) >> 20);
}

// The codes of neighbours.
static inline __attribute__((always_inline)) codes convert(const uint16_t *source, float factor) {
    halves bits = load(source);
    // Two numbers in each word.
    words pairs = (words)bits;
    words low = codes_of(pairs << 16 & 0x7FFFFFFF, factor), high = codes_of(pairs & 0x7FFF0000, factor);
    halves both = (halves)(low | high << 16) | (bits >> 8 & 0x80);
    return __builtin_convertvector(both, codes);
}

// Of numbers without a sign the order of the bits is that of the values, and NaN is above all.
static inline __attribute__((always_inline)) float largest_of(
    const uint16_t *source, size_t stride, size_t rows, size_t columns) {
    halves first = {0}, second = {0};
    int16_t largest = 0;
    for (size_t row = 0; row < rows; row++) {
        const uint16_t *line = source + row * stride;
        size_t column = 0;
        for (; column + 2 * lanes <= columns; column += 2 * lanes) {
            first = __builtin_elementwise_max(first, load(line + column) & 0x7FFF);
            second = __builtin_elementwise_max(second, load(line + column + lanes) & 0x7FFF);
        }
        for (; column < columns; column++) {
            int16_t magnitude = line[column] & 0x7FFF;
            if (magnitude > largest) largest = magnitude;
        }
    }
    int16_t rest = __builtin_reduce_max(__builtin_elementwise_max(first, second));
    return float_of((uint32_t)(rest > largest ? rest : largest) << 16);
}

// The factor of a block; 0 or infinite where there is none, and all of it becomes NaN.
static inline __attribute__((always_inline)) float factor_of(float largest, float *scale) {
    const float limit = 448, smallest = 1e-4f;
    if (largest < smallest) largest = smallest;
    *scale = largest / limit;
    return 1 / largest * limit;
}

static inline int is_usable(float factor) { return factor > 0 && factor < __builtin_inff(); }

// Rows are too short for the processor to see what comes next: the block beside this one. By then it is too late for that.
static inline __attribute__((always_inline)) void fetch_beside(const uint16_t *line, size_t columns) {
    for (size_t byte = 0; byte < 2 * columns; byte += 64)
        __builtin_prefetch((const void *)((uintptr_t)line + 4 * columns + byte));
}

static inline __attribute__((always_inline)) void quantise(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scale) {
    float factor = factor_of(largest_of(source, stride, rows, columns), scale);
    if (!is_usable(factor)) {
        for (size_t row = 0; row < rows; row++) memset(target + row * target_stride, 0x7F, columns);
        return;
    }
    for (size_t row = 0; row < rows; row++) {
        const uint16_t *line = source + row * stride;
        uint8_t *out = target + row * target_stride;
        size_t column = 0;
        fetch_beside(line, columns);
        for (; column + lanes <= columns; column += lanes) {
            codes narrow = convert(line + column, factor);
            memcpy(out + column, &narrow, sizeof narrow);
        }
        for (; column < columns; column++) {
            uint32_t code = code_of(float_of((uint32_t)(line[column] & 0x7FFF) << 16) * factor);
            out[column] = (uint8_t)(code | (line[column] >> 8 & 0x80));
        }
    }
}

// Blocks beside each other whose codes go past the cache, and into the granules of the digest that they belong to.
enum { block = 128, most_granules = 512 };
typedef uint8_t bytes __attribute__((vector_size(te_step_bytes)));

// One block. Its first row begins with step `step` of the granules, and each row `row_steps` after the one before.
static inline __attribute__((always_inline)) void quantise_and_digest(
    const uint16_t *source, size_t stride, size_t rows, uint8_t *target, size_t target_stride, float factor,
    struct te_granule *granules, size_t step, size_t row_steps, int is_number) {
    int is_aligned = (((uintptr_t)target | target_stride) & (sizeof(bytes) - 1)) == 0;
    for (size_t row = 0; row < rows; row++, step += row_steps) {
        const uint16_t *line = source + row * stride;
        uint8_t *out = target + row * target_stride;
        // Steps of a row come in pairs: both are of one granule.
        struct te_granule *granule = &granules[step / te_granule_steps], sums = *granule;
        fetch_beside(line, block);
        for (size_t column = 0; column < block; column += te_step_bytes) {
            bytes narrow = (bytes){0} + 0x7F;
            if (is_number) {
                codes low = convert(line + column, factor), high = convert(line + column + lanes, factor);
                memcpy(&narrow, &low, sizeof low);
                memcpy((char *)&narrow + sizeof low, &high, sizeof high);
            }
            if (is_aligned) __builtin_nontemporal_store(narrow, (bytes *)(out + column));
            else memcpy(out + column, &narrow, sizeof narrow);
            te_add_step(&sums, (const te_words *)&narrow, (step + column / te_step_bytes) % te_granule_steps);
        }
        *granule = sums;
    }
}

static inline __attribute__((always_inline)) void quantise_rows(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scales, uint64_t offset, uint64_t digest[2]) {
    // One range of all rows, or one for each.
    size_t ranges = columns == target_stride ? 1 : rows, length = rows * columns / ranges;
    size_t granule_count = (length + te_granule_bytes - 1) / te_granule_bytes;
    if (columns % block != 0 || ranges * granule_count > most_granules) {
        for (size_t column = 0; column < columns; column += block) {
            size_t width = columns - column < block ? columns - column : block;
            quantise(source + column, stride, rows, width, target + column, target_stride, scales++);
        }
        for (size_t range = 0; range < ranges; range++)
            te_digest_add(target + range * target_stride, length, offset + range * target_stride, digest);
        return;
    }
    struct te_granule granules[most_granules];
    memset(granules, 0, ranges * granule_count * sizeof *granules);
    size_t row_steps = ranges == 1 ? columns / te_step_bytes : granule_count * te_granule_steps;
    for (size_t column = 0; column < columns; column += block, scales++) {
        float factor = factor_of(largest_of(source + column, stride, rows, block), scales);
        size_t step = column / te_step_bytes;
        if (is_usable(factor))
            quantise_and_digest(
                source + column, stride, rows, target + column, target_stride, factor, granules, step, row_steps, 1);
        else
            quantise_and_digest(
                source + column, stride, rows, target + column, target_stride, 0, granules, step, row_steps, 0);
    }
    const struct te_granule *next = granules;
    for (size_t range = 0; range < ranges; range++)
        for (size_t done = 0; done < length; done += te_granule_bytes) {
            size_t count = length - done < te_granule_bytes ? length - done : te_granule_bytes;
            te_digest_add_granule(next++, offset + range * target_stride + done, count, digest);
        }
}

#define QUANTISE(name, attributes) \
    attributes static void name##_block( \
        const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride, \
        float *scale) { \
        quantise(source, stride, rows, columns, target, target_stride, scale); \
    } \
    attributes static void name##_rows( \
        const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride, \
        float *scales, uint64_t offset, uint64_t digest[2]) { \
        quantise_rows(source, stride, rows, columns, target, target_stride, scales, offset, digest); \
    } \
    static const struct quantiser name = {name##_block, name##_rows};

struct quantiser {
    void (*block)(const uint16_t *, size_t, size_t, size_t, uint8_t *, size_t, float *);
    void (*rows)(
        const uint16_t *, size_t, size_t, size_t, uint8_t *, size_t, float *, uint64_t, uint64_t[2]);
};

QUANTISE(quantise_plain, )
#if defined(__x86_64__)
QUANTISE(quantise_avx2, __attribute__((target("avx2"))))
QUANTISE(quantise_avx512, __attribute__((target("avx512f,avx512bw,avx512vl"))))
#endif

static const struct quantiser *best = &quantise_plain;

// The variant, or nothing when this processor does not have it.
static const struct quantiser *variant(int number) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (number == 1) return __builtin_cpu_supports("avx2") ? &quantise_avx2 : NULL;
    if (number == 2)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl")
            ? &quantise_avx512
            : NULL;
#endif
    return number == 0 ? &quantise_plain : NULL;
}

__attribute__((constructor)) static void choose(void) {
    for (int number = 1; number <= 2; number++)
        if (variant(number)) best = variant(number);
}

void te_quantise_block(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scale) {
    best->block(source, stride, rows, columns, target, target_stride, scale);
}

int te_quantise_block_variant(
    int number, const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target,
    size_t target_stride, float *scale) {
    const struct quantiser *chosen = variant(number);
    if (chosen) chosen->block(source, stride, rows, columns, target, target_stride, scale);
    return chosen != NULL;
}

void te_quantise_rows(
    const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target, size_t target_stride,
    float *scales, uint64_t offset, uint64_t digest[2]) {
    best->rows(source, stride, rows, columns, target, target_stride, scales, offset, digest);
}

int te_quantise_rows_variant(
    int number, const uint16_t *source, size_t stride, size_t rows, size_t columns, uint8_t *target,
    size_t target_stride, float *scales, uint64_t offset, uint64_t digest[2]) {
    const struct quantiser *chosen = variant(number);
    if (chosen) chosen->rows(source, stride, rows, columns, target, target_stride, scales, offset, digest);
    return chosen != NULL;
}
