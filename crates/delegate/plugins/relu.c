/* relu.c: the smallest whole plug-in. It runs Relu on floats, on the CPU. Copy it and put your runtime where the comments say.
 *
 *   cc -std=c11 -O2 -shared -fPIC -fvisibility=hidden -I crates/delegate/include relu.c -o relu.so
 */
#include "ocelli_delegate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ocelli_context {
  char error[256];
};

/* One compiled segment. Ours is a chain of Relu: any number of them is one Relu. */
struct ocelli_executable {
  ocelli_context *context;
  ocelli_tensor io[2];
  int64_t dims[2][8];
  char names[2][256];
};

static ocelli_status fail(ocelli_context *context, ocelli_status status, const char *reason) {
  snprintf(context->error, sizeof context->error, "%s", reason);
  return status;
}

static ocelli_status create(const ocelli_options *options, ocelli_context **context) {
  (void)options; /* "library", "core_mask" and the like, from the configuration */
  *context = calloc(1, sizeof **context);
  /* Open the vendor's library here, by dlopen: the plug-in must load where it is missing, to be able to say so. */
  return *context ? OCELLI_OK : OCELLI_OUT_OF_MEMORY;
}

static void destroy(ocelli_context *context) { free(context); }

static const char *last_error(ocelli_context *context) { return context->error; }

static ocelli_status device(ocelli_context *context, uint32_t index, ocelli_device *out) {
  if (index > 0) return fail(context, OCELLI_NO_DEVICE, "there is one device");
  snprintf(out->name, sizeof out->name, "example on the CPU");
  snprintf(out->target, sizeof out->target, "cpu");
  out->capabilities = OCELLI_CAP_ONLINE_COMPILE;
  return OCELLI_OK;
}

/* The agent makes segments as large as it can of what is accepted here. */
static ocelli_status supports(ocelli_context *context, uint32_t index, const ocelli_graph *graph, uint8_t *accepts) {
  (void)context, (void)index;
  memset(accepts, 0, graph->n_nodes);
  for (uint32_t n = 0; n < graph->n_nodes; n++) {
    const ocelli_node *node = graph->nodes[n];
    if (strcmp(node->op, "Relu") != 0 || node->arithmetic != OCELLI_PLAIN) continue;
    const ocelli_tensor *input = graph->tensors[node->inputs[0]];
    accepts[n] = input->dtype == OCELLI_F32 && input->rank <= 8;
  }
  return OCELLI_OK;
}

static void describe(ocelli_executable *executable, uint32_t direction, const ocelli_tensor *tensor) {
  ocelli_tensor *out = &executable->io[direction];
  *out = (ocelli_tensor){.size = sizeof *out, .dtype = OCELLI_F32, .rank = tensor->rank, .n_bytes = tensor->n_bytes};
  memcpy(executable->dims[direction], tensor->dims, tensor->rank * sizeof *tensor->dims);
  snprintf(executable->names[direction], sizeof executable->names[direction], "%s", tensor->name);
  out->dims = executable->dims[direction];
  out->name = executable->names[direction];
}

static ocelli_status compile(ocelli_context *context, uint32_t index, const ocelli_source *source, ocelli_executable **executable) {
  (void)index;
  const ocelli_graph *graph = source->graph; /* or give source->data, an ONNX file, to the vendor's compiler */
  if (!graph || graph->n_inputs != 1 || graph->n_outputs != 1) return fail(context, OCELLI_MODEL_REJECTED, "only chains of Relu");
  *executable = calloc(1, sizeof **executable);
  if (!*executable) return OCELLI_OUT_OF_MEMORY;
  (*executable)->context = context;
  describe(*executable, OCELLI_INPUT, graph->tensors[graph->inputs[0]]);
  describe(*executable, OCELLI_OUTPUT, graph->tensors[graph->outputs[0]]);
  return OCELLI_OK;
}

static void release(ocelli_executable *executable) { free(executable); }

static ocelli_status io(ocelli_executable *executable, uint32_t direction, uint32_t index, const ocelli_tensor **tensor) {
  if (index > 0 || direction > OCELLI_OUTPUT) return OCELLI_INVALID;
  *tensor = &executable->io[direction];
  return OCELLI_OK;
}

static ocelli_status submit(ocelli_executable *executable, const ocelli_buffer *const *inputs, uint32_t n_inputs,
                            const ocelli_buffer *const *outputs, uint32_t n_outputs, uint64_t *ticket) {
  (void)executable, (void)n_inputs, (void)n_outputs;
  const float *from = inputs[0]->data;
  float *to = outputs[0]->data;
  for (uint64_t i = 0; i < outputs[0]->n_bytes / sizeof *to; i++) to[i] = from[i] > 0 ? from[i] : 0;
  *ticket = 0;
  return OCELLI_OK;
}

/* Everything is done in submit(). A device with a queue waits here, no longer than timeout_ns. */
static ocelli_status wait_for(ocelli_executable *executable, uint64_t ticket, uint64_t timeout_ns) {
  (void)executable, (void)ticket, (void)timeout_ns;
  return OCELLI_OK;
}

static const ocelli_delegate_api API = {
    .size = sizeof API,
    .abi_major = OCELLI_DELEGATE_ABI_MAJOR,
    .abi_minor = OCELLI_DELEGATE_ABI_MINOR,
    .plugin_name = "relu",
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
};

const ocelli_delegate_api *ocelli_delegate_get_api(uint32_t abi_major) {
  return abi_major == OCELLI_DELEGATE_ABI_MAJOR ? &API : NULL;
}
