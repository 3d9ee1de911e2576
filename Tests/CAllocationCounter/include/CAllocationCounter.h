#ifndef C_ALLOCATION_COUNTER_H
#define C_ALLOCATION_COUNTER_H
#include <stdint.h>
/// Allocations of the whole process since it began, counted by replacing malloc and its relatives.
uint64_t allocation_count(void);
#endif
