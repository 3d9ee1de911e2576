// Page lists without Python in between, for pages.py: the same calls, the same lists, the same target.
#include <time.h>
#include <transfer_engine.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

// Writes lists in turn, each of `pages`, for `seconds`. Returns how many; negative is a status.
long native_loop(te_engine engine, te_region source, te_remote target, const uint32_t *const *lists, int sets,
                 uint64_t pages, uint64_t page_bytes, uint32_t immediate, double seconds) {
  double end = now() + seconds;
  long count = 0;
  while (now() < end) {
    const uint32_t *const *list = lists + 2 * (count % sets);
    te_operation operation;
    te_transfer transfer;
    te_prepare_paged(&operation, source, list[0], target, list[1], pages, page_bytes, immediate);
    int32_t status = te_submit(engine, &operation, 1, &transfer, NULL);
    if (status == TE_OK) status = te_wait(&transfer, 1, TE_DEFAULT_TIMEOUT, NULL);
    if (status != TE_OK) return status;
    count += 1;
  }
  return count;
}
