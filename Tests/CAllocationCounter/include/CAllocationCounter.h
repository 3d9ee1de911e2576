// Counts the allocations of each thread of the process that loads this library.
#include <stdint.h>

/// Allocations of this thread so far, without those of the library that was told apart.
uint64_t allocation_count(void);
/// From now on, allocations that the library whose path contains `library` makes by itself are counted apart. Returns 0 when
/// no such library is loaded.
int allocation_tell_apart(const char *library);
/// Allocations of that library in this thread.
uint64_t allocation_count_of_library(void);
