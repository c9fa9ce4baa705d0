/*
 * Two calls for one session at once: the second is refused and changes nothing. The host's job system is where a test
 * can be sure that the session is in use: it is called from within a call that computes.
 */
#include <pthread.h>

#include "check.h"
#include "support.h"

typedef struct host {
    trion_session *session;
    /* Another session of the model, which nobody uses. */
    trion_session *free_session;
    const void *state;
    size_t state_size;
    size_t visits;
} host;

static int no_event(void *user, const trion_event *event) {
    (void)user, (void)event;
    CHECK(!"a callback of a call that was refused was called");
    return 0;
}

static int no_text(void *user, const char *text, size_t size) {
    (void)user, (void)text, (void)size;
    CHECK(!"a callback of a call that was refused was called");
    return 0;
}

static void *no_memory(void *user, size_t size, size_t alignment) {
    (void)user, (void)size, (void)alignment;
    CHECK(!"memory was asked for by a call that is refused");
    return NULL;
}

static void no_release(void *user, void *memory, size_t size, size_t alignment) {
    (void)user, (void)memory, (void)size, (void)alignment;
    CHECK(!"memory was given back by a call that is refused");
}

#define BUSY(call) CHECK_STATUS(call, TRION_BUSY)

/* Everything that can be asked of a session, but for its end and cancelling. */
static void *disturb(void *user) {
    host *host = user;
    trion_session *session = host->session, *made = NULL;
    trion_allocator allocator = {NULL, no_memory, no_release};
    static unsigned char buffer[1 << 20];
    const uint32_t token = 1, *tokens = NULL;
    const float *logits = NULL;
    trion_candidate candidate = {7, 7.0f};
    trion_session *pair[2];
    trion_event event, events[2];
    trion_stop stop = TRION_STOP_STRING;
    size_t count = 7;
    memset(&event, 0xa5, sizeof event);
    BUSY(trion_session_push(session, &token, 1, &error));
    BUSY(trion_session_push_text(session, "abc", 3, 0, &error));
    BUSY(trion_session_advance(session, 1, &event));
    BUSY(trion_session_advance(session, 0, &event));
    BUSY(trion_session_compute(session, 1, &event));
    BUSY(trion_session_run(session, 1, no_event, NULL, &event));
    BUSY(trion_generate(session, NULL, 1, no_text, NULL, &stop, &error));
    pair[0] = host->free_session;
    pair[1] = session;
    BUSY(trion_sessions_advance(pair, 2, 1, events, &error));
    BUSY(trion_sessions_compute(pair + 1, 1, 1, events, &error));
    BUSY(trion_session_rewind(session, 0, &error));
    BUSY(trion_session_set_sampler(session, NULL, &error));
    BUSY(trion_session_set_constraint(session, NULL, &error));
    BUSY(trion_session_tokens(session, &tokens, &count));
    BUSY(trion_session_logits(session, &logits, &count));
    BUSY(trion_session_candidates(session, &candidate, 1, &count));
    BUSY(trion_session_token_units(session, &count));
    BUSY(trion_session_saved_size(session, &count));
    BUSY(trion_session_save(session, buffer, sizeof buffer, &count, &error));
    BUSY(trion_session_load(session, host->state, host->state_size, &error));
    BUSY(trion_session_fork(session, &allocator, &made, &error));
    BUSY(trion_session_fork_init(session, buffer, sizeof buffer, &made, &error));
    BUSY(trion_session_assign(session, host->free_session, &error));
    BUSY(trion_session_assign(host->free_session, session, &error));
    CHECK(error.status == TRION_BUSY && error.message[0] != 0);
    CHECK(made == NULL && tokens == NULL && logits == NULL && count == 7 && candidate.token == 7);
    CHECK(stop == TRION_STOP_STRING && (unsigned)event.kind == 0xa5a5a5a5u);
    /* Others of the model are not disturbed. */
    CHECK(length_of(host->free_session) == 3);
    host->visits++;
    return NULL;
}

static void parallel_for(void *user, size_t count, trion_task_fn task, void *data) {
    host *host = user;
    size_t i;
    for (i = 0; i < count; i++) {
        task(data, i);
        /* Some of the time only: it is the same each time. */
        if (i == 0 && host->session != NULL && host->state != NULL) {
            pthread_t thread;
            (void)disturb(host);
            CHECK(pthread_create(&thread, NULL, disturb, host) == 0);
            CHECK(pthread_join(thread, NULL) == 0);
        }
    }
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    const char *path = golden(&arguments, "bitnet_offline");
    host host = {NULL, NULL, NULL, 0, 0};
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    trion_model *model, *lonely;
    trion_session *quiet;
    unsigned char *state;
    trace with, without;
    options.parallel_for = parallel_for;
    options.parallel_workers = 2;
    options.parallel_user = &host;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    model = open_model(runtime, path);
    lonely = open_model(NULL, path);
    host.session = new_session(model, 64, 0);
    host.free_session = new_session(model, 64, 0);
    quiet = new_session(lonely, 64, 0);
    push_numbers(host.free_session, 288, 3, 2);
    CHECK_OK(trion_session_saved_size(host.free_session, &host.state_size));
    state = take(host.state_size);
    CHECK_OK(trion_session_save(host.free_session, state, host.state_size, &host.state_size, &error));

    push_numbers(host.session, 288, 20, 1);
    push_numbers(quiet, 288, 20, 1);
    sample(host.session, 1);
    sample(quiet, 1);
    host.state = state;
    with = take_trace(host.session, SIZE_MAX, arguments.quick ? 2 : 10);
    without = take_trace(quiet, SIZE_MAX, arguments.quick ? 2 : 10);
    CHECK(same_trace(&with, &without));
    CHECK(host.visits > 50);
    /* When the call is over, the session is free again. */
    host.state = NULL;
    CHECK_OK(trion_session_load(host.session, state, host.state_size, &error));
    CHECK(length_of(host.session) == 3);

    free_trace(&with);
    free_trace(&without);
    free(state);
    trion_session_free(host.session);
    trion_session_free(host.free_session);
    trion_session_free(quiet);
    trion_model_free(model);
    trion_model_free(lonely);
    trion_runtime_free(runtime);
    return 0;
}
