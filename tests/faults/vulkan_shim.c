// A Vulkan loader that fails on demand: a library `libvulkan.so.1` in front of the real one, REAL_VULKAN. A call fails while
// the folder FAULTS contains a file with the name of its fault.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef void (*Function)(void);
typedef Function (*GetProcAddr)(void *, const char *);

enum { OUT_OF_DEVICE_MEMORY = -2, DEVICE_LOST = -4, MEMORY_MAP_FAILED = -5 };

static int is_on(const char *fault) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTS"), fault);
    return access(path, F_OK) == 0;
}

// FAULT, VkResult, name, parameters, arguments
#define CALLS(X)                                                                                                       \
    X("lost", DEVICE_LOST, vkGetSemaphoreCounterValue, (void *d, uint64_t s, uint64_t *v), (d, s, v))                   \
    X("lost", DEVICE_LOST, vkGetSemaphoreCounterValueKHR, (void *d, uint64_t s, uint64_t *v), (d, s, v))                \
    X("lost", DEVICE_LOST, vkWaitSemaphores, (void *d, void *i, uint64_t t), (d, i, t))                                 \
    X("lost", DEVICE_LOST, vkWaitSemaphoresKHR, (void *d, void *i, uint64_t t), (d, i, t))                              \
    X("lost", DEVICE_LOST, vkGetFenceStatus, (void *d, uint64_t f), (d, f))                                             \
    X("lost", DEVICE_LOST, vkWaitForFences, (void *d, uint32_t n, void *f, uint32_t a, uint64_t t), (d, n, f, a, t))    \
    X("submit", DEVICE_LOST, vkQueueSubmit, (void *q, uint32_t n, void *s, uint64_t f), (q, n, s, f))                   \
    X("buffer", OUT_OF_DEVICE_MEMORY, vkCreateBuffer, (void *d, void *i, void *a, void *b), (d, i, a, b))               \
    X("memory", OUT_OF_DEVICE_MEMORY, vkAllocateMemory, (void *d, void *i, void *a, void *m), (d, i, a, m))             \
    X("map", MEMORY_MAP_FAILED, vkMapMemory,                                                                            \
      (void *d, uint64_t m, uint64_t o, uint64_t s, uint32_t f, void *p), (d, m, o, s, f, p))                           \
    X("pipeline", OUT_OF_DEVICE_MEMORY, vkCreateComputePipelines,                                                       \
      (void *d, uint64_t c, uint32_t n, void *i, void *a, void *p), (d, c, n, i, a, p))                                 \
    X("descriptors", OUT_OF_DEVICE_MEMORY, vkCreateDescriptorPool, (void *d, void *i, void *a, void *p), (d, i, a, p))

#define DEFINE(fault, result, name, parameters, arguments)                                                             \
    static int(*real_##name) parameters;                                                                               \
    static int faulty_##name parameters { return is_on(fault) ? result : real_##name arguments; }
CALLS(DEFINE)

static Function faulty(const char *name, Function real) {
#define REPLACE(fault, result, call, parameters, arguments)                                                            \
    if (real && strcmp(name, #call) == 0) {                                                                            \
        real_##call = (int(*) parameters)real;                                                                         \
        return (Function)faulty_##call;                                                                                \
    }
    CALLS(REPLACE)
    return real;
}

static GetProcAddr real_get_device_proc_addr;

static Function get_device_proc_addr(void *device, const char *name) {
    return faulty(name, real_get_device_proc_addr(device, name));
}

Function vkGetInstanceProcAddr(void *instance, const char *name) {
    static GetProcAddr real;
    if (!real) {
        void *library = dlopen(getenv("REAL_VULKAN"), RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            abort();
        }
        real = (GetProcAddr)dlsym(library, "vkGetInstanceProcAddr");
    }
    Function found = real(instance, name);
    if (found && strcmp(name, "vkGetDeviceProcAddr") == 0) {
        real_get_device_proc_addr = (GetProcAddr)found;
        return (Function)get_device_proc_addr;
    }
    return faulty(name, found);
}
