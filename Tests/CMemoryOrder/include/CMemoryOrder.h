#ifndef CMEMORYORDER_H
#define CMEMORYORDER_H
#include <stdint.h>

/// Words on cache lines of their own, for a writer and an owner.
struct te_litmus;
struct te_litmus *te_litmus_new(void);
void te_litmus_free(struct te_litmus *litmus);
/// Announces itself, looks whether it may enter, and is inside for a while, until the litmus is over. No barrier between the first two.
void te_litmus_write(struct te_litmus *litmus);
/// Closes, calls `barrier`, waits until nobody is announced, and opens again. Whether somebody was inside then.
int te_litmus_close(struct te_litmus *litmus, int (*barrier)(void));
/// Ends te_litmus_write; how often it was inside.
uint64_t te_litmus_end(struct te_litmus *litmus);
#endif
