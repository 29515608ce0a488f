/* rknn.c: Rockchip NPUs (RK3566/68/76/88, …) as a plug-in, through the vendor's librknnrt, opened with dlopen. Its interface is written down
 * here from its documentation; no file of the vendor is needed to build, and none is in this repository.
 *
 * Takes compiled models only: a package's [[delegate]] with kind = the plug-in's name, file = X.rknn. For which chip and by which version of
 * the toolkit a file was made stands at its end, and is looked at before the runtime sees it.
 * Options: library = path of librknnrt.so (default: by name); target = chip, as "rk3588" (default: the board's); cores = bit mask of the
 * cores to use (default: the runtime chooses); io = "native": tensors in the device's own type, written to and read from its memory; the
 * manifest's `io` says type, scale and order then. Default: floats, converted by the runtime.
 */
#define _GNU_SOURCE
#include "ocelli_delegate.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the vendor's interface ---- */

#if UINTPTR_MAX > 0xffffffffu
typedef uint64_t rk_context;
#else
typedef uint32_t rk_context;
#endif

typedef struct rk_attr {
  uint32_t index, n_dims, dims[16];
  char name[256];
  uint32_t n_elems, size;
  int32_t fmt, type, qnt_type;
  int8_t fl;
  int32_t zp;
  float scale;
  uint32_t w_stride, size_with_stride;
  uint8_t pass_through;
  uint32_t h_stride;
} rk_attr;

typedef struct rk_input {
  uint32_t index;
  void *buf;
  uint32_t size;
  uint8_t pass_through;
  int32_t type, fmt;
} rk_input;

typedef struct rk_output {
  uint8_t want_float, is_prealloc;
  uint32_t index;
  void *buf;
  uint32_t size;
} rk_output;

typedef struct rk_memory {
  void *virt_addr;
  uint64_t phys_addr;
  int32_t fd, offset;
  uint32_t size, flags;
  void *priv;
} rk_memory;

enum { QUERY_COUNT = 0, QUERY_INPUT = 1, QUERY_OUTPUT = 2, QUERY_PERF_RUN = 4, QUERY_VERSION = 5 };
enum { FMT_NCHW = 0, FMT_NHWC = 1 };
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_I8 = 2, TYPE_U8 = 3 };
enum { SYNC_TO_DEVICE = 1, SYNC_FROM_DEVICE = 2 };

typedef struct runtime {
  int (*init)(rk_context *, void *, uint32_t, uint32_t, void *);
  int (*destroy)(rk_context);
  int (*query)(rk_context, int, void *, uint32_t);
  int (*inputs_set)(rk_context, uint32_t, rk_input *);
  int (*run)(rk_context, void *);
  int (*outputs_get)(rk_context, uint32_t, rk_output *, void *);
  int (*outputs_release)(rk_context, uint32_t, rk_output *);
  /* Not in every build of the library. */
  int (*set_core_mask)(rk_context, int);
  rk_memory *(*create_mem)(rk_context, uint32_t);
  int (*destroy_mem)(rk_context, rk_memory *);
  int (*set_io_mem)(rk_context, rk_memory *, rk_attr *);
  int (*mem_sync)(rk_context, rk_memory *, int);
} runtime;

/* ---- the plug-in ---- */

#define MOST 16

struct ocelli_context {
  char error[512];
  char library[512], target[64], driver[64], version[64];
  int native, cores;
  runtime rk;
  uint64_t last_run_ns;
};

typedef struct border {
  rk_attr attr;
  ocelli_tensor as;
  int64_t dims[8];
  float scale;
  int32_t zero_point;
  rk_memory *memory; /* the device's, in native mode */
} border;

struct ocelli_executable {
  ocelli_context *context;
  rk_context rk;
  border io[2][MOST];
  uint32_t count[2];
};

static ocelli_status fail(ocelli_context *c, ocelli_status status, const char *what, const char *why) {
  snprintf(c->error, sizeof c->error, "%s%s%s", what, why ? ": " : "", why ? why : "");
  return status;
}

/* What the runtime's answer means. */
static ocelli_status checked(ocelli_context *c, int answer, const char *what) {
  static const struct { int answer; ocelli_status status; const char *why; } KNOWN[] = {
      {-2, OCELLI_TIMED_OUT, "the NPU did not answer in time"},
      {-3, OCELLI_NO_DEVICE, "the runtime finds no NPU: is the kernel's rknpu driver loaded?"},
      {-4, OCELLI_OUT_OF_MEMORY, "out of memory"},
      {-6, OCELLI_MODEL_REJECTED, "the runtime takes the file for no model: damaged, or made by a newer toolkit"},
      {-10, OCELLI_BLOB_STALE, "the model was made for another driver than this"},
      {-11, OCELLI_BLOB_STALE, "the model was compiled ahead for another driver or runtime version"},
      {-12, OCELLI_BLOB_STALE, "the model was optimised for another version"},
      {-13, OCELLI_BLOB_STALE, "the model was made for another chip"},
  };
  if (answer >= 0) return OCELLI_OK;
  char text[256];
  for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++)
    if (KNOWN[i].answer == answer) {
      snprintf(text, sizeof text, "%s (%d; runtime %s, driver %s)", KNOWN[i].why, answer, c->version[0] ? c->version : "unknown",
               c->driver[0] ? c->driver : "unknown");
      return fail(c, KNOWN[i].status, what, text);
    }
  snprintf(text, sizeof text, "error %d of the runtime", answer);
  return fail(c, OCELLI_INTERNAL, what, text);
}

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

static size_t read_text(const char *path, char *out, size_t room) {
  FILE *file = fopen(path, "re");
  size_t length = file ? fread(out, 1, room - 1, file) : 0;
  if (file) fclose(file);
  out[length] = 0;
  return length;
}

/* The chip by the device tree: strings one after the other, "rockchip,rk3588" the last that begins so. RK3588S is an RK3588. */
static void find_target(char *out, size_t room) {
  char text[1024];
  size_t length = read_text("/proc/device-tree/compatible", text, sizeof text);
  for (size_t at = 0; at < length; at += strlen(text + at) + 1)
    if (!strncmp(text + at, "rockchip,r", 10)) snprintf(out, room, "%s", text + at + 9);
  size_t end = strlen(out);
  if (end > 6 && out[end - 1] == 's') out[end - 1] = 0;
}

/* "RKNPU driver: v0.9.8" */
static void find_driver(char *out, size_t room) {
  char text[128];
  if (!read_text("/sys/kernel/debug/rknpu/version", text, sizeof text) && !read_text("/proc/rknpu/version", text, sizeof text)) return;
  const char *at = strchr(text, 'v');
  for (const char *v = at; v; v = strchr(v + 1, 'v'))
    if (isdigit((unsigned char)v[1])) at = v + 1;
  if (at) snprintf(out, room, "%.*s", (int)strcspn(at, " \n"), at);
}

static ocelli_status open_runtime(ocelli_context *c) {
  void *library = dlopen(c->library, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fail(c, OCELLI_UNSUPPORTED, "cannot open Rockchip's runtime, set the option library", dlerror());
  const struct { const char *name; void *to; int needed; } SYMBOLS[] = {
      {"rknn_init", &c->rk.init, 1},
      {"rknn_destroy", &c->rk.destroy, 1},
      {"rknn_query", &c->rk.query, 1},
      {"rknn_inputs_set", &c->rk.inputs_set, 1},
      {"rknn_run", &c->rk.run, 1},
      {"rknn_outputs_get", &c->rk.outputs_get, 1},
      {"rknn_outputs_release", &c->rk.outputs_release, 1},
      {"rknn_set_core_mask", &c->rk.set_core_mask, 0},
      {"rknn_create_mem", &c->rk.create_mem, 0},
      {"rknn_destroy_mem", &c->rk.destroy_mem, 0},
      {"rknn_set_io_mem", &c->rk.set_io_mem, 0},
      {"rknn_mem_sync", &c->rk.mem_sync, 0},
  };
  for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
    *(void **)SYMBOLS[i].to = dlsym(library, SYMBOLS[i].name);
    if (!*(void **)SYMBOLS[i].to && SYMBOLS[i].needed) return fail(c, OCELLI_UNSUPPORTED, "this library is not Rockchip's runtime, it lacks", SYMBOLS[i].name);
  }
  const runtime *rk = &c->rk;
  if (c->native && !(rk->create_mem && rk->destroy_mem && rk->set_io_mem && rk->mem_sync))
    return fail(c, OCELLI_UNSUPPORTED, "this runtime has no memory interface", "leave the option io out");
  return OCELLI_OK;
}

static ocelli_status create(const ocelli_options *options, ocelli_context **out) {
  ocelli_context *c = *out = calloc(1, sizeof **out);
  if (!c) return OCELLI_OUT_OF_MEMORY;
  snprintf(c->library, sizeof c->library, "librknnrt.so");
  find_target(c->target, sizeof c->target);
  find_driver(c->driver, sizeof c->driver);
  for (uint32_t i = 0; i < options->count; i++) {
    const char *key = options->keys[i], *value = options->values[i];
    if (is(key, "library")) snprintf(c->library, sizeof c->library, "%s", value);
    else if (is(key, "target")) snprintf(c->target, sizeof c->target, "%s", value);
    else if (is(key, "cores")) c->cores = atoi(value);
    else if (is(key, "io") && (is(value, "native") || is(value, "float"))) c->native = is(value, "native");
    else return fail(c, OCELLI_INVALID, "unknown option or value", key);
  }
  return open_runtime(c);
}

static void destroy(ocelli_context *c) { free(c); }
static const char *last_error(ocelli_context *c) { return c->error; }

static ocelli_status device(ocelli_context *c, uint32_t index, ocelli_device *out) {
  if (index > 0) return fail(c, OCELLI_NO_DEVICE, "there is one NPU", NULL);
  if (!c->target[0]) return fail(c, OCELLI_NO_DEVICE, "this board is no Rockchip board by its device tree", "set the option target, as \"rk3588\"");
  snprintf(out->name, sizeof out->name, "%.58s NPU", c->target);
  snprintf(out->vendor, sizeof out->vendor, "Rockchip");
  snprintf(out->target, sizeof out->target, "%s", c->target);
  snprintf(out->driver, sizeof out->driver, "%s", c->driver);
  snprintf(out->runtime, sizeof out->runtime, "%s", c->version);
  out->capabilities = OCELLI_CAP_BLOB;
  return OCELLI_OK;
}

/* ---- the file's end ---- */

/* Where a text stands last; null: nowhere. */
static const char *find(const char *from, const char *end, const char *text) {
  const char *found = NULL, *at;
  while ((at = memmem(from, (size_t)(end - from), text, strlen(text)))) found = at, from = at + 1;
  return found;
}

/* The first string after the last of a key; 0 when there is none. */
static int value_of(const char *from, const char *end, const char *key, char *out, size_t room) {
  const char *at = find(from, end, key);
  if (!at) return 0;
  at += strlen(key);
  while (at < end && strchr(" :[\n", *at)) at++;
  if (at >= end || *at != '"') return 0;
  const char *stop = memchr(at + 1, '"', (size_t)(end - at - 1));
  if (!stop) return 0;
  snprintf(out, room, "%.*s", (int)(stop - at - 1), at + 1);
  return 1;
}

/* A file begins with RKNN and ends with a JSON text that says for which chip and by what it was made. */
static ocelli_status look_at_file(ocelli_context *c, const ocelli_source *source) {
  enum { LONGEST = 4 << 20 };
  const char *bytes = source->data, *end = bytes + source->n_bytes;
  if (source->n_bytes < 64 || memcmp(bytes, "RKNN", 4)) return fail(c, OCELLI_MODEL_REJECTED, "the file is no .rknn: it does not begin with RKNN", NULL);
  const char *from = source->n_bytes > LONGEST ? end - LONGEST : bytes;
  char target[64], version[64] = "of unknown version", text[384];
  if (!value_of(from, end, "\"target_platform\"", target, sizeof target))
    return fail(c, OCELLI_MODEL_REJECTED, "the file does not say for which chip it was made: cut off, or of a toolkit before 1.4", NULL);
  value_of(from, end, "\"version\"", version, sizeof version);
  for (char *at = target; *at; at++) *at = (char)tolower((unsigned char)*at);
  if (is(target, c->target)) return OCELLI_OK;
  snprintf(text, sizeof text, "it was compiled for %s by rknn-toolkit2 %s, this is %s; compile it for this chip", target, version, c->target);
  return fail(c, OCELLI_BLOB_STALE, "model file", text);
}

/* ---- models ---- */

/* What the agent is told of a tensor: a float, or in native mode the device's own form. Dims are in the order of the model. The runtime
 * itself brings a float input from the model's order to the device's. */
static ocelli_status describe(ocelli_context *c, uint32_t direction, border *b) {
  const rk_attr *attr = &b->attr;
  int last = attr->n_dims == 4 && attr->fmt == FMT_NHWC;
  if (attr->n_dims > 8) return fail(c, OCELLI_MODEL_REJECTED, "a tensor has more than 8 dimensions", attr->name);
  for (uint32_t d = 0; d < attr->n_dims; d++) b->dims[d] = attr->dims[!last || d == 0 ? d : d == 1 ? 3 : d - 1];
  int as_it_is = c->native || direction == OCELLI_OUTPUT;
  b->as = (ocelli_tensor){.size = sizeof b->as, .dtype = OCELLI_F32, .rank = attr->n_dims, .dims = b->dims, .name = attr->name,
                          .layout = last && as_it_is ? OCELLI_LAYOUT_NHWC : OCELLI_LAYOUT_ROWS, .n_bytes = 4ull * attr->n_elems};
  if (!c->native) return OCELLI_OK;
  if (attr->type != TYPE_I8 && attr->type != TYPE_U8) return fail(c, OCELLI_MODEL_REJECTED, "io = \"native\" is for 8-bit tensors, this one is not", attr->name);
  b->scale = attr->scale, b->zero_point = attr->zp;
  b->as.dtype = attr->type == TYPE_I8 ? OCELLI_I8 : OCELLI_U8;
  b->as.n_bytes = attr->n_elems;
  b->as.quant = OCELLI_QUANT_TENSOR, b->as.n_scales = 1;
  b->as.scale = &b->scale, b->as.zero_point = &b->zero_point;
  return OCELLI_OK;
}

/* Native mode: memory of the device for a tensor. Rows of an input may have a gap behind them. */
static ocelli_status give_memory(ocelli_executable *e, uint32_t direction, border *b) {
  ocelli_context *c = e->context;
  uint32_t n_bytes = b->attr.size_with_stride > b->attr.n_elems ? b->attr.size_with_stride : b->attr.n_elems;
  b->memory = c->rk.create_mem(e->rk, n_bytes);
  if (!b->memory) return fail(c, OCELLI_OUT_OF_MEMORY, "the runtime gives no memory for", b->attr.name);
  b->attr.pass_through = direction == OCELLI_INPUT;
  return checked(c, c->rk.set_io_mem(e->rk, b->memory, &b->attr), "rknn_set_io_mem");
}

static ocelli_status prepare(ocelli_executable *e) {
  ocelli_context *c = e->context;
  struct { char api[256], driver[256]; } version = {{0}, {0}};
  ocelli_status status;
  if (c->rk.query(e->rk, QUERY_VERSION, &version, sizeof version) == 0) {
    snprintf(c->version, sizeof c->version, "%.63s", version.api);
    if (version.driver[0]) snprintf(c->driver, sizeof c->driver, "%.63s", version.driver);
  }
  struct { uint32_t inputs, outputs; } count = {0, 0};
  if ((status = checked(c, c->rk.query(e->rk, QUERY_COUNT, &count, sizeof count), "rknn_query"))) return status;
  if (count.inputs > MOST || count.outputs > MOST) return fail(c, OCELLI_MODEL_REJECTED, "too many inputs or outputs", NULL);
  e->count[OCELLI_INPUT] = count.inputs, e->count[OCELLI_OUTPUT] = count.outputs;
  for (uint32_t direction = OCELLI_INPUT; direction <= OCELLI_OUTPUT; direction++)
    for (uint32_t i = 0; i < e->count[direction]; i++) {
      border *b = &e->io[direction][i];
      b->attr.index = i;
      int query = direction == OCELLI_INPUT ? QUERY_INPUT : QUERY_OUTPUT;
      if ((status = checked(c, c->rk.query(e->rk, query, &b->attr, sizeof b->attr), "rknn_query"))) return status;
      b->attr.name[sizeof b->attr.name - 1] = 0;
      if ((status = describe(c, direction, b))) return status;
      if (c->native && (status = give_memory(e, direction, b))) return status;
    }
  if (c->cores && c->rk.set_core_mask) return checked(c, c->rk.set_core_mask(e->rk, c->cores), "rknn_set_core_mask");
  return OCELLI_OK;
}

static void release(ocelli_executable *e) {
  const runtime *rk = &e->context->rk;
  for (uint32_t direction = OCELLI_INPUT; direction <= OCELLI_OUTPUT; direction++)
    for (uint32_t i = 0; i < e->count[direction]; i++)
      if (e->io[direction][i].memory) rk->destroy_mem(e->rk, e->io[direction][i].memory);
  if (e->rk) rk->destroy(e->rk);
  free(e);
}

static ocelli_status compile(ocelli_context *c, uint32_t index, const ocelli_source *source, ocelli_executable **out) {
  (void)index;
  if (source->kind != OCELLI_SOURCE_BLOB) return fail(c, OCELLI_MODEL_REJECTED, "the package has no .rknn file; this plug-in compiles nothing", NULL);
  ocelli_status status = look_at_file(c, source);
  if (status) return status;
  ocelli_executable *e = calloc(1, sizeof *e);
  if (!e) return OCELLI_OUT_OF_MEMORY;
  e->context = c;
  status = checked(c, c->rk.init(&e->rk, (void *)(uintptr_t)source->data, (uint32_t)source->n_bytes, 0, NULL), "rknn_init");
  if (!status) status = prepare(e);
  if (status) release(e);
  else *out = e;
  return status;
}

static ocelli_status io(ocelli_executable *e, uint32_t direction, uint32_t index, const ocelli_tensor **tensor) {
  if (direction > OCELLI_OUTPUT || index >= e->count[direction]) return OCELLI_INVALID;
  *tensor = &e->io[direction][index].as;
  return OCELLI_OK;
}

/* ---- runs ---- */

/* Copies a tensor to or from the device's memory, whose rows may be longer. */
static void copy_rows(const border *b, void *packed, int to_device) {
  const rk_attr *attr = &b->attr;
  uint32_t width = attr->n_dims == 4 ? attr->dims[attr->fmt == FMT_NHWC ? 2 : 3] : 0;
  uint32_t depth = attr->n_dims == 4 && attr->fmt == FMT_NHWC ? attr->dims[3] : 1;
  int gaps = width && attr->w_stride > width;
  uint32_t row = gaps ? width * depth : attr->n_elems, stride = gaps ? attr->w_stride * depth : attr->n_elems;
  uint8_t *device = b->memory->virt_addr, *ours = packed;
  for (uint32_t at = 0; at + row <= attr->n_elems && row; at += row, device += stride)
    if (to_device) memcpy(device, ours + at, row);
    else memcpy(ours + at, device, row);
}

static ocelli_status run_native(ocelli_executable *e, const ocelli_buffer *const *inputs, const ocelli_buffer *const *outputs) {
  ocelli_context *c = e->context;
  ocelli_status status;
  for (uint32_t i = 0; i < e->count[OCELLI_INPUT]; i++) {
    border *b = &e->io[OCELLI_INPUT][i];
    copy_rows(b, inputs[i]->data, 1);
    if ((status = checked(c, c->rk.mem_sync(e->rk, b->memory, SYNC_TO_DEVICE), "rknn_mem_sync"))) return status;
  }
  if ((status = checked(c, c->rk.run(e->rk, NULL), "rknn_run"))) return status;
  for (uint32_t i = 0; i < e->count[OCELLI_OUTPUT]; i++) {
    border *b = &e->io[OCELLI_OUTPUT][i];
    if ((status = checked(c, c->rk.mem_sync(e->rk, b->memory, SYNC_FROM_DEVICE), "rknn_mem_sync"))) return status;
    copy_rows(b, outputs[i]->data, 0);
  }
  return OCELLI_OK;
}

static ocelli_status run_floats(ocelli_executable *e, const ocelli_buffer *const *inputs, const ocelli_buffer *const *outputs) {
  ocelli_context *c = e->context;
  rk_input in[MOST];
  rk_output out[MOST];
  memset(in, 0, sizeof in), memset(out, 0, sizeof out);
  for (uint32_t i = 0; i < e->count[OCELLI_INPUT]; i++)
    in[i] = (rk_input){.index = i, .buf = inputs[i]->data, .size = (uint32_t)inputs[i]->n_bytes, .type = TYPE_F32, .fmt = FMT_NCHW};
  for (uint32_t i = 0; i < e->count[OCELLI_OUTPUT]; i++)
    out[i] = (rk_output){.want_float = 1, .is_prealloc = 1, .index = i, .buf = outputs[i]->data, .size = (uint32_t)outputs[i]->n_bytes};
  ocelli_status status = checked(c, c->rk.inputs_set(e->rk, e->count[OCELLI_INPUT], in), "rknn_inputs_set");
  if (!status) status = checked(c, c->rk.run(e->rk, NULL), "rknn_run");
  if (status) return status;
  if ((status = checked(c, c->rk.outputs_get(e->rk, e->count[OCELLI_OUTPUT], out, NULL), "rknn_outputs_get"))) return status;
  return checked(c, c->rk.outputs_release(e->rk, e->count[OCELLI_OUTPUT], out), "rknn_outputs_release");
}

static ocelli_status submit(ocelli_executable *e, const ocelli_buffer *const *inputs, uint32_t n_inputs, const ocelli_buffer *const *outputs,
                            uint32_t n_outputs, uint64_t *ticket) {
  ocelli_context *c = e->context;
  if (n_inputs != e->count[OCELLI_INPUT] || n_outputs != e->count[OCELLI_OUTPUT]) return fail(c, OCELLI_INVALID, "wrong number of buffers", NULL);
  *ticket = 0;
  ocelli_status status = c->native ? run_native(e, inputs, outputs) : run_floats(e, inputs, outputs);
  int64_t microseconds = 0;
  if (!status && c->rk.query(e->rk, QUERY_PERF_RUN, &microseconds, sizeof microseconds) == 0) c->last_run_ns = (uint64_t)microseconds * 1000;
  return status;
}

static ocelli_status wait_for(ocelli_executable *e, uint64_t ticket, uint64_t timeout_ns) {
  (void)e, (void)ticket, (void)timeout_ns;
  return OCELLI_OK;
}

static ocelli_status stats(ocelli_context *c, uint32_t index, ocelli_stats *out) {
  (void)index;
  out->last_run_ns = c->last_run_ns;
  char path[64], text[64];
  for (int zone = 0; zone < 16; zone++) {
    snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/type", zone);
    if (!read_text(path, text, sizeof text) || !strstr(text, "npu")) continue;
    snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", zone);
    if (read_text(path, text, sizeof text)) out->temperature_celsius = (float)atoi(text) / 1000;
  }
  return OCELLI_OK;
}

static const ocelli_delegate_api API = {
    .size = sizeof API,
    .abi_major = OCELLI_DELEGATE_ABI_MAJOR,
    .abi_minor = OCELLI_DELEGATE_ABI_MINOR,
    .plugin_name = "rknn",
    .plugin_version = "1.0.0",
    .create = create,
    .destroy = destroy,
    .last_error = last_error,
    .device = device,
    .compile = compile,
    .release = release,
    .io = io,
    .submit = submit,
    .wait = wait_for,
    .stats = stats,
};

const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major) {
  return abi_major == OCELLI_DELEGATE_ABI_MAJOR ? &API : NULL;
}
