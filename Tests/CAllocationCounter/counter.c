#define _GNU_SOURCE
#include "CAllocationCounter.h"
#include <errno.h>
#include <link.h>
#include <stddef.h>
#include <string.h>

// glibc's own allocator under its internal names; ours count and pass on.
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

// Of this thread: other threads run other tests.
static _Thread_local uint64_t allocations, foreign;
// The code of the library whose allocations are not ours.
static uintptr_t library_begin, library_end;

static int note(struct dl_phdr_info *info, size_t size, void *name) {
    (void)size;
    if (!strstr(info->dlpi_name, name)) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        library_begin = info->dlpi_addr + part->p_vaddr;
        library_end = library_begin + part->p_memsz;
        return 1;
    }
    return 0;
}

int allocation_tell_apart(const char *library) { return dl_iterate_phdr(note, (void *)library); }

static void *counted(void *memory, void *caller) {
    uintptr_t at = (uintptr_t)caller;
    if (at >= library_begin && at < library_end) foreign++;
    else allocations++;
    return memory;
}

uint64_t allocation_count(void) { return allocations; }
uint64_t allocation_count_of_library(void) { return foreign; }

#if !defined(__SANITIZE_ADDRESS__) && !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer)
#define CALLER __builtin_return_address(0)
void *malloc(size_t size) { return counted(__libc_malloc(size), CALLER); }
void *calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size), CALLER); }
void *realloc(void *old, size_t size) { return counted(__libc_realloc(old, size), CALLER); }
void *aligned_alloc(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size), CALLER); }
int posix_memalign(void **result, size_t alignment, size_t size) {
    void *memory = counted(__libc_memalign(alignment, size), CALLER);
    if (!memory) return ENOMEM;
    *result = memory;
    return 0;
}
#endif
