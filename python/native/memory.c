// Registered memory as a Python object: it keeps what was registered alive, and lends what the engine allocated.
#include "native.h"

enum { DL_CPU = 1, DL_CUDA_HOST = 3 };

typedef struct {
  PyObject_HEAD
  te_region region; // 0 once it was released
  void *base;
  uint64_t bytes;
  Py_ssize_t exports;
  int is_allocated;
  Py_buffer view;    // what was registered, when that has the buffer protocol
  PyObject *capsule; // or its DLPack capsule
} memory;

static int from_buffer(memory *self, PyObject *object, int is_writable) {
  if (PyObject_GetBuffer(object, &self->view, is_writable ? PyBUF_WRITABLE : PyBUF_SIMPLE)) return -1;
  self->base = self->view.buf;
  self->bytes = (uint64_t)self->view.len;
  return 0;
}

static int from_dlpack(memory *self, PyObject *object) {
  PyObject *capsule = PyObject_CallMethod(object, "__dlpack__", NULL);
  if (!capsule) return -1;
  te_py_dl_managed *managed = PyCapsule_GetPointer(capsule, "dltensor");
  if (!managed) {
    Py_DECREF(capsule);
    return -1;
  }
  const te_py_dl_tensor *tensor = &managed->tensor;
  int64_t items = 1, is_contiguous = 1;
  for (int32_t axis = tensor->rank - 1; axis >= 0; axis--) {
    if (tensor->strides && tensor->shape[axis] > 1 && tensor->strides[axis] != items) is_contiguous = 0;
    items *= tensor->shape[axis];
  }
  if (tensor->device.type != DL_CPU && tensor->device.type != DL_CUDA_HOST) {
    PyErr_SetString(PyExc_BufferError, "only tensors in host memory can be registered; move it with .cpu()");
  } else if (!is_contiguous) {
    PyErr_SetString(PyExc_BufferError, "only contiguous tensors can be registered; use .contiguous()");
  } else {
    // Not consumed: the producer's own destructor of the capsule gives the tensor back.
    self->capsule = capsule;
    self->base = (char *)tensor->data + tensor->byte_offset;
    self->bytes = (uint64_t)items * (((uint64_t)tensor->type.bits * tensor->type.lanes + 7) / 8);
    return 0;
  }
  Py_DECREF(capsule);
  return -1;
}

static void let_go(memory *self) {
  PyBuffer_Release(&self->view);
  Py_CLEAR(self->capsule);
  self->region = 0;
  self->base = NULL;
  self->bytes = 0;
}

// Memory(engine, size or object, access, nics, is_populated)
static int memory_init(PyObject *object, PyObject *arguments, PyObject *keywords) {
  memory *self = (memory *)object;
  unsigned long long engine;
  PyObject *what;
  unsigned int access, nics;
  int is_populated;
  (void)keywords;
  if (!PyArg_ParseTuple(arguments, "KOIIp", &engine, &what, &access, &nics, &is_populated)) return -1;
  if (self->region) {
    PyErr_SetString(PyExc_RuntimeError, "memory is registered once");
    return -1;
  }
  int32_t status;
  if (PyLong_Check(what)) {
    uint64_t bytes;
    if (te_py_number(what, &bytes)) return -1;
    RELEASED(status, te_region_allocate(engine, bytes, access, nics, is_populated ? 0 : TE_UNPOPULATED, &self->region));
    if (status == TE_OK) status = te_region_memory(self->region, &self->base, &self->bytes);
    self->is_allocated = 1;
  } else {
    int failed = PyObject_CheckBuffer(what) ? from_buffer(self, what, access & TE_REMOTE_WRITE) : from_dlpack(self, what);
    if (failed) return -1;
    RELEASED(status, te_region_register(engine, self->base, self->bytes, access, nics, &self->region));
  }
  if (status == TE_OK) return 0;
  let_go(self);
  te_py_raise();
  return -1;
}

static PyObject *memory_release(PyObject *object, PyObject *unused) {
  memory *self = (memory *)object;
  (void)unused;
  if (!self->region) Py_RETURN_NONE;
  if (self->is_allocated && self->exports > 0) {
    PyErr_Format(PyExc_BufferError, "%zd views of the memory exist; drop the arrays first", self->exports);
    return NULL;
  }
  int32_t status;
  RELEASED(status, te_region_deregister(self->region));
  if (status != TE_OK) return te_py_raise();
  let_go(self);
  Py_RETURN_NONE;
}

// After its engine was closed.
static PyObject *memory_forget(PyObject *object, PyObject *unused) {
  (void)unused;
  let_go((memory *)object);
  Py_RETURN_NONE;
}

static void memory_dealloc(PyObject *object) {
  memory *self = (memory *)object;
  PyTypeObject *type = Py_TYPE(object);
  if (self->region) {
    int32_t status;
    RELEASED(status, te_region_deregister(self->region));
    // What transfers still read must stay: better lost than freed.
    if (status != TE_EBUSY && status != TE_ESTALLED) let_go(self);
  }
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(object);
  Py_DECREF(type);
}

static int memory_get_buffer(PyObject *object, Py_buffer *view, int flags) {
  memory *self = (memory *)object;
  if (!self->region) {
    PyErr_SetString(PyExc_BufferError, "the region was closed");
    return -1;
  }
  if (PyBuffer_FillInfo(view, object, self->base, (Py_ssize_t)self->bytes, 0, flags)) return -1;
  self->exports += 1;
  return 0;
}

static void memory_release_buffer(PyObject *object, Py_buffer *view) {
  (void)view;
  ((memory *)object)->exports -= 1;
}

static PyObject *memory_dlpack(PyObject *object, PyObject *unused) {
  memory *self = (memory *)object;
  (void)unused;
  if (!self->region) {
    PyErr_SetString(PyExc_BufferError, "the region was closed");
    return NULL;
  }
  return te_py_dlpack(object, self->base, self->bytes, &self->exports);
}

static PyObject *get_handle(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(((memory *)object)->region);
}

static PyObject *get_address(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromVoidPtr(((memory *)object)->base);
}

static PyObject *get_bytes(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromUnsignedLongLong(((memory *)object)->bytes);
}

static PyObject *get_exports(PyObject *object, void *unused) {
  (void)unused;
  return PyLong_FromSsize_t(((memory *)object)->is_allocated ? ((memory *)object)->exports : 0);
}

static PyGetSetDef memory_properties[] = {
    {"_handle", get_handle, NULL, "The te_region; 0 once it was closed.", NULL},
    {"address", get_address, NULL, "The address of the first byte.", NULL},
    {"nbytes", get_bytes, NULL, "The length in bytes; 0 once it was closed.", NULL},
    {"_exports", get_exports, NULL, "How many views of allocated memory exist.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef memory_methods[] = {
    {"_release", memory_release, METH_NOARGS, "Ends the registration."},
    {"_forget", memory_forget, METH_NOARGS, "Lets go of everything after the engine was closed."},
    {"_dlpack", memory_dlpack, METH_NOARGS, "A DLPack capsule of the bytes."},
    {NULL, NULL, 0, NULL},
};

PyObject *te_py_make_memory_type(PyObject *module) {
  static PyType_Slot slots[] = {
      {Py_tp_doc, "Registered memory."},
      {Py_tp_new, PyType_GenericNew},
      {Py_tp_init, memory_init},
      {Py_tp_dealloc, memory_dealloc},
      {Py_tp_methods, memory_methods},
      {Py_tp_getset, memory_properties},
      {Py_bf_getbuffer, memory_get_buffer},
      {Py_bf_releasebuffer, memory_release_buffer},
      {0, NULL},
  };
  static PyType_Spec spec = {"transfer_engine._native.Memory", sizeof(memory), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
  return PyType_FromModuleAndSpec(module, &spec, NULL);
}
