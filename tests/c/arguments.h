/*
 * Calls with wrong arguments. Each call is made twice, with and without a place for words; outputs go to `out`, which
 * is filled with a pattern before, so that a call that writes to it on failure is found.
 */
#ifndef ARGUMENTS_H
#define ARGUMENTS_H

#include "check.h"
#include "support.h"

#define PATTERN 0xa5

/* A place for every kind of output. */
typedef union output {
    trion_runtime *runtime;
    trion_model *model;
    trion_session *session;
    trion_text *text;
    trion_constraint *constraint;
    trion_bare_session *bare_session;
    trion_bare_progress progress;
    size_t count;
    trion_event event, events[TRION_MAX_SESSIONS];
    trion_piece piece;
    trion_stop stop;
    trion_model_info info;
    trion_gpu_memory memory;
    const uint32_t *tokens;
    const float *logits;
    uint32_t ids[16];
    trion_candidate candidates[16];
    char bytes[256];
} output;

static struct {
    output one, two;
} out;

/* Where a call is to write words: to `error`, or nowhere. */
static trion_error *words;

static inline int untouched(const void *memory, size_t size) {
    const unsigned char *bytes = memory;
    size_t i;
    for (i = 0; i < size && bytes[i] == PATTERN; i++) {
    }
    return i == size;
}

static inline void prepare(void) {
    memset(&out, PATTERN, sizeof out);
    memset(&error, PATTERN, sizeof error);
}

static inline void judge(const char *file, int line, const char *call, int found, int expected, int speaks) {
    const char *problem = NULL;
    if (found != expected) {
        problem = trion_status_string(found);
    } else if (expected != TRION_OK && !untouched(&out, sizeof out)) {
        problem = "an output was written";
    } else if (expected == TRION_OK || !speaks || words == NULL) {
        problem = untouched(&error, sizeof error) ? NULL : "words were written";
    } else if (error.status != (trion_status)expected) {
        problem = "the words have another status";
    } else if (error.message[0] == 0 || memchr(error.message, 0, sizeof error.message) == NULL) {
        problem = "the words are not a text with a zero at its end";
    }
    if (problem != NULL) {
        fprintf(stderr, "%s:%d: %s\n%s; it returned %d, expected %d\n", file, line, call, problem, found, expected);
        exit(1);
    }
}

#define JUDGE(call, expected, speaks)                                                                                  \
    do {                                                                                                               \
        prepare();                                                                                                     \
        judge(__FILE__, __LINE__, #call, (int)(call), (int)(expected), speaks);                                        \
    } while (0)

/* The call, which has `words` as its error parameter, is refused with a status. */
#define REFUSED(expected, call)                                                                                        \
    do {                                                                                                               \
        words = NULL;                                                                                                  \
        JUDGE(call, expected, 1);                                                                                      \
        words = &error;                                                                                                \
        JUDGE(call, expected, 1);                                                                                      \
    } while (0)

#define INVALID(call) REFUSED(TRION_INVALID_ARGUMENT, call)

/* For calls without an error parameter. */
#define REFUSED_SILENTLY(expected, call) JUDGE(call, expected, 0)
#define INVALID_SILENTLY(call) REFUSED_SILENTLY(TRION_INVALID_ARGUMENT, call)

/* The call works, and leaves the words alone. */
#define ACCEPTED(call)                                                                                                 \
    do {                                                                                                               \
        words = &error;                                                                                                \
        JUDGE(call, TRION_OK, 0);                                                                                      \
    } while (0)

/* Memory that is aligned for everything, and a pointer into it that is aligned for nothing. */
typedef union crooked {
    uint64_t aligned[64];
    unsigned char bytes[512];
} crooked;

/*
 * Options with wrong sizes. `make(options)` is a call with `words` and `out` that takes a pointer to them; `release`
 * frees what the calls that work have made. `first_size` is what they had in version 1.0.
 */
typedef struct sized_call {
    trion_status (*make)(const void *options);
    void (*release)(void);
    size_t size, first_size;
} sized_call;

static inline void check_struct_sizes(sized_call call) {
    static crooked memory;
    size_t size;
    CHECK(call.size + 64 <= sizeof memory);
    for (size = 0; size < call.first_size; size++) {
        memset(&memory, 0, sizeof memory);
        memory.aligned[0] = size;
        INVALID(call.make(&memory));
    }
    memory.aligned[0] = SIZE_MAX;
    INVALID(call.make(&memory));
    /* Behind what the library knows there may be zeros, and nothing else. */
    for (size = call.first_size; size < call.size + 64; size++) {
        memset(&memory, 0xff, sizeof memory);
        memset(&memory, 0, size);
        memory.aligned[0] = size;
        ACCEPTED(call.make(&memory));
        call.release();
        if (size > call.size) {
            memory.bytes[size - 1] = 1;
            INVALID(call.make(&memory));
        }
    }
    memset(&memory, 0, sizeof memory);
    memory.aligned[0] = call.size;
    memmove(memory.bytes + 1, memory.bytes, call.size);
    INVALID(call.make(memory.bytes + 1));
    ACCEPTED(call.make(NULL));
    call.release();
}

#endif
