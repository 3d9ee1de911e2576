#include "CHwloc.h"
#include <dlfcn.h>
#include <errno.h>
#include <hwloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    unsigned (*get_api_version)(void);
    int (*init)(hwloc_topology_t *);
    int (*set_xmlbuffer)(hwloc_topology_t, const char *, int);
    int (*set_io_types_filter)(hwloc_topology_t, enum hwloc_type_filter_e);
    int (*load)(hwloc_topology_t);
    void (*destroy)(hwloc_topology_t);
    hwloc_obj_t (*get_obj_by_depth)(hwloc_topology_t, int, unsigned);
    int (*bitmap_weight)(hwloc_const_bitmap_t);
    int (*bitmap_first)(hwloc_const_bitmap_t);
    int (*bitmap_next)(hwloc_const_bitmap_t, int);
    int (*get_type_depth)(hwloc_topology_t, hwloc_obj_type_t);
} library;
static char load_error[256];
static int is_loaded;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;

static void load(void) {
    void *handle = dlopen("libhwloc.so.15", RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *why = dlerror();
        snprintf(load_error, sizeof load_error, "%s", why ? why : "libhwloc.so.15 cannot be loaded");
        return;
    }
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {
        {"hwloc_get_api_version", &library.get_api_version},
        {"hwloc_topology_init", &library.init},
        {"hwloc_topology_set_xmlbuffer", &library.set_xmlbuffer},
        {"hwloc_topology_set_io_types_filter", &library.set_io_types_filter},
        {"hwloc_topology_load", &library.load},
        {"hwloc_topology_destroy", &library.destroy},
        {"hwloc_get_obj_by_depth", &library.get_obj_by_depth},
        {"hwloc_bitmap_weight", &library.bitmap_weight},
        {"hwloc_bitmap_first", &library.bitmap_first},
        {"hwloc_bitmap_next", &library.bitmap_next},
        {"hwloc_get_type_depth", &library.get_type_depth},
    };
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (!symbol) {
            snprintf(load_error, sizeof load_error, "libhwloc.so.15 has no %s", symbols[i].name);
            return;
        }
        memcpy(symbols[i].slot, &symbol, sizeof symbol);
    }
    unsigned version = library.get_api_version();
    if (version >> 16 != HWLOC_API_VERSION >> 16) {
        snprintf(
            load_error, sizeof load_error, "libhwloc.so.15 has interface %#x, this was built for %#x", version,
            HWLOC_API_VERSION);
        return;
    }
    is_loaded = 1;
}

struct list {
    struct te_hardware *objects;
    size_t count, capacity;
    /// Whether the machine tells its cores; files may leave them out.
    int has_cores;
};

/// An empty entry at the end; NULL when memory runs out.
static struct te_hardware *append(struct list *list, int32_t parent) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 256;
        void *grown = realloc(list->objects, capacity * sizeof *list->objects);
        if (!grown) return NULL;
        list->objects = grown;
        list->capacity = capacity;
    }
    struct te_hardware *entry = &list->objects[list->count++];
    memset(entry, 0, sizeof *entry);
    entry->parent = parent;
    return entry;
}

static void copy_text(char *target, size_t capacity, const char *text) {
    snprintf(target, capacity, "%s", text ? text : "");
}

static const char *info(hwloc_obj_t object, const char *name) {
    for (unsigned i = 0; i < object->infos_count; i++)
        if (!strcmp(object->infos[i].name, name)) return object->infos[i].value;
    return NULL;
}

static int kind_of_device(hwloc_obj_osdev_type_t type) {
    switch (type) {
    case HWLOC_OBJ_OSDEV_NETWORK: return TE_HARDWARE_NETWORK;
    case HWLOC_OBJ_OSDEV_OPENFABRICS: return TE_HARDWARE_RDMA;
    case HWLOC_OBJ_OSDEV_COPROC: return TE_HARDWARE_ACCELERATOR;
    default: return TE_HARDWARE_OTHER;
    }
}

static int kind_of(hwloc_obj_t object) {
    switch (object->type) {
    case HWLOC_OBJ_NUMANODE: return TE_HARDWARE_NODE;
    case HWLOC_OBJ_CORE: return TE_HARDWARE_CORE;
    case HWLOC_OBJ_PU: return TE_HARDWARE_PROCESSOR;
    case HWLOC_OBJ_PCI_DEVICE: return TE_HARDWARE_PCI;
    case HWLOC_OBJ_OS_DEVICE: return kind_of_device(object->attr->osdev.type);
    case HWLOC_OBJ_BRIDGE:
        return object->attr->bridge.upstream_type == HWLOC_OBJ_BRIDGE_HOST ? TE_HARDWARE_HOST_BRIDGE
                                                                           : TE_HARDWARE_BRIDGE;
    default: return TE_HARDWARE_OTHER;
    }
}

/// Devices are near what the object above them is near.
static int node_of(hwloc_obj_t object) {
    while (object && !object->nodeset) object = object->parent;
    if (!object || library.bitmap_weight(object->nodeset) != 1) return -1;
    return library.bitmap_first(object->nodeset);
}

static void describe(hwloc_obj_t object, struct te_hardware *to) {
    to->kind = kind_of(object);
    to->number = object->os_index == HWLOC_UNKNOWN_INDEX ? -1 : (int32_t)object->os_index;
    to->node = node_of(object);
    copy_text(to->name, sizeof to->name, object->name);
    if (object->type == HWLOC_OBJ_NUMANODE) to->memory = object->attr->numanode.local_memory;
    if (object->type == HWLOC_OBJ_OS_DEVICE) copy_text(to->model, sizeof to->model, info(object, "GPUModel"));
    if (object->type != HWLOC_OBJ_PCI_DEVICE) return;
    const struct hwloc_pcidev_attr_s *pci = &object->attr->pcidev;
    to->domain = (uint16_t)pci->domain;
    to->bus = pci->bus;
    to->slot = pci->dev;
    to->function = pci->func;
    to->class_id = pci->class_id;
    to->vendor = pci->vendor_id;
    to->device = pci->device_id;
    to->link = pci->linkspeed;
    copy_text(to->model, sizeof to->model, info(object, "PCIDevice"));
}

/// The processors of a node whose cores are not told.
static int add_processors(hwloc_obj_t node, int32_t parent, struct list *list) {
    for (int number = library.bitmap_first(node->cpuset); number >= 0;
         number = library.bitmap_next(node->cpuset, number)) {
        struct te_hardware *entry = append(list, parent);
        if (!entry) return -1;
        entry->kind = TE_HARDWARE_PROCESSOR;
        entry->number = number;
        entry->node = (int32_t)node->os_index;
    }
    return 0;
}

static int walk(hwloc_obj_t object, int32_t parent, struct list *list) {
    int32_t index = (int32_t)list->count;
    struct te_hardware *entry = append(list, parent);
    if (!entry) return -1;
    describe(object, entry);
    if (object->type == HWLOC_OBJ_NUMANODE && !list->has_cores && add_processors(object, index, list)) return -1;
    hwloc_obj_t lists[] = {object->memory_first_child, object->first_child, object->io_first_child};
    for (int i = 0; i < 3; i++)
        for (hwloc_obj_t child = lists[i]; child; child = child->next_sibling)
            if (walk(child, index, list)) return -1;
    return 0;
}

/// The text of a file without its comments, which hwloc's own parser does not know; NULL with errno.
static char *read_file(const char *path) {
    enum { longest = 64 << 20 };
    FILE *file = fopen(path, "re");
    if (!file) return NULL;
    size_t length = 0, capacity = 1 << 16;
    char *text = malloc(capacity + 1);
    while (text) {
        length += fread(text + length, 1, capacity - length, file);
        if (length < capacity || length >= longest) break;
        char *grown = realloc(text, 2 * capacity + 1);
        if (!grown) free(text);
        text = grown;
        capacity *= 2;
    }
    fclose(file);
    if (!text) return NULL;
    text[length] = 0;
    for (char *start = text; (start = strstr(start, "<!--"));) {
        char *end = strstr(start, "-->");
        if (!end) break;
        end += 3;
        end += strspn(end, " \t\r\n");
        memmove(start, end, strlen(end) + 1);
    }
    return text;
}

/// Reads the machine into an initialised topology. Returns what went wrong, or NULL.
static const char *fill(hwloc_topology_t topology, const char *xml, struct list *list) {
    if (xml) {
        errno = 0;
        char *text = read_file(xml);
        if (!text) return strerror(errno);
        int failed = library.set_xmlbuffer(topology, text, (int)strlen(text) + 1);
        free(text);
        if (failed) return "not a topology";
    }
    library.set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (library.load(topology)) return "not a topology of hwloc 2";
    list->has_cores = library.get_type_depth(topology, HWLOC_OBJ_CORE) != HWLOC_TYPE_DEPTH_UNKNOWN;
    return walk(library.get_obj_by_depth(topology, 0, 0), -1, list) ? "out of memory" : NULL;
}

int te_hardware_read(
    const char *xml, struct te_hardware **objects, size_t *count, char *error, size_t error_capacity) {
    pthread_once(&load_once, load);
    if (!is_loaded) {
        copy_text(error, error_capacity, load_error);
        return -1;
    }
    hwloc_topology_t topology;
    struct list list = {0};
    if (library.init(&topology)) {
        copy_text(error, error_capacity, "out of memory");
        return -2;
    }
    const char *failure = fill(topology, xml, &list);
    library.destroy(topology);
    if (failure) {
        copy_text(error, error_capacity, failure);
        free(list.objects);
        return -2;
    }
    *objects = list.objects;
    *count = list.count;
    return 0;
}

void te_hardware_free(struct te_hardware *objects) { free(objects); }
