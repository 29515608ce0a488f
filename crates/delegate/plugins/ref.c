/* ref.c: the reference plug-in. Runs segments by the graph table alone, one value after the other, in floats between
 * dequantised inputs and quantised outputs; for tests, and to compare a device with. It can also fail on demand.
 *
 * Options: fault = segv | abort | exit | hang | garbage | wrong-io | lost | hog | error, after = runs that go well before it;
 * delay_us = sleep in each run; ops = operators accepted, as "Conv,Add" (default: all it knows).
 */
#define _POSIX_C_SOURCE 200809L
#include "ocelli_delegate.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct ocelli_context {
  char error[256];
  char fault[16];
  char ops[256];
  uint64_t after, runs, delay_us, last_ns;
};

typedef struct tensor {
  ocelli_tensor as; /* owned copy */
  uint64_t count;
  float *real;       /* values as reals, while a run is on; constants: for ever */
  uint8_t *raw;      /* values as stored */
} tensor;

typedef struct node {
  ocelli_node as;
  uint32_t *inputs, *outputs;
} node;

struct ocelli_executable {
  ocelli_context *context;
  tensor *tensors;
  node *nodes;
  uint32_t n_tensors, n_nodes, n_in, n_out;
  uint32_t *in, *out;
  ocelli_tensor wrong;
};

static ocelli_status fail(ocelli_context *context, ocelli_status status, const char *what, const char *which) {
  snprintf(context->error, sizeof context->error, "%s %s", what, which);
  return status;
}

static int is(const char *a, const char *b) { return strcmp(a, b) == 0; }

/* ---- attributes ---- */

static const ocelli_attribute *attribute(const ocelli_node *n, const char *name) {
  for (uint32_t i = 0; i < n->n_attributes; i++)
    if (is(n->attributes[i]->name, name)) return n->attributes[i];
  return NULL;
}

static int64_t integer(const ocelli_node *n, const char *name, int64_t otherwise) {
  const ocelli_attribute *a = attribute(n, name);
  return a ? a->i : otherwise;
}

static float real(const ocelli_node *n, const char *name, float otherwise) {
  const ocelli_attribute *a = attribute(n, name);
  return a ? a->f : otherwise;
}

static int64_t item(const ocelli_node *n, const char *name, uint32_t place, int64_t otherwise) {
  const ocelli_attribute *a = attribute(n, name);
  return a && place < a->count ? a->ints[place] : otherwise;
}

/* ---- values ---- */

static uint64_t width(uint32_t dtype) { return dtype == OCELLI_F32 || dtype == OCELLI_I32 ? 4 : dtype == OCELLI_I64 ? 8 : 1; }

static uint64_t slice_of(const ocelli_tensor *t, uint64_t at) {
  if (t->quant != OCELLI_QUANT_AXIS) return 0;
  uint64_t inner = 1;
  for (uint32_t d = (uint32_t)t->axis + 1; d < t->rank; d++) inner *= (uint64_t)t->dims[d];
  return at / inner % (uint64_t)t->dims[t->axis];
}

static void dequantise(tensor *t) {
  for (uint64_t i = 0; i < t->count; i++) {
    const void *raw = t->raw + i * width(t->as.dtype);
    int32_t q = 0;
    switch (t->as.dtype) {
      case OCELLI_F32: memcpy(&t->real[i], raw, 4); continue;
      case OCELLI_U8: q = *(const uint8_t *)raw; break;
      case OCELLI_I8: q = *(const int8_t *)raw; break;
      case OCELLI_I32: memcpy(&q, raw, 4); break;
      default: { int64_t wide; memcpy(&wide, raw, 8); t->real[i] = (float)wide; continue; }
    }
    if (t->as.quant == OCELLI_QUANT_NONE) { t->real[i] = (float)q; continue; }
    uint64_t s = slice_of(&t->as, i);
    t->real[i] = (float)((int64_t)q - t->as.zero_point[s]) * t->as.scale[s];
  }
}

/* Rounds to even and saturates; then the reals are those that were stored. */
static void quantise(tensor *t) {
  for (uint64_t i = 0; i < t->count; i++) {
    void *raw = t->raw + i * width(t->as.dtype);
    if (t->as.dtype == OCELLI_F32) { memcpy(raw, &t->real[i], 4); continue; }
    uint64_t s = slice_of(&t->as, i);
    float scale = t->as.quant ? t->as.scale[s] : 1;
    float zero = t->as.quant ? (float)t->as.zero_point[s] : 0;
    float q = rintf(t->real[i] / scale) + zero;
    if (t->as.dtype == OCELLI_U8) *(uint8_t *)raw = (uint8_t)(q < 0 ? 0 : q > 255 ? 255 : q);
    else if (t->as.dtype == OCELLI_I8) *(int8_t *)raw = (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
  }
  if (t->as.quant) dequantise(t);
}

/* ---- operators, on reals ---- */

typedef struct window { int64_t k[2], stride[2], dilation[2], begin[2]; } window;

static window window_of(const ocelli_node *n, int64_t kh, int64_t kw) {
  window w = {.k = {item(n, "kernel_shape", 0, kh), item(n, "kernel_shape", 1, kw)}};
  for (uint32_t d = 0; d < 2; d++) {
    w.stride[d] = item(n, "strides", d, 1);
    w.dilation[d] = item(n, "dilations", d, 1);
    w.begin[d] = item(n, "pads", d, 0);
  }
  return w;
}

static void conv(const ocelli_node *n, const tensor *x, const tensor *w, const tensor *b, tensor *y) {
  int64_t group = integer(n, "group", 1);
  const int64_t *xd = x->as.dims, *wd = w->as.dims, *yd = y->as.dims;
  window v = window_of(n, wd[2], wd[3]);
  for (int64_t o = 0; o < yd[1]; o++) {
    int64_t first = o / (yd[1] / group) * wd[1];
    for (int64_t r = 0; r < yd[2]; r++)
      for (int64_t c = 0; c < yd[3]; c++) {
        double sum = b ? b->real[o] : 0;
        for (int64_t i = 0; i < wd[1]; i++)
          for (int64_t kr = 0; kr < v.k[0]; kr++)
            for (int64_t kc = 0; kc < v.k[1]; kc++) {
              int64_t xr = r * v.stride[0] - v.begin[0] + kr * v.dilation[0];
              int64_t xc = c * v.stride[1] - v.begin[1] + kc * v.dilation[1];
              if (xr < 0 || xc < 0 || xr >= xd[2] || xc >= xd[3]) continue;
              sum += (double)x->real[((first + i) * xd[2] + xr) * xd[3] + xc] * w->real[((o * wd[1] + i) * v.k[0] + kr) * v.k[1] + kc];
            }
        y->real[(o * yd[2] + r) * yd[3] + c] = (float)sum;
      }
  }
}

static void pool(const ocelli_node *n, const tensor *x, tensor *y, int average) {
  const int64_t *xd = x->as.dims, *yd = y->as.dims;
  window v = window_of(n, 1, 1);
  int all = is(n->op, "GlobalAveragePool");
  if (all) v = (window){.k = {xd[2], xd[3]}, .stride = {1, 1}, .dilation = {1, 1}};
  int64_t padding = integer(n, "count_include_pad", 0);
  for (int64_t o = 0; o < yd[1]; o++)
    for (int64_t r = 0; r < yd[2]; r++)
      for (int64_t c = 0; c < yd[3]; c++) {
        double sum = 0, most = -DBL_MAX;
        int64_t count = 0;
        for (int64_t kr = 0; kr < v.k[0]; kr++)
          for (int64_t kc = 0; kc < v.k[1]; kc++) {
            int64_t xr = r * v.stride[0] - v.begin[0] + kr * v.dilation[0];
            int64_t xc = c * v.stride[1] - v.begin[1] + kc * v.dilation[1];
            if (xr < 0 || xc < 0 || xr >= xd[2] || xc >= xd[3]) continue;
            double value = x->real[(o * xd[2] + xr) * xd[3] + xc];
            sum += value, count++;
            most = value > most ? value : most;
          }
        if (padding) count = v.k[0] * v.k[1];
        y->real[(o * yd[2] + r) * yd[3] + c] = (float)(average ? sum / (double)count : most);
      }
}

static void gemm(const ocelli_node *n, const tensor *a, const tensor *b, const tensor *c, tensor *y) {
  int64_t transposed = integer(n, "transB", 0), rows = y->as.dims[0], columns = y->as.dims[1], depth = a->as.dims[1];
  float alpha = real(n, "alpha", 1), beta = real(n, "beta", 1);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < columns; k++) {
      double sum = 0;
      for (int64_t i = 0; i < depth; i++) sum += (double)a->real[r * depth + i] * b->real[transposed ? k * depth + i : i * columns + k];
      double bias = c ? c->real[c->count == 1 ? 0 : k] : 0;
      y->real[r * columns + k] = (float)(alpha * sum + beta * bias);
    }
}

static void concat(const ocelli_executable *e, const node *n, tensor *y) {
  int64_t axis = integer(&n->as, "axis", 0);
  if (axis < 0) axis += y->as.rank;
  uint64_t outer = 1, inner = 1, at = 0;
  for (int64_t d = 0; d < axis; d++) outer *= (uint64_t)y->as.dims[d];
  for (uint32_t d = (uint32_t)axis + 1; d < y->as.rank; d++) inner *= (uint64_t)y->as.dims[d];
  for (uint64_t o = 0; o < outer; o++)
    for (uint32_t i = 0; i < n->as.n_inputs; i++) {
      const tensor *x = &e->tensors[n->inputs[i]];
      uint64_t part = (uint64_t)x->as.dims[axis] * inner;
      memcpy(y->real + at, x->real + o * part, part * sizeof(float));
      at += part;
    }
}

static float unary(const ocelli_node *n, float x) {
  if (is(n->op, "Relu")) return x > 0 ? x : 0;
  if (is(n->op, "LeakyRelu")) return x >= 0 ? x : real(n, "alpha", 0.01f) * x;
  if (is(n->op, "Sigmoid")) return 1 / (1 + expf(-x));
  if (is(n->op, "HardSwish")) return x * fminf(fmaxf(x / 6 + 0.5f, 0), 1);
  return x; /* the movers of values: Flatten, Reshape, QuantizeLinear, DequantizeLinear */
}

static const char *const KNOWN[] = {"Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Gemm", "Add", "Mul", "Concat", "Relu", "LeakyRelu",
                                    "Sigmoid", "HardSwish", "Flatten", "Reshape", "QuantizeLinear", "DequantizeLinear"};

static int border_type(const ocelli_tensor *t) { return t->dtype == OCELLI_F32 || t->dtype == OCELLI_U8 || t->dtype == OCELLI_I8; }

static int listed(const char *list, const char *op) {
  size_t length = strlen(op);
  for (const char *at = list; (at = strstr(at, op)); at += length)
    if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return 1;
  return 0;
}

static int accepted(const ocelli_context *context, const ocelli_graph *g, const ocelli_node *n) {
  int known = 0;
  for (size_t i = 0; i < sizeof KNOWN / sizeof *KNOWN; i++) known |= is(n->op, KNOWN[i]);
  if (!known || (context->ops[0] && !listed(context->ops, n->op))) return 0;
  const ocelli_tensor *x = g->tensors[n->inputs[0]], *y = g->tensors[n->outputs[0]];
  if (n->n_outputs != 1 || !border_type(x) || !border_type(y)) return 0;
  if (is(n->op, "Conv") || strstr(n->op, "Pool"))
    return x->rank == 4 && x->dims[0] == 1 && !integer(n, "ceil_mode", 0) && !attribute(n, "auto_pad");
  if (is(n->op, "Gemm")) return x->rank == 2 && !integer(n, "transA", 0);
  if (is(n->op, "Add") || is(n->op, "Mul")) {
    const ocelli_tensor *b = g->tensors[n->inputs[1]];
    if (b->rank != x->rank) return 0;
    for (uint32_t d = 0; d < x->rank; d++)
      if (b->dims[d] != x->dims[d]) return 0;
  }
  return 1;
}

static void run_node(const ocelli_executable *e, const node *n) {
  const char *op = n->as.op;
  const tensor *x = &e->tensors[n->inputs[0]];
  const tensor *b = n->as.n_inputs > 1 && n->inputs[1] != OCELLI_NO_TENSOR ? &e->tensors[n->inputs[1]] : NULL;
  const tensor *c = n->as.n_inputs > 2 && n->inputs[2] != OCELLI_NO_TENSOR ? &e->tensors[n->inputs[2]] : NULL;
  tensor *y = &e->tensors[n->outputs[0]];
  if (is(op, "Conv")) conv(&n->as, x, b, c, y);
  else if (is(op, "MaxPool")) pool(&n->as, x, y, 0);
  else if (strstr(op, "AveragePool")) pool(&n->as, x, y, 1);
  else if (is(op, "Gemm")) gemm(&n->as, x, b, c, y);
  else if (is(op, "Concat")) concat(e, n, y);
  else
    for (uint64_t i = 0; i < y->count; i++)
      y->real[i] = is(op, "Add") ? x->real[i] + b->real[i] : is(op, "Mul") ? x->real[i] * b->real[i] : unary(&n->as, x->real[i]);
  if (n->as.arithmetic == OCELLI_QUANTISED)
    for (uint64_t i = 0; i < y->count; i++) y->real[i] = fminf(fmaxf(y->real[i], n->as.clip_min), n->as.clip_max);
  quantise(y);
}

/* ---- the interface ---- */

static ocelli_status create(const ocelli_options *options, ocelli_context **out) {
  ocelli_context *c = *out = calloc(1, sizeof **out);
  if (!c) return OCELLI_OUT_OF_MEMORY;
  for (uint32_t i = 0; i < options->count; i++) {
    const char *key = options->keys[i], *value = options->values[i];
    if (is(key, "fault")) snprintf(c->fault, sizeof c->fault, "%s", value);
    else if (is(key, "ops")) snprintf(c->ops, sizeof c->ops, "%s", value);
    else if (is(key, "after")) c->after = strtoull(value, NULL, 10);
    else if (is(key, "delay_us")) c->delay_us = strtoull(value, NULL, 10);
    else return fail(c, OCELLI_INVALID, "unknown option", key);
  }
  return OCELLI_OK;
}

static void destroy(ocelli_context *c) { free(c); }
static const char *last_error(ocelli_context *c) { return c->error; }

static ocelli_status device(ocelli_context *c, uint32_t index, ocelli_device *out) {
  if (index > 0 || is(c->fault, "no-device")) return fail(c, OCELLI_NO_DEVICE, "asked to have", "no device");
  snprintf(out->name, sizeof out->name, "scalar reference");
  snprintf(out->vendor, sizeof out->vendor, "ocelli");
  snprintf(out->target, sizeof out->target, "ref");
  snprintf(out->runtime, sizeof out->runtime, "1.0.0");
  out->cores = 1;
  out->capabilities = OCELLI_CAP_ONLINE_COMPILE | OCELLI_CAP_SIMULATED;
  return OCELLI_OK;
}

static ocelli_status supports(ocelli_context *c, uint32_t index, const ocelli_graph *g, uint8_t *accepts) {
  (void)index;
  for (uint32_t n = 0; n < g->n_nodes; n++) accepts[n] = (uint8_t)accepted(c, g, g->nodes[n]);
  return OCELLI_OK;
}

static void *copy(const void *from, uint64_t size) {
  void *to = malloc(size ? size : 1);
  if (!to) abort(); /* this process may end at any time */
  if (size) memcpy(to, from, size);
  return to;
}

static void take_tensor(tensor *t, const ocelli_tensor *from) {
  t->as = *from;
  t->as.dims = copy(from->dims, from->rank * sizeof *from->dims);
  t->as.name = copy(from->name, strlen(from->name) + 1);
  t->as.scale = copy(from->scale, from->n_scales * sizeof *from->scale);
  t->as.zero_point = copy(from->zero_point, from->n_scales * sizeof *from->zero_point);
  t->as.data = NULL;
  t->count = 1;
  for (uint32_t d = 0; d < from->rank; d++) t->count *= (uint64_t)from->dims[d];
  int used = border_type(from) || from->dtype == OCELLI_I32 || from->dtype == OCELLI_I64;
  t->real = used ? calloc(t->count, sizeof(float)) : NULL;
  t->raw = used ? calloc(t->count, width(from->dtype)) : NULL;
  if (from->data && used) {
    memcpy(t->raw, from->data, t->count * width(from->dtype));
    dequantise(t);
  }
}

static void take_node(node *n, const ocelli_node *from) {
  n->as = *from;
  n->as.op = copy(from->op, strlen(from->op) + 1);
  n->inputs = copy(from->inputs, from->n_inputs * sizeof(uint32_t));
  n->outputs = copy(from->outputs, from->n_outputs * sizeof(uint32_t));
  ocelli_attribute **attributes = copy(from->attributes, from->n_attributes * sizeof *from->attributes);
  for (uint32_t i = 0; i < from->n_attributes; i++) {
    ocelli_attribute *a = attributes[i] = copy(from->attributes[i], sizeof **from->attributes);
    a->name = copy(a->name, strlen(a->name) + 1);
    if (a->ints) a->ints = copy(a->ints, a->count * sizeof *a->ints);
    a->floats = NULL, a->text = NULL; /* no operator here has them */
  }
  n->as.attributes = (const ocelli_attribute *const *)attributes;
}

static ocelli_status compile(ocelli_context *c, uint32_t index, const ocelli_source *source, ocelli_executable **out) {
  (void)index;
  const ocelli_graph *g = source->graph;
  if (source->kind != OCELLI_SOURCE_ONNX || !g) return fail(c, OCELLI_MODEL_REJECTED, "a blob is not", "for the reference");
  for (uint32_t n = 0; n < g->n_nodes; n++)
    if (!accepted(c, g, g->nodes[n])) return fail(c, OCELLI_MODEL_REJECTED, "does not run", g->nodes[n]->op);
  ocelli_executable *e = *out = calloc(1, sizeof **out);
  if (!e) return OCELLI_OUT_OF_MEMORY;
  *e = (ocelli_executable){.context = c, .n_tensors = g->n_tensors, .n_nodes = g->n_nodes, .n_in = g->n_inputs, .n_out = g->n_outputs};
  e->tensors = calloc(g->n_tensors, sizeof *e->tensors);
  e->nodes = calloc(g->n_nodes, sizeof *e->nodes);
  for (uint32_t t = 0; t < g->n_tensors; t++) take_tensor(&e->tensors[t], g->tensors[t]);
  for (uint32_t n = 0; n < g->n_nodes; n++) take_node(&e->nodes[n], g->nodes[n]);
  e->in = copy(g->inputs, g->n_inputs * sizeof *g->inputs);
  e->out = copy(g->outputs, g->n_outputs * sizeof *g->outputs);
  e->wrong = e->tensors[e->out[0]].as;
  e->wrong.n_bytes += 4;
  return OCELLI_OK;
}

static void release(ocelli_executable *e) { (void)e; /* the process ends with it */ }

static ocelli_status io(ocelli_executable *e, uint32_t direction, uint32_t index, const ocelli_tensor **out) {
  if (index >= (direction == OCELLI_INPUT ? e->n_in : e->n_out)) return OCELLI_INVALID;
  *out = &e->tensors[direction == OCELLI_INPUT ? e->in[index] : e->out[index]].as;
  if (direction == OCELLI_OUTPUT && is(e->context->fault, "wrong-io")) *out = &e->wrong;
  return OCELLI_OK;
}

static void hog(void) {
  for (;;) {
    char *more = malloc(16 << 20);
    if (!more) abort();
    memset(more, 1, 16 << 20);
  }
}

static ocelli_status misbehave(ocelli_context *c) {
  /* Not raise(): the host's handler returns from a signal without a fault. An address in the first page. */
  if (is(c->fault, "segv")) *(volatile char *)(uintptr_t)(1 + c->runs % 1024) = 1;
  if (is(c->fault, "abort")) abort();
  if (is(c->fault, "exit")) _exit(3);
  if (is(c->fault, "hang")) for (;;) pause();
  if (is(c->fault, "hog")) hog();
  if (is(c->fault, "lost")) return fail(c, OCELLI_DEVICE_LOST, "asked to", "lose the device");
  if (is(c->fault, "error")) return fail(c, OCELLI_INTERNAL, "asked to", "fail");
  return OCELLI_OK;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static ocelli_status submit(ocelli_executable *e, const ocelli_buffer *const *in, uint32_t n_in, const ocelli_buffer *const *out,
                            uint32_t n_out, uint64_t *ticket) {
  ocelli_context *c = e->context;
  if (n_in != e->n_in || n_out != e->n_out) return fail(c, OCELLI_INVALID, "wrong number of", "buffers");
  uint64_t start = now_ns();
  int due = ++c->runs > c->after;
  ocelli_status status = due ? misbehave(c) : OCELLI_OK;
  if (status) return status;
  if (c->delay_us) nanosleep(&(struct timespec){.tv_sec = (time_t)(c->delay_us / 1000000), .tv_nsec = (long)(c->delay_us % 1000000) * 1000}, NULL);
  for (uint32_t i = 0; i < n_in; i++) {
    tensor *t = &e->tensors[e->in[i]];
    memcpy(t->raw, in[i]->data, t->count * width(t->as.dtype));
    dequantise(t);
  }
  for (uint32_t n = 0; n < e->n_nodes; n++) run_node(e, &e->nodes[n]);
  for (uint32_t i = 0; i < n_out; i++) {
    tensor *t = &e->tensors[e->out[i]];
    memcpy(out[i]->data, t->raw, t->count * width(t->as.dtype));
    if (due && is(c->fault, "garbage")) for (uint64_t b = 0; b < out[i]->n_bytes; b++) ((uint8_t *)out[i]->data)[b] = (uint8_t)(b * 37);
  }
  c->last_ns = now_ns() - start;
  *ticket = c->runs;
  return OCELLI_OK;
}

static ocelli_status wait_for(ocelli_executable *e, uint64_t ticket, uint64_t timeout_ns) {
  (void)e, (void)ticket, (void)timeout_ns;
  return OCELLI_OK;
}

static ocelli_status stats(ocelli_context *c, uint32_t index, ocelli_stats *out) {
  (void)index;
  out->last_run_ns = c->last_ns;
  return OCELLI_OK;
}

static const ocelli_delegate_api API = {
    .size = sizeof API,
    .abi_major = OCELLI_DELEGATE_ABI_MAJOR,
    .abi_minor = OCELLI_DELEGATE_ABI_MINOR,
    .plugin_name = "ref",
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
    .stats = stats,
};

const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major) {
  return abi_major == OCELLI_DELEGATE_ABI_MAJOR ? &API : NULL;
}
