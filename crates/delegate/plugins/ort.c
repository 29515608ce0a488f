/* ort.c: ONNX Runtime as a plug-in, with any execution provider, built in or as a library of its own (QNN, OpenVINO, …). The runtime is
 * opened with dlopen and called by the places of its function table, which only ever grows: no header and no file of it is needed here.
 *
 * Options: library = path of libonnxruntime.so (default: by name); threads = of the CPU provider (1); provider = name, as
 * "QNNExecutionProvider" (default: the CPU); provider_library = its library; provider.KEY = for it, as provider.backend_path;
 * fallback = "yes": its own CPU may run what the provider does not take (default: refused); except = operators that are left to others,
 * as "Softmax,Resize"; simulated = "yes": times mean nothing.
 * With a cache folder a provider's compiled model is kept there as an EPContext file with its checksum; the same file is what export_blob
 * gives and what a package's [[delegate]] may bring: target is the provider's name in small letters.
 */
#define _GNU_SOURCE
#include "ocelli_delegate.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct OrtStatus OrtStatus;
typedef struct OrtObject OrtObject; /* environment, session, options, value, …: only ever handed on */
typedef struct OrtApiBase {
  const void *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

/* The lowest version with all that is called here: 24 has plug-in providers; without one, 8 is enough. */
#define API_PLAIN 8u
#define API_PROVIDERS 24u
/* ORT_LOGGING_LEVEL_ERROR, OrtArenaAllocator … of the C API. */
#define LOG_ERROR 3
#define DEVICE_ALLOCATOR 0
#define DEFAULT_MEMORY 0

/* Places in OrtApi. */
enum {
  GET_ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION_FROM_ARRAY = 8,
  RUN = 9,
  INPUT_COUNT = 30,
  OUTPUT_COUNT = 31,
  INPUT_TYPE = 33,
  OUTPUT_TYPE = 34,
  INPUT_NAME = 36,
  OUTPUT_NAME = 37,
  TYPE_TO_TENSOR = 55,
  ELEMENT_TYPE = 60,
  DIMS_COUNT = 61,
  DIMS = 62,
  DEFAULT_ALLOCATOR = 78,
  RELEASE_TYPE = 98,
  CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_NUM_THREADS = 24,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_STATUS = 93,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_SESSION_OPTIONS = 100,
  ALLOCATOR_FREE = 76,
  ADD_SESSION_CONFIG_ENTRY = 130,
  REGISTER_PROVIDER_LIBRARY = 301,
  GET_EP_DEVICES = 303,
  APPEND_PROVIDER = 304,
  EP_DEVICE_NAME = 312,
};

#define MOST 16

struct ocelli_context {
  char error[1024];
  char library[512], provider[64], provider_library[512], version[32], except[256];
  int threads, fallback, simulated;
  const char *keys[MOST], *values[MOST];
  size_t n_options;
  void *const *api;
  OrtObject *env, *memory;
  const OrtObject *device; /* of the provider */
};

typedef struct border {
  ocelli_tensor as;
  int64_t dims[8];
  char name[256];
  float scale;
  int32_t zero_point;
} border;

struct ocelli_executable {
  ocelli_context *context;
  OrtObject *session;
  border io[2][MOST];
  uint32_t count[2];
  char kept[1024]; /* the compiled model's file; empty: none */
};

static ocelli_status fail(ocelli_context *c, ocelli_status status, const char *what, const char *why) {
  snprintf(c->error, sizeof c->error, "%s%s%s", what, why ? ": " : "", why ? why : "");
  return status;
}

/* Calls through the table. Data and function pointers are the same here, as dlsym has it. */
#define CALL(c, place, type) (*(__typeof__(type) *)(void *)&(c)->api[place])

static ocelli_status checked(ocelli_context *c, OrtStatus *status, ocelli_status otherwise, const char *what) {
  if (!status) return OCELLI_OK;
  fail(c, otherwise, what, CALL(c, GET_ERROR_MESSAGE, const char *(*)(const OrtStatus *))(status));
  CALL(c, RELEASE_STATUS, void (*)(OrtStatus *))(status);
  return otherwise;
}

static ocelli_status read_options(ocelli_context *c, const ocelli_options *options) {
  c->threads = 1;
  snprintf(c->library, sizeof c->library, "libonnxruntime.so");
  for (uint32_t i = 0; i < options->count; i++) {
    const char *key = options->keys[i], *value = options->values[i];
    if (!strcmp(key, "library")) snprintf(c->library, sizeof c->library, "%s", value);
    else if (!strcmp(key, "provider")) snprintf(c->provider, sizeof c->provider, "%s", value);
    else if (!strcmp(key, "provider_library")) snprintf(c->provider_library, sizeof c->provider_library, "%s", value);
    else if (!strcmp(key, "except")) snprintf(c->except, sizeof c->except, ",%s,", value);
    else if (!strcmp(key, "threads")) c->threads = atoi(value);
    else if (!strcmp(key, "fallback")) c->fallback = !strcmp(value, "yes");
    else if (!strcmp(key, "simulated")) c->simulated = !strcmp(value, "yes");
    else if (!strncmp(key, "provider.", 9) && c->n_options < MOST) {
      c->keys[c->n_options] = strdup(key + 9);
      c->values[c->n_options++] = strdup(value);
    } else return fail(c, OCELLI_INVALID, "unknown option, or too many", key);
  }
  return OCELLI_OK;
}

/* Registers the provider's library and finds its first device. */
static ocelli_status open_provider(ocelli_context *c) {
  ocelli_status status = OCELLI_OK;
  if (c->provider_library[0]) {
    OrtStatus *done =
        CALL(c, REGISTER_PROVIDER_LIBRARY, OrtStatus *(*)(OrtObject *, const char *, const char *))(c->env, c->provider, c->provider_library);
    if ((status = checked(c, done, OCELLI_UNSUPPORTED, "provider library"))) return status;
  }
  const OrtObject *const *devices = NULL;
  size_t count = 0;
  OrtStatus *done = CALL(c, GET_EP_DEVICES, OrtStatus *(*)(const OrtObject *, const OrtObject *const **, size_t *))(c->env, &devices, &count);
  if ((status = checked(c, done, OCELLI_NO_DEVICE, "devices"))) return status;
  for (size_t i = 0; i < count && !c->device; i++)
    if (!strcmp(CALL(c, EP_DEVICE_NAME, const char *(*)(const OrtObject *))(devices[i]), c->provider)) c->device = devices[i];
  return c->device ? OCELLI_OK : fail(c, OCELLI_NO_DEVICE, c->provider, "the runtime sees no device of this provider");
}

static ocelli_status create(const ocelli_options *options, ocelli_context **out) {
  ocelli_context *c = *out = calloc(1, sizeof **out);
  if (!c) return OCELLI_OUT_OF_MEMORY;
  ocelli_status status = read_options(c, options);
  if (status) return status;
  void *library = dlopen(c->library, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(c, OCELLI_UNSUPPORTED, "cannot open ONNX Runtime, set the option library", dlerror());
  const OrtApiBase *(*get_base)(void);
  *(void **)&get_base = dlsym(library, "OrtGetApiBase");
  if (!get_base) return fail(c, OCELLI_UNSUPPORTED, c->library, "is not ONNX Runtime: no OrtGetApiBase");
  const OrtApiBase *base = get_base();
  snprintf(c->version, sizeof c->version, "%s", base->GetVersionString());
  c->api = base->GetApi(c->provider[0] ? API_PROVIDERS : API_PLAIN);
  if (!c->api) return fail(c, OCELLI_UNSUPPORTED, "ONNX Runtime is too old for plug-in providers, 1.24 has them; this is", c->version);
  OrtStatus *done = CALL(c, CREATE_ENV, OrtStatus *(*)(int, const char *, OrtObject **))(LOG_ERROR, "ocelli", &c->env);
  if ((status = checked(c, done, OCELLI_INTERNAL, "environment"))) return status;
  done = CALL(c, CREATE_CPU_MEMORY_INFO, OrtStatus *(*)(int, int, OrtObject **))(DEVICE_ALLOCATOR, DEFAULT_MEMORY, &c->memory);
  if ((status = checked(c, done, OCELLI_INTERNAL, "memory"))) return status;
  return c->provider[0] ? open_provider(c) : OCELLI_OK;
}

static void destroy(ocelli_context *c) { free(c); /* the runtime itself cannot be unloaded */ }
static const char *last_error(ocelli_context *c) { return c->error; }

static ocelli_status device(ocelli_context *c, uint32_t index, ocelli_device *out) {
  if (index > 0) return fail(c, OCELLI_NO_DEVICE, "there is one device", NULL);
  snprintf(out->name, sizeof out->name, "ONNX Runtime, %.40s", c->provider[0] ? c->provider : "CPU");
  snprintf(out->target, sizeof out->target, "%s", c->provider[0] ? c->provider : "cpu");
  for (char *at = out->target; *at; at++) *at = (char)tolower((unsigned char)*at);
  snprintf(out->runtime, sizeof out->runtime, "%s", c->version);
  out->capabilities = OCELLI_CAP_ONLINE_COMPILE | (c->device ? OCELLI_CAP_BLOB | OCELLI_CAP_EXPORT : 0) | (c->simulated ? OCELLI_CAP_SIMULATED : 0);
  return OCELLI_OK;
}

static int border_type(uint32_t dtype) {
  return dtype == OCELLI_F32 || dtype == OCELLI_U8 || dtype == OCELLI_I8 || dtype == OCELLI_I32 || dtype == OCELLI_I64;
}

/* The runtime reads any ONNX file; what a provider leaves shows when it is compiled. */
static ocelli_status supports(ocelli_context *c, uint32_t index, const ocelli_graph *graph, uint8_t *accepts) {
  (void)index;
  for (uint32_t n = 0; n < graph->n_nodes; n++) {
    const ocelli_node *node = graph->nodes[n];
    char name[64];
    snprintf(name, sizeof name, ",%.60s,", node->op);
    accepts[n] = !strstr(c->except, name);
    for (uint32_t o = 0; o < node->n_outputs; o++)
      if (node->outputs[o] != OCELLI_NO_TENSOR && !border_type(graph->tensors[node->outputs[o]]->dtype)) accepts[n] = 0;
  }
  return OCELLI_OK;
}

static ocelli_status session_options(ocelli_context *c, const char *context_file, OrtObject **out) {
  ocelli_status status;
  OrtStatus *done = CALL(c, CREATE_SESSION_OPTIONS, OrtStatus *(*)(OrtObject **))(out);
  if ((status = checked(c, done, OCELLI_INTERNAL, "session options"))) return status;
  done = CALL(c, SET_INTRA_OP_NUM_THREADS, OrtStatus *(*)(OrtObject *, int))(*out, c->threads);
  if ((status = checked(c, done, OCELLI_INVALID, "threads"))) return status;
  OrtStatus *(*entry)(OrtObject *, const char *, const char *) =
      CALL(c, ADD_SESSION_CONFIG_ENTRY, OrtStatus *(*)(OrtObject *, const char *, const char *));
  /* By default 8-bit sums saturate on x86 processors without VNNI, and the answers are wrong. */
  if ((status = checked(c, entry(*out, "session.x64quantprecision", "1"), OCELLI_INTERNAL, "precision"))) return status;
  if (!c->device) return OCELLI_OK;
  if (!c->fallback && (status = checked(c, entry(*out, "session.disable_cpu_ep_fallback", "1"), OCELLI_INTERNAL, "fallback"))) return status;
  if (context_file) {
    if ((status = checked(c, entry(*out, "ep.context_enable", "1"), OCELLI_INTERNAL, "cache"))) return status;
    if ((status = checked(c, entry(*out, "ep.context_file_path", context_file), OCELLI_INTERNAL, "cache"))) return status;
    if ((status = checked(c, entry(*out, "ep.context_embed_mode", "1"), OCELLI_INTERNAL, "cache"))) return status;
  }
  done = CALL(c, APPEND_PROVIDER,
              OrtStatus *(*)(OrtObject *, OrtObject *, const OrtObject *const *, size_t, const char *const *, const char *const *, size_t))(
      *out, c->env, &c->device, 1, c->keys, c->values, c->n_options);
  return checked(c, done, OCELLI_UNSUPPORTED, "provider");
}

#define FNV_START 0xcbf29ce484222325u

static uint64_t fnv(const void *bytes, uint64_t n_bytes, uint64_t hash) {
  for (uint64_t i = 0; i < n_bytes; i++) hash = (hash ^ ((const uint8_t *)bytes)[i]) * 0x100000001b3u;
  return hash;
}

/* A whole file, to be freed; null when it cannot be read. */
static void *read_file(const char *path, size_t *n_bytes) {
  FILE *file = fopen(path, "rbe");
  if (!file) return NULL;
  void *bytes = NULL;
  long length = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  if (length > 0 && (bytes = malloc((size_t)length))) {
    rewind(file);
    *n_bytes = fread(bytes, 1, (size_t)length, file);
    if (*n_bytes != (size_t)length) free(bytes), bytes = NULL;
  }
  fclose(file);
  return bytes;
}

/* The checksum of a kept file, as it is and as it was written beside it. */
static int checksum(const char *path, char now[32], char then[32]) {
  size_t n_bytes = 0, length = 0;
  char beside[1100];
  void *bytes = read_file(path, &n_bytes);
  if (!bytes) return 0;
  snprintf(now, 32, "%016llx", (unsigned long long)fnv(bytes, n_bytes, FNV_START));
  free(bytes);
  snprintf(beside, sizeof beside, "%s.sum", path);
  char *sum = read_file(beside, &length);
  snprintf(then, 32, "%.*s", (int)(sum && length < 32 ? length : 0), sum ? sum : "");
  free(sum);
  return 1;
}

static void keep_checksum(const char *path) {
  char now[32], then[32], beside[1100];
  snprintf(beside, sizeof beside, "%s.sum", path);
  FILE *file = checksum(path, now, then) ? fopen(beside, "we") : NULL;
  if (!file) return;
  fputs(now, file);
  fclose(file);
}

/* Where this model's compiled form is kept: the model, the runtime and all options are in the name. */
static int cache_file(const ocelli_context *c, const ocelli_source *source, char *out, size_t room) {
  if (!source->cache_dir || !c->device) return 0;
  uint64_t hash = fnv(source->data, source->n_bytes, FNV_START);
  const char *texts[2 * MOST + 2] = {c->version, c->provider};
  for (size_t i = 0; i < c->n_options; i++) texts[2 + 2 * i] = c->keys[i], texts[3 + 2 * i] = c->values[i];
  for (size_t i = 0; i < 2 + 2 * c->n_options; i++)
    hash = fnv(texts[i], strlen(texts[i]) + 1, hash);
  return snprintf(out, room, "%s/ort-%016llx.onnx", source->cache_dir, (unsigned long long)hash) < (int)room;
}

static ocelli_status session_of(ocelli_context *c, const void *bytes, size_t n_bytes, const char *context_file, ocelli_status otherwise, OrtObject **out) {
  OrtObject *options = NULL;
  ocelli_status status = session_options(c, context_file, &options);
  if (status) return status;
  OrtStatus *done = CALL(c, CREATE_SESSION_FROM_ARRAY, OrtStatus *(*)(const OrtObject *, const void *, size_t, const OrtObject *, OrtObject **))(
      c->env, bytes, n_bytes, options, out);
  CALL(c, RELEASE_SESSION_OPTIONS, void (*)(OrtObject *))(options);
  return checked(c, done, otherwise, "model");
}

static ocelli_status open_session(ocelli_context *c, const ocelli_source *source, ocelli_executable *e) {
  if (source->kind == OCELLI_SOURCE_BLOB) return session_of(c, source->data, (size_t)source->n_bytes, NULL, OCELLI_BLOB_STALE, &e->session);
  char now[32], then[32];
  size_t n_bytes = 0;
  int cached = cache_file(c, source, e->kept, sizeof e->kept);
  if (cached) {
    int whole = checksum(e->kept, now, then) && !strcmp(now, then);
    void *kept = whole ? read_file(e->kept, &n_bytes) : NULL;
    ocelli_status status = kept ? session_of(c, kept, n_bytes, NULL, OCELLI_BLOB_STALE, &e->session) : OCELLI_BLOB_STALE;
    free(kept);
    if (!status) return OCELLI_OK;
    unlink(e->kept); /* damaged, empty or of another driver: compiled anew, which does not write over a file */
  }
  ocelli_status status = session_of(c, source->data, (size_t)source->n_bytes, cached ? e->kept : NULL, OCELLI_MODEL_REJECTED, &e->session);
  if (cached && !status) keep_checksum(e->kept);
  if (!cached) e->kept[0] = 0;
  return status;
}

static int describe(border *out, const ocelli_tensor *tensor) {
  if (tensor->rank > 8 || strlen(tensor->name) >= sizeof out->name || !border_type(tensor->dtype)) return 0;
  out->as = (ocelli_tensor){.size = sizeof out->as, .dtype = tensor->dtype, .rank = tensor->rank, .n_bytes = tensor->n_bytes};
  memcpy(out->dims, tensor->dims, tensor->rank * sizeof *tensor->dims);
  strcpy(out->name, tensor->name);
  out->as.dims = out->dims, out->as.name = out->name;
  if (tensor->quant == OCELLI_QUANT_TENSOR) {
    out->scale = tensor->scale[0], out->zero_point = tensor->zero_point[0];
    out->as.quant = OCELLI_QUANT_TENSOR, out->as.n_scales = 1;
    out->as.scale = &out->scale, out->as.zero_point = &out->zero_point;
  }
  return 1;
}

static void release(ocelli_executable *e) {
  if (e->session) CALL(e->context, RELEASE_SESSION, void (*)(OrtObject *))(e->session);
  free(e);
}

/* What a compiled model says of a tensor of its own. */
static ocelli_status ask_tensor(ocelli_executable *e, uint32_t direction, uint32_t index, border *out) {
  ocelli_context *c = e->context;
  OrtObject *allocator = NULL, *type = NULL;
  const OrtObject *tensor = NULL;
  char *name = NULL;
  int element = 0;
  size_t rank = 0, count = 1;
  OrtStatus *done = CALL(c, DEFAULT_ALLOCATOR, OrtStatus *(*)(OrtObject **))(&allocator);
  if (!done)
    done = CALL(c, direction == OCELLI_INPUT ? INPUT_NAME : OUTPUT_NAME, OrtStatus *(*)(const OrtObject *, size_t, OrtObject *, char **))(
        e->session, index, allocator, &name);
  if (!done) {
    snprintf(out->name, sizeof out->name, "%s", name);
    done = CALL(c, ALLOCATOR_FREE, OrtStatus *(*)(OrtObject *, void *))(allocator, name);
  }
  if (!done)
    done = CALL(c, direction == OCELLI_INPUT ? INPUT_TYPE : OUTPUT_TYPE, OrtStatus *(*)(const OrtObject *, size_t, OrtObject **))(e->session, index, &type);
  if (!done) done = CALL(c, TYPE_TO_TENSOR, OrtStatus *(*)(const OrtObject *, const OrtObject **))(type, &tensor);
  if (!done) done = CALL(c, ELEMENT_TYPE, OrtStatus *(*)(const OrtObject *, int *))(tensor, &element);
  if (!done) done = CALL(c, DIMS_COUNT, OrtStatus *(*)(const OrtObject *, size_t *))(tensor, &rank);
  if (!done && rank <= 8) done = CALL(c, DIMS, OrtStatus *(*)(const OrtObject *, int64_t *, size_t))(tensor, out->dims, rank);
  if (type) CALL(c, RELEASE_TYPE, void (*)(OrtObject *))(type);
  ocelli_status status = checked(c, done, OCELLI_BLOB_STALE, "tensors of the compiled model");
  if (status) return status;
  for (size_t d = 0; d < rank && d < 8; d++) count *= out->dims[d] > 0 ? (size_t)out->dims[d] : 0;
  if (rank > 8 || !count || !border_type((uint32_t)element)) return fail(c, OCELLI_MODEL_REJECTED, "a tensor of the compiled model is not taken", out->name);
  size_t width = element == OCELLI_U8 || element == OCELLI_I8 ? 1 : element == OCELLI_I64 ? 8 : 4;
  out->as = (ocelli_tensor){.size = sizeof out->as, .dtype = (uint32_t)element, .rank = (uint32_t)rank, .dims = out->dims, .name = out->name,
                            .n_bytes = count * width};
  return OCELLI_OK;
}

static ocelli_status ask_tensors(ocelli_executable *e) {
  ocelli_context *c = e->context;
  for (uint32_t direction = OCELLI_INPUT; direction <= OCELLI_OUTPUT; direction++) {
    size_t count = 0;
    OrtStatus *done = CALL(c, direction == OCELLI_INPUT ? INPUT_COUNT : OUTPUT_COUNT, OrtStatus *(*)(const OrtObject *, size_t *))(e->session, &count);
    ocelli_status status = checked(c, done, OCELLI_BLOB_STALE, "tensors of the compiled model");
    if (!status && count > MOST) status = fail(c, OCELLI_MODEL_REJECTED, "too many inputs or outputs", NULL);
    for (uint32_t i = 0; i < count && !status; i++) status = ask_tensor(e, direction, i, &e->io[direction][i]);
    if (status) return status;
    e->count[direction] = (uint32_t)count;
  }
  return OCELLI_OK;
}

static ocelli_status compile(ocelli_context *c, uint32_t index, const ocelli_source *source, ocelli_executable **out) {
  (void)index;
  const ocelli_graph *g = source->graph;
  int blob = source->kind == OCELLI_SOURCE_BLOB;
  if (blob && !c->device) return fail(c, OCELLI_MODEL_REJECTED, "the CPU provider takes no compiled models", NULL);
  if (!blob && (g->n_inputs > MOST || g->n_outputs > MOST)) return fail(c, OCELLI_MODEL_REJECTED, "too many inputs or outputs", NULL);
  ocelli_executable *e = calloc(1, sizeof *e);
  if (!e) return OCELLI_OUT_OF_MEMORY;
  e->context = c;
  int described = 1;
  if (!blob) {
    e->count[OCELLI_INPUT] = g->n_inputs, e->count[OCELLI_OUTPUT] = g->n_outputs;
    for (uint32_t i = 0; i < g->n_inputs; i++) described &= describe(&e->io[OCELLI_INPUT][i], g->tensors[g->inputs[i]]);
    for (uint32_t i = 0; i < g->n_outputs; i++) described &= describe(&e->io[OCELLI_OUTPUT][i], g->tensors[g->outputs[i]]);
  }
  ocelli_status status =
      described ? open_session(c, source, e) : fail(c, OCELLI_MODEL_REJECTED, "an input or output is of a type or rank that is not taken", NULL);
  if (!status && blob) status = ask_tensors(e);
  if (status) release(e);
  else *out = e;
  return status;
}

/* The EPContext file that was kept when the model was compiled. */
static ocelli_status export_blob(ocelli_executable *e, void *buffer, uint64_t *n_bytes) {
  size_t length = 0;
  void *kept = e->kept[0] ? read_file(e->kept, &length) : NULL;
  if (!kept) return fail(e->context, OCELLI_UNSUPPORTED, "nothing is kept: give the plug-in a cache folder and a provider that compiles", NULL);
  if (buffer && *n_bytes >= length) memcpy(buffer, kept, length);
  ocelli_status status = buffer && *n_bytes < length ? OCELLI_INVALID : OCELLI_OK;
  *n_bytes = length;
  free(kept);
  return status;
}

static ocelli_status io(ocelli_executable *e, uint32_t direction, uint32_t index, const ocelli_tensor **tensor) {
  if (direction > OCELLI_OUTPUT || index >= e->count[direction]) return OCELLI_INVALID;
  *tensor = &e->io[direction][index].as;
  return OCELLI_OK;
}

/* The runtime reads and writes the buffers themselves. */
static ocelli_status wrap(ocelli_executable *e, uint32_t direction, const ocelli_buffer *const *buffers, OrtObject **values, const char **names) {
  ocelli_context *c = e->context;
  for (uint32_t i = 0; i < e->count[direction]; i++) {
    const ocelli_tensor *t = &e->io[direction][i].as;
    if (buffers[i]->n_bytes != t->n_bytes) return fail(c, OCELLI_INVALID, "a buffer is not as long as its tensor", t->name);
    OrtStatus *done =
        CALL(c, CREATE_TENSOR_WITH_DATA, OrtStatus *(*)(const OrtObject *, void *, size_t, const int64_t *, size_t, int, OrtObject **))(
            c->memory, buffers[i]->data, (size_t)t->n_bytes, t->dims, t->rank, (int)t->dtype, &values[i]);
    ocelli_status status = checked(c, done, OCELLI_INTERNAL, t->name);
    if (status) return status;
    names[i] = t->name;
  }
  return OCELLI_OK;
}

static ocelli_status submit(ocelli_executable *e, const ocelli_buffer *const *inputs, uint32_t n_inputs, const ocelli_buffer *const *outputs,
                            uint32_t n_outputs, uint64_t *ticket) {
  ocelli_context *c = e->context;
  if (n_inputs != e->count[OCELLI_INPUT] || n_outputs != e->count[OCELLI_OUTPUT]) return fail(c, OCELLI_INVALID, "wrong number of buffers", NULL);
  OrtObject *in[MOST] = {0}, *to[MOST] = {0};
  const char *in_names[MOST], *out_names[MOST];
  ocelli_status status = wrap(e, OCELLI_INPUT, inputs, in, in_names);
  if (!status) status = wrap(e, OCELLI_OUTPUT, outputs, to, out_names);
  if (!status) {
    OrtStatus *done = CALL(c, RUN,
                           OrtStatus *(*)(OrtObject *, const OrtObject *, const char *const *, OrtObject *const *, size_t, const char *const *, size_t,
                                          OrtObject **))(e->session, NULL, in_names, in, n_inputs, out_names, n_outputs, to);
    status = checked(c, done, OCELLI_INTERNAL, "run");
  }
  for (uint32_t i = 0; i < MOST; i++) {
    if (in[i]) CALL(c, RELEASE_VALUE, void (*)(OrtObject *))(in[i]);
    if (to[i]) CALL(c, RELEASE_VALUE, void (*)(OrtObject *))(to[i]);
  }
  *ticket = 0;
  return status;
}

static ocelli_status wait_for(ocelli_executable *e, uint64_t ticket, uint64_t timeout_ns) {
  (void)e, (void)ticket, (void)timeout_ns;
  return OCELLI_OK;
}

static const ocelli_delegate_api API = {
    .size = sizeof API,
    .abi_major = OCELLI_DELEGATE_ABI_MAJOR,
    .abi_minor = OCELLI_DELEGATE_ABI_MINOR,
    .plugin_name = "ort",
    .plugin_version = "1.0.0",
    .create = create,
    .destroy = destroy,
    .last_error = last_error,
    .device = device,
    .supports = supports,
    .compile = compile,
    .release = release,
    .io = io,
    .submit = submit,
    .wait = wait_for,
    .export_blob = export_blob,
};

const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major) {
  return abi_major == OCELLI_DELEGATE_ABI_MAJOR ? &API : NULL;
}
