/* Saving, loading, forking, assigning and rewinding: what goes on from there does so with the same bits. */
#include "check.h"
#include "support.h"

static trion_model *model;

static trion_session *make(size_t context, size_t max_batch, trion_cache cache) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    options.context = context;
    options.max_batch = max_batch;
    options.cache = cache;
    options.ignore_end = 1;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    return session;
}

static unsigned char *save(const trion_session *session, size_t *size) {
    size_t expected;
    unsigned char *state;
    CHECK_OK(trion_session_saved_size(session, &expected));
    state = take(expected);
    CHECK_OK(trion_session_save(session, state, expected, size, &error));
    CHECK(*size == expected);
    return state;
}

/* From a point that `steps` units lead to, all ways lead on to the same tokens and logits. */
static void all_ways_from(size_t steps, int sampled, trion_cache cache) {
    trion_session *origin = make(64, 8, cache), *ways[5];
    unsigned char *state, *again;
    size_t size, again_size, i;
    trion_event event;
    trace expected, found;
    push_numbers(origin, 288, 20, 1);
    if (sampled) {
        sample(origin, 9);
    }
    for (i = 0; i < steps; i++) {
        CHECK_OK(trion_session_advance(origin, 1, &event));
    }
    CHECK(length_of(origin) <= 36); /* twelve more than this must fit in the smallest */
    state = save(origin, &size);
    again = save(origin, &again_size);
    CHECK(size == again_size && memcmp(state, again, size) == 0);
    free(again);

    ways[0] = make(64, 8, cache);
    ways[1] = make(50, 1, cache);
    ways[2] = make(0, 64, cache);
    ways[3] = make(48, 5, cache);
    for (i = 0; i < 3; i++) {
        /* Something else is there before, at a point of its own. */
        push_numbers(ways[i], 288, 10, i);
        sample(ways[i], i);
        CHECK_OK(trion_session_advance(ways[i], 1 + i, &event));
        CHECK_OK(trion_session_load(ways[i], state, size, &error));
        again = save(ways[i], &again_size);
        CHECK(size == again_size && memcmp(state, again, size) == 0);
        free(again);
    }
    CHECK_OK(trion_session_assign(ways[3], origin, &error));
    CHECK_OK(trion_session_fork(origin, NULL, &ways[4], &error));
    expected = take_trace(origin, SIZE_MAX, 12);
    for (i = 0; i < 5; i++) {
        found = take_trace(ways[i], i % 2 == 0 ? SIZE_MAX : 1, 12);
        CHECK(same_trace(&found, &expected));
        free_trace(&found);
        trion_session_free(ways[i]);
    }
    /* Back, and once more from the same state. */
    CHECK_OK(trion_session_load(origin, state, size, &error));
    found = take_trace(origin, 3, 12);
    CHECK(same_trace(&found, &expected));
    free_trace(&found);
    free_trace(&expected);
    free(state);
    trion_session_free(origin);
}

/*
 * After a token was chosen, each copy has the logits that it was chosen from, and can take it back and choose again as
 * the original would; where the original has none, neither has it.
 */
static void kept_logits(int sampled) {
    trion_session *origin = make(64, 8, TRION_CACHE_F32), *copies[3];
    trion_event event;
    trion_candidate best, found;
    const float *logits;
    float expected[288];
    uint32_t again;
    unsigned char *state;
    size_t size, count, i;
    push_numbers(origin, 288, 20, 1);
    if (sampled) {
        sample(origin, 3);
    }
    (void)next_token(origin);
    (void)next_token(origin);
    CHECK_OK(trion_session_logits(origin, &logits, &count));
    CHECK(count == 288);
    memcpy(expected, logits, sizeof expected);
    CHECK_OK(trion_session_candidates(origin, &best, 1, &count));
    state = save(origin, &size);
    CHECK_OK(trion_session_fork(origin, NULL, &copies[0], &error));
    copies[1] = make(50, 1, TRION_CACHE_F32);
    CHECK_OK(trion_session_assign(copies[1], origin, &error));
    copies[2] = make(30, 3, TRION_CACHE_F32);
    CHECK_OK(trion_session_load(copies[2], state, size, &error));
    CHECK_OK(trion_session_rewind(origin, 21, &error));
    CHECK_OK(trion_session_advance(origin, 0, &event));
    CHECK(event.kind == TRION_EVENT_TOKEN);
    again = event.token;
    for (i = 0; i < 3; i++) {
        CHECK(length_of(copies[i]) == 22);
        CHECK_OK(trion_session_logits(copies[i], &logits, &count));
        CHECK(count == 288 && memcmp(logits, expected, sizeof expected) == 0);
        CHECK_OK(trion_session_candidates(copies[i], &found, 1, &count));
        CHECK(count == 1 && found.token == best.token && found.probability == best.probability);
        CHECK_OK(trion_session_rewind(copies[i], 21, &error));
        CHECK_OK(trion_session_advance(copies[i], 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == again);
    }
    free(state);

    /* Within a token there are none. */
    CHECK_OK(trion_session_advance(origin, 1, &event));
    CHECK(event.kind == TRION_EVENT_MORE);
    state = save(origin, &size);
    CHECK_OK(trion_session_assign(copies[1], origin, &error));
    CHECK_OK(trion_session_load(copies[2], state, size, &error));
    for (i = 1; i < 3; i++) {
        CHECK_STATUS(trion_session_logits(copies[i], &logits, &count), TRION_NO_LOGITS);
    }
    free(state);
    for (i = 0; i < 3; i++) {
        trion_session_free(copies[i]);
    }
    trion_session_free(origin);
}

/* Forgotten tokens that are pushed again give the logits that they gave before. */
static void rewinding(void) {
    trion_session *session = make(64, 8, TRION_CACHE_F32);
    uint32_t tokens[32];
    const uint32_t *all;
    trace expected, found;
    size_t count, length;
    push_numbers(session, 288, 20, 1);
    expected = take_trace(session, SIZE_MAX, 12);
    CHECK_OK(trion_session_tokens(session, &all, &count));
    CHECK(count == 32);
    memcpy(tokens, all, sizeof tokens);
    for (length = 0; length <= 20; length++) {
        trion_event event;
        size_t again = 20 - length;
        CHECK_OK(trion_session_rewind(session, length, &error));
        if (again == 0) {
            /* Position 20 was computed, so what it led to is forgotten with it; one token has to be pushed. */
            CHECK_STATUS(trion_session_advance(session, 1, &event), TRION_NO_TOKENS);
            CHECK_OK(trion_session_rewind(session, 19, &error));
            again = 1;
        }
        CHECK_OK(trion_session_push(session, tokens + 20 - again, again, &error));
        found = take_trace(session, length % 2 == 0 ? SIZE_MAX : 1, 12);
        CHECK(same_trace(&found, &expected));
        free_trace(&found);
    }
    free_trace(&expected);
    trion_session_free(session);
}

static void check_same_future(trion_session *one, trion_session *other) {
    trace first = take_trace(one, SIZE_MAX, 5), second = take_trace(other, SIZE_MAX, 5);
    CHECK(same_trace(&first, &second));
    free_trace(&first);
    free_trace(&second);
}

static void refusals(void) {
    trion_session *origin = make(64, 8, TRION_CACHE_F32), *quiet = make(64, 8, TRION_CACHE_F32);
    trion_session *half = make(64, 8, TRION_CACHE_F16), *quiet_half = make(64, 8, TRION_CACHE_F16);
    trion_session *small = make(20, 8, TRION_CACHE_F32), *quiet_small = make(20, 8, TRION_CACHE_F32);
    unsigned char *state;
    size_t size, half_size, written = 7, i;
    push_numbers(origin, 288, 20, 1);
    push_numbers(quiet, 288, 20, 1);
    (void)next_token(origin);
    (void)next_token(quiet);
    push_numbers(half, 288, 6, 2);
    push_numbers(quiet_half, 288, 6, 2);
    push_numbers(small, 288, 6, 3);
    push_numbers(quiet_small, 288, 6, 3);
    state = save(origin, &size);

    CHECK_STATUS(trion_session_load(half, state, size, &error), TRION_STATE);
    CHECK_STATUS(trion_session_assign(half, origin, &error), TRION_STATE);
    CHECK_STATUS(trion_session_assign(origin, half, &error), TRION_STATE);
    CHECK_STATUS(trion_session_load(small, state, size, &error), TRION_STATE);
    CHECK_STATUS(trion_session_assign(small, origin, &error), TRION_CONTEXT_FULL);
    memset(state, 0xa5, size);
    for (i = 1; i < size; i += 37) {
        CHECK_STATUS(trion_session_save(origin, state, i, &written, &error), TRION_BUFFER_TOO_SMALL);
    }
    CHECK_STATUS(trion_session_save(origin, state, size - 1, &written, &error), TRION_BUFFER_TOO_SMALL);
    CHECK(written == 7);
    for (i = 0; i < size; i++) {
        CHECK(state[i] == 0xa5);
    }
    check_same_future(origin, quiet);
    check_same_future(half, quiet_half);
    check_same_future(small, quiet_small);

    /* Half precision takes half of what is kept for each token, and that alone. */
    CHECK_OK(trion_session_rewind(origin, 10, &error));
    CHECK_OK(trion_session_rewind(half, 10, &error));
    CHECK_OK(trion_session_saved_size(origin, &size));
    CHECK_OK(trion_session_saved_size(half, &half_size));
    CHECK(half_size < size && size < 2 * half_size);
    /* With room for them, the tokens come in. */
    CHECK_OK(trion_session_assign(small, origin, &error));
    CHECK(length_of(small) == 10);
    free(state);
    trion_session_free(origin);
    trion_session_free(quiet);
    trion_session_free(half);
    trion_session_free(quiet_half);
    trion_session_free(small);
    trion_session_free(quiet_small);
}

static void nothing_yet(void) {
    trion_session *empty = make(64, 8, TRION_CACHE_F32), *session = make(8, 8, TRION_CACHE_F32);
    trion_event event;
    size_t size;
    unsigned char *state = save(empty, &size);
    push_numbers(session, 288, 5, 1);
    (void)next_token(session);
    CHECK_OK(trion_session_load(session, state, size, &error));
    CHECK(length_of(session) == 0);
    CHECK_STATUS(trion_session_advance(session, SIZE_MAX, &event), TRION_NO_TOKENS);
    push_numbers(session, 288, 2, 1);
    push_numbers(empty, 288, 2, 1);
    check_same_future(session, empty);
    CHECK_OK(trion_session_rewind(empty, 0, &error));
    CHECK_OK(trion_session_assign(session, empty, &error));
    CHECK(length_of(session) == 0);
    free(state);
    trion_session_free(empty);
    trion_session_free(session);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    size_t steps, step = arguments.quick ? 13 : 1;
    model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    for (steps = 0; steps < 50; steps += step) {
        all_ways_from(steps, 0, TRION_CACHE_F32);
        all_ways_from(steps, 1, TRION_CACHE_F32);
        all_ways_from(steps, 1, TRION_CACHE_F16);
    }
    kept_logits(0);
    kept_logits(1);
    rewinding();
    refusals();
    nothing_yet();
    trion_model_free(model);
    return 0;
}
