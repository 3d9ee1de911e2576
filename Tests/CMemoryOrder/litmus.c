#include "CMemoryOrder.h"
#include <stdatomic.h>
#include <stdlib.h>

enum { lines = 64 };

struct line {
    _Alignas(128) _Atomic uint64_t value;
};
struct te_litmus {
    struct line announced, closed, inside, over, others[lines];
};

struct te_litmus *te_litmus_new(void) {
    struct te_litmus *litmus = aligned_alloc(128, sizeof *litmus);
    if (litmus) *litmus = (struct te_litmus){0};
    return litmus;
}
void te_litmus_free(struct te_litmus *litmus) { free(litmus); }

static void pause_some(int times) {
    for (volatile int i = 0; i < times; i++) {}
}

void te_litmus_write(struct te_litmus *litmus) {
    while (!atomic_load_explicit(&litmus->over.value, memory_order_relaxed)) {
        // The owner has read these lines, so that the stores take long, and what is announced waits behind them.
        for (int i = 0; i < 16; i++) atomic_store_explicit(&litmus->others[i].value, 1, memory_order_relaxed);
        atomic_store_explicit(&litmus->announced.value, 1, memory_order_relaxed);
        atomic_signal_fence(memory_order_seq_cst);
        if (!atomic_load_explicit(&litmus->closed.value, memory_order_acquire)) {
            pause_some(200);
            atomic_fetch_add_explicit(&litmus->inside.value, 1, memory_order_relaxed);
        }
        atomic_store_explicit(&litmus->announced.value, 0, memory_order_release);
        pause_some(200);
    }
}

int te_litmus_close(struct te_litmus *litmus, int (*barrier)(void)) {
    uint64_t sum = 0;
    for (int i = 0; i < lines; i++) sum += atomic_load_explicit(&litmus->others[i].value, memory_order_relaxed);
    atomic_store(&litmus->closed.value, 1);
    int refused = barrier();
    while (atomic_load_explicit(&litmus->announced.value, memory_order_acquire)) {}
    uint64_t before = atomic_load_explicit(&litmus->inside.value, memory_order_relaxed);
    pause_some(2000);
    int moved = before != atomic_load_explicit(&litmus->inside.value, memory_order_relaxed);
    atomic_store(&litmus->closed.value, 0);
    pause_some((int)(sum & 1) + 300);
    return refused || moved;
}

uint64_t te_litmus_end(struct te_litmus *litmus) {
    atomic_store(&litmus->over.value, 1);
    return atomic_load(&litmus->inside.value);
}
