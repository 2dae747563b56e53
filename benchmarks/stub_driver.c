/* A CUDA driver and runtime without a device, for compiling only: they answer what torch and Triton ask before a
 * kernel is started, and start none. Preloaded by benchmarks.compile_for, which says which GPU it is:
 * STUB_MAJOR and STUB_MINOR (compute capability), STUB_SHARED (bytes of shared memory of a block).
 */
#include <stddef.h>
#include <stdlib.h>

typedef int Result; /* CUresult or cudaError_t: 0 is success */

#define DONE(signature) \
    Result signature { return 0; }

static int setting(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

/* Driver: called by torch's device guard and by Triton. */
DONE(cuInit(unsigned flags))
DONE(cuCtxSetCurrent(void *context))
Result cuDriverGetVersion(int *version) { return *version = 13000, 0; }
Result cuDeviceGet(int *device, int number) { return *device = number, 0; }
Result cuDeviceGetCount(int *count) { return *count = 1, 0; }
Result cuGetErrorString(Result error, const char **text) { return *text = "stub", 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)1, 0; }
Result cuCtxGetCurrent(void **context) { return *context = (void *)1, 0; }
Result cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 10: return *value = 32, 0;                     /* threads of a warp */
    case 12: return *value = 65536, 0;                  /* registers of a block */
    case 75: return *value = setting("STUB_MAJOR"), 0;
    case 76: return *value = setting("STUB_MINOR"), 0;
    case 97: return *value = setting("STUB_SHARED"), 0;
    default: return *value = 1, 0;
    }
}

/* Driver: linked by Triton, which loads and starts nothing here. */
#define REFUSED(name) \
    Result name(void) { return 801; } /* not supported */
REFUSED(cuModuleLoadData)
REFUSED(cuModuleGetFunction)
REFUSED(cuFuncGetAttribute)
REFUSED(cuFuncSetAttribute)
REFUSED(cuFuncSetCacheConfig)
REFUSED(cuPointerGetAttribute)
REFUSED(cuPointerGetAttributes)
REFUSED(cuCtxGetLimit)
REFUSED(cuCtxSetLimit)

/* Runtime: called by torch for fake tensors on the device. */
DONE(cudaSetDevice(int device))
DONE(cudaGetLastError(void))
DONE(cudaDeviceSynchronize(void))
DONE(cudaStreamQuery(void *stream))
DONE(cudaStreamSynchronize(void *stream))
Result cudaGetDevice(int *device) { return *device = 0, 0; }
Result cudaGetDeviceCount(int *count) { return *count = 1, 0; }
Result cudaDriverGetVersion(int *version) { return *version = 13000, 0; }
Result cudaStreamIsCapturing(void *stream, int *status) { return *status = 0, 0; }
Result cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, 0; }
Result cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return *stream = (void *)2, 0; }
