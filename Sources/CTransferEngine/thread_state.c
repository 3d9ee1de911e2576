#include "thread_state.h"

#include <pthread.h>
#include <stdatomic.h>

static _Thread_local struct {
    te_error error;
    int callback_depth;
    char message[2048];
} state;

void tei_set_error(int32_t code, const char *message, const char *remedy) {
    size_t length = strlen(message);
    if (length >= sizeof state.message) {
        length = sizeof state.message - 1;
        while (length > 0 && ((unsigned char)message[length] & 0xC0) == 0x80) length -= 1;
    }
    memmove(state.message, message, length);
    state.message[length] = 0;
    state.error = (te_error){code, 0, state.message, remedy};
}

const te_error *te_last_error(void) {
    if (!state.error.message) state.error.message = state.error.remedy = "";
    return &state.error;
}

int tei_callback_depth(void) { return state.callback_depth; }

void tei_call(te_callback callback, void *context, int32_t status) {
    state.callback_depth += 1;
    callback(context, status);
    state.callback_depth -= 1;
}

static _Atomic uint32_t forks;

static void count_fork(void) { atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed); }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

uint32_t tei_forks(void) { return atomic_load_explicit(&forks, memory_order_relaxed); }

uint32_t te_abi_version(void) { return TE_ABI_VERSION; }
