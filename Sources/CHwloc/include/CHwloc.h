// hwloc without linking it: the machine as a list of objects. The library is loaded when somebody asks.
#ifndef CHWLOC_H
#define CHWLOC_H
#include <stddef.h>
#include <stdint.h>

enum te_hardware_kind {
    TE_HARDWARE_OTHER,
    TE_HARDWARE_NODE,
    TE_HARDWARE_CORE,
    TE_HARDWARE_PROCESSOR,
    TE_HARDWARE_HOST_BRIDGE,
    TE_HARDWARE_BRIDGE,
    TE_HARDWARE_PCI,
    TE_HARDWARE_NETWORK,
    TE_HARDWARE_RDMA,
    TE_HARDWARE_ACCELERATOR,
};

/// An object of the machine; those above it come before it.
struct te_hardware {
    /// Index of the object above it, -1 for the machine itself.
    int32_t parent;
    /// One of `te_hardware_kind`.
    int32_t kind;
    /// The system's number of a node, core or processor.
    int32_t number;
    /// The only NUMA node that it is near, -1 when there are several or none.
    int32_t node;
    /// Bytes of a NUMA node.
    uint64_t memory;
    /// Of a PCI device: where it is, its class, and gigabytes a second of its link (0 when nobody says).
    uint16_t domain, class_id, vendor, device;
    uint8_t bus, slot, function;
    float link;
    /// Of what the system has a name for; empty otherwise.
    char name[64];
    /// Of a PCI device or an accelerator, for people.
    char model[96];
};

/// Reads the machine that this runs on, or the one that an XML file of hwloc describes. Returns 0 and a list that the caller
/// frees with `te_hardware_free`, -1 when the library is not there, -2 when the file or the machine cannot be read; `error` gets
/// the reason.
int te_hardware_read(
    const char *xml, struct te_hardware **objects, size_t *count, char *error, size_t error_capacity);
void te_hardware_free(struct te_hardware *objects);
#endif
