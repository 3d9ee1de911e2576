// Engines, peers, waits, events.
#include <time.h>

#include "native.h"

static PyObject *make_error;  // make_error(code, message, remedy) is an exception

PyObject *te_py_exception(void) {
  const te_error *error = te_last_error();
  return make_error ? PyObject_CallFunction(make_error, "iss", (int)error->code, error->message, error->remedy) : NULL;
}

PyObject *te_py_raise(void) {
  PyObject *exception = te_py_exception();
  if (!exception) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, te_last_error()->message);
    return NULL;
  }
  PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
  Py_DECREF(exception);
  return NULL;
}

static PyObject *set_error_maker(PyObject *module, PyObject *maker) {
  (void)module;
  Py_XDECREF(make_error);
  make_error = Py_NewRef(maker);
  Py_RETURN_NONE;
}

// MARK: Engines

static int nic_of(PyObject *object, te_nic *nic) {
  te_nic defaults = TE_NIC_INIT;
  *nic = defaults;
  return !PyArg_ParseTuple(object, "IzzIIIiiIzII", &nic->kind, &nic->provider, &nic->device, &nic->megabits_per_second,
                           &nic->caller_memory, &nic->framing, &nic->port, &nic->gid_index, &nic->mtu, &nic->subnet,
                           &nic->service_level, &nic->traffic_class);
}

// name, nics, progress, spin, processor, liveness intervals, liveness interval, timeout, stripe bytes, trace events,
// event capacity, message capacity, trace directory
static PyObject *engine_open(PyObject *module, PyObject *arguments) {
  te_config config = TE_CONFIG_INIT;
  te_nic nics[8];
  PyObject *list;
  long long spin;
  unsigned long long liveness, timeout, stripe;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "zO!ILiIKKKIIIz", &config.name, &PyTuple_Type, &list, &config.progress, &spin,
                        &config.processor, &config.liveness_intervals, &liveness, &timeout, &stripe,
                        &config.trace_events, &config.event_capacity, &config.message_capacity,
                        &config.trace_directory))
    return NULL;
  Py_ssize_t count = PyTuple_Size(list);
  if (count < 1 || count > 8) return PyErr_Format(PyExc_ValueError, "%zd NICs; an engine has 1 to 8", count);
  for (Py_ssize_t i = 0; i < count; i++)
    if (nic_of(PyTuple_GetItem(list, i), &nics[i])) return NULL;
  config.spin_ns = spin;
  config.liveness_interval_ns = liveness;
  config.timeout_ns = timeout;
  config.stripe_bytes = stripe;
  config.nics = nics;
  config.nic_count = (uint64_t)count;
  te_engine engine;
  int32_t status;
  RELEASED(status, te_engine_open(&config, &engine));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(engine) : te_py_raise();
}

ON_HANDLE(engine_close, te_engine_close)
ON_HANDLE(region_revoke, te_region_revoke)
ON_HANDLE(remote_detach, te_remote_detach)
ON_HANDLE(peer_disconnect, te_peer_disconnect)
ON_HANDLE(group_destroy, te_group_destroy)
ON_HANDLE(unwatch, te_unwatch)

static PyObject *bytes_of(PyObject *argument, int32_t (*get)(uint64_t, void *, uint64_t, uint64_t *)) {
  char buffer[4096];
  uint64_t handle, length;
  if (te_py_number(argument, &handle)) return NULL;
  int32_t status;
  RELEASED(status, get(handle, buffer, sizeof buffer, &length));
  return status == TE_OK ? PyBytes_FromStringAndSize(buffer, (Py_ssize_t)length) : te_py_raise();
}

static PyObject *engine_address(PyObject *module, PyObject *argument) {
  (void)module;
  return bytes_of(argument, te_engine_address);
}

static PyObject *region_descriptor(PyObject *module, PyObject *argument) {
  (void)module;
  return bytes_of(argument, te_region_descriptor);
}

static PyObject *engine_id(PyObject *module, PyObject *argument) {
  uint64_t handle, id;
  (void)module;
  if (te_py_number(argument, &handle)) return NULL;
  return te_engine_id(handle, &id) == TE_OK ? PyLong_FromUnsignedLongLong(id) : te_py_raise();
}

static PyObject *engine_fd(PyObject *module, PyObject *argument) {
  uint64_t handle;
  int32_t fd;
  (void)module;
  if (te_py_number(argument, &handle)) return NULL;
  return te_engine_fd(handle, &fd) == TE_OK ? PyLong_FromLong(fd) : te_py_raise();
}

static PyObject *engine_progress(PyObject *module, PyObject *argument) {
  uint64_t handle;
  int32_t status, happened;
  (void)module;
  if (te_py_number(argument, &handle)) return NULL;
  RELEASED(status, te_engine_progress(handle, &happened));
  return status == TE_OK ? PyBool_FromLong(happened) : te_py_raise();
}

static PyObject *engine_write_trace(PyObject *module, PyObject *arguments) {
  unsigned long long handle;
  const char *path;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ks", &handle, &path)) return NULL;
  RELEASED(status, te_engine_write_trace(handle, path));
  NONE_OR_RAISE(status);
}

static PyObject *engine_statistics(PyObject *module, PyObject *argument) {
  uint64_t handle;
  int32_t status;
  te_statistics s = {0};
  (void)module;
  s.size = sizeof s;
  if (te_py_number(argument, &handle)) return NULL;
  RELEASED(status, te_engine_statistics(handle, &s));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("IKKKKKKKKIIIII", s.pending_transfers, (unsigned long long)s.submitted,
                       (unsigned long long)s.refused, (unsigned long long)s.bytes, (unsigned long long)s.pages,
                       (unsigned long long)s.events, (unsigned long long)s.waiting_events,
                       (unsigned long long)s.messages, (unsigned long long)s.waiting_messages, s.regions, s.remotes,
                       s.peers, s.groups, s.watchers);
}

// MARK: Peers

static PyObject *remote_attach(PyObject *module, PyObject *arguments) {
  unsigned long long engine;
  unsigned int traffic;
  Py_buffer bytes;
  uint64_t handle;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ky*I", &engine, &bytes, &traffic)) return NULL;
  RELEASED(status, te_remote_attach(engine, bytes.buf, (uint64_t)bytes.len, traffic, &handle));
  PyBuffer_Release(&bytes);
  return status == TE_OK ? PyLong_FromUnsignedLongLong(handle) : te_py_raise();
}

static PyObject *peer_connect(PyObject *module, PyObject *arguments) {
  unsigned long long engine;
  Py_buffer bytes;
  uint64_t handle;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ky*", &engine, &bytes)) return NULL;
  RELEASED(status, te_peer_connect(engine, bytes.buf, (uint64_t)bytes.len, &handle));
  PyBuffer_Release(&bytes);
  return status == TE_OK ? PyLong_FromUnsignedLongLong(handle) : te_py_raise();
}

static PyObject *remote_info(PyObject *module, PyObject *argument) {
  uint64_t handle, bytes, engine;
  (void)module;
  if (te_py_number(argument, &handle)) return NULL;
  if (te_remote_info(handle, &bytes, &engine) != TE_OK) return te_py_raise();
  return Py_BuildValue("KK", (unsigned long long)bytes, (unsigned long long)engine);
}

static PyObject *peer_info(PyObject *module, PyObject *argument) {
  uint64_t handle, engine;
  char name[64];
  (void)module;
  if (te_py_number(argument, &handle)) return NULL;
  if (te_peer_info(handle, &engine, name, sizeof name) != TE_OK) return te_py_raise();
  return Py_BuildValue("Ks", (unsigned long long)engine, name);
}

static PyObject *group_create(PyObject *module, PyObject *arguments) {
  unsigned long long engine;
  PyObject *list;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KO!", &engine, &PyList_Type, &list)) return NULL;
  Py_ssize_t count = PyList_Size(list);
  uint64_t group, *members = PyMem_Calloc((size_t)count + 1, sizeof *members);
  if (!members) return PyErr_NoMemory();
  int32_t status = TE_OK;
  int failed = 0;
  for (Py_ssize_t i = 0; i < count && !failed; i++) failed = te_py_number(PyList_GetItem(list, i), &members[i]);
  if (!failed) RELEASED(status, te_group_create(engine, members, (uint64_t)count, &group));
  PyMem_Free(members);
  if (failed) return NULL;
  return status == TE_OK ? PyLong_FromUnsignedLongLong(group) : te_py_raise();
}

// MARK: Transfers

// Whether it is pending; raises when it failed.
static PyObject *is_pending(PyObject *module, PyObject *argument) {
  uint64_t transfer;
  (void)module;
  if (te_py_number(argument, &transfer)) return NULL;
  int32_t status = te_transfer_status(transfer);
  return status >= 0 ? PyBool_FromLong(status == TE_PENDING) : te_py_raise();
}

int64_t te_py_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000ll + now.tv_nsec;
}

// Waits for one transfer (an int) or several (a list). Raises the first failure; False when the time passed.
static PyObject *wait_for(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  int64_t timeout;
  uint64_t one, *transfers = &one, length = 1;
  (void)module;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "transfers and a timeout");
  if (te_py_signed(arguments[1], &timeout)) return NULL;
  if (PyList_Check(arguments[0])) {
    length = (uint64_t)PyList_Size(arguments[0]);
    transfers = PyMem_Calloc(length + 1, sizeof *transfers);
    if (!transfers) return PyErr_NoMemory();
    for (uint64_t i = 0; i < length; i++)
      if (te_py_number(PyList_GetItem(arguments[0], (Py_ssize_t)i), &transfers[i])) {
        PyMem_Free(transfers);
        return NULL;
      }
  } else if (te_py_number(arguments[0], &one)) {
    return NULL;
  }
  int64_t left = timeout;
  int32_t status = length == 1 ? te_transfer_status(one = transfers[0]) : TE_PENDING;
  int interrupted = 0;
  if (status == TE_PENDING) {
    int64_t begin = timeout > TE_PY_SLICE ? te_py_nanoseconds() : 0;
    do {
      int64_t slice = left < 0 || left > TE_PY_SLICE ? TE_PY_SLICE : left;
      RELEASED(status, te_wait(transfers, length, slice, NULL));
      if (status != TE_ETIMEDOUT) break;
      interrupted = PyErr_CheckSignals();
      if (timeout > TE_PY_SLICE) left = timeout - (te_py_nanoseconds() - begin);
    } while (!interrupted && (timeout < 0 || (timeout > TE_PY_SLICE && left > 0)));
  }
  if (transfers != &one) PyMem_Free(transfers);
  if (interrupted) return NULL;
  if (status == TE_ETIMEDOUT) Py_RETURN_FALSE;
  if (status != TE_OK) return te_py_raise();
  Py_RETURN_TRUE;
}

// Transfer, tag.
static PyObject *notify(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  uint64_t transfer, tag;
  (void)module;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "a transfer and a tag");
  if (te_py_number(arguments[0], &transfer) || te_py_number(arguments[1], &tag)) return NULL;
  NONE_OR_RAISE(te_notify(transfer, tag));
}

static PyObject *cancel(PyObject *module, PyObject *arguments) {
  unsigned long long transfer;
  long long timeout;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KL", &transfer, &timeout)) return NULL;
  RELEASED(status, te_cancel(transfer, timeout));
  NONE_OR_RAISE(status);
}

static PyObject *cancel_notify(PyObject *module, PyObject *arguments) {
  unsigned long long transfer, tag;
  long long timeout;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KLK", &transfer, &timeout, &tag)) return NULL;
  RELEASED(status, te_cancel_notify(transfer, timeout, tag));
  NONE_OR_RAISE(status);
}

// MARK: Events

// (kind, tag, value): the exception or None of a transfer, whether a receipt is quiescent, (old, new) of a word, None.
static PyObject *event_of(const te_event *event) {
  unsigned long long tag = event->tag;
  switch (event->kind) {
    case TE_EVENT_WATCH:
      return Py_BuildValue("IK(KK)", event->kind, tag, (unsigned long long)event->old_value,
                           (unsigned long long)event->new_value);
    case TE_EVENT_RECEIPT: return Py_BuildValue("IKN", event->kind, tag, PyBool_FromLong(event->status == TE_OK));
    default: break;
  }
  if (event->status == TE_OK) return Py_BuildValue("IKO", event->kind, tag, Py_None);
  // Its text, unless so many others have failed since that it was forgotten.
  int32_t status = te_transfer_status(event->object);
  PyObject *error = status == event->status
                        ? te_py_exception()
                        : PyObject_CallFunction(make_error, "iss", (int)event->status, "the transfer failed",
                                                te_status_remedy(event->status));
  return error ? Py_BuildValue("IKN", event->kind, tag, error) : NULL;
}

// Engine, timeout: a list of events.
static PyObject *poll_events(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  te_event events[256];
  uint64_t engine, taken = 0;
  int64_t timeout;
  (void)module;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "an engine and a timeout");
  if (te_py_number(arguments[0], &engine) || te_py_signed(arguments[1], &timeout)) return NULL;
  int64_t left = timeout, begin = timeout > 0 ? te_py_nanoseconds() : 0;
  int32_t status;
  for (;;) {
    int64_t slice = left < 0 || left > TE_PY_SLICE ? TE_PY_SLICE : left;
    RELEASED(status, te_poll(engine, events, 256, slice, &taken));
    if (status != TE_OK) return te_py_raise();
    if (taken > 0 || timeout == 0) break;
    if (PyErr_CheckSignals()) return NULL;
    if (timeout > 0 && (left = timeout - (te_py_nanoseconds() - begin)) <= 0) break;
  }
  PyObject *list = PyList_New((Py_ssize_t)taken);
  for (uint64_t i = 0; list && i < taken; i++) {
    PyObject *event = event_of(&events[i]);
    if (!event) {
      Py_DECREF(list);
      return NULL;
    }
    PyList_SetItem(list, (Py_ssize_t)i, event);
  }
  return list;
}

// Engine: a list of (sender, bytes).
static PyObject *receive(PyObject *module, PyObject *argument) {
  enum { MESSAGES = 64, BYTES = 65536 };
  te_message messages[MESSAGES];
  uint64_t engine, count = 0;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &engine)) return NULL;
  char *buffer = PyMem_Malloc(BYTES);
  if (!buffer) return PyErr_NoMemory();
  RELEASED(status, te_receive(engine, messages, MESSAGES, buffer, BYTES, &count));
  PyObject *list = status == TE_OK ? PyList_New((Py_ssize_t)count) : te_py_raise();
  for (uint64_t i = 0; list && i < count; i++) {
    PyObject *item = Py_BuildValue("Ky#", (unsigned long long)messages[i].sender, buffer + messages[i].offset,
                                   (Py_ssize_t)messages[i].length);
    if (!item) Py_CLEAR(list);
    else PyList_SetItem(list, (Py_ssize_t)i, item);
  }
  PyMem_Free(buffer);
  return list;
}

// MARK: Counters, words, leases, digests

static int engine_and_immediate(PyObject *const *arguments, uint64_t *engine, uint32_t *immediate) {
  uint64_t number;
  if (te_py_number(arguments[0], engine) || te_py_number(arguments[1], &number)) return -1;
  *immediate = number > UINT32_MAX ? UINT32_MAX : (uint32_t)number;
  return 0;
}

static PyObject *count_of(PyObject *module, PyObject *const *arguments, Py_ssize_t n) {
  uint64_t engine, count;
  uint32_t immediate;
  (void)module;
  if (n != 2) return PyErr_Format(PyExc_TypeError, "an engine and an immediate");
  if (engine_and_immediate(arguments, &engine, &immediate)) return NULL;
  return te_count(engine, immediate, &count) == TE_OK ? PyLong_FromUnsignedLongLong(count) : te_py_raise();
}

static PyObject *consume(PyObject *module, PyObject *const *arguments, Py_ssize_t n) {
  uint64_t engine, count;
  uint32_t immediate;
  int32_t taken;
  (void)module;
  if (n != 3) return PyErr_Format(PyExc_TypeError, "an engine, an immediate and a count");
  if (engine_and_immediate(arguments, &engine, &immediate) || te_py_number(arguments[2], &count)) return NULL;
  return te_consume(engine, immediate, count, &taken) == TE_OK ? PyBool_FromLong(taken) : te_py_raise();
}

static PyObject *watch(PyObject *module, PyObject *arguments) {
  unsigned long long region, offset, tag;
  uint64_t watcher;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KKK", &region, &offset, &tag)) return NULL;
  RELEASED(status, te_watch(region, offset, tag, &watcher));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(watcher) : te_py_raise();
}

static PyObject *lease_begin(PyObject *module, PyObject *arguments) {
  unsigned long long engine;
  unsigned int count;
  te_lease lease;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KI", &engine, &count)) return NULL;
  RELEASED(status, te_lease_begin(engine, count, &lease));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("IIK", lease.first, lease.count, (unsigned long long)lease.epoch);
}

// Engine, first, count, epoch, and: 1 ends it quietly, 0 ends it in quarantine, -1 reclaims it. Returns late arrivals.
static PyObject *lease_end(PyObject *module, PyObject *arguments) {
  unsigned long long engine, epoch;
  te_lease lease;
  int how;
  uint64_t late = 0;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIIKi", &engine, &lease.first, &lease.count, &epoch, &how)) return NULL;
  lease.epoch = epoch;
  RELEASED(status, how < 0 ? te_lease_reclaim(engine, &lease, &late) : te_lease_end(engine, &lease, how));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(late) : te_py_raise();
}

static PyObject *digest_range(PyObject *module, PyObject *arguments) {
  unsigned long long region, offset, bytes, target;
  te_digest digest;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KKKK", &region, &offset, &bytes, &target)) return NULL;
  RELEASED(status, te_digest_range(region, offset, bytes, target, &digest));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("KK", (unsigned long long)digest.low, (unsigned long long)digest.high);
}

static PyObject *status_name(PyObject *module, PyObject *argument) {
  (void)module;
  return PyUnicode_FromString(te_status_name((int32_t)PyLong_AsLong(argument)));
}

#define FAST(name, function, text) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, text}

static PyMethodDef methods[] = {
    {"set_error_maker", set_error_maker, METH_O, NULL},
    {"engine_open", engine_open, METH_VARARGS, NULL},
    {"engine_close", engine_close, METH_O, NULL},
    {"engine_address", engine_address, METH_O, NULL},
    {"engine_id", engine_id, METH_O, NULL},
    {"engine_fd", engine_fd, METH_O, NULL},
    {"engine_progress", engine_progress, METH_O, NULL},
    {"engine_write_trace", engine_write_trace, METH_VARARGS, NULL},
    {"engine_statistics", engine_statistics, METH_O, NULL},
    {"region_descriptor", region_descriptor, METH_O, NULL},
    {"region_revoke", region_revoke, METH_O, NULL},
    {"remote_attach", remote_attach, METH_VARARGS, NULL},
    {"remote_detach", remote_detach, METH_O, NULL},
    {"remote_info", remote_info, METH_O, NULL},
    {"peer_connect", peer_connect, METH_VARARGS, NULL},
    {"peer_disconnect", peer_disconnect, METH_O, NULL},
    {"peer_info", peer_info, METH_O, NULL},
    {"group_create", group_create, METH_VARARGS, NULL},
    {"group_destroy", group_destroy, METH_O, NULL},
    {"is_pending", is_pending, METH_O, NULL},
    FAST("wait", wait_for, NULL),
    FAST("notify", notify, NULL),
    {"cancel", cancel, METH_VARARGS, NULL},
    {"cancel_notify", cancel_notify, METH_VARARGS, NULL},
    FAST("poll", poll_events, NULL),
    {"receive", receive, METH_O, NULL},
    FAST("count", count_of, NULL),
    FAST("consume", consume, NULL),
    {"watch", watch, METH_VARARGS, NULL},
    {"unwatch", unwatch, METH_O, NULL},
    {"lease_begin", lease_begin, METH_VARARGS, NULL},
    {"lease_end", lease_end, METH_VARARGS, NULL},
    {"digest_range", digest_range, METH_VARARGS, NULL},
    {"status_name", status_name, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyMODINIT_FUNC PyInit__native(void) {
  static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", "The C interface of the engine.", -1,
                                          methods, NULL, NULL, NULL, NULL};
  if (te_abi_version() >> 16 != TE_ABI_MAJOR || te_abi_version() < TE_ABI_VERSION)
    return PyErr_Format(PyExc_ImportError, "libtransferengine has ABI version %u.%u; this package needs %d.%d",
                        te_abi_version() >> 16, te_abi_version() & 0xFFFF, TE_ABI_MAJOR, TE_ABI_MINOR);
  PyObject *module = PyModule_Create(&definition);
  if (!module) return NULL;
  if (PyModule_AddFunctions(module, te_py_operation_methods) || PyModule_AddFunctions(module, te_py_kv_methods) ||
      PyModule_AddFunctions(module, te_py_moe_methods) || PyModule_AddFunctions(module, te_py_weights_methods))
    return NULL;
  PyObject *memory = te_py_make_memory_type(module), *batch = te_py_make_batch_type(module);
  PyObject *lent = te_py_make_lent_type(module);
  if (!memory || !batch || !lent || PyModule_AddObjectRef(module, "Memory", memory) ||
      PyModule_AddObjectRef(module, "Batch", batch) || PyModule_AddObjectRef(module, "Lent", lent))
    return NULL;
  Py_DECREF(memory);
  Py_DECREF(lent);
  Py_DECREF(batch);
  return module;
}
