// Memory of the library's that is lent to Python, and counts its views.
#include <stdlib.h>

#include "native.h"

// The part of DLPack's ABI that is needed to lend (version 0, https://dmlc.github.io/dlpack).
enum { DL_CPU = 1, DL_UINT = 1 };

typedef struct {
  te_py_dl_managed managed;
  int64_t shape;
  Py_ssize_t *exports;
} lent_tensor;

static void give_back(te_py_dl_managed *managed) {
  PyGILState_STATE state = PyGILState_Ensure();
  *((lent_tensor *)managed)->exports -= 1;
  Py_DECREF((PyObject *)managed->context);
  PyGILState_Release(state);
  free(managed);
}

static void drop_capsule(PyObject *capsule) {
  if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // somebody has taken it
  te_py_dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
  managed->deleter(managed);
}

PyObject *te_py_dlpack(PyObject *owner, void *base, uint64_t bytes, Py_ssize_t *exports) {
  lent_tensor *lent = calloc(1, sizeof *lent);
  if (!lent) return PyErr_NoMemory();
  lent->shape = (int64_t)bytes;
  lent->exports = exports;
  lent->managed =
      (te_py_dl_managed){{base, {DL_CPU, 0}, 1, {DL_UINT, 8, 1}, &lent->shape, NULL, 0}, owner, give_back};
  PyObject *capsule = PyCapsule_New(&lent->managed, "dltensor", drop_capsule);
  if (!capsule) {
    free(lent);
    return NULL;
  }
  Py_INCREF(owner);
  *exports += 1;
  return capsule;
}

typedef struct {
  PyObject_HEAD
  void *base;  // NULL once it was given back
  Py_ssize_t bytes, exports;
  int is_readonly;
  int32_t (*end)(uint64_t owner, uint64_t number);  // called when nobody has it any more, unless NULL
  uint64_t owner, number;
} lent;

static PyObject *lent_type;

PyObject *te_py_lend(const void *base, uint64_t bytes, int is_readonly, int32_t (*end)(uint64_t, uint64_t), uint64_t owner,
                     uint64_t number) {
  static char nothing[1];
  allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)lent_type, Py_tp_alloc);
  lent *self = (lent *)allocate((PyTypeObject *)lent_type, 0);
  if (!self) {
    if (end) end(owner, number);
    return NULL;
  }
  self->base = bytes ? (void *)(uintptr_t)base : nothing;
  self->bytes = (Py_ssize_t)bytes;
  self->is_readonly = is_readonly;
  self->end = end;
  self->owner = owner;
  self->number = number;
  return (PyObject *)self;
}

static void lent_dealloc(PyObject *object) {
  lent *self = (lent *)object;
  PyTypeObject *type = Py_TYPE(object);
  if (self->end) {
    int32_t status;
    RELEASED(status, self->end(self->owner, self->number));
    (void)status;
  }
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(object);
  Py_DECREF(type);
}

static int refuse_closed(const lent *self) {
  if (self->base) return 0;
  PyErr_SetString(PyExc_BufferError, "the memory was given back: what it belongs to was closed");
  return -1;
}

static int lent_get_buffer(PyObject *object, Py_buffer *view, int flags) {
  lent *self = (lent *)object;
  if (refuse_closed(self) || PyBuffer_FillInfo(view, object, self->base, self->bytes, self->is_readonly, flags)) return -1;
  self->exports += 1;
  return 0;
}

static void lent_release_buffer(PyObject *object, Py_buffer *view) {
  (void)view;
  ((lent *)object)->exports -= 1;
}

static PyObject *lent_dlpack(PyObject *object, PyObject *arguments, PyObject *keywords) {
  lent *self = (lent *)object;
  PyObject *copy = keywords ? PyDict_GetItemString(keywords, "copy") : NULL;
  (void)arguments;
  if (copy && copy == Py_True) return PyErr_Format(PyExc_BufferError, "memory is lent as it is; copy what you get");
  return refuse_closed(self) ? NULL : te_py_dlpack(object, self->base, (uint64_t)self->bytes, &self->exports);
}

static PyObject *lent_dlpack_device(PyObject *object, PyObject *unused) {
  (void)object, (void)unused;
  return Py_BuildValue("ii", DL_CPU, 0);
}

static PyObject *lent_close(PyObject *object, PyObject *unused) {
  lent *self = (lent *)object;
  (void)unused;
  if (self->exports)
    return PyErr_Format(PyExc_BufferError, "%zd views of the memory exist; drop the arrays first", self->exports);
  self->base = NULL;
  Py_RETURN_NONE;
}

static PyObject *lent_bytes(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromSsize_t(((lent *)object)->bytes);
}

static PyGetSetDef lent_properties[] = {
    {"nbytes", lent_bytes, NULL, "The length in bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef lent_methods[] = {
    {"_close", lent_close, METH_NOARGS, "Lends nothing any more; fails while something is lent."},
    {"__dlpack__", (PyCFunction)(void (*)(void))lent_dlpack, METH_VARARGS | METH_KEYWORDS, "A DLPack capsule of the bytes."},
    {"__dlpack_device__", lent_dlpack_device, METH_NOARGS, "The memory of the CPU."},
    {NULL, NULL, 0, NULL},
};

PyObject *te_py_make_lent_type(PyObject *module) {
  static PyType_Slot slots[] = {
      {Py_tp_doc, "Memory of the library's; has the buffer protocol and DLPack."},
      {Py_tp_dealloc, lent_dealloc},
      {Py_tp_methods, lent_methods},
      {Py_tp_getset, lent_properties},
      {Py_bf_getbuffer, lent_get_buffer},
      {Py_bf_releasebuffer, lent_release_buffer},
      {0, NULL},
  };
  static PyType_Spec spec = {"transfer_engine._native.Lent", sizeof(lent), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  lent_type = PyType_FromModuleAndSpec(module, &spec, NULL);
  Py_XINCREF(lent_type);
  return lent_type;
}
