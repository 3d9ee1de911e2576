// Copying page lists that are too long for the cache.
#include "CPlatform.h"
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>

// `target` is aligned to 64 and `length` is a multiple of 64 in all of these.
__attribute__((target("avx512f"))) static void stream_avx512(char *target, const char *source, size_t length) {
    size_t i = 0;
    for (; i + 256 <= length; i += 256) {
        __m512i a = _mm512_loadu_si512(source + i), b = _mm512_loadu_si512(source + i + 64);
        __m512i c = _mm512_loadu_si512(source + i + 128), d = _mm512_loadu_si512(source + i + 192);
        _mm512_stream_si512((void *)(target + i), a);
        _mm512_stream_si512((void *)(target + i + 64), b);
        _mm512_stream_si512((void *)(target + i + 128), c);
        _mm512_stream_si512((void *)(target + i + 192), d);
    }
    for (; i < length; i += 64) _mm512_stream_si512((void *)(target + i), _mm512_loadu_si512(source + i));
}

__attribute__((target("avx"))) static void stream_avx(char *target, const char *source, size_t length) {
    for (size_t i = 0; i < length; i += 64) {
        __m256i a = _mm256_loadu_si256((const void *)(source + i));
        __m256i b = _mm256_loadu_si256((const void *)(source + i + 32));
        _mm256_stream_si256((void *)(target + i), a);
        _mm256_stream_si256((void *)(target + i + 32), b);
    }
}

static void stream_sse2(char *target, const char *source, size_t length) {
    for (size_t i = 0; i < length; i += 16)
        _mm_stream_si128((void *)(target + i), _mm_loadu_si128((const void *)(source + i)));
}

static void (*stream)(char *, const char *, size_t) = stream_sse2;
static size_t limit = PTRDIFF_MAX;  // Swift reads it as a number with a sign

__attribute__((constructor)) static void choose_stream(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) stream = stream_avx512;
    else if (__builtin_cpu_supports("avx")) stream = stream_avx;
    if (__builtin_cpu_is("intel")) limit = 32768;
}

size_t te_copy_streaming_limit(void) { return limit; }

void te_copy_streaming(void *target, const void *source, size_t length) {
    if (length < 256) {
        memcpy(target, source, length);
        return;
    }
    char *t = target;
    const char *s = source;
    size_t head = -(uintptr_t)t & 63, body = (length - head) & ~(size_t)63;
    if (head) memcpy(t, s, head);
    stream(t + head, s + head, body);
    size_t done = head + body;
    if (done < length) memcpy(t + done, s + done, length - done);
}

void te_copy_fence(void) { _mm_sfence(); }
#else
size_t te_copy_streaming_limit(void) { return PTRDIFF_MAX; }
void te_copy_streaming(void *target, const void *source, size_t length) { memcpy(target, source, length); }
void te_copy_fence(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
#endif
