// Sizes and offsets of the interface's structures, which may never change within one TE_ABI_MAJOR; compiled as C and as C++.
#include <stddef.h>

#include "check.h"

#define LAYOUT(type, size, last, offset)                                        \
  CHECK(sizeof(type) == (size));                                                \
  CHECK(offsetof(type, last) == (offset))

int main(void) {
  CHECK(te_abi_version() == TE_ABI_VERSION);
  CHECK(sizeof(te_engine) == 8 && sizeof(te_transfer) == 8);
  LAYOUT(te_error, 24, remedy, 16);
  LAYOUT(te_nic, 64, traffic_class, 60);
  LAYOUT(te_config, 96, trace_directory, 88);
  LAYOUT(te_statistics, 96, reserved, 92);
  LAYOUT(te_slice, 24, target_offset, 16);
  LAYOUT(te_operation, 160, sender_count, 152);
  LAYOUT(te_event, 40, new_value, 32);
  LAYOUT(te_lease, 16, epoch, 8);
  LAYOUT(te_message, 24, length, 16);
  LAYOUT(te_digest, 16, high, 8);
  te_config config = TE_CONFIG_INIT;
  CHECK(config.size == sizeof config && config.spin_ns == -1 && config.processor == -1 && config.timeout_ns == 0);
  te_nic nic = TE_NIC_INIT;
  CHECK(nic.size == sizeof nic && nic.gid_index == -1 && nic.kind == TE_NIC_SHARED_MEMORY && nic.subnet == NULL);
  for (int32_t status = TE_EEXPIRED; status <= TE_PENDING; status++) {
    CHECK(strncmp(te_status_name(status), "TE_", 3) == 0);
    CHECK(te_status_remedy(status)[0] != 0);
  }
  CHECK(strcmp(te_status_name(-999), "unknown") == 0);
#ifdef __cplusplus
  return report("layout (C++)");
#else
  return report("layout (C)");
#endif
}
