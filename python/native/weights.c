// Plans and updates of weights. Whole parameters are whatever has the buffer protocol; shards and what is served are lent.
#include <transfer_engine/weights.h>

#include "native.h"

// A handle and a number in, nothing out.
#define ON_HANDLE_AND(type, name, function)                     \
  static PyObject *name(PyObject *module, PyObject *arguments) { \
    uint64_t handle, number;                                    \
    int32_t status;                                             \
    (void)module;                                               \
    if (two_numbers(arguments, &handle, &number)) return NULL;  \
    RELEASED(status, function(handle, (type)(number > (type)-1 ? (type)-1 : number))); \
    NONE_OR_RAISE(status);                                      \
  }

// Neither is cut to what C has room for.
static int two_numbers(PyObject *arguments, uint64_t *handle, uint64_t *number) {
  PyObject *first, *second;
  return !PyArg_ParseTuple(arguments, "OO", &first, &second) || te_py_number(first, handle) ||
         te_py_number(second, number);
}

ON_HANDLE(weights_plan_release, te_weights_plan_release)
ON_HANDLE(weights_close, te_weights_close)
ON_HANDLE(weights_withdraw, te_weights_withdraw)
ON_HANDLE(weights_cancel, te_weights_cancel)
ON_HANDLE_AND(uint32_t, weights_train, te_weights_train)
ON_HANDLE_AND(uint32_t, weights_serve, te_weights_serve)
ON_HANDLE_AND(uint64_t, weights_publish, te_weights_publish)
ON_HANDLE_AND(uint64_t, weights_update, te_weights_update)
ON_HANDLE_AND(uint64_t, weights_rollback, te_weights_rollback)

// What a function writes that says how much it is when there is no room. Without a buffer: NULL.
typedef int32_t (*writer)(uint64_t handle, void *buffer, uint64_t capacity, uint64_t *length);

static char *written(uint64_t handle, writer write, Py_ssize_t *length) {
  uint64_t needed = 0, capacity;
  int32_t status;
  char *buffer = NULL;
  RELEASED(status, write(handle, NULL, 0, &needed));
  do {
    char *more = PyMem_Realloc(buffer, (size_t)(capacity = needed) + 1);
    if (!more) {
      PyMem_Free(buffer);
      PyErr_NoMemory();
      return NULL;
    }
    buffer = more;
    if (status == TE_EOUTOFRANGE) RELEASED(status, write(handle, buffer, capacity, &needed));
  } while (status == TE_EOUTOFRANGE && needed > capacity);
  if (status != TE_OK) {
    PyMem_Free(buffer);
    te_py_raise();
    return NULL;
  }
  *length = (Py_ssize_t)needed;
  return buffer;
}

static PyObject *text_of(PyObject *argument, writer write) {
  uint64_t handle;
  Py_ssize_t length;
  if (te_py_number(argument, &handle)) return NULL;
  char *buffer = written(handle, write, &length);
  PyObject *text = buffer ? PyUnicode_DecodeUTF8(buffer, length, "replace") : NULL;
  PyMem_Free(buffer);
  return text;
}

// MARK: Plans

// policy, model, trainers, inference, watermark, bytes of a task
static PyObject *weights_plan_make(PyObject *module, PyObject *arguments) {
  te_weights_layouts layouts = TE_WEIGHTS_LAYOUTS_INIT;
  unsigned long long watermark, task;
  te_weights_plan plan = 0;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "IsssKK", &layouts.policy, &layouts.model, &layouts.trainers, &layouts.inference,
                        &watermark, &task))
    return NULL;
  layouts.watermark_bytes = watermark;
  layouts.task_bytes = task;
  RELEASED(status, te_weights_plan_make(&layouts, &plan));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(plan) : te_py_raise();
}

static PyObject *weights_plan_decode(PyObject *module, PyObject *argument) {
  te_weights_plan plan = 0;
  Py_buffer bytes;
  int32_t status;
  (void)module;
  if (PyObject_GetBuffer(argument, &bytes, PyBUF_SIMPLE)) return NULL;
  RELEASED(status, te_weights_plan_decode(bytes.buf, (uint64_t)bytes.len, &plan));
  PyBuffer_Release(&bytes);
  return status == TE_OK ? PyLong_FromUnsignedLongLong(plan) : te_py_raise();
}

static PyObject *weights_plan_encode(PyObject *module, PyObject *argument) {
  uint64_t plan;
  Py_ssize_t length;
  (void)module;
  if (te_py_number(argument, &plan)) return NULL;
  char *buffer = written(plan, te_weights_plan_encode, &length);
  PyObject *bytes = buffer ? PyBytes_FromStringAndSize(buffer, length) : NULL;
  PyMem_Free(buffer);
  return bytes;
}

static int32_t lint(uint64_t plan, void *text, uint64_t capacity, uint64_t *length) {
  return te_weights_plan_lint(plan, text, capacity, length, NULL);
}

static int32_t summary(uint64_t plan, void *text, uint64_t capacity, uint64_t *length) {
  return te_weights_plan_summary(plan, text, capacity, length);
}

static int32_t describe(uint64_t endpoint, void *text, uint64_t capacity, uint64_t *length) {
  return te_weights_describe(endpoint, text, capacity, length);
}

static PyObject *weights_plan_lint(PyObject *module, PyObject *argument) {
  (void)module;
  return text_of(argument, lint);
}

static PyObject *weights_plan_summary(PyObject *module, PyObject *argument) {
  (void)module;
  return text_of(argument, summary);
}

static PyObject *weights_describe(PyObject *module, PyObject *argument) {
  (void)module;
  return text_of(argument, describe);
}

static PyObject *weights_plan_ranks(PyObject *module, PyObject *argument) {
  uint64_t plan;
  uint32_t trainers, receivers;
  (void)module;
  if (te_py_number(argument, &plan)) return NULL;
  if (te_weights_plan_ranks(plan, &trainers, &receivers) != TE_OK) return te_py_raise();
  return Py_BuildValue("II", trainers, receivers);
}

static PyObject *tuple_of(const uint64_t *numbers, uint64_t count) {
  PyObject *tuple = PyTuple_New((Py_ssize_t)count);
  for (uint64_t i = 0; tuple && i < count; i++) {
    PyObject *number = PyLong_FromUnsignedLongLong(numbers[i]);
    if (!number || PyTuple_SetItem(tuple, (Py_ssize_t)i, number)) Py_CLEAR(tuple);
  }
  return tuple;
}

// A list of what `item` makes of each of `count` elements.
static PyObject *list_of(const char *elements, size_t size, uint64_t count, PyObject *(*item)(const void *)) {
  PyObject *list = PyList_New((Py_ssize_t)count);
  for (uint64_t i = 0; list && i < count; i++) {
    PyObject *made = item(elements + i * size);
    if (!made || PyList_SetItem(list, (Py_ssize_t)i, made)) Py_CLEAR(list);
  }
  return list;
}

// (name, type, shape of the parameter, begin, shape, offset, bytes)
static PyObject *shard_item(const void *element) {
  const te_weights_shard *s = element;
  return Py_BuildValue("sINNNKK", s->name, s->type, tuple_of(s->shape, s->dimensions), tuple_of(s->first, s->dimensions),
                       tuple_of(s->extent, s->dimensions), (unsigned long long)s->offset, (unsigned long long)s->length);
}

// (name, type, shape, offset, bytes, shape of scales, offset of scales, bytes of scales)
static PyObject *target_item(const void *element) {
  const te_weights_target *t = element;
  return Py_BuildValue("sINKKNKK", t->name, t->type, tuple_of(t->shape, t->dimensions), (unsigned long long)t->offset,
                       (unsigned long long)t->length, tuple_of(t->scale_shape, t->scale_length ? t->dimensions : 0),
                       (unsigned long long)t->scale_offset, (unsigned long long)t->scale_length);
}

static PyObject *weights_plan_shards(PyObject *module, PyObject *arguments) {
  uint64_t plan, number, count = 0;
  int32_t status;
  (void)module;
  if (two_numbers(arguments, &plan, &number)) return NULL;
  uint32_t rank = number > UINT32_MAX ? UINT32_MAX : (uint32_t)number;
  RELEASED(status, te_weights_plan_shards(plan, rank, NULL, 0, &count));
  te_weights_shard *shards = PyMem_Calloc(count + 1, sizeof *shards);
  if (!shards) return PyErr_NoMemory();
  shards->size = sizeof *shards;
  if (status == TE_EOUTOFRANGE) RELEASED(status, te_weights_plan_shards(plan, rank, shards, count, &count));
  PyObject *list =
      status == TE_OK ? list_of((const char *)shards, sizeof *shards, count, shard_item) : te_py_raise();
  PyMem_Free(shards);
  return list;
}

static PyObject *weights_plan_targets(PyObject *module, PyObject *arguments) {
  uint64_t plan, number, count = 0;
  int32_t status;
  (void)module;
  if (two_numbers(arguments, &plan, &number)) return NULL;
  uint32_t rank = number > UINT32_MAX ? UINT32_MAX : (uint32_t)number;
  RELEASED(status, te_weights_plan_targets(plan, rank, NULL, 0, &count));
  te_weights_target *targets = PyMem_Calloc(count + 1, sizeof *targets);
  if (!targets) return PyErr_NoMemory();
  targets->size = sizeof *targets;
  if (status == TE_EOUTOFRANGE) RELEASED(status, te_weights_plan_targets(plan, rank, targets, count, &count));
  PyObject *list =
      status == TE_OK ? list_of((const char *)targets, sizeof *targets, count, target_item) : te_py_raise();
  PyMem_Free(targets);
  return list;
}

// MARK: Endpoints

static PyObject *weights_open(PyObject *module, PyObject *arguments) {
  unsigned long long engine, plan;
  te_weights_endpoint endpoint = 0;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KK", &engine, &plan)) return NULL;
  RELEASED(status, te_weights_open(engine, plan, &endpoint));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(endpoint) : te_py_raise();
}

static PyObject *weights_follow(PyObject *module, PyObject *arguments) {
  unsigned long long endpoint;
  Py_buffer bytes;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ky*", &endpoint, &bytes)) return NULL;
  RELEASED(status, te_weights_follow(endpoint, bytes.buf, (uint64_t)bytes.len));
  PyBuffer_Release(&bytes);
  NONE_OR_RAISE(status);
}

static PyObject *weights_poll(PyObject *module, PyObject *argument) {
  uint64_t endpoint;
  int32_t status, is_busy = 0;
  (void)module;
  if (te_py_number(argument, &endpoint)) return NULL;
  RELEASED(status, te_weights_poll(endpoint, &is_busy));
  return status == TE_OK ? PyBool_FromLong(is_busy) : te_py_raise();
}

// endpoint, what, version, timeout; below 0 for ever. Raises TimedOut, unless it waited for the time.
static PyObject *weights_wait(PyObject *module, PyObject *arguments) {
  unsigned long long endpoint, version;
  unsigned int what;
  long long timeout;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIKL", &endpoint, &what, &version, &timeout)) return NULL;
  int64_t left = timeout, begin = te_py_nanoseconds();
  for (;;) {
    int64_t slice = timeout < 0 || left > TE_PY_SLICE ? TE_PY_SLICE : left;
    RELEASED(status, te_weights_wait(endpoint, what, version, slice));
    if (status != TE_ETIMEDOUT && !(status == TE_OK && what == TE_WEIGHTS_TIME)) break;
    if (PyErr_CheckSignals()) return NULL;
    if (timeout >= 0 && (left = timeout - (te_py_nanoseconds() - begin)) <= 0) break;
  }
  NONE_OR_RAISE(status);
}

static PyObject *weights_status(PyObject *module, PyObject *argument) {
  te_weights_state s = TE_WEIGHTS_STATE_INIT;
  uint64_t endpoint;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &endpoint)) return NULL;
  RELEASED(status, te_weights_status(endpoint, &s));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("IKKKIIIIK", s.is_sending, (unsigned long long)s.sent_bytes, (unsigned long long)s.pushed_version,
                       (unsigned long long)s.served_version, s.is_leading, s.is_updating, s.is_complete,
                       s.receiver_count, (unsigned long long)s.current_version);
}

// MARK: Trainers and receivers

static PyObject *weights_memory(PyObject *module, PyObject *argument) {
  uint64_t endpoint, length = 0;
  void *address = NULL;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &endpoint)) return NULL;
  RELEASED(status, te_weights_memory(endpoint, &address, &length));
  return status == TE_OK ? te_py_lend(address, length, 0, NULL, 0, 0) : te_py_raise();
}

// endpoint, name, whole parameter
static PyObject *weights_fill(PyObject *module, PyObject *arguments) {
  unsigned long long endpoint;
  const char *name;
  Py_buffer whole;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ksy*", &endpoint, &name, &whole)) return NULL;
  RELEASED(status, te_weights_fill(endpoint, name, whole.buf, (uint64_t)whole.len));
  PyBuffer_Release(&whole);
  NONE_OR_RAISE(status);
}

static PyObject *weights_version(PyObject *module, PyObject *argument) {
  uint64_t endpoint, version = 0;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &endpoint)) return NULL;
  RELEASED(status, te_weights_version(endpoint, &version));
  return status == TE_OK ? PyLong_FromUnsignedLongLong(version) : te_py_raise();
}

// (version, weights), which are lent as long as anybody has them; None before the first version.
static PyObject *weights_read(PyObject *module, PyObject *argument) {
  te_weights_reading reading = TE_WEIGHTS_READING_INIT;
  uint64_t endpoint;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &endpoint)) return NULL;
  RELEASED(status, te_weights_read_begin(endpoint, &reading));
  if (status == TE_PENDING) Py_RETURN_NONE;
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("KN", (unsigned long long)reading.version,
                       te_py_lend(reading.weights, reading.length, 1, te_weights_read_end, endpoint, reading.number));
}

// MARK: Who leads

// endpoint, then the fields of te_weights_options in their order
static PyObject *weights_lead(PyObject *module, PyObject *arguments) {
  te_weights_options options = TE_WEIGHTS_OPTIONS_INIT;
  unsigned long long endpoint, interval, phase, update;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIIIKKK", &endpoint, &options.term, &options.attempts, &options.sendings, &interval,
                        &phase, &update))
    return NULL;
  options.repeat_interval_ns = interval;
  options.phase_timeout_ns = phase;
  options.update_timeout_ns = update;
  RELEASED(status, te_weights_lead(endpoint, &options));
  NONE_OR_RAISE(status);
}

// Ranks that are left out, four bytes each; None while it is under way.
static PyObject *outcome_of(uint64_t endpoint, const uint64_t *version) {
  uint64_t count = 0, capacity = 64;
  uint32_t *ranks = NULL;
  int32_t status;
  do {
    if (count > capacity) capacity = count;
    PyMem_Free(ranks);
    ranks = PyMem_Calloc(capacity, sizeof *ranks);
    if (!ranks) return PyErr_NoMemory();
    RELEASED(status, version ? te_weights_outcome(endpoint, *version, ranks, capacity, &count)
                             : te_weights_rollback_outcome(endpoint, ranks, capacity, &count));
  } while (status == TE_EOUTOFRANGE && count > capacity);
  PyObject *result = status == TE_OK
                         ? PyBytes_FromStringAndSize((const char *)ranks, (Py_ssize_t)(count * sizeof *ranks))
                         : status == TE_PENDING ? Py_NewRef(Py_None) : te_py_raise();
  PyMem_Free(ranks);
  return result;
}

static PyObject *weights_outcome(PyObject *module, PyObject *arguments) {
  uint64_t endpoint, version;
  (void)module;
  return two_numbers(arguments, &endpoint, &version) ? NULL : outcome_of(endpoint, &version);
}

static PyObject *weights_rollback_outcome(PyObject *module, PyObject *argument) {
  uint64_t endpoint;
  (void)module;
  return te_py_number(argument, &endpoint) ? NULL : outcome_of(endpoint, NULL);
}

PyMethodDef te_py_weights_methods[] = {
    {"weights_plan_make", weights_plan_make, METH_VARARGS, NULL},
    {"weights_plan_decode", weights_plan_decode, METH_O, NULL},
    {"weights_plan_encode", weights_plan_encode, METH_O, NULL},
    {"weights_plan_lint", weights_plan_lint, METH_O, NULL},
    {"weights_plan_summary", weights_plan_summary, METH_O, NULL},
    {"weights_plan_ranks", weights_plan_ranks, METH_O, NULL},
    {"weights_plan_shards", weights_plan_shards, METH_VARARGS, NULL},
    {"weights_plan_targets", weights_plan_targets, METH_VARARGS, NULL},
    {"weights_plan_release", weights_plan_release, METH_O, NULL},
    {"weights_open", weights_open, METH_VARARGS, NULL},
    {"weights_follow", weights_follow, METH_VARARGS, NULL},
    {"weights_poll", weights_poll, METH_O, NULL},
    {"weights_wait", weights_wait, METH_VARARGS, NULL},
    {"weights_status", weights_status, METH_O, NULL},
    {"weights_describe", weights_describe, METH_O, NULL},
    {"weights_close", weights_close, METH_O, NULL},
    {"weights_train", weights_train, METH_VARARGS, NULL},
    {"weights_memory", weights_memory, METH_O, NULL},
    {"weights_fill", weights_fill, METH_VARARGS, NULL},
    {"weights_publish", weights_publish, METH_VARARGS, NULL},
    {"weights_withdraw", weights_withdraw, METH_O, NULL},
    {"weights_serve", weights_serve, METH_VARARGS, NULL},
    {"weights_version", weights_version, METH_O, NULL},
    {"weights_read", weights_read, METH_O, NULL},
    {"weights_lead", weights_lead, METH_VARARGS, NULL},
    {"weights_update", weights_update, METH_VARARGS, NULL},
    {"weights_outcome", weights_outcome, METH_VARARGS, NULL},
    {"weights_rollback", weights_rollback, METH_VARARGS, NULL},
    {"weights_rollback_outcome", weights_rollback_outcome, METH_O, NULL},
    {"weights_cancel", weights_cancel, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
