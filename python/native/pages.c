// From Python's numbers to ours.
#include "native.h"

int te_py_number(PyObject *object, uint64_t *number) {
  unsigned long long value = PyLong_AsUnsignedLongLong(object);
  if (value == (unsigned long long)-1 && PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return -1;
    // numpy's integers and the like.
    PyErr_Clear();
    PyObject *index = PyNumber_Index(object);
    if (!index) return -1;
    value = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) return -1;
  }
  *number = value;
  return 0;
}

int te_py_signed(PyObject *object, int64_t *number) {
  *number = PyLong_AsLongLong(object);
  return *number == -1 && PyErr_Occurred() ? -1 : 0;
}

static int make_copy(te_py_pages *pages, uint64_t count) {
  pages->copy = PyMem_Malloc(count ? count * sizeof *pages->copy : 1);
  if (!pages->copy) {
    PyErr_NoMemory();
    return -1;
  }
  pages->numbers = pages->copy;
  pages->count = count;
  return 0;
}

static int refuse_page(long long number) {
  PyErr_Format(PyExc_ValueError, "page %lld; page numbers are 0 to 2**32 - 1", number);
  return -1;
}

static int from_list(PyObject *object, te_py_pages *pages) {
  PyObject *list = PySequence_List(object);
  if (!list) return -1;
  Py_ssize_t count = PyList_Size(list);
  int failed = make_copy(pages, (uint64_t)count);
  for (Py_ssize_t i = 0; i < count && !failed; i++) {
    uint64_t number = 0;
    failed = te_py_number(PyList_GetItem(list, i), &number);
    if (!failed && number > UINT32_MAX) failed = refuse_page((long long)number);
    pages->copy[i] = (uint32_t)number;
  }
  Py_DECREF(list);
  return failed;
}

static int from_words(te_py_pages *pages) {
  const int64_t *words = pages->view.buf;
  uint64_t count = (uint64_t)pages->view.len / sizeof *words;
  if (make_copy(pages, count)) return -1;
  for (uint64_t i = 0; i < count; i++) {
    if (words[i] < 0 || words[i] > UINT32_MAX) return refuse_page(words[i]);
    pages->copy[i] = (uint32_t)words[i];
  }
  return 0;
}

static int from_buffer(te_py_pages *pages) {
  const char *format = pages->view.format ? pages->view.format : "B";
  if (*format == '@' || *format == '=' || *format == '<') format++;
  int is_integer = strchr("iIlLqQ", *format) && format[1] == 0;
  if (is_integer && pages->view.itemsize == 8) return from_words(pages);
  if (!is_integer || pages->view.itemsize != 4) {
    PyErr_SetString(PyExc_TypeError, "page numbers are integers of 32 or 64 bits");
    return -1;
  }
  pages->numbers = pages->view.buf;
  pages->count = (uint64_t)pages->view.len / 4;
  // A negative number would be a page far beyond any region: refused there, with its number.
  return 0;
}

int te_py_pages_get(PyObject *object, te_py_pages *pages) {
  memset(pages, 0, sizeof *pages);
  int failed;
  if (!PyObject_CheckBuffer(object) && PyObject_HasAttrString(object, "numpy")) {
    PyObject *array = PyObject_CallMethod(object, "numpy", NULL);  // a tensor
    if (!array) return -1;
    failed = te_py_pages_get(array, pages);
    Py_DECREF(array);
    return failed;
  }
  if (PyObject_CheckBuffer(object)) {
    if (PyObject_GetBuffer(object, &pages->view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)) return -1;
    failed = from_buffer(pages);
  } else {
    failed = from_list(object, pages);
  }
  if (failed) te_py_pages_release(pages);
  return failed ? -1 : 0;
}

void te_py_pages_release(te_py_pages *pages) {
  PyBuffer_Release(&pages->view);
  PyMem_Free(pages->copy);
  memset(pages, 0, sizeof *pages);
}
