// Tells the thread sanitizer of Swift's mutexes: whoever waited for one sees what its last holder wrote. The quick ways of Mutex
// are compiled into its users and instrumented, the slow ones are in a library that is not. Loaded before that library
// (`dev/sanitize-threads`).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>

#define LOCK "$s15Synchronization12_MutexHandleV9_lockSlowyys6UInt32VF"
#define UNLOCK "$s15Synchronization12_MutexHandleV11_unlockSlowyyF"
#define SELF void *self __attribute__((swift_context))

typedef __attribute__((swiftcall)) void lock_slow(uint32_t, SELF);
typedef __attribute__((swiftcall)) void unlock_slow(SELF);

// Weak: the symbolizer and other children of what is examined have none.
__attribute__((weak)) void __tsan_acquire(void *);
__attribute__((weak)) void __tsan_release(void *);

static lock_slow *their_lock;
static unlock_slow *their_unlock;

__attribute__((constructor)) static void find(void) {
    their_lock = (lock_slow *)dlsym(RTLD_NEXT, LOCK);
    their_unlock = (unlock_slow *)dlsym(RTLD_NEXT, UNLOCK);
    // Another version of Swift: better no run than one that reports what is not there.
    if (__tsan_acquire && (!their_lock || !their_unlock)) abort();
}

lock_slow te_lock_slow __asm__(LOCK);
unlock_slow te_unlock_slow __asm__(UNLOCK);

__attribute__((swiftcall)) void te_lock_slow(uint32_t seen, SELF) {
    their_lock(seen, self);
    if (__tsan_acquire) __tsan_acquire(self);
}

__attribute__((swiftcall)) void te_unlock_slow(SELF) {
    if (__tsan_release) __tsan_release(self);
    their_unlock(self);
}
