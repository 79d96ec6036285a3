/* A stand-in for libnvidia-ml and libcuda, for tests without a GPU: what the runtime asks of the driver.
 *
 * Environment, read at every call:
 *   STANDIN_GPUS          NAME|MAJOR|MINOR|MEMORY_MIB, separated by `;`. MEMORY_MIB 0: the memory is the
 *                         machine's own, so NVML tells none.
 *   STANDIN_NVML_LACKS    1: NVML tells no compute capability, as on a Jetson, 0
 *   STANDIN_NVML_STATUS   what nvmlInit_v2 returns, 0
 *   STANDIN_CUINIT_STATUS what cuInit returns, 0
 *   STANDIN_DRIVER        version of the driver
 *   STANDIN_DRIVER_CUDA   the highest CUDA that it runs, 12040 for 12.4
 *   STANDIN_MACHINE_MIB   memory that libcuda tells of a GPU without its own
 */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INVALID_VALUE = 1, NO_DEVICE = 100 };
enum { INTEGRATED = 18, CC_MAJOR = 75, CC_MINOR = 76 };

struct gpu { char name[96]; int major, minor; long memory_mib; };
typedef struct { unsigned long long total, free, used; } memory_t;

static int started;

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int find(int wanted, struct gpu *gpu) {
    const char *text = getenv("STANDIN_GPUS");
    int count = 0;
    while (text && *text) {
        struct gpu one;
        if (sscanf(text, "%95[^|]|%d|%d|%ld", one.name, &one.major, &one.minor, &one.memory_mib) != 4)
            break;
        if (count++ == wanted)
            *gpu = one;
        text = strchr(text, ';');
        text = text ? text + 1 : NULL;
    }
    return count;
}

static int put(char *to, unsigned length, const char *text) {
    if (length <= strlen(text))
        return INVALID_ARGUMENT;
    strcpy(to, text);
    return SUCCESS;
}

int nvmlInit_v2(void) {
    int status = number("STANDIN_NVML_STATUS", SUCCESS);
    started = status == SUCCESS;
    return status;
}

int nvmlShutdown(void) { started = 0; return SUCCESS; }

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    const char *text = getenv("STANDIN_DRIVER");
    return started && text ? put(version, length, text) : NOT_SUPPORTED;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = number("STANDIN_DRIVER_CUDA", 12040);
    return started ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)find(-1, NULL);
    return started ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return index < (unsigned)find(-1, NULL) ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    struct gpu gpu;
    find((int)(size_t)device - 1, &gpu);
    return put(name, length, gpu.name);
}

int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    struct gpu gpu;
    find((int)(size_t)device - 1, &gpu);
    if (gpu.memory_mib == 0)
        return NOT_SUPPORTED;
    memory->total = memory->free = (unsigned long long)gpu.memory_mib << 20;
    memory->used = 0;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    struct gpu gpu;
    find((int)(size_t)device - 1, &gpu);
    *major = gpu.major;
    *minor = gpu.minor;
    return number("STANDIN_NVML_LACKS", 0) ? NOT_SUPPORTED : SUCCESS;
}

int cuInit(unsigned flags) {
    return flags ? INVALID_VALUE : number("STANDIN_CUINIT_STATUS", SUCCESS);
}

int cuDriverGetVersion(int *version) {
    *version = number("STANDIN_DRIVER_CUDA", 12040);
    return SUCCESS;
}

/* CUDA_VISIBLE_DEVICES hides GPUs from CUDA alone: here a single index, or nothing at all. */
static int visible(int index) {
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    return text ? atoi(text) : index;
}

int cuDeviceGetCount(int *count) {
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    *count = text ? *text != 0 : find(-1, NULL);
    return *count ? SUCCESS : NO_DEVICE;
}

int cuDeviceGet(int *device, int index) { *device = index; return SUCCESS; }

int cuDeviceGetName(char *name, int length, int device) {
    struct gpu gpu;
    find(visible(device), &gpu);
    return put(name, (unsigned)length, gpu.name);
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    struct gpu gpu;
    find(visible(device), &gpu);
    *bytes = (size_t)(gpu.memory_mib ? gpu.memory_mib : number("STANDIN_MACHINE_MIB", 0)) << 20;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    struct gpu gpu;
    find(visible(device), &gpu);
    *value = attribute == CC_MAJOR ? gpu.major : attribute == CC_MINOR ? gpu.minor
           : attribute == INTEGRATED ? gpu.memory_mib == 0 : -1;
    return *value < 0 ? INVALID_VALUE : SUCCESS;
}
