/*
 * What a unit of work costs, and whether slicing a token costs anything: docs/performance.md has the numbers.
 *
 *     units MODEL [ROUNDS]
 *
 * Every round computes the same token twice, whole and in slices of one unit, so that a noisy machine disturbs both
 * alike. Times are of the thread's own CPU clock: a thread that loses its core for a while has not computed for longer.
 */
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <trion.h>

enum { PROMPT = 400, MAX_SAMPLES = 1 << 20 };

static double samples[MAX_SAMPLES];
static size_t sample_count;

static void require(trion_status status, const trion_error *error, const char *what) {
    if (status != TRION_OK) {
        fprintf(stderr, "%s: %s\n", what, error ? error->message : trion_status_string(status));
        exit(1);
    }
}

static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double part) {
    return samples[(size_t)(part * (double)(sample_count - 1))];
}

/* Computes what was pushed, `budget` units at a time: the time of all calls. The time of each is a sample. */
static double compute(trion_session *session, size_t budget, size_t *calls) {
    trion_event event;
    double total = 0;
    do {
        double start = seconds(CLOCK_THREAD_CPUTIME_ID);
        require(trion_session_advance(session, budget, &event), NULL, "advance");
        double time = seconds(CLOCK_THREAD_CPUTIME_ID) - start;
        total += time;
        ++*calls;
        if (sample_count < MAX_SAMPLES) samples[sample_count++] = time;
    } while (event.kind == TRION_EVENT_MORE);
    return total;
}

static void report(const char *what) {
    qsort(samples, sample_count, sizeof *samples, ascending);
    printf("%s: %zu calls of one unit, us: median %.1f, 99 %% %.1f, 99.9 %% %.1f, max %.1f\n", what, sample_count,
           1e6 * percentile(0.5), 1e6 * percentile(0.99), 1e6 * percentile(0.999), 1e6 * percentile(1.0));
}

struct canceller {
    trion_session *session;
    double at;
};

/* Waits a moment of wall time, so that the other thread is in the middle of its prompt, and cancels. */
static void *cancel(void *data) {
    struct canceller *canceller = data;
    double start = seconds(CLOCK_MONOTONIC);
    while (seconds(CLOCK_MONOTONIC) < start + 0.005) {}
    canceller->at = seconds(CLOCK_MONOTONIC);
    trion_session_cancel(canceller->session);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: units MODEL [ROUNDS]\n");
        return 1;
    }
    int rounds = argc > 2 ? atoi(argv[2]) : 200;
    trion_error error;
    trion_model *model;
    trion_session *session;
    trion_session_options options = {.struct_size = sizeof options};
    require(trion_model_open(NULL, argv[1], &model, &error), &error, argv[1]);
    require(trion_session_new(model, &options, NULL, &session, &error), &error, "session");
    uint32_t prompt[PROMPT];
    for (uint32_t i = 0; i < PROMPT; i++) prompt[i] = 7 * i % 1000 + 1;

    /* Prompts, in slices of one unit. */
    size_t calls = 0, ignored = 0;
    for (int round = 0; round < rounds / 20 + 2; round++) {
        if (round == 2) sample_count = 0; /* the first ones find cold caches */
        require(trion_session_rewind(session, 0, &error), &error, "rewind");
        require(trion_session_push(session, prompt, PROMPT, &error), &error, "push");
        compute(session, 1, &calls);
    }
    report("prompt of 400");

    /* One token after 1 and after 400 others, whole and sliced in turn. */
    static const size_t positions[] = {PROMPT, 1};
    for (size_t p = 0; p < sizeof positions / sizeof *positions; p++) {
        size_t position = positions[p];
        double whole = 0, sliced = 0;
        size_t units, slices = 0;
        sample_count = 0;
        for (int round = 0; round < rounds; round++) {
            for (int way = 0; way < 2; way++) {
                require(trion_session_rewind(session, position, &error), &error, "rewind");
                require(trion_session_push(session, prompt, 1, &error), &error, "push");
                if (way == 0) {
                    size_t before = sample_count;
                    whole += compute(session, SIZE_MAX, &ignored);
                    sample_count = before;
                } else {
                    sliced += compute(session, 1, &slices);
                }
            }
        }
        require(trion_session_token_units(session, &units), NULL, "units");
        char what[64];
        snprintf(what, sizeof what, "token at %zu", position);
        report(what);
        printf("  whole %.1f us, in %.1f slices %.1f us, ratio %.3f; trion_session_token_units() %zu\n",
               1e6 * whole / rounds, (double)slices / rounds, 1e6 * sliced / rounds, sliced / whole, units);
    }

    /* From trion_session_cancel() on another thread to the return of a call that has a whole prompt to compute. */
    sample_count = 0;
    for (int round = 0; round < rounds; round++) {
        require(trion_session_rewind(session, 0, &error), &error, "rewind");
        require(trion_session_push(session, prompt, PROMPT, &error), &error, "push");
        pthread_t thread;
        struct canceller canceller = {session, 0};
        if (pthread_create(&thread, NULL, cancel, &canceller) != 0) return 1;
        trion_event event;
        require(trion_session_advance(session, SIZE_MAX, &event), NULL, "advance");
        double back = seconds(CLOCK_MONOTONIC);
        pthread_join(thread, NULL);
        if (event.reason == TRION_REASON_CANCELLED) samples[sample_count++] = back - canceller.at;
    }
    if (sample_count > 0) {
        qsort(samples, sample_count, sizeof *samples, ascending);
        printf("cancelled in a prompt, %zu times, us of wall time until the call is back: "
               "median %.1f, 99 %% %.1f, max %.1f\n",
               sample_count, 1e6 * percentile(0.5), 1e6 * percentile(0.99), 1e6 * percentile(1.0));
    }
    trion_session_free(session);
    trion_model_free(model);
    return 0;
}
