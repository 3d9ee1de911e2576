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

PyObject *te_py_make_memory_type(PyObject *module);
PyObject *te_py_make_batch_type(PyObject *module);
PyObject *te_py_make_rows_type(PyObject *module);
extern PyMethodDef te_py_operation_methods[];
extern PyMethodDef te_py_kv_methods[];
extern PyMethodDef te_py_moe_methods[];
#endif
