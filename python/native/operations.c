// Operations: one at a time, or many in a batch.
#include "native.h"

enum { ALWAYS_KEEPS_GIL = 64 };  // pages whose submission takes less than a microsecond

static int immediate_of(PyObject *object, uint32_t *immediate) {
  if (object == Py_None) {
    *immediate = TE_NO_IMMEDIATE;
    return 0;
  }
  unsigned long value = PyLong_AsUnsignedLong(object);
  if (value == (unsigned long)-1 && PyErr_Occurred()) return -1;
  if (value >= 1ul << 30) {
    PyErr_Format(PyExc_ValueError, "immediate %lu is not below 2**30", value);
    return -1;
  }
  *immediate = (uint32_t)value;
  return 0;
}

static int numbers_of(PyObject *const *arguments, Py_ssize_t count, uint64_t *numbers) {
  for (Py_ssize_t i = 0; i < count; i++)
    if (te_py_number(arguments[i], &numbers[i])) return -1;
  return 0;
}

static int has(Py_ssize_t count, Py_ssize_t expected) {
  if (count == expected) return 1;
  PyErr_Format(PyExc_TypeError, "%zd arguments instead of %zd", count, expected);
  return 0;
}

// Keeps page numbers until the operation has been submitted.
static void drop_pages(PyObject *capsule) {
  te_py_pages *pages = PyCapsule_GetPointer(capsule, NULL);
  te_py_pages_release(pages);
  PyMem_Free(pages);
}

static const te_py_pages *hold_pages(PyObject *object, PyObject *hold) {
  te_py_pages *pages = PyMem_Calloc(1, sizeof *pages);
  if (!pages) return (te_py_pages *)PyErr_NoMemory();
  if (te_py_pages_get(object, pages)) {
    PyMem_Free(pages);
    return NULL;
  }
  PyObject *capsule = PyCapsule_New(pages, NULL, drop_pages);
  if (!capsule) {
    te_py_pages_release(pages);
    PyMem_Free(pages);
    return NULL;
  }
  int failed = PyList_Append(hold, capsule);
  Py_DECREF(capsule);
  return failed ? NULL : pages;
}

static void *hold_bytes(size_t size, PyObject *hold) {
  PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);
  if (!bytes) return NULL;
  int failed = PyList_Append(hold, bytes);
  void *memory = PyByteArray_AsString(bytes);
  Py_DECREF(bytes);
  return failed ? NULL : memory;
}

// source, source_offset, byte_count, target, target_offset, immediate, timeout
static int fill_write(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint64_t n[5];
  uint32_t immediate;
  (void)hold;
  if (!has(count, 7) || numbers_of(arguments, 5, n) || immediate_of(arguments[5], &immediate)) return -1;
  te_prepare_write(operation, n[0], n[1], n[2], n[3], n[4], immediate);
  return te_py_signed(arguments[6], &operation->timeout_ns);
}

// source, source_offset, source_stride, target, target_offset, target_stride, page_bytes, source_pages, target_pages,
// immediate, timeout
static int fill_paged(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint64_t n[7];
  uint32_t immediate;
  if (!has(count, 11) || numbers_of(arguments, 7, n) || immediate_of(arguments[9], &immediate)) return -1;
  const te_py_pages *sources = hold_pages(arguments[7], hold);
  if (!sources) return -1;
  const te_py_pages *targets = hold_pages(arguments[8], hold);
  if (!targets) return -1;
  if (sources->count != targets->count) {
    PyErr_Format(PyExc_ValueError, "%llu source pages but %llu target pages", (unsigned long long)sources->count,
                 (unsigned long long)targets->count);
    return -1;
  }
  te_prepare_paged(operation, n[0], sources->numbers, n[3], targets->numbers, sources->count, n[6], immediate);
  operation->source_offset = n[1];
  operation->source_stride = n[2];
  operation->target_offset = n[4];
  operation->target_stride = n[5];
  return te_py_signed(arguments[10], &operation->timeout_ns);
}

// source, group, slices, immediate, timeout
static int fill_scatter(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint64_t n[2];
  uint32_t immediate;
  if (!has(count, 5) || numbers_of(arguments, 2, n) || immediate_of(arguments[3], &immediate)) return -1;
  PyObject *list = PySequence_List(arguments[2]);
  if (!list) return -1;
  Py_ssize_t length = PyList_Size(list);
  te_slice *slices = hold_bytes(sizeof *slices * (size_t)length, hold);
  int failed = !slices;
  for (Py_ssize_t i = 0; i < length && !failed; i++) {
    unsigned long long from, bytes, to;
    PyObject *item = PySequence_Tuple(PyList_GetItem(list, i));
    failed = !item || !PyArg_ParseTuple(item, "KKK;a slice is (source_offset, byte_count, target_offset)", &from,
                                        &bytes, &to);
    Py_XDECREF(item);
    if (!failed) slices[i] = (te_slice){from, bytes, to};
  }
  Py_DECREF(list);
  if (failed) return -1;
  te_prepare_scatter(operation, n[0], slices, (uint64_t)length, n[1], immediate);
  return te_py_signed(arguments[4], &operation->timeout_ns);
}

// kind (immediate or barrier), target, immediate, timeout
static int fill_immediate(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint64_t n[2];
  uint32_t immediate;
  (void)hold;
  if (!has(count, 4) || numbers_of(arguments, 2, n) || immediate_of(arguments[2], &immediate)) return -1;
  te_prepare(operation, (uint32_t)n[0], n[1], immediate);
  return te_py_signed(arguments[3], &operation->timeout_ns);
}

// peer, payload, timeout
static int fill_send(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint64_t peer;
  if (!has(count, 3) || te_py_number(arguments[0], &peer)) return -1;
  PyObject *bytes = PyBytes_FromObject(arguments[1]);
  if (!bytes) return -1;
  int failed = PyList_Append(hold, bytes);
  te_prepare_send(operation, peer, PyBytes_AsString(bytes), (uint64_t)PyBytes_Size(bytes));
  Py_DECREF(bytes);
  return failed ? -1 : te_py_signed(arguments[2], &operation->timeout_ns);
}

// immediate, count, senders, timeout
static int fill_expect(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold) {
  uint32_t immediate;
  uint64_t arrivals;
  if (!has(count, 4) || immediate_of(arguments[0], &immediate) || te_py_number(arguments[1], &arrivals)) return -1;
  te_prepare_expect(operation, immediate, arrivals);
  Py_ssize_t length = PySequence_Size(arguments[2]);
  if (length < 0) return -1;
  te_peer *senders = length ? hold_bytes(sizeof *senders * (size_t)length, hold) : NULL;
  if (length && !senders) return -1;
  for (Py_ssize_t i = 0; i < length; i++) {
    PyObject *item = PySequence_GetItem(arguments[2], i);
    int failed = !item || te_py_number(item, &senders[i]);
    Py_XDECREF(item);
    if (failed) return -1;
  }
  operation->senders = senders;
  operation->sender_count = (uint64_t)length;
  return te_py_signed(arguments[3], &operation->timeout_ns);
}

// engine, keeps_gil, then the operation's arguments. Returns the transfer.
static PyObject *submit_one(te_py_fill fill, PyObject *const *arguments, Py_ssize_t count) {
  uint64_t engine;
  te_operation operation;
  te_transfer transfer;
  if (count < 2) return PyErr_Format(PyExc_TypeError, "an engine, whether it has a thread, and the operation");
  if (te_py_number(arguments[0], &engine)) return NULL;
  PyObject *hold = PyList_New(0);
  if (!hold) return NULL;
  PyObject *result = NULL;
  if (fill(&operation, arguments + 2, count - 2, hold) == 0) {
    int32_t status;
    if (arguments[1] == Py_True && operation.count <= ALWAYS_KEEPS_GIL)
      status = te_submit(engine, &operation, 1, &transfer, NULL);
    else
      RELEASED(status, te_submit(engine, &operation, 1, &transfer, NULL));
    result = status == TE_OK ? PyLong_FromUnsignedLongLong(transfer) : te_py_raise();
  }
  Py_DECREF(hold);
  return result;
}

#define OPERATION(name)                                                                    \
  static PyObject *py_##name(PyObject *module, PyObject *const *arguments, Py_ssize_t n) { \
    (void)module;                                                                          \
    return submit_one(fill_##name, arguments, n);                                          \
  }
OPERATION(write)
OPERATION(paged)
OPERATION(scatter)
OPERATION(immediate)
OPERATION(send)
OPERATION(expect)

#define FAST(name, function, text) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, text}

// engine and a paged operation's arguments: its digest.
static PyObject *py_digest_paged(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  te_operation operation;
  te_digest digest;
  (void)module;
  PyObject *hold = PyList_New(0);
  if (!hold) return NULL;
  PyObject *result = NULL;
  if (fill_paged(&operation, arguments, count, hold) == 0) {
    int32_t status;
    RELEASED(status, te_digest_paged(&operation, &digest));
    result = status == TE_OK ? Py_BuildValue("KK", (unsigned long long)digest.low, (unsigned long long)digest.high)
                             : te_py_raise();
  }
  Py_DECREF(hold);
  return result;
}

PyMethodDef te_py_operation_methods[] = {
    FAST("write", py_write, "Submits a write."),
    FAST("paged", py_paged, "Submits a paged write."),
    FAST("scatter", py_scatter, "Submits a scatter."),
    FAST("immediate", py_immediate, "Submits an immediate or a barrier."),
    FAST("send", py_send, "Submits a message."),
    FAST("expect", py_expect, "Submits a wait for a counter."),
    FAST("digest_paged", py_digest_paged, "The digest of a paged write."),
    {NULL, NULL, 0, NULL},
};

// MARK: Batches

typedef struct {
  PyObject_HEAD
  te_operation *operations;
  uint64_t count, capacity;
  PyObject *hold;
} batch;

static int batch_init(PyObject *object, PyObject *arguments, PyObject *keywords) {
  (void)arguments;
  (void)keywords;
  batch *self = (batch *)object;
  Py_XDECREF(self->hold);
  self->hold = PyList_New(0);
  self->count = 0;
  return self->hold ? 0 : -1;
}

static void batch_dealloc(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  PyMem_Free(((batch *)object)->operations);
  Py_XDECREF(((batch *)object)->hold);
  ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
  Py_DECREF(type);
}

static PyObject *batch_add(batch *self, te_py_fill fill, PyObject *const *arguments, Py_ssize_t count) {
  if (self->count == self->capacity) {
    uint64_t capacity = self->capacity ? 2 * self->capacity : 16;
    te_operation *larger = PyMem_Realloc(self->operations, capacity * sizeof *larger);
    if (!larger) return PyErr_NoMemory();
    self->operations = larger;
    self->capacity = capacity;
  }
  if (fill(&self->operations[self->count], arguments, count, self->hold)) return NULL;
  self->count += 1;
  Py_RETURN_NONE;
}

#define ADD(name)                                                                             \
  static PyObject *batch_##name(PyObject *self, PyObject *const *arguments, Py_ssize_t n) { \
    return batch_add((batch *)self, fill_##name, arguments, n);                             \
  }
ADD(write)
ADD(paged)
ADD(scatter)
ADD(immediate)
ADD(send)
ADD(expect)

// Submits what was added, and empties the batch. Returns the transfers, and the exception that ended it or None.
static PyObject *batch_submit(PyObject *object, PyObject *engine_object) {
  batch *self = (batch *)object;
  uint64_t engine, accepted = 0, count = self->count;
  if (te_py_number(engine_object, &engine)) return NULL;
  te_transfer *transfers = PyMem_Calloc(count ? count : 1, sizeof *transfers);
  if (!transfers) return PyErr_NoMemory();
  int32_t status;
  self->count = 0;  // another thread may fill it again only after this call
  te_operation *operations = self->operations;
  self->operations = NULL;
  self->capacity = 0;
  PyObject *hold = self->hold;
  self->hold = PyList_New(0);
  RELEASED(status, te_submit(engine, operations, count, transfers, &accepted));
  PyObject *error = status == TE_OK ? Py_NewRef(Py_None) : te_py_exception();
  PyMem_Free(operations);
  Py_XDECREF(hold);
  PyObject *list = PyList_New((Py_ssize_t)accepted);
  for (uint64_t i = 0; list && i < accepted; i++)
    PyList_SetItem(list, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(transfers[i]));
  PyMem_Free(transfers);
  if (!list || !error || !self->hold) {
    Py_XDECREF(list);
    Py_XDECREF(error);
    return NULL;
  }
  return Py_BuildValue("NN", list, error);
}

static PyObject *batch_length(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(((batch *)object)->count);
}

PyObject *te_py_make_batch_type(PyObject *module) {
  static PyMethodDef methods[] = {
      FAST("write", batch_write, "Adds a write."),
      FAST("paged", batch_paged, "Adds a paged write."),
      FAST("scatter", batch_scatter, "Adds a scatter."),
      FAST("immediate", batch_immediate, "Adds an immediate or a barrier."),
      FAST("send", batch_send, "Adds a message."),
      FAST("expect", batch_expect, "Adds a wait for a counter."),
      {"submit", batch_submit, METH_O, "Submits everything."},
      {NULL, NULL, 0, NULL},
  };
  static PyGetSetDef properties[] = {
      {"count", batch_length, NULL, "Operations that were added.", NULL},
      {NULL, NULL, NULL, NULL, NULL},
  };
  static PyType_Slot slots[] = {
      {Py_tp_doc, "Operations to be submitted together."}, {Py_tp_new, PyType_GenericNew},
      {Py_tp_init, batch_init},                            {Py_tp_dealloc, batch_dealloc},
      {Py_tp_methods, methods},                            {Py_tp_getset, properties},
      {0, NULL},
  };
  static PyType_Spec spec = {"transfer_engine._native.Batch", sizeof(batch), 0, Py_TPFLAGS_DEFAULT, slots};
  return PyType_FromModuleAndSpec(module, &spec, NULL);
}
