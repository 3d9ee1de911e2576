// Prefillers and decoders. Lists that do not change from request to request come as packed bytes.
#include <transfer_engine/kv.h>

#include "native.h"

enum { MOST_RANKS = 256, MOST_GROUPS = 64 };

// Everything that was borrowed for a call.
typedef struct {
  te_kv_group groups[MOST_GROUPS];
  te_kv_rank ranks[MOST_RANKS];
} kv_setup;

// (heads, key bytes, value bytes, window, page tokens, order, arrangement, layers)
static int group_of(PyObject *object, te_kv_group *group) {
  te_kv_group defaults = TE_KV_GROUP_INIT;
  const char *layers;
  Py_ssize_t bytes;
  *group = defaults;
  if (!PyArg_ParseTuple(object, "IIIIIIIy#", &group->heads, &group->key_bytes, &group->value_bytes, &group->window,
                        &group->page_tokens, &group->order, &group->arrangement, &layers, &bytes))
    return -1;
  group->layers = (const uint32_t *)(const void *)layers;
  group->layer_count = (uint64_t)bytes / sizeof *group->layers;
  return 0;
}

// (engine, regions, planes)
static int rank_of(PyObject *object, te_kv_rank *rank) {
  te_kv_rank defaults = TE_KV_RANK_INIT;
  unsigned long long engine;
  const char *regions, *planes;
  Py_ssize_t region_bytes, plane_bytes;
  *rank = defaults;
  if (!PyArg_ParseTuple(object, "Ky#y#", &engine, &regions, &region_bytes, &planes, &plane_bytes)) return -1;
  rank->engine = engine;
  rank->regions = (const te_region *)(const void *)regions;
  rank->region_count = (uint64_t)region_bytes / sizeof *rank->regions;
  rank->planes = (const te_kv_plane *)(const void *)planes;
  rank->plane_count = (uint64_t)plane_bytes / sizeof *rank->planes;
  return 0;
}

// is_decoder, name, heartbeats, heartbeat, cancel timeout, quarantine, digests, model, element type, tensor ranks, first, all, stage ends,
// groups, ranks
static PyObject *kv_open(PyObject *module, PyObject *arguments) {
  te_kv_config config = TE_KV_CONFIG_INIT;
  te_kv_layout layout = TE_KV_LAYOUT_INIT;
  unsigned long long heartbeat, cancel, quarantine;
  const char *stages;
  Py_ssize_t stage_bytes;
  PyObject *groups, *ranks;
  int is_decoder, digests;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "psIKKKpssIIIy#O!O!", &is_decoder, &config.name, &config.heartbeats, &heartbeat, &cancel,
                        &quarantine, &digests, &layout.model, &layout.element_type, &layout.tensor_ranks,
                        &layout.first_tensor_rank, &layout.all_tensor_ranks, &stages, &stage_bytes,
                        &PyTuple_Type, &groups, &PyTuple_Type, &ranks))
    return NULL;
  config.heartbeat_ns = heartbeat;
  config.cancel_timeout_ns = cancel;
  config.quarantine_ns = quarantine;
  config.digests = (uint32_t)digests;
  layout.stage_ends = (const uint32_t *)(const void *)stages;
  layout.stage_count = (uint64_t)stage_bytes / sizeof *layout.stage_ends;
  Py_ssize_t group_count = PyTuple_Size(groups), rank_count = PyTuple_Size(ranks);
  if (group_count > MOST_GROUPS || rank_count > MOST_RANKS)
    return PyErr_Format(PyExc_ValueError, "%zd groups and %zd ranks; at most %d and %d", group_count, rank_count,
                        MOST_GROUPS, MOST_RANKS);
  kv_setup *setup = PyMem_Calloc(1, sizeof *setup);
  if (!setup) return PyErr_NoMemory();
  int failed = 0;
  for (Py_ssize_t i = 0; i < group_count && !failed; i++)
    failed = group_of(PyTuple_GetItem(groups, i), &setup->groups[i]);
  for (Py_ssize_t i = 0; i < rank_count && !failed; i++) failed = rank_of(PyTuple_GetItem(ranks, i), &setup->ranks[i]);
  layout.groups = setup->groups;
  layout.group_count = (uint64_t)group_count;
  uint64_t role = 0;
  int32_t status = TE_OK;
  if (!failed)
    RELEASED(status, (is_decoder ? te_kv_decoder_open : te_kv_prefiller_open)(&config, &layout, setup->ranks,
                                                                             (uint64_t)rank_count, &role));
  PyMem_Free(setup);
  if (failed) return NULL;
  return status == TE_OK ? PyLong_FromUnsignedLongLong(role) : te_py_raise();
}

ON_HANDLE(kv_close, te_kv_close)
ON_HANDLE(kv_disconnect, te_kv_disconnect)
ON_HANDLE(kv_cancel, te_kv_cancel)
ON_HANDLE(kv_drain, te_kv_drain)

static PyObject *kv_fd(PyObject *module, PyObject *argument) {
  uint64_t role;
  int32_t fd;
  (void)module;
  if (te_py_number(argument, &role)) return NULL;
  return te_kv_fd(role, &fd) == TE_OK ? PyLong_FromLong(fd) : te_py_raise();
}

// Role, timeout: a list of (kind, code, tag, object, layer, reason).
static PyObject *kv_poll(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  te_kv_event events[64];
  uint64_t role, taken = 0;
  int64_t timeout;
  int32_t status;
  (void)module;
  if (count != 2) return PyErr_Format(PyExc_TypeError, "a role and a timeout");
  if (te_py_number(arguments[0], &role) || te_py_signed(arguments[1], &timeout)) return NULL;
  if (timeout == 0)
    status = te_kv_poll(role, events, 64, 0, &taken);
  else
    RELEASED(status, te_kv_poll(role, events, 64, timeout, &taken));
  if (status != TE_OK) return te_py_raise();
  PyObject *list = PyList_New((Py_ssize_t)taken);
  for (uint64_t i = 0; list && i < taken; i++) {
    const te_kv_event *e = &events[i];
    PyObject *item = Py_BuildValue("IIKKKs", e->kind, e->code, (unsigned long long)e->tag,
                                   (unsigned long long)e->object, (unsigned long long)e->layer, e->reason);
    if (!item) Py_CLEAR(list);
    else PyList_SetItem(list, (Py_ssize_t)i, item);
  }
  return list;
}

// MARK: Decoder

static PyObject *kv_connect(PyObject *module, PyObject *arguments) {
  unsigned long long decoder;
  Py_buffer bytes;
  uint64_t peer;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ky*", &decoder, &bytes)) return NULL;
  RELEASED(status, te_kv_connect(decoder, bytes.buf, (uint64_t)bytes.len, &peer));
  PyBuffer_Release(&bytes);
  return status == TE_OK ? PyLong_FromUnsignedLongLong(peer) : te_py_raise();
}

static PyObject *kv_peer_status(PyObject *module, PyObject *argument) {
  uint64_t peer;
  int32_t status;
  te_kv_peer_state state = {0};
  (void)module;
  state.size = sizeof state;
  if (te_py_number(argument, &peer)) return NULL;
  RELEASED(status, te_kv_peer_status(peer, &state));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("sKNIs", state.name, (unsigned long long)state.load, PyBool_FromLong(state.is_draining),
                       state.code, state.reason);
}

// Page tables: a tuple with (first, pages) for each group.
typedef struct {
  te_kv_table tables[MOST_GROUPS];
  te_py_pages pages[MOST_GROUPS];
  uint64_t count;
} kv_tables;

static void drop_tables(kv_tables *tables) {
  for (uint64_t i = 0; i < tables->count; i++) te_py_pages_release(&tables->pages[i]);
  tables->count = 0;
}

static int tables_of(PyObject *object, kv_tables *tables) {
  tables->count = 0;
  if (!PyTuple_Check(object) || PyTuple_Size(object) > MOST_GROUPS) {
    PyErr_Format(PyExc_TypeError, "page tables are a tuple of at most %d", MOST_GROUPS);
    return -1;
  }
  for (Py_ssize_t i = 0; i < PyTuple_Size(object); i++) {
    unsigned long long first;
    PyObject *pages;
    if (!PyArg_ParseTuple(PyTuple_GetItem(object, i), "KO", &first, &pages) ||
        te_py_pages_get(pages, &tables->pages[i])) {
      drop_tables(tables);
      return -1;
    }
    tables->tables[i] = (te_kv_table){first, tables->pages[i].numbers, tables->pages[i].count};
    tables->count += 1;
  }
  return 0;
}

// Decoder, flags, tag, prefiller, cached, end, tables, tail or None, input, timeout: the request.
static PyObject *kv_ask(PyObject *module, PyObject *arguments) {
  te_kv_question question = TE_KV_QUESTION_INIT;
  unsigned long long decoder, tag, prefiller, cached, end;
  long long timeout;
  PyObject *table_tuple, *tail_tuple;
  const char *input;
  Py_ssize_t input_bytes;
  kv_tables tables;
  te_kv_tail tail;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIKKKKOOy#L", &decoder, &question.flags, &tag, &prefiller, &cached, &end,
                        &table_tuple, &tail_tuple, &input, &input_bytes, &timeout))
    return NULL;
  if (tail_tuple != Py_None) {
    unsigned long long offset, bytes;
    if (!PyArg_ParseTuple(tail_tuple, "IIKK", &tail.rank, &tail.region, &offset, &bytes)) return NULL;
    tail.offset = offset;
    tail.byte_count = bytes;
    question.tail = &tail;
  }
  if (tables_of(table_tuple, &tables)) return NULL;
  question.tag = tag;
  question.prefiller = prefiller;
  question.cached = cached;
  question.end = end;
  question.tables = tables.tables;
  question.table_count = tables.count;
  question.input = input;
  question.input_bytes = (uint64_t)input_bytes;
  question.timeout_ns = timeout;
  te_kv_request request;
  int32_t status;
  RELEASED(status, te_kv_ask(decoder, &question, 1, &request, NULL));
  drop_tables(&tables);
  return status == TE_OK ? PyLong_FromUnsignedLongLong(request) : te_py_raise();
}

// MARK: Prefiller

// (has tail, cached, end, tail bytes, timeout, decoder, input)
static PyObject *kv_job_read(PyObject *module, PyObject *argument) {
  uint64_t job;
  te_kv_job_info info = {0};
  (void)module;
  info.size = sizeof info;
  if (te_py_number(argument, &job)) return NULL;
  int32_t status = te_kv_job_read(job, &info, NULL, 0);
  if (status != TE_OK && status != TE_EOUTOFRANGE) return te_py_raise();
  PyObject *input = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)info.input_bytes);
  if (!input) return NULL;
  if (info.input_bytes) status = te_kv_job_read(job, &info, PyByteArray_AsString(input), info.input_bytes);
  PyObject *bytes = status == TE_OK ? PyBytes_FromObject(input) : NULL;
  Py_DECREF(input);
  if (status != TE_OK) return te_py_raise();
  if (!bytes) return NULL;
  return Py_BuildValue("NKKKLsN", PyBool_FromLong(info.has_tail), (unsigned long long)info.cached,
                       (unsigned long long)info.end, (unsigned long long)info.tail_bytes, (long long)info.timeout_ns,
                       info.decoder, bytes);
}

// Job, tables, and a tag: accepts; without a tag: extends.
static PyObject *kv_accept(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  uint64_t job, tag = 0;
  kv_tables tables;
  int32_t status;
  (void)module;
  if (count != 2 && count != 3) return PyErr_Format(PyExc_TypeError, "a job, page tables, and a tag or none");
  if (te_py_number(arguments[0], &job) || (count == 3 && te_py_number(arguments[2], &tag))) return NULL;
  if (tables_of(arguments[1], &tables)) return NULL;
  RELEASED(status, count == 3 ? te_kv_accept(job, tables.tables, tables.count, tag)
                              : te_kv_extend(job, tables.tables, tables.count));
  drop_tables(&tables);
  NONE_OR_RAISE(status);
}

static PyObject *kv_abort(PyObject *module, PyObject *arguments) {
  unsigned long long job;
  const char *reason;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "Ks", &job, &reason)) return NULL;
  RELEASED(status, te_kv_abort(job, reason));
  NONE_OR_RAISE(status);
}

// Prefiller, stage, a list of (job, begin, end).
static PyObject *kv_forward(PyObject *module, PyObject *arguments) {
  unsigned long long prefiller;
  unsigned int stage;
  PyObject *list;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIO!", &prefiller, &stage, &PyList_Type, &list)) return NULL;
  Py_ssize_t count = PyList_Size(list);
  te_kv_chunk *chunks = PyMem_Calloc((size_t)count + 1, sizeof *chunks);
  if (!chunks) return PyErr_NoMemory();
  int failed = 0;
  for (Py_ssize_t i = 0; i < count && !failed; i++) {
    unsigned long long job, begin, end;
    failed = !PyArg_ParseTuple(PyList_GetItem(list, i), "KKK", &job, &begin, &end);
    if (!failed) chunks[i] = (te_kv_chunk){job, begin, end};
  }
  int32_t status = TE_OK;
  if (!failed) RELEASED(status, te_kv_forward(prefiller, stage, chunks, (uint64_t)count));
  PyMem_Free(chunks);
  if (failed) return NULL;
  NONE_OR_RAISE(status);
}

static PyObject *kv_computed(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
  uint64_t prefiller, stage, layers;
  int32_t status;
  (void)module;
  if (count != 3) return PyErr_Format(PyExc_TypeError, "a prefiller, a stage and the layers of it in all");
  if (te_py_number(arguments[0], &prefiller) || te_py_number(arguments[1], &stage) ||
      te_py_number(arguments[2], &layers))
    return NULL;
  RELEASED(status, te_kv_computed(prefiller, stage > UINT32_MAX ? UINT32_MAX : (uint32_t)stage, layers));
  NONE_OR_RAISE(status);
}

static PyObject *kv_watch(PyObject *module, PyObject *arguments) {
  unsigned long long prefiller, region, offset;
  unsigned int rank;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIKK", &prefiller, &rank, &region, &offset)) return NULL;
  RELEASED(status, te_kv_watch(prefiller, rank, region, offset));
  NONE_OR_RAISE(status);
}

static PyObject *kv_write_tail(PyObject *module, PyObject *arguments) {
  unsigned long long job, offset;
  unsigned int rank, region;
  int32_t status;
  (void)module;
  if (!PyArg_ParseTuple(arguments, "KIIK", &job, &rank, &region, &offset)) return NULL;
  RELEASED(status, te_kv_write_tail(job, rank, region, offset));
  NONE_OR_RAISE(status);
}

static PyObject *kv_load(PyObject *module, PyObject *argument) {
  uint64_t prefiller, jobs, tokens;
  int32_t status;
  (void)module;
  if (te_py_number(argument, &prefiller)) return NULL;
  RELEASED(status, te_kv_load(prefiller, &jobs, &tokens));
  if (status != TE_OK) return te_py_raise();
  return Py_BuildValue("KK", (unsigned long long)jobs, (unsigned long long)tokens);
}

#define FAST(name, function, text) {name, (PyCFunction)(void (*)(void))(function), METH_FASTCALL, text}

PyMethodDef te_py_kv_methods[] = {
    {"kv_open", kv_open, METH_VARARGS, NULL},
    {"kv_close", kv_close, METH_O, NULL},
    {"kv_fd", kv_fd, METH_O, NULL},
    FAST("kv_poll", kv_poll, NULL),
    {"kv_connect", kv_connect, METH_VARARGS, NULL},
    {"kv_disconnect", kv_disconnect, METH_O, NULL},
    {"kv_peer_status", kv_peer_status, METH_O, NULL},
    {"kv_ask", kv_ask, METH_VARARGS, NULL},
    {"kv_cancel", kv_cancel, METH_O, NULL},
    {"kv_job_read", kv_job_read, METH_O, NULL},
    FAST("kv_accept", kv_accept, NULL),
    {"kv_abort", kv_abort, METH_VARARGS, NULL},
    {"kv_forward", kv_forward, METH_VARARGS, NULL},
    FAST("kv_computed", kv_computed, NULL),
    {"kv_watch", kv_watch, METH_VARARGS, NULL},
    {"kv_write_tail", kv_write_tail, METH_VARARGS, NULL},
    {"kv_drain", kv_drain, METH_O, NULL},
    {"kv_load", kv_load, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
