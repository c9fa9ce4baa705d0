/*
 * Cancelling while a call computes, from another thread. The host's job system is the place where a test can stand
 * within a computation: at its n-th call another thread cancels, is waited for, and the work goes on.
 */
#include <pthread.h>

#include "check.h"
#include "support.h"

typedef struct host {
    /* The call at which to cancel: 0 for none. */
    size_t calls, cancel_at;
    trion_session *session;
    /* Jobs that came after it within the same call of the library. */
    size_t after;
} host;

static void *cancel(void *session) {
    trion_session_cancel(session);
    return NULL;
}

static void parallel_for(void *user, size_t count, trion_task_fn task, void *data) {
    host *host = user;
    size_t i;
    host->calls++;
    if (host->cancel_at != 0 && host->calls == host->cancel_at) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, cancel, host->session) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    } else if (host->cancel_at != 0 && host->calls > host->cancel_at) {
        host->after++;
    }
    for (i = 0; i < count; i++) {
        task(data, i);
    }
}

static trion_runtime *new_runtime(host *host) {
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    options.parallel_for = parallel_for;
    options.parallel_workers = 2;
    options.parallel_user = host;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    return runtime;
}

static void within_prompts(const char *path, size_t prompt_tokens, size_t step) {
    host host = {0, 0, NULL, 0};
    trion_runtime *runtime = new_runtime(&host);
    trion_model *model = open_model(runtime, path);
    trion_session *session = new_session(model, prompt_tokens + 4, 16);
    size_t vocab_size = vocab_size_of(model), all, n, hits = 0;
    trace expected, found;
    trion_event event;
    push_numbers(session, vocab_size, prompt_tokens, 1);
    expected = take_trace(session, SIZE_MAX, 3);
    all = host.calls;
    CHECK(all > 50);
    for (n = 1; n <= all; n += step) {
        trion_session *fresh = new_session(model, prompt_tokens + 4, 16);
        push_numbers(fresh, vocab_size, prompt_tokens, 1);
        host.calls = 0;
        host.after = 0;
        host.cancel_at = n;
        host.session = fresh;
        CHECK_OK(trion_session_advance(fresh, SIZE_MAX, &event));
        host.cancel_at = 0;
        if (host.calls >= n) {
            /* It was hit while it computed; nothing was begun after that, and nothing came out. */
            CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED && event.token == 0);
            CHECK(host.after == 0 && host.calls == n && length_of(fresh) == prompt_tokens);
            hits++;
            found = take_trace(fresh, n % 2 == 0 ? SIZE_MAX : 50, 3);
            CHECK(same_trace(&expected, &found));
            free_trace(&found);
        } else {
            CHECK(event.kind == TRION_EVENT_TOKEN);
        }
        trion_session_free(fresh);
    }
    CHECK(hits > 3);
    free_trace(&expected);
    trion_session_free(session);
    trion_model_free(model);
    trion_runtime_free(runtime);
}

/* Again and again, at a later place each time: it gets on, since what is complete is kept. */
static void again_and_again(const char *path, size_t prompt_tokens) {
    host host = {0, 0, NULL, 0};
    trion_runtime *runtime = new_runtime(&host);
    trion_model *model = open_model(runtime, path);
    trion_session *session = new_session(model, prompt_tokens + 4, 4);
    trion_session *quiet = new_session(model, prompt_tokens + 4, 4);
    size_t vocab_size = vocab_size_of(model), rounds = 0;
    trace expected, found;
    trion_event event;
    push_numbers(quiet, vocab_size, prompt_tokens, 1);
    expected = take_trace(quiet, SIZE_MAX, 1);
    push_numbers(session, vocab_size, prompt_tokens, 1);
    host.session = session;
    do {
        host.calls = 0;
        host.cancel_at = 10 + 20 * rounds;
        CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
        rounds++;
        CHECK(rounds < 100000);
    } while (event.kind == TRION_EVENT_DONE);
    CHECK(rounds > 3 && event.kind == TRION_EVENT_TOKEN && event.token == expected.tokens[0]);
    CHECK_OK(trion_session_rewind(session, prompt_tokens, &error));
    host.cancel_at = 0;
    found = take_trace(session, SIZE_MAX, 1);
    CHECK(same_trace(&expected, &found));
    free_trace(&expected);
    free_trace(&found);
    trion_session_free(session);
    trion_session_free(quiet);
    trion_model_free(model);
    trion_runtime_free(runtime);
}

/* A thread that cancels without pause: each call ends in one way or another, and the tokens are the same. */
typedef struct storm {
    trion_session *session;
    pthread_mutex_t mutex;
    int over;
} storm;

static void *rage(void *user) {
    storm *storm = user;
    int over = 0;
    while (!over) {
        trion_session_cancel(storm->session);
        CHECK(pthread_mutex_lock(&storm->mutex) == 0);
        over = storm->over;
        CHECK(pthread_mutex_unlock(&storm->mutex) == 0);
    }
    return NULL;
}

static void without_pause(const char *path) {
    trion_model *model = open_model(NULL, path);
    trion_session *session = new_session(model, 64, 1), *quiet = new_session(model, 64, 1);
    storm storm;
    pthread_t thread;
    size_t cancelled = 0, seed = 0;
    trion_event event;
    storm.session = session;
    storm.over = 0;
    CHECK(pthread_mutex_init(&storm.mutex, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, rage, &storm) == 0);
    push_numbers(session, 288, 8, 1);
    push_numbers(quiet, 288, 8, 1);
    /* It may be that no token comes through, or that the thread is slow to begin. */
    while (cancelled < 200) {
        CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
        if (event.kind == TRION_EVENT_TOKEN) {
            CHECK(event.token == next_token(quiet));
            if (length_of(session) == 60) {
                CHECK_OK(trion_session_rewind(session, 0, &error));
                CHECK_OK(trion_session_rewind(quiet, 0, &error));
                push_numbers(session, 288, 8, ++seed);
                push_numbers(quiet, 288, 8, seed);
            }
        } else {
            CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED);
            cancelled++;
        }
    }
    CHECK(pthread_mutex_lock(&storm.mutex) == 0);
    storm.over = 1;
    CHECK(pthread_mutex_unlock(&storm.mutex) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(pthread_mutex_destroy(&storm.mutex) == 0);
    /* The last one may still be waiting. */
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    if (event.kind == TRION_EVENT_DONE) {
        CHECK(event.reason == TRION_REASON_CANCELLED);
        event.token = next_token(session);
    }
    CHECK(event.token == next_token(quiet));
    trion_session_free(session);
    trion_session_free(quiet);
    trion_model_free(model);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    char tiny[4096];
    snprintf(tiny, sizeof tiny, "%s", golden(&arguments, "bitnet_offline"));
    within_prompts(tiny, 50, arguments.quick ? 5 : 1);
    within_prompts(arguments.model, arguments.quick ? 20 : 100, arguments.quick ? 41 : 37);
    again_and_again(tiny, 50);
    without_pause(tiny);
    return 0;
}
