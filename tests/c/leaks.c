/*
 * Whole lives of everything, over and over: after the first, which fills what the process keeps once and for all, the
 * heap does not grow. Where the C library does not say how much is in use, the test is left out.
 *
 * glibc counts pieces that a thread keeps for its next use as used, so it is run with none kept:
 * GLIBC_TUNABLES=glibc.malloc.tcache_count=0.
 */
#include "check.h"
#include "support.h"

#define SKIPPED 77

#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 33)
#define HAS_MALLINFO2
#include <malloc.h>
#endif
#endif

#ifdef HAS_MALLINFO2

static size_t in_use(void) {
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

static int hear(void *user, const char *text, size_t size) {
    (void)user, (void)text;
    return size > 0;
}

static void live(const arguments *arguments, int threads) {
    const char *stops[] = {"never to be seen"};
    trion_runtime_options runtime_options = {.struct_size = sizeof runtime_options};
    trion_text_options text_options = {.struct_size = sizeof text_options};
    trion_message message = {"user", "hello", 5};
    trion_runtime *runtime;
    trion_model *model, *nothing = NULL;
    trion_session *session, *fork;
    trion_text *text;
    trion_stop stop;
    trion_constraint *constraint, *none = NULL;
    trion_event event;
    char prompt[256], decoded[1024];
    unsigned char *state;
    uint32_t tokens[256];
    size_t size, count;
    runtime_options.threads = (size_t)threads;
    CHECK_OK(trion_runtime_new(&runtime_options, &runtime, &error));
    model = open_model(runtime, arguments->chat);
    CHECK_OK(trion_model_chat(model, &message, 1, TRION_CHAT_ANSWER, prompt, sizeof prompt, &size, &error));
    CHECK_OK(trion_model_encode(model, prompt, size, TRION_ENCODE_PLAIN, tokens, 256, &count, &error));
    CHECK_OK(trion_model_decode(model, tokens, count, 0, decoded, sizeof decoded, &size, &error));
    session = new_session(model, 64, 0);
    CHECK_OK(trion_session_push(session, tokens, count, &error));
    text_options.stops = stops;
    text_options.stop_count = 1;
    CHECK_OK(trion_text_new(model, &text_options, &text, &error));
    CHECK_OK(trion_generate(session, text, 5, hear, NULL, &stop, &error));
    CHECK_OK(trion_generate(session, NULL, 5, hear, NULL, &stop, &error));
    CHECK_OK(trion_constraint_new(model, TRION_GRAMMAR_REGEX, "[0-9]{2,4}", 10, &constraint, &error));
    CHECK_STATUS(trion_constraint_new(model, TRION_GRAMMAR_REGEX, "(", 1, &none, &error), TRION_CONSTRAINT);
    CHECK_OK(trion_session_set_constraint(session, constraint, &error));
    trion_constraint_free(constraint);
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    CHECK_OK(trion_session_fork(session, NULL, &fork, &error));
    CHECK_OK(trion_session_advance(fork, SIZE_MAX, &event));
    CHECK_OK(trion_session_saved_size(session, &size));
    state = take(size);
    CHECK_OK(trion_session_save(session, state, size, &size, &error));
    CHECK_OK(trion_session_load(fork, state, size, &error));
    CHECK_STATUS(trion_session_load(fork, state, size - 1, &error), TRION_STATE);
    CHECK_STATUS(trion_model_copy(runtime, state, size, &nothing, &error), TRION_MALFORMED);
    CHECK_STATUS(trion_model_open(runtime, "no-such-file", &nothing, &error), TRION_IO);
    free(state);
    trion_text_free(text);
    trion_session_free(fork);
    trion_session_free(session);
    trion_model_free(model);
    trion_runtime_free(runtime);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    int rounds = arguments.quick ? 4 : 100, round, threads;
    for (threads = 0; threads <= 2; threads += 2) {
        size_t before, after;
        for (round = 0; round < 3; round++) {
            live(&arguments, threads);
        }
        before = in_use();
        for (round = 0; round < rounds; round++) {
            live(&arguments, threads);
        }
        after = in_use();
        printf("%d threads: %ld bytes more after %d rounds\n", threads, (long)after - (long)before, rounds);
        CHECK(after <= before);
    }
    return 0;
}

#else

int main(void) {
    return SKIPPED;
}

#endif
