/* A stand-in for libcudart, for tests without a GPU: the functions that the runtime calls, over host memory.
 *
 * Work on a stream is queued and runs when something waits for the stream, so that a missing wait
 * shows as a stale answer. Device memory, and the device's view of mapped host memory, have
 * addresses of their own; every access is checked against what is live. A capture records, a
 * graph's launch queues what was recorded.
 *
 * Environment, read when the library is loaded:
 *   STANDIN_CUDA_FAULTS   NAME:CODE:SKIP:TIMES,… as for standin_fail
 *   STANDIN_CUDA_DEVICES  how many GPUs there are, 1; with 0, calls give cudaErrorNoDevice
 *   STANDIN_CUDA_DRIVER   what cudaDriverGetVersion says, 12060; with 0, calls give
 *                         cudaErrorInsufficientDriver
 *   STANDIN_CUDA_RUNTIME  what cudaRuntimeGetVersion says, 12060
 *   STANDIN_CUDA_MEMORY_MIB  memory of the GPU, 4096
 *   STANDIN_CUDA_INTEGRATED  1 for a GPU that shares the host's memory, 0
 *   STANDIN_CUDA_CAN_MAP  0 for a GPU that cannot map host memory, 1
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INSUFFICIENT_DRIVER = 35, NO_DEVICE = 100,
       INVALID_DEVICE = 101, INVALID_HANDLE = 400, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
enum { DEVICE_MEMORY = 1, HOST_MEMORY = 2 };
enum { ALIGNMENT = 512 };

typedef void (*callback_t)(void *);

struct block { uintptr_t host, device; size_t size, mapped; int kind; struct block *next; };
struct operation { callback_t call; void *data; uintptr_t to, from; size_t size; struct event *event;
                   struct operation *next; };
struct list { struct operation *first, *last; };
struct stream { struct list queue; struct list *capture; int broken; pthread_t owner; struct stream *next; };
struct event { struct stream *stream; double at_ms; };
struct graph { struct list list; };
struct fault { char name[48]; int code, skip, times; struct fault *next; };

static pthread_mutex_t lock;
static struct block *blocks;
static struct stream *streams;
static struct fault *faults;
static long objects;             /* streams, events, graphs */
static int sticky, last_error;
static int devices = 1, driver = 12060, runtime = 12060, integrated = 0, can_map = 1;
static size_t memory = (size_t)4096 << 20, used;

EXPORT void standin_fail(const char *name, int code, int skip, int times) {
    struct fault *fault = calloc(1, sizeof *fault);
    snprintf(fault->name, sizeof fault->name, "%s", name);
    fault->code = code; fault->skip = skip; fault->times = times;
    pthread_mutex_lock(&lock);
    fault->next = faults; faults = fault;
    pthread_mutex_unlock(&lock);
}

EXPORT void standin_heal(void) {
    pthread_mutex_lock(&lock);
    while (faults) { struct fault *gone = faults; faults = gone->next; free(gone); }
    sticky = last_error = 0;
    pthread_mutex_unlock(&lock);
}

EXPORT void standin_configure(int new_devices, int new_driver, int new_runtime, int memory_mib,
                              int new_integrated, int new_can_map) {
    devices = new_devices; driver = new_driver; runtime = new_runtime;
    memory = (size_t)memory_mib << 20; integrated = new_integrated; can_map = new_can_map;
}

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

__attribute__((constructor)) static void load(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &attributes);
    standin_configure(number("STANDIN_CUDA_DEVICES", 1), number("STANDIN_CUDA_DRIVER", 12060),
                      number("STANDIN_CUDA_RUNTIME", 12060), number("STANDIN_CUDA_MEMORY_MIB", 4096),
                      number("STANDIN_CUDA_INTEGRATED", 0), number("STANDIN_CUDA_CAN_MAP", 1));
    const char *text = getenv("STANDIN_CUDA_FAULTS");
    char name[48];
    int code, skip, times, length;
    while (text && sscanf(text, "%47[^:]:%d:%d:%d%n", name, &code, &skip, &times, &length) == 4) {
        standin_fail(name, code, skip, times);
        text += length;
        if (*text++ != ',') break;
    }
}

/* What a call gives before it does anything: an injected fault, or that there is no GPU. */
static int enter(const char *name, int needs_device) {
    int code = SUCCESS;
    pthread_mutex_lock(&lock);
    if (sticky) code = sticky;
    else if (needs_device && driver == 0) code = INSUFFICIENT_DRIVER;
    else if (needs_device && devices == 0) code = NO_DEVICE;
    for (struct fault *fault = faults; !code && fault; fault = fault->next) {
        if (strcmp(fault->name, name) || !fault->times) continue;
        if (fault->skip-- > 0) continue;
        fault->skip = 0;
        if (fault->times > 0) fault->times--;
        code = fault->code;
    }
    if (code >= 700 && code < 730) sticky = code;
    if (code) last_error = code;
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER(device) do { int code = enter(__func__, device); if (code) return code; } while (0)

static struct block *find(uintptr_t address, size_t size, int from_device) {
    for (struct block *block = blocks; block; block = block->next) {
        uintptr_t start = from_device ? block->device : block->host;
        if (start && address >= start && address + size <= start + block->size) return block;
    }
    return NULL;
}

EXPORT int standin_is_device(uintptr_t address, size_t size) {
    pthread_mutex_lock(&lock);
    int found = find(address, size, 1) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

EXPORT long standin_live(void) {
    pthread_mutex_lock(&lock);
    long count = objects;
    for (struct block *block = blocks; block; block = block->next) count++;
    pthread_mutex_unlock(&lock);
    return count;
}

EXPORT size_t standin_device_bytes(void) { return used; }

static void append(struct list *list, struct operation operation) {
    struct operation *copy = malloc(sizeof *copy);
    *copy = operation;
    copy->next = NULL;
    if (list->last) list->last->next = copy; else list->first = copy;
    list->last = copy;
}

static void clear(struct list *list) {
    while (list->first) { struct operation *gone = list->first; list->first = gone->next; free(gone); }
    list->last = NULL;
}

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static int copy(uintptr_t to, uintptr_t from, size_t size) {
    if (!find(to, size, 0) && !find(to, size, 1)) return ILLEGAL_ADDRESS;
    if (!find(from, size, 0) && !find(from, size, 1)) return ILLEGAL_ADDRESS;
    memcpy((void *)to, (void *)from, size);
    return SUCCESS;
}

/* A callback takes the interpreter's lock, which a thread waiting for ours may hold: never both. */
static int drain(struct stream *stream) {
    for (;;) {
        pthread_mutex_lock(&lock);
        struct operation *operation = stream->queue.first;
        int code = SUCCESS;
        if (operation) {
            stream->queue.first = operation->next;
            if (!operation->next) stream->queue.last = NULL;
            if (operation->event) operation->event->at_ms = now_ms();
            else if (!operation->call) code = copy(operation->to, operation->from, operation->size);
            if (code) sticky = last_error = code;
        }
        pthread_mutex_unlock(&lock);
        if (!operation) return sticky;
        if (operation->call) operation->call(operation->data);
        free(operation);
        if (code) return code;
    }
}

static int queue(struct stream *stream, struct operation operation) {
    pthread_mutex_lock(&lock);
    append(stream->capture ? stream->capture : &stream->queue, operation);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

EXPORT int standin_enqueue(struct stream *stream, callback_t call, void *data) {
    return queue(stream, (struct operation){.call = call, .data = data});
}

EXPORT int standin_is_capturing(struct stream *stream) { return stream->capture != NULL; }

/* Calls that may not happen in a thread whose stream is being captured spoil the capture. */
static int spoil_capture(void) {
    int code = SUCCESS;
    pthread_mutex_lock(&lock);
    for (struct stream *stream = streams; stream; stream = stream->next)
        if (stream->capture && pthread_equal(stream->owner, pthread_self())) {
            stream->broken = 1;
            code = CAPTURE_UNSUPPORTED;
        }
    if (code) last_error = code;
    pthread_mutex_unlock(&lock);
    return code;
}

/* --- versions and devices --- */
EXPORT int cudaDriverGetVersion(int *out) { ENTER(0); *out = driver; return SUCCESS; }
EXPORT int cudaRuntimeGetVersion(int *out) { ENTER(0); *out = runtime; return SUCCESS; }
EXPORT int cudaGetDeviceCount(int *out) { ENTER(1); *out = devices; return SUCCESS; }
EXPORT int cudaGetDevice(int *out) { ENTER(1); *out = 0; return SUCCESS; }
EXPORT int cudaSetDevice(int device) { ENTER(1); return device < devices ? SUCCESS : INVALID_DEVICE; }
EXPORT int cudaGetLastError(void) { int code = last_error; last_error = sticky; return code; }
EXPORT int cudaPeekAtLastError(void) { return last_error; }

EXPORT const char *cudaGetErrorName(int code) {
    switch (code) {
    case SUCCESS: return "cudaSuccess";
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case INSUFFICIENT_DRIVER: return "cudaErrorInsufficientDriver";
    case NO_DEVICE: return "cudaErrorNoDevice";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    case ILLEGAL_ADDRESS: return "cudaErrorIllegalAddress";
    case 719: return "cudaErrorLaunchFailure";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    default: return "unrecognized error code";
    }
}

EXPORT const char *cudaGetErrorString(int code) {
    switch (code) {
    case OUT_OF_MEMORY: return "out of memory";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    default: return "an error of the stand-in";
    }
}

EXPORT int cudaGetDeviceProperties(char *out, int device) {
    ENTER(1);
    if (device >= devices) return INVALID_DEVICE;
    memset(out, 0, 1024);  /* no smaller than the real structure, which fills a caller's buffer */
    strcpy(out, "Stand-in GPU");
    return SUCCESS;
}

EXPORT int cudaDeviceGetAttribute(int *out, int attribute, int device) {
    ENTER(1);
    if (device >= devices) return INVALID_DEVICE;
    switch (attribute) {
    case 16: *out = 8; return SUCCESS;
    case 18: *out = integrated; return SUCCESS;
    case 19: *out = can_map; return SUCCESS;
    case 75: *out = 8; return SUCCESS;
    case 76: *out = integrated ? 7 : 9; return SUCCESS;
    default: return INVALID_VALUE;
    }
}

EXPORT int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    ENTER(1);
    *free_bytes = memory - used;
    *total = memory;
    return SUCCESS;
}

/* --- memory --- */
static void add(struct block block) {
    struct block *copy = malloc(sizeof *copy);
    *copy = block;
    pthread_mutex_lock(&lock);
    copy->next = blocks;
    blocks = copy;
    if (block.kind == DEVICE_MEMORY) used += block.size;
    pthread_mutex_unlock(&lock);
}

EXPORT int cudaMalloc(void **out, size_t size) {
    ENTER(1);
    if (spoil_capture()) return CAPTURE_UNSUPPORTED;
    if (size > memory - used) return last_error = OUT_OF_MEMORY;
    *out = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset(*out, 0xEE, size);
    add((struct block){.device = (uintptr_t)*out, .size = size, .kind = DEVICE_MEMORY});
    return SUCCESS;
}

EXPORT int cudaHostAlloc(void **out, size_t size, unsigned flags) {
    ENTER(1);
    if (spoil_capture()) return CAPTURE_UNSUPPORTED;
    if (!(flags & 2)) {
        *out = aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
        memset(*out, 0xDD, size);
        add((struct block){.host = (uintptr_t)*out, .size = size, .kind = HOST_MEMORY});
        return SUCCESS;
    }
    if (!can_map) return last_error = INVALID_VALUE;
    size_t mapped = (size + 4095) / 4096 * 4096;
    int file = memfd_create("standin", 0);
    if (file < 0 || ftruncate(file, (off_t)mapped)) return OUT_OF_MEMORY;
    *out = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void *alias = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    memset(*out, 0xDD, size);
    add((struct block){.host = (uintptr_t)*out, .device = (uintptr_t)alias, .size = size,
                       .mapped = mapped, .kind = HOST_MEMORY});
    return SUCCESS;
}

static int release(uintptr_t address, int kind) {
    int code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks; *at; at = &(*at)->next) {
        struct block *block = *at;
        if (block->kind != kind || address != (kind == DEVICE_MEMORY ? block->device : block->host)) continue;
        *at = block->next;
        if (kind == DEVICE_MEMORY) used -= block->size;
        if (block->mapped) {
            munmap((void *)block->host, block->mapped);
            munmap((void *)block->device, block->mapped);
        } else free((void *)address);
        free(block);
        code = SUCCESS;
        break;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

/* After an error that stays, memory is still given back here: real drivers do so at the process's end. */
EXPORT int cudaFree(void *pointer) {
    int code = enter(__func__, 1), freed = pointer ? release((uintptr_t)pointer, DEVICE_MEMORY) : SUCCESS;
    return code ? code : freed;
}

EXPORT int cudaFreeHost(void *pointer) {
    int code = enter(__func__, 1), freed = release((uintptr_t)pointer, HOST_MEMORY);
    return code ? code : freed;
}

EXPORT int cudaHostGetDevicePointer(void **out, void *host, unsigned flags) {
    ENTER(1);
    pthread_mutex_lock(&lock);
    struct block *block = find((uintptr_t)host, 1, 0);
    int code = block && block->device && !flags ? SUCCESS : INVALID_VALUE;
    if (!code) *out = (void *)(block->device + ((uintptr_t)host - block->host));
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, struct stream *stream) {
    ENTER(1);
    if (kind < 1 || kind > 3 || !stream) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int to_device = find((uintptr_t)to, size, 1) != NULL, from_device = find((uintptr_t)from, size, 1) != NULL;
    int pinned = find((uintptr_t)(kind == 1 ? (uintptr_t)from : (uintptr_t)to), size, 0) != NULL;
    pthread_mutex_unlock(&lock);
    if ((kind != 2 && !to_device) || (kind != 1 && !from_device)) return INVALID_VALUE;
    if (kind != 3 && !pinned) return INVALID_VALUE;  /* the adapter copies from and to pinned memory alone */
    return queue(stream, (struct operation){.to = (uintptr_t)to, .from = (uintptr_t)from, .size = size});
}

/* --- streams and events --- */
EXPORT int cudaStreamCreateWithFlags(struct stream **out, unsigned flags) {
    ENTER(1);
    if (flags > 1) return INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    pthread_mutex_lock(&lock);
    (*out)->next = streams;
    streams = *out;
    __atomic_add_fetch(&objects, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

EXPORT int cudaStreamDestroy(struct stream *stream) {
    int code = enter(__func__, 1);
    if (!code) drain(stream);
    pthread_mutex_lock(&lock);
    for (struct stream **at = &streams; *at; at = &(*at)->next)
        if (*at == stream) { *at = stream->next; __atomic_sub_fetch(&objects, 1, __ATOMIC_SEQ_CST); clear(&stream->queue); free(stream); break; }
    pthread_mutex_unlock(&lock);
    return code;
}

EXPORT int cudaStreamSynchronize(struct stream *stream) {
    ENTER(1);
    if (spoil_capture()) return CAPTURE_UNSUPPORTED;
    return drain(stream);
}

EXPORT int cudaEventCreateWithFlags(struct event **out, unsigned flags) {
    ENTER(1);
    if (flags > 3) return INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    __atomic_add_fetch(&objects, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

EXPORT int cudaEventRecord(struct event *event, struct stream *stream) {
    ENTER(1);
    event->stream = stream;
    return queue(stream, (struct operation){.event = event});
}

EXPORT int cudaEventSynchronize(struct event *event) {
    ENTER(1);
    return event->stream ? drain(event->stream) : SUCCESS;
}

EXPORT int cudaEventElapsedTime(float *out, struct event *start, struct event *end) {
    ENTER(1);
    *out = (float)(end->at_ms - start->at_ms);
    return SUCCESS;
}

EXPORT int cudaEventDestroy(struct event *event) {
    int code = enter(__func__, 1);
    __atomic_sub_fetch(&objects, 1, __ATOMIC_SEQ_CST);
    free(event);
    return code;
}

/* --- graphs --- */
EXPORT int cudaStreamBeginCapture(struct stream *stream, int mode) {
    ENTER(1);
    if (mode < 0 || mode > 2 || stream->capture) return INVALID_VALUE;
    stream->capture = calloc(1, sizeof *stream->capture);
    stream->owner = pthread_self();
    stream->broken = 0;
    return SUCCESS;
}

EXPORT int cudaStreamEndCapture(struct stream *stream, struct graph **out) {
    int code = enter(__func__, 1);
    if (!stream->capture) return INVALID_VALUE;
    struct list *list = stream->capture;
    stream->capture = NULL;
    if (stream->broken) code = CAPTURE_INVALIDATED;
    if (code) { clear(list); free(list); *out = NULL; return code; }
    *out = calloc(1, sizeof **out);
    (*out)->list = *list;
    free(list);
    __atomic_add_fetch(&objects, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

static void append_all(struct list *to, const struct list *from) {
    for (struct operation *operation = from->first; operation; operation = operation->next) append(to, *operation);
}

EXPORT int cudaGraphInstantiateWithFlags(struct graph **out, struct graph *graph, unsigned long long flags) {
    ENTER(1);
    if (flags) return INVALID_VALUE;
    *out = calloc(1, sizeof **out);
    append_all(&(*out)->list, &graph->list);
    __atomic_add_fetch(&objects, 1, __ATOMIC_SEQ_CST);
    return SUCCESS;
}

EXPORT int cudaGraphLaunch(struct graph *graph, struct stream *stream) {
    ENTER(1);
    pthread_mutex_lock(&lock);
    append_all(&stream->queue, &graph->list);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

static void destroy(struct graph *graph) { clear(&graph->list); free(graph); __atomic_sub_fetch(&objects, 1, __ATOMIC_SEQ_CST); }

EXPORT int cudaGraphExecDestroy(struct graph *graph) { int code = enter(__func__, 1); destroy(graph); return code; }
EXPORT int cudaGraphDestroy(struct graph *graph) { int code = enter(__func__, 1); destroy(graph); return code; }
