/* host.c: the least host there can be. Loads a plug-in, has it run a Relu of six floats, and prints what happens; layout.rs compiles
 * and calls it. Usage: host PLUGIN.so [MODEL.onnx [KEY=VALUE …]]; the model is a Relu of six floats, from x to y. */
#define _POSIX_C_SOURCE 200809L
#include "ocelli_delegate.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static int failed(const char *what, const char *why) {
  printf("%s: %s\n", what, why);
  return 1;
}

int main(int count, char **arguments) {
  if (count < 2 || count > 18) return failed("usage", "host PLUGIN.so [MODEL.onnx [KEY=VALUE …]]");
  static char model[65536];
  size_t n_bytes = 0;
  if (count > 2) {
    FILE *file = fopen(arguments[2], "rb");
    if (!file) return failed(arguments[2], "cannot be opened");
    n_bytes = fread(model, 1, sizeof model, file);
    fclose(file);
  }
  const char *keys[16], *values[16];
  uint32_t n_options = 0;
  for (int i = 3; i < count; i++) {
    char *value = strchr(arguments[i], '=');
    if (!value) return failed(arguments[i], "is no KEY=VALUE");
    *value++ = 0;
    keys[n_options] = arguments[i], values[n_options++] = value;
  }
  void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return failed("dlopen", dlerror());
  const ocelli_delegate_api *(*get_api)(uint32_t);
  *(void **)&get_api = dlsym(library, "ocelli_delegate_get_api");
  if (!get_api) return failed("dlsym", dlerror());
  if (get_api(OCELLI_DELEGATE_ABI_MAJOR + 1)) return failed("get_api", "offers an ABI that does not exist");
  const ocelli_delegate_api *api = get_api(OCELLI_DELEGATE_ABI_MAJOR);
  if (!api || api->size < sizeof *api) return failed("get_api", "no table");

  const ocelli_options options = {.size = sizeof options, .count = n_options, .keys = keys, .values = values};
  ocelli_context *context = NULL;
  if (api->create(&options, &context)) return failed("create", context ? api->last_error(context) : "no context");
  ocelli_device device = {.size = sizeof device, .tops = NAN};
  if (api->device(context, 0, &device)) return failed("device", api->last_error(context));
  printf("device %s\n", device.name);
  if (api->device(context, 1, &device) != OCELLI_NO_DEVICE || !*api->last_error(context)) return failed("device", "one too many");

  const int64_t dims[] = {1, 6};
  const ocelli_tensor x = {.size = sizeof x, .dtype = OCELLI_F32, .rank = 2, .dims = dims, .name = "x", .n_bytes = 24};
  ocelli_tensor y = x;
  y.name = "y";
  const ocelli_tensor *tensors[] = {&x, &y};
  const uint32_t first = 0, second = 1;
  ocelli_node relu = {.size = sizeof relu, .op = "Relu", .name = "relu", .n_inputs = 1, .n_outputs = 1, .inputs = &first, .outputs = &second,
                      .clip_min = -INFINITY, .clip_max = INFINITY};
  ocelli_node other = relu;
  other.op = "Einsum";
  const ocelli_node *nodes[] = {&relu, &other};
  ocelli_graph graph = {.size = sizeof graph, .opset = 13, .n_tensors = 2, .n_nodes = 2, .n_inputs = 1, .n_outputs = 1, .tensors = tensors,
                        .nodes = nodes, .inputs = &first, .outputs = &second};
  uint8_t accepts[2] = {9, 9};
  if (api->supports(context, 0, &graph, accepts)) return failed("supports", api->last_error(context));
  printf("accepts %d %d\n", accepts[0], accepts[1]);

  graph.n_nodes = 1;
  ocelli_source source = {.size = sizeof source, .kind = OCELLI_SOURCE_BLOB, .data = "blob", .n_bytes = 4};
  ocelli_executable *executable = NULL;
  printf("blob %d\n", api->compile(context, 0, &source, &executable));
  source = (ocelli_source){.size = sizeof source, .kind = OCELLI_SOURCE_ONNX, .data = model, .n_bytes = n_bytes, .graph = &graph};
  if (api->compile(context, 0, &source, &executable)) return failed("compile", api->last_error(context));
  for (uint32_t direction = OCELLI_INPUT; direction <= OCELLI_OUTPUT; direction++) {
    const ocelli_tensor *tensor = NULL;
    if (api->io(executable, direction, 0, &tensor)) return failed("io", api->last_error(context));
    printf("io %s %u %u %llu\n", tensor->name, tensor->dtype, tensor->rank, (unsigned long long)tensor->n_bytes);
    if (api->io(executable, direction, 1, &tensor) != OCELLI_INVALID) return failed("io", "one too many");
  }

  float input[6] = {-2, -0.5f, 0, 0.5f, 1, 3}, output[6] = {0};
  const ocelli_buffer in = {.size = sizeof in, .fd = -1, .data = input, .n_bytes = sizeof input};
  const ocelli_buffer out = {.size = sizeof out, .fd = -1, .data = output, .n_bytes = sizeof output};
  const ocelli_buffer *ins[] = {&in}, *outs[] = {&out};
  uint64_t ticket = 0;
  if (api->submit(executable, ins, 1, outs, 1, &ticket)) return failed("submit", api->last_error(context));
  if (api->wait(executable, ticket, 1000000000)) return failed("wait", api->last_error(context));
  printf("run %g %g %g %g %g %g\n", output[0], output[1], output[2], output[3], output[4], output[5]);
  api->release(executable);
  api->destroy(context);
  return 0;
}
