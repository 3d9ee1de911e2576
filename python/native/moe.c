// Exchanges of experts. Tokens and sums are whatever has the buffer protocol; their memory is borrowed for the length of a call,
// and what has to stay longer the Python side holds.
#include <transfer_engine/moe.h>

#include "native.h"

// engine, then the fields of te_moe_config in their order
static PyObject *moe_open(PyObject *module, PyObject *arguments) {
  te_moe_config c = TE_MOE_CONFIG_INIT;
  unsigned long long engine, budget, deadline;
  te_moe_exchange exchange = 0;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIIIIIIIIIIIIIIIKKI", &engine, &c.rank, &c.ranks, &c.experts, &c.top_k, &c.hidden,
                        &c.maximum_tokens, &c.dispatch_element, &c.combine_element, &c.scale_block, &c.reduction,
                        &c.replicas, &c.padding, &c.micro_batches, &c.private_rows, &c.spins, &budget, &deadline,
                        &c.nodes))
    return NULL;
  c.memory_budget = budget;
  c.deadline_ns = deadline;
  RELEASED(status, te_moe_open(engine, &c, &exchange));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(exchange) : te_py_raise();
}

static PyObject *moe_address(PyObject *module, PyObject *argument) {
  char bytes[4096];
  uint64_t exchange, length = 0;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &exchange)) return NULL;
  RELEASED(status, te_moe_address(exchange, bytes, sizeof bytes, &length));
  return status == TE_OK ? PyBytes_FromStringAndSize(bytes, (Py_ssize_t)length) : te_py_raise();
}

// exchange, a tuple of bytes
static PyObject *moe_connect(PyObject *module, PyObject *arguments) {
  unsigned long long exchange;
  PyObject *all;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KO!", &exchange, &PyTuple_Type, &all)) return NULL;
  Py_ssize_t count = PyTuple_Size(all);
  te_moe_bytes *addresses = PyMem_Calloc((size_t)count + 1, sizeof *addresses);
  if (!addresses) return PyErr_NoMemory();
  for (Py_ssize_t i = 0; i < count; i++) {
    char *bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(PyTuple_GetItem(all, i), &bytes, &length)) {
      PyMem_Free(addresses);
      return NULL;
    }
    addresses[i] = (te_moe_bytes){bytes, (uint64_t)length};
  }
  RELEASED(status, te_moe_connect(exchange, addresses, (uint64_t)count));
  PyMem_Free(addresses);
  NONE_OR_RAISE(status);
}

// Lists have exactly the bytes that they need: numbers of another type have more.
static int borrow(PyObject *object, Py_buffer *view, Py_ssize_t needed, int is_list, const char *name) {
  if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE)) return -1;
  if (view->len == needed || (!is_list && view->len > needed)) return 0;
  PyErr_Format(PyExc_ValueError, "%s: %zd bytes; %zd are needed", name, view->len, needed);
  PyBuffer_Release(view);
  return -1;
}

// exchange, batch, count, tokens, bytes of a token, region, scales or None, scales of a token, experts, weights, top k
static PyObject *moe_dispatch_send(PyObject *module, PyObject *arguments) {
  te_moe_tokens batch = TE_MOE_TOKENS_INIT;
  unsigned long long exchange, region;
  unsigned int number, top;
  Py_ssize_t row, blocks;
  PyObject *tokens, *scales, *experts, *weights;
  Py_buffer views[4];
  int held = 0;
  int32_t status = TE_OK;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIIOnKOnOOI", &exchange, &number, &batch.count, &tokens, &row, &region, &scales, &blocks,
                        &experts, &weights, &top))
    return NULL;
  Py_ssize_t count = batch.count;
  struct { PyObject *object; Py_ssize_t needed; const char *name; const void *address; } wanted[4] = {
      {tokens, count * row, "tokens", NULL},
      {experts, count * top * 4, "experts", NULL},
      {weights, count * top * 4, "weights", NULL},
      {scales, count * blocks * 4, "scales", NULL}};
  int given = scales == Py_None ? 3 : 4;
  for (; held < given; held++) {
    if (borrow(wanted[held].object, &views[held], wanted[held].needed, held > 0, wanted[held].name)) break;
    wanted[held].address = views[held].buf;
  }
  if (held == given) {
    batch.tokens = wanted[0].address;
    batch.experts = wanted[1].address;
    batch.weights = wanted[2].address;
    batch.scales = wanted[3].address;
    batch.region = region;
    RELEASED(status, te_moe_dispatch_send(exchange, number, &batch));
  }
  int failed = held != given;
  while (held-- > 0) PyBuffer_Release(&views[held]);
  if (failed) return NULL;
  NONE_OR_RAISE(status);
}

static PyObject *rows_of(void *base, uint64_t bytes) { return te_py_lend(base, bytes, 0, NULL, 0, 0); }

// exchange, batch, bytes of a token, bytes of a result, scales of a token. Returns whether it is the last pass, rows, tokens,
// scales or None, outputs, counts, offsets
static PyObject *moe_dispatch_receive(PyObject *module, PyObject *arguments) {
  te_moe_received pass = TE_MOE_RECEIVED_INIT;
  unsigned long long exchange, token, result, blocks;
  unsigned int number;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIKKK", &exchange, &number, &token, &result, &blocks)) return NULL;
  RELEASED(status, te_moe_dispatch_receive(exchange, number, &pass));
  if (status != TE_OK) return te_py_raise();
  PyObject *scales = Py_None;
  if (pass.scales) scales = rows_of(pass.scales, pass.row_count * blocks * sizeof *pass.scales);
  else Py_INCREF(scales);
  return Py_BuildValue("OKNNNy#y#", pass.is_last ? Py_True : Py_False, (unsigned long long)pass.row_count,
                       rows_of(pass.tokens, pass.row_count * token), scales, rows_of(pass.outputs, pass.row_count * result),
                       (const char *)pass.counts, (Py_ssize_t)(pass.expert_count * sizeof *pass.counts),
                       (const char *)pass.offsets, (Py_ssize_t)(pass.expert_count * sizeof *pass.offsets));
}

static PyObject *moe_combine_send(PyObject *module, PyObject *arguments) {
  unsigned long long exchange;
  unsigned int number;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KI", &exchange, &number)) return NULL;
  RELEASED(status, te_moe_combine_send(exchange, number));
  NONE_OR_RAISE(status);
}

// exchange, batch, sums, bytes that they need. Returns the number of missing ranks and of dropped entries
static PyObject *moe_combine_receive(PyObject *module, PyObject *arguments) {
  te_moe_result result = TE_MOE_RESULT_INIT;
  unsigned long long exchange;
  unsigned int number;
  Py_ssize_t least;
  Py_buffer sums;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIw*n", &exchange, &number, &sums, &least)) return NULL;
  if (sums.len < least) {
    PyErr_Format(PyExc_ValueError, "sums: %zd bytes; %zd are needed", sums.len, least);
    PyBuffer_Release(&sums);
    return NULL;
  }
  // A buffer of no bytes may have no address.
  static char nothing[1];
  RELEASED(status, te_moe_combine_receive(exchange, number, sums.buf ? sums.buf : nothing, 0, &result));
  PyBuffer_Release(&sums);
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("IK", result.missing_ranks, (unsigned long long)result.dropped_entries);
}

static PyObject *moe_missing(PyObject *module, PyObject *argument) {
  uint32_t ranks[4096];
  uint64_t exchange, count = 0;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &exchange)) return NULL;
  RELEASED(status, te_moe_missing(exchange, ranks, sizeof ranks / sizeof *ranks, &count));
  if (status != TE_OK) return te_py_raise();
  return PyBytes_FromStringAndSize((const char *)ranks, (Py_ssize_t)(count * sizeof *ranks));
}

// exchange, rank. Raises what it was left out for.
static PyObject *moe_failure(PyObject *module, PyObject *arguments) {
  unsigned long long exchange;
  unsigned int rank;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KI", &exchange, &rank)) return NULL;
  RELEASED(status, te_moe_failure(exchange, rank));
  NONE_OR_RAISE(status);
}

ON_HANDLE(moe_close, te_moe_close)

PyMethodDef te_py_moe_methods[] = {
    {"moe_open", moe_open, METH_VARARGS, NULL},
    {"moe_address", moe_address, METH_O, NULL},
    {"moe_connect", moe_connect, METH_VARARGS, NULL},
    {"moe_dispatch_send", moe_dispatch_send, METH_VARARGS, NULL},
    {"moe_dispatch_receive", moe_dispatch_receive, METH_VARARGS, NULL},
    {"moe_combine_send", moe_combine_send, METH_VARARGS, NULL},
    {"moe_combine_receive", moe_combine_receive, METH_VARARGS, NULL},
    {"moe_missing", moe_missing, METH_O, NULL},
    {"moe_failure", moe_failure, METH_VARARGS, NULL},
    {"moe_close", moe_close, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
