/* mock_rknnrt.c: a MOCK of Rockchip's librknnrt, written by us from the documented interface, for tests of plugins/rknn.c. It is not the
 * vendor's library and says nothing of how that behaves; it checks how it is called, and aborts where the real one may do anything.
 *
 * Its models are `RKNN`, four zeros, any padding, and a JSON text as at the end of real files, with "mock" in it:
 *   {"version":"2.5.0","target_platform":["rk3588"],"mock":"channels rows columns type scale zero"}
 * with one input, channels x rows x columns, channels last on the device, and one output, the mean of each channel. type: 0 float,
 * 2 int8. Behind that, "answer":-3 is what rknn_init answers, "run":-2 what rknn_run answers.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All its functions are to be found, however it is compiled. */
#pragma GCC visibility push(default)

#if UINTPTR_MAX > 0xffffffffu
typedef uint64_t context;
#else
typedef uint32_t context;
#endif

typedef struct attr {
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
} attr;

typedef struct input { uint32_t index; void *buf; uint32_t size; uint8_t pass_through; int32_t type, fmt; } input;
typedef struct output { uint8_t want_float, is_prealloc; uint32_t index; void *buf; uint32_t size; } output;
typedef struct memory { void *virt_addr; uint64_t phys_addr; int32_t fd, offset; uint32_t size, flags; void *priv; } memory;

_Static_assert(sizeof(attr) == 376, "as on a board");

/* Rows of an input are this much longer on the device. */
#define STRIDE(width) ((width) + 3u)

static struct model {
  uint32_t channels, rows, columns;
  int type, zero, run;
  float scale, *in, *out;
  memory *memory[2];
  int synced;
} m;

static void must(int truth, const char *what) {
  if (truth) return;
  fprintf(stderr, "mock rknnrt: %s\n", what);
  abort();
}

static int number(const char *text, const char *key, int otherwise) {
  const char *at = strstr(text, key);
  return at ? atoi(at + strlen(key)) : otherwise;
}

int rknn_init(context *c, void *bytes, uint32_t size, uint32_t flag, void *extend) {
  must(flag == 0 && !extend && size > 8, "rknn_init");
  char *text = strndup((char *)bytes + 8, size - 8);
  const char *mock = memmem(bytes, size, "\"mock\":\"", 8);
  char *copy = mock ? strndup(mock + 8, size - (size_t)(mock + 8 - (char *)bytes)) : NULL;
  int fields = copy ? sscanf(copy, "%u %u %u %d %f %d", &m.channels, &m.rows, &m.columns, &m.type, &m.scale, &m.zero) : 0;
  int answer = copy ? number(copy, "\"answer\":", 0) : -6;
  m.run = copy ? number(copy, "\"run\":", 0) : 0;
  free(text), free(copy);
  if (answer < 0) return answer;
  if (fields != 6 || !m.channels || !m.rows || !m.columns) return -6;
  m.in = calloc((size_t)m.channels * m.rows * m.columns, sizeof(float));
  m.out = calloc(m.channels, sizeof(float));
  *c = 7;
  return 0;
}

int rknn_destroy(context c) {
  must(c == 7, "rknn_destroy");
  free(m.in), free(m.out);
  m.in = m.out = NULL;
  return 0;
}

static void describe(attr *a, int is_output) {
  uint32_t index = a->index;
  *a = (attr){.index = index, .fmt = !is_output, .type = m.type, .qnt_type = m.type ? 2 : 0, .zp = m.zero, .scale = m.scale};
  strcpy(a->name, is_output ? "means" : "input");
  if (is_output) a->n_dims = 2, a->dims[0] = 1, a->dims[1] = m.channels, a->n_elems = m.channels;
  else {
    a->n_dims = 4, a->dims[0] = 1, a->dims[1] = m.rows, a->dims[2] = m.columns, a->dims[3] = m.channels;
    a->n_elems = m.channels * m.rows * m.columns;
    a->w_stride = STRIDE(m.columns);
  }
  a->size = a->n_elems * (m.type ? 1 : 4);
  a->size_with_stride = is_output ? a->size : m.channels * m.rows * STRIDE(m.columns);
}

int rknn_query(context c, int what, void *out, uint32_t size) {
  must(c == 7, "rknn_query");
  if (what == 0) {
    must(size == 8, "rknn_input_output_num");
    ((uint32_t *)out)[0] = ((uint32_t *)out)[1] = 1;
  } else if (what == 1 || what == 2) {
    must(size == sizeof(attr), "rknn_tensor_attr");
    if (((attr *)out)->index != 0) return -5;
    describe(out, what == 2);
  } else if (what == 4) {
    must(size == 8, "rknn_perf_run");
    *(int64_t *)out = 1234;
  } else if (what == 5) {
    must(size == 512, "rknn_sdk_version");
    strcpy(out, "2.3.2 (a mock of ours@2026-11-21)");
    strcpy((char *)out + 256, "0.9.8");
  } else return -5;
  return 0;
}

int rknn_inputs_set(context c, uint32_t count, input *in) {
  size_t area = (size_t)m.rows * m.columns;
  must(c == 7 && count == 1 && in->index == 0 && !in->pass_through, "rknn_inputs_set");
  must(in->type == 0 && in->fmt == 0 && in->size == 4 * m.channels * area, "a float input in the model's order");
  memcpy(m.in, in->buf, in->size);
  return 0;
}

static float dequantised(int8_t q) { return (float)(q - m.zero) * m.scale; }

static int8_t quantised(float real) {
  float q = rintf(real / m.scale) + (float)m.zero;
  return (int8_t)(q < -128 ? -128 : q > 127 ? 127 : q);
}

int rknn_run(context c, void *extend) {
  must(c == 7 && !extend, "rknn_run");
  if (m.run < 0) return m.run;
  size_t area = (size_t)m.rows * m.columns;
  if (m.memory[0]) {
    must(m.memory[1] && m.synced, "memory not set, or not written back");
    const int8_t *device = m.memory[0]->virt_addr;
    for (uint32_t ch = 0; ch < m.channels; ch++)
      for (uint32_t r = 0; r < m.rows; r++)
        for (uint32_t k = 0; k < m.columns; k++)
          m.in[ch * area + r * m.columns + k] = dequantised(device[(r * STRIDE(m.columns) + k) * m.channels + ch]);
  }
  for (uint32_t ch = 0; ch < m.channels; ch++) {
    double sum = 0;
    for (size_t i = 0; i < area; i++) sum += m.type ? dequantised(quantised(m.in[ch * area + i])) : m.in[ch * area + i];
    m.out[ch] = (float)(sum / (double)area);
    if (m.type) m.out[ch] = dequantised(quantised(m.out[ch]));
    if (m.memory[1]) ((int8_t *)m.memory[1]->virt_addr)[ch] = quantised(m.out[ch]);
  }
  m.synced = 0;
  return 0;
}

int rknn_outputs_get(context c, uint32_t count, output *out, void *extend) {
  must(c == 7 && count == 1 && !extend && out->want_float && out->is_prealloc && out->size == 4 * m.channels, "rknn_outputs_get");
  memcpy(out->buf, m.out, out->size);
  return 0;
}

int rknn_outputs_release(context c, uint32_t count, output *out) {
  must(c == 7 && count == 1 && out, "rknn_outputs_release");
  return 0;
}

int rknn_set_core_mask(context c, int mask) {
  must(c == 7 && mask > 0, "rknn_set_core_mask");
  return 0;
}

memory *rknn_create_mem(context c, uint32_t size) {
  must(c == 7 && size, "rknn_create_mem");
  memory *one = calloc(1, sizeof *one);
  one->virt_addr = calloc(1, size), one->size = size, one->fd = -1;
  return one;
}

int rknn_destroy_mem(context c, memory *one) {
  must(c == 7, "rknn_destroy_mem");
  free(one->virt_addr), free(one);
  m.memory[0] = m.memory[1] = NULL;
  return 0;
}

int rknn_set_io_mem(context c, memory *one, attr *a) {
  int is_output = strcmp(a->name, "input") != 0;
  must(c == 7 && a->type == 2 && a->pass_through == !is_output, "rknn_set_io_mem");
  must(one->size >= a->size_with_stride, "memory with room for strides");
  m.memory[is_output] = one;
  return 0;
}

int rknn_mem_sync(context c, memory *one, int mode) {
  must(c == 7 && one && (mode == 1 || mode == 2), "rknn_mem_sync");
  m.synced |= mode == 1;
  return 0;
}
