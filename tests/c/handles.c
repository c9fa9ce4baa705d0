/* How long handles live, and which belong together. */
#include "check.h"
#include "support.h"

static const char *tiny, *other_tiny;

static int no_text(void *user, const char *text, size_t size) {
    (void)user, (void)text, (void)size;
    return 1;
}

/* What has not been freed yet works, whatever has been. */
static void use(trion_session *session, trion_text *text) {
    trion_piece piece;
    if (session != NULL) {
        CHECK_OK(trion_session_rewind(session, 0, &error));
        push_numbers(session, 288, 5, 1);
        (void)next_token(session);
    }
    if (text != NULL) {
        CHECK_OK(trion_text_push(text, 40, &piece));
        CHECK_OK(trion_text_finish(text, &piece));
    }
}

static void any_order_of_freeing(void) {
    int order;
    /* Each number below 4^4 that has four different digits is an order. */
    for (order = 0; order < 256; order++) {
        int digits[4], i, seen = 0;
        trion_runtime *runtime;
        trion_model *model;
        trion_session *session;
        trion_text *text;
        trion_runtime_options options = {.struct_size = sizeof options};
        for (i = 0; i < 4; i++) {
            digits[i] = order >> (2 * i) & 3;
            seen |= 1 << digits[i];
        }
        if (seen != 15) {
            continue;
        }
        options.threads = 2;
        CHECK_OK(trion_runtime_new(&options, &runtime, &error));
        model = open_model(runtime, tiny);
        session = new_session(model, 16, 0);
        CHECK_OK(trion_text_new(model, NULL, &text, &error));
        for (i = 0; i < 4; i++) {
            switch (digits[i]) {
            case 0:
                trion_runtime_free(runtime);
                break;
            case 1:
                trion_model_free(model);
                break;
            case 2:
                trion_session_free(session);
                session = NULL;
                break;
            default:
                trion_text_free(text);
                text = NULL;
            }
            use(session, text);
        }
    }
}

static void references(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *session;
    int i;
    for (i = 0; i < 100; i++) {
        trion_model_retain(model);
    }
    for (i = 0; i < 100; i++) {
        trion_model_free(model);
    }
    CHECK(vocab_size_of(model) == 288);
    session = new_session(model, 16, 0);
    /* A session keeps its model alive, but its handle is the caller's alone: retained, it works on. */
    trion_model_retain(model);
    trion_model_free(model);
    trion_session_free(session);
    session = new_session(model, 16, 0);
    trion_model_free(model);
    use(session, NULL);
    trion_session_free(session);
}

static void other_models(void) {
    trion_model *model = open_model(NULL, tiny), *other = open_model(NULL, other_tiny);
    trion_session *session = new_session(model, 64, 0), *stranger = new_session(other, 64, 0);
    trion_text *text;
    trion_stop stop;
    trace with, without;
    unsigned char *saved;
    size_t size;
    push_numbers(session, 288, 9, 1);
    push_numbers(stranger, vocab_size_of(other), 7, 2);
    (void)next_token(session);
    (void)next_token(stranger);
    CHECK_OK(trion_session_saved_size(session, &size));
    saved = take(size);
    CHECK_OK(trion_session_save(session, saved, size, &size, &error));
    without = take_trace(session, SIZE_MAX, 5);

    CHECK_STATUS(trion_session_assign(stranger, session, &error), TRION_OTHER_MODEL);
    CHECK_STATUS(trion_session_load(stranger, saved, size, &error), TRION_OTHER_MODEL);
    CHECK(length_of(stranger) == 8);
    CHECK_OK(trion_text_new(model, NULL, &text, &error));
    CHECK_STATUS(trion_generate(stranger, text, 3, no_text, NULL, &stop, &error), TRION_OTHER_MODEL);
    CHECK(length_of(stranger) == 8);
    CHECK_OK(trion_generate(session, text, 3, no_text, NULL, &stop, &error));
    CHECK(stop == TRION_STOP_MAX_TOKENS && length_of(session) == 18);
    trion_text_free(text);
    trion_session_free(stranger);
    trion_model_free(other);

    /* Another handle of the same file is the same model. */
    other = open_model(NULL, tiny);
    stranger = new_session(other, 64, 0);
    CHECK_OK(trion_session_load(stranger, saved, size, &error));
    with = take_trace(stranger, SIZE_MAX, 5);
    CHECK(same_trace(&with, &without));
    free_trace(&with);
    CHECK_OK(trion_session_assign(stranger, session, &error));
    CHECK(length_of(stranger) == 18 && next_token(stranger) == next_token(session));
    free_trace(&without);
    free(saved);
    trion_session_free(session);
    trion_session_free(stranger);
    trion_model_free(model);
    trion_model_free(other);
}

static void forks_of_half_a_token(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *session = new_session(model, 64, 8), *fork, *assigned = new_session(model, 48, 3);
    trion_event event;
    trace traces[3];
    size_t steps;
    /* Within the prompt, within the token after it, and where a token is complete. */
    for (steps = 0; steps < 60; steps += 3) {
        size_t i;
        CHECK_OK(trion_session_rewind(session, 0, &error));
        push_numbers(session, 288, 20, 4);
        sample(session, steps);
        for (i = 0; i < steps; i++) {
            CHECK_OK(trion_session_advance(session, 1, &event));
        }
        CHECK_OK(trion_session_fork(session, NULL, &fork, &error));
        CHECK_OK(trion_session_assign(assigned, session, &error));
        CHECK(length_of(fork) == length_of(session) && length_of(assigned) == length_of(session));
        traces[0] = take_trace(session, SIZE_MAX, 6);
        traces[1] = take_trace(fork, 1, 6);
        traces[2] = take_trace(assigned, 2, 6);
        CHECK(same_trace(&traces[0], &traces[1]) && same_trace(&traces[0], &traces[2]));
        free_trace(&traces[0]);
        free_trace(&traces[1]);
        free_trace(&traces[2]);
        trion_session_free(fork);
    }
    trion_session_free(session);
    trion_session_free(assigned);
    trion_model_free(model);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    char paths[2][4096];
    snprintf(paths[0], sizeof paths[0], "%s", golden(&arguments, "bitnet_offline"));
    snprintf(paths[1], sizeof paths[1], "%s", golden(&arguments, "bitnet_online"));
    tiny = paths[0];
    other_tiny = paths[1];
    any_order_of_freeing();
    references();
    other_models();
    forks_of_half_a_token();
    return 0;
}
