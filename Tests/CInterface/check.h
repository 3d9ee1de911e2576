// Checks that count, say where they fail, and go on; in any thread.
#ifndef CHECK_H
#define CHECK_H
#include <stdio.h>
#include <transfer_engine.h>

static int failures, checks;

#define CHECK(condition)                                                                  \
  do {                                                                                    \
    __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED);                                     \
    if (!(condition)) {                                                                   \
      __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);                                 \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, te_last_error()->message);\
    }                                                                                     \
  } while (0)

// The call returns this status, and says so in words when it is an error.
#define EXPECT(expected, call)                                                            \
  do {                                                                                    \
    int32_t status_ = (call);                                                             \
    __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED);                                     \
    if (status_ != (expected) ||                                                          \
        (status_ < 0 && (te_last_error()->code != status_ || !te_last_error()->message[0]))) {\
      __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);                                 \
      fprintf(stderr, "%s:%d: %s is %s instead of %s: %s\n", __FILE__, __LINE__, #call,   \
              te_status_name(status_), te_status_name(expected), te_last_error()->message);\
    }                                                                                     \
  } while (0)

static int report(const char *name) {
  printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures != 0;
}
#endif
