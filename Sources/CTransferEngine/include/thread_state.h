// What the implementation keeps for each thread. Not part of the interface; not installed.
#ifndef TE_THREAD_STATE_H
#define TE_THREAD_STATE_H
#include "transfer_engine.h"

/// Sets what `te_last_error` returns; `message` is copied and cut where it is too long. `remedy` stays where it is.
void tei_set_error(int32_t code, const char *message, const char *remedy);
/// How many callbacks of ours this thread is inside of.
int tei_callback_depth(void);
void tei_call(te_callback callback, void *context, int32_t status);
/// How many forks lie between the process that loaded the library and this one.
uint32_t tei_forks(void);
#endif
