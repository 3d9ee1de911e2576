// The extension module between transfer_engine.h and Python. Stable ABI: one build for Python 3.11 and later.
//
// The GIL rule: a call keeps the GIL only when it takes less than a microsecond whatever happens - looking at a counter or a
// status, submitting a few requests to an engine with a thread. All others are wrapped in RELEASED.
#ifndef TE_PYTHON_NATIVE_H
#define TE_PYTHON_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "transfer_engine.h"

#define RELEASED(status, call)                  \
  do {                                          \
    PyThreadState *thread_ = PyEval_SaveThread(); \
    (status) = (call);                          \
    PyEval_RestoreThread(thread_);              \
  } while (0)

#define NONE_OR_RAISE(status) \
  do {                        \
    if ((status) != TE_OK) return te_py_raise(); \
    Py_RETURN_NONE;           \
  } while (0)

// A function of the module: one handle in, nothing out.
#define ON_HANDLE(name, function)                              \
  static PyObject *name(PyObject *module, PyObject *argument) { \
    uint64_t handle;                                           \
    int32_t status;                                            \
    (void)module;                                              \
    if (te_py_number(argument, &handle)) return NULL;          \
    RELEASED(status, function(handle));                        \
    NONE_OR_RAISE(status);                                     \
  }

// Raises the exception of the thread's last error. Returns NULL.
PyObject *te_py_raise(void);
// The exception of the thread's last error, as an object.
PyObject *te_py_exception(void);
// A handle, offset, length: any integer below 2^64. False with an exception set.
int te_py_number(PyObject *object, uint64_t *number);
int te_py_signed(PyObject *object, int64_t *number);

// Page numbers of a caller: its own memory where it has the right form, otherwise a copy.
typedef struct {
  const uint32_t *numbers;
  uint64_t count;
  Py_buffer view;
  uint32_t *copy;
} te_py_pages;

int te_py_pages_get(PyObject *object, te_py_pages *pages);
void te_py_pages_release(te_py_pages *pages);

// Fills an operation from positional arguments; what it borrows lives as long as `hold`, a list, does.
typedef int (*te_py_fill)(te_operation *operation, PyObject *const *arguments, Py_ssize_t count, PyObject *hold);

// The part of DLPack's ABI that is needed (version 0, https://dmlc.github.io/dlpack).
typedef struct { int32_t type; int32_t id; } te_py_dl_device;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } te_py_dl_type;
typedef struct {
  void *data;
  te_py_dl_device device;
  int32_t rank;
  te_py_dl_type type;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} te_py_dl_tensor;
typedef struct te_py_dl_managed {
  te_py_dl_tensor tensor;
  void *context;
  void (*deleter)(struct te_py_dl_managed *);
} te_py_dl_managed;

// A DLPack capsule of bytes of `owner`, which counts one export more until it is given back.
PyObject *te_py_dlpack(PyObject *owner, void *base, uint64_t bytes, Py_ssize_t *exports);
// An object that lends memory. `end`, unless NULL, is called with owner and number once nobody has it any more.
PyObject *te_py_lend(const void *base, uint64_t bytes, int is_readonly, int32_t (*end)(uint64_t, uint64_t), uint64_t owner,
                     uint64_t number);

// CLOCK_MONOTONIC.
int64_t te_py_nanoseconds(void);
enum { TE_PY_SLICE = 100000000 };  // nanoseconds between two looks at signals

PyObject *te_py_make_memory_type(PyObject *module);
PyObject *te_py_make_batch_type(PyObject *module);
PyObject *te_py_make_lent_type(PyObject *module);
extern PyMethodDef te_py_operation_methods[];
extern PyMethodDef te_py_kv_methods[];
extern PyMethodDef te_py_moe_methods[];
extern PyMethodDef te_py_weights_methods[];
#endif
