/* ocelli_delegate.h: how an accelerator plugs into Ocelli. ABI 1.0, C11 and C++11, no other header of ours.
 *
 * A plug-in is one shared library that exports one symbol, ocelli_delegate_get_api(). It is loaded by ocelli-npu-worker, a
 * process of its own: it may crash, hang or leak without harm to the agent, which ends it and goes on without it.
 * docs/npu.md tells the way from here to a running plug-in; plugins/relu.c is a whole one on two pages.
 *
 * Rules
 *  - Every struct begins with its own size in bytes, set by whoever fills it. A reader looks at no field beyond that size.
 *    New fields come at the end only; a changed meaning gets a new major number.
 *  - Lists of structs are lists of pointers, so that both sides may know different sizes.
 *  - Strings are UTF-8 with a final NUL. What is passed to a function is valid until it returns, unless it says otherwise;
 *    what a function hands out belongs to the plug-in and is valid as long as the object it came from.
 *  - A function that may be absent says so: its pointer may be null.
 *  - A status other than OCELLI_OK should have a reason: last_error().
 *  - One thread calls at a time. The plug-in may have threads of its own.
 *  - Standard output and error are the worker's log. Standard input is empty.
 */
#ifndef OCELLI_DELEGATE_H
#define OCELLI_DELEGATE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OCELLI_DELEGATE_ABI_MAJOR 1u
#define OCELLI_DELEGATE_ABI_MINOR 0u

#if defined(__GNUC__)
#define OCELLI_DELEGATE_EXPORT __attribute__((visibility("default")))
#else
#define OCELLI_DELEGATE_EXPORT
#endif

typedef int32_t ocelli_status;
#define OCELLI_OK 0
#define OCELLI_UNSUPPORTED 1     /* not with this plug-in, device or version */
#define OCELLI_INVALID 2         /* an argument makes no sense */
#define OCELLI_NO_DEVICE 3       /* the runtime is there, the device is not */
#define OCELLI_MODEL_REJECTED 4  /* this model or blob is not taken */
#define OCELLI_BLOB_STALE 5      /* the blob was made for another device, driver or runtime version */
#define OCELLI_OUT_OF_MEMORY 6
#define OCELLI_BUSY 7            /* somebody else has the device */
#define OCELLI_TIMED_OUT 8       /* the time given was not enough; the run may still be going on */
#define OCELLI_DEVICE_LOST 9     /* nothing more will come of this context */
#define OCELLI_CANCELLED 10
#define OCELLI_INTERNAL 11       /* anything else */

/* Element types have the numbers of ONNX TensorProto.DataType. These pass a segment's border: */
#define OCELLI_F32 1u
#define OCELLI_U8 2u
#define OCELLI_I8 3u
#define OCELLI_I32 6u
#define OCELLI_I64 7u

/* How the elements of a rank-4 tensor lie in memory. dims are always in the order of the graph (NCHW). */
#define OCELLI_LAYOUT_ROWS 0u /* row-major in the order of dims */
#define OCELLI_LAYOUT_NHWC 1u /* channels last */

/* real = (value - zero_point) * scale */
#define OCELLI_QUANT_NONE 0u
#define OCELLI_QUANT_TENSOR 1u /* one scale */
#define OCELLI_QUANT_AXIS 2u   /* one scale for each slice along `axis` */

typedef struct ocelli_tensor {
  uint32_t size;
  uint32_t dtype; /* 0: a type that cannot pass a border */
  uint32_t rank;
  uint32_t layout;
  const int64_t *dims;
  const char *name;
  uint32_t quant;
  int32_t axis;
  uint32_t n_scales; /* entries of scale and zero_point */
  uint32_t reserved;
  const float *scale;
  const int32_t *zero_point;
  uint64_t n_bytes;
  const void *data; /* values of a constant, row-major; null for what a run computes */
} ocelli_tensor;

#define OCELLI_ATTRIBUTE_INT 1u
#define OCELLI_ATTRIBUTE_FLOAT 2u
#define OCELLI_ATTRIBUTE_INTS 3u
#define OCELLI_ATTRIBUTE_FLOATS 4u
#define OCELLI_ATTRIBUTE_TEXT 5u

typedef struct ocelli_attribute {
  uint32_t size;
  uint32_t kind;
  const char *name;
  int64_t i;
  float f;
  uint32_t count; /* entries of ints or floats */
  const int64_t *ints;
  const float *floats;
  const char *text;
} ocelli_attribute;

/* Plain: the ONNX operator on the values as they are.
 * Quantised: dequantise the inputs, apply the operator, clamp to clip_min … clip_max, quantise the outputs. */
#define OCELLI_PLAIN 0u
#define OCELLI_QUANTISED 1u

#define OCELLI_NO_TENSOR 0xffffffffu /* an optional input or output that is left out */

typedef struct ocelli_node {
  uint32_t size;
  uint32_t arithmetic;
  const char *op; /* ONNX operator of the default domain: "Conv" */
  const char *name;
  uint32_t n_inputs;
  uint32_t n_outputs;
  const uint32_t *inputs; /* places in ocelli_graph.tensors, in the order of the operator */
  const uint32_t *outputs;
  const ocelli_attribute *const *attributes;
  uint32_t n_attributes;
  float clip_min; /* in reals; -infinity: no clamp */
  float clip_max;
  uint32_t reserved;
  uint64_t macs; /* multiply-accumulates of a run */
} ocelli_node;

/* A graph without protobuf: enough to say yes or no to each node, and to run it where the plug-in compiles itself. */
typedef struct ocelli_graph {
  uint32_t size;
  uint32_t opset;
  uint32_t n_tensors;
  uint32_t n_nodes;
  uint32_t n_inputs;
  uint32_t n_outputs;
  const ocelli_tensor *const *tensors;
  const ocelli_node *const *nodes; /* in an order in which they can run */
  const uint32_t *inputs;          /* places in tensors, without constants */
  const uint32_t *outputs;
} ocelli_graph;

#define OCELLI_SOURCE_ONNX 1u /* the segment as a self-contained ModelProto in QDQ form with static shapes; graph is set too */
#define OCELLI_SOURCE_BLOB 2u /* the vendor's compiled form of the whole model; graph is null */

#define OCELLI_PREFER_BALANCED 0u
#define OCELLI_PREFER_LOW_POWER 1u
#define OCELLI_PREFER_FAST 2u
#define OCELLI_PREFER_SUSTAINED 3u

typedef struct ocelli_options {
  uint32_t size;
  uint32_t count;
  const char *const *keys;
  const char *const *values;
} ocelli_options;

typedef struct ocelli_source {
  uint32_t size;
  uint32_t kind;
  const void *data;
  uint64_t n_bytes;
  const ocelli_graph *graph;
  const char *toolchain; /* what made the blob, as in the signed manifest: "rknn-toolkit2 2.5.0"; may be null */
  const char *cache_dir; /* a folder for compiled models; may be null: keep none */
  uint32_t preference;
  uint32_t reserved;
} ocelli_source;

#define OCELLI_CAP_SIMULATED 1u      /* right answers, meaningless times */
#define OCELLI_CAP_ONLINE_COMPILE 2u /* takes OCELLI_SOURCE_ONNX */
#define OCELLI_CAP_BLOB 4u           /* takes OCELLI_SOURCE_BLOB */
#define OCELLI_CAP_EXPORT 8u         /* has export_blob */
#define OCELLI_CAP_TIMEOUT 16u       /* keeps the time given to wait() */

typedef struct ocelli_device {
  uint32_t size;
  uint32_t cores; /* 0: unknown */
  char name[64];  /* for people: "RK3588 NPU" */
  char vendor[64];
  char target[64];  /* what a blob has to be compiled for: "rk3588" */
  char driver[64];  /* version */
  char runtime[64]; /* version */
  uint64_t capabilities;
  float tops; /* 10^12 operations a second by the data sheet; NaN: unknown */
  uint32_t reserved;
} ocelli_device;

typedef struct ocelli_buffer {
  uint32_t size;
  int32_t fd; /* memfd that holds it at `offset`; -1: plain memory. For zero-copy where the vendor imports memory */
  void *data; /* always mapped */
  uint64_t offset;
  uint64_t n_bytes;
} ocelli_buffer;

/* NaN and 0: not known. */
typedef struct ocelli_stats {
  uint32_t size;
  uint32_t reserved;
  uint64_t last_run_ns; /* by the device's own clock */
  uint64_t memory_bytes;
  float temperature_celsius;
  float power_watt;
  float frequency_mhz;
  float utilisation; /* 0 … 1 */
} ocelli_stats;

typedef struct ocelli_layer_time {
  uint32_t size;
  uint32_t reserved;
  const char *name;
  uint64_t ns;
} ocelli_layer_time;

typedef struct ocelli_context ocelli_context;
typedef struct ocelli_executable ocelli_executable;

#define OCELLI_INPUT 0u
#define OCELLI_OUTPUT 1u

typedef struct ocelli_delegate_api {
  uint32_t size;
  uint32_t abi_major;
  uint32_t abi_minor;
  uint32_t reserved;
  const char *plugin_name;
  const char *plugin_version;

  /* Opens the vendor's runtime. On failure *context is null, or a context good only for last_error and destroy. */
  ocelli_status (*create)(const ocelli_options *options, ocelli_context **context);
  void (*destroy)(ocelli_context *context);
  /* Why the last call with this context, or with an executable of it, failed. Never null; "" when nothing did. */
  const char *(*last_error)(ocelli_context *context);

  /* Devices that are there: `index` counts from 0; OCELLI_NO_DEVICE beyond the last. device->size is set by the caller. */
  ocelli_status (*device)(ocelli_context *context, uint32_t index, ocelli_device *device);

  /* Sets accepts[n] to 1 for each node it can run, 0 for the others; n counts graph->nodes. May be null: blobs only. */
  ocelli_status (*supports)(ocelli_context *context, uint32_t device, const ocelli_graph *graph, uint8_t *accepts);

  ocelli_status (*compile)(ocelli_context *context, uint32_t device, const ocelli_source *source, ocelli_executable **executable);
  void (*release)(ocelli_executable *executable);

  /* A tensor of the executable as it wants it in memory; OCELLI_INVALID beyond the last. */
  ocelli_status (*io)(ocelli_executable *executable, uint32_t direction, uint32_t index, const ocelli_tensor **tensor);

  /* Starts a run. Buffers stay valid and untouched until wait() has said how it ended. */
  ocelli_status (*submit)(ocelli_executable *executable, const ocelli_buffer *const *inputs, uint32_t n_inputs,
                          const ocelli_buffer *const *outputs, uint32_t n_outputs, uint64_t *ticket);
  /* Waits for a run. OCELLI_TIMED_OUT when `timeout_ns` has passed before its end. */
  ocelli_status (*wait)(ocelli_executable *executable, uint64_t ticket, uint64_t timeout_ns);
  ocelli_status (*cancel)(ocelli_executable *executable, uint64_t ticket); /* may be null */

  /* Writes the compiled form; with buffer null only its length. *n_bytes is the room on entry. May be null. */
  ocelli_status (*export_blob)(ocelli_executable *executable, void *buffer, uint64_t *n_bytes);
  ocelli_status (*stats)(ocelli_context *context, uint32_t device, ocelli_stats *stats); /* may be null */
  /* Times of the last run's layers; OCELLI_INVALID beyond the last. May be null. */
  ocelli_status (*profile)(ocelli_executable *executable, uint32_t index, ocelli_layer_time *time);
  ocelli_status (*reset)(ocelli_context *context, uint32_t device); /* may be null */
} ocelli_delegate_api;

/* The one exported symbol. Static storage, or null when this major number is not offered. */
OCELLI_DELEGATE_EXPORT const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major);

#ifdef __cplusplus
}
#endif
#endif
