/* Saved states that are cut off or changed: refused, and nothing has changed, or loaded, and the session goes on. */
#include "check.h"
#include "support.h"

/* What comes before the tokens, as far as these tests need to know. */
#define END_FLAG 56
#define END_TOKEN 60

static trion_model *model;
/* What is in the session before each load, a session that is loaded into, and one to try what it holds. */
static trion_session *before, *session, *probe;
static trace expected;

static void restore(void) {
    CHECK_OK(trion_session_assign(session, before, &error));
}

static void check_unchanged(void) {
    const uint32_t *one, *other;
    size_t count, other_count;
    trace trace;
    CHECK_OK(trion_session_tokens(before, &one, &count));
    CHECK_OK(trion_session_tokens(session, &other, &other_count));
    CHECK(count == other_count && memcmp(one, other, count * sizeof *one) == 0);
    CHECK_OK(trion_session_assign(probe, session, &error));
    trace = take_trace(probe, SIZE_MAX, 2);
    CHECK(same_trace(&trace, &expected));
    free_trace(&trace);
}

/* Goes on with what was loaded, greedily and with every step of a sampler. */
static void check_usable(void) {
    trion_sampler_options options = {.struct_size = sizeof options};
    trion_event event;
    trion_candidate candidates[8];
    const uint32_t token = 3;
    size_t length, count, i;
    int round;
    for (round = 0; round < 5; round++) {
        options.temperature = (float)round;
        options.top_k = round == 2 ? 40 : 0;
        options.top_p = round == 3 ? 0.9f : 0.0f;
        options.min_p = round == 4 ? 0.1f : 0.0f;
        options.repetition_penalty = round > 2 ? 1.5f : 0.0f;
        length = length_of(session);
        CHECK_OK(trion_session_assign(probe, session, &error));
        CHECK_OK(trion_session_set_sampler(probe, &options, &error));
        if (length == 0) {
            CHECK_STATUS(trion_session_advance(probe, SIZE_MAX, &event), TRION_NO_TOKENS);
            CHECK_OK(trion_session_push(probe, &token, 1, &error));
        }
        for (i = 0; i < 3; i++) {
            trion_status status = trion_session_advance(probe, SIZE_MAX, &event);
            CHECK(status == TRION_OK || (status == TRION_NO_TOKENS && i == 0));
            if (status != TRION_OK) {
                CHECK_OK(trion_session_push(probe, &token, 1, &error));
                continue;
            }
            CHECK(event.token < 288 && event.probability >= 0.0f && event.probability <= 1.0f);
            if (event.kind == TRION_EVENT_TOKEN) {
                CHECK_OK(trion_session_candidates(probe, candidates, 8, &count));
                CHECK(count == 8);
                while (count-- > 0) {
                    CHECK(candidates[count].token < 288);
                    CHECK(candidates[count].probability >= 0.0f && candidates[count].probability <= 1.0f);
                }
            }
        }
    }
}

static int try_state(const unsigned char *state, size_t size) {
    /* As long as it is, so that what is read beyond is seen. */
    unsigned char *exact = take(size);
    trion_status status;
    memcpy(exact, state, size);
    memset(&error, 0, sizeof error);
    status = trion_session_load(session, exact, size, &error);
    free(exact);
    CHECK(status == TRION_OK || status == TRION_STATE || status == TRION_OTHER_MODEL
          || status == TRION_TOKEN_OUT_OF_RANGE);
    if (status == TRION_OK) {
        check_usable();
        restore();
        return 1;
    }
    CHECK(error.status == status && error.message[0] != 0);
    check_unchanged();
    return 0;
}

static void truncations(const unsigned char *state, size_t size, int quick) {
    unsigned char *longer = take(size + 64);
    size_t length;
    for (length = 0; length < size; length += length < 600 ? (quick ? 23 : 1) : 101) {
        CHECK(!try_state(state, length));
    }
    CHECK(!try_state(state, size - 1));
    memset(longer, 0, size + 64);
    memcpy(longer, state, size);
    for (length = size + 1; length <= size + 64; length += 9) {
        CHECK(!try_state(longer, length));
    }
    free(longer);
}

static void flips(unsigned char *state, size_t size, int quick) {
    size_t at, accepted = 0;
    int bit;
    for (at = 0; at < 200; at += quick ? 3 : 1) {
        for (bit = 0; bit < 8; bit += quick ? 5 : 1) {
            state[at] ^= (unsigned char)(1 << bit);
            accepted += (size_t)try_state(state, size);
            state[at] ^= (unsigned char)(1 << bit);
        }
        state[at] ^= 0xff;
        accepted += (size_t)try_state(state, size);
        state[at] ^= 0xff;
    }
    /* A sampler's seed is as good as another. */
    CHECK(accepted > 0 && accepted < 200 * 9);
}

/* Keys, values and logits that are no numbers or without limit come out as tokens all the same. */
static void numbers(unsigned char *state, size_t size, size_t from) {
    const uint32_t patterns[] = {0xffffffff, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff, 0x00000001, 0};
    unsigned char *changed = take(size);
    size_t i, at;
    for (i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        memcpy(changed, state, size);
        for (at = from; at + 4 <= size; at += 4) {
            int byte;
            for (byte = 0; byte < 4; byte++) {
                changed[at + (size_t)byte] = (unsigned char)(patterns[i] >> (8 * byte));
            }
        }
        CHECK(try_state(changed, size));
    }
    free(changed);
}

static void ends(unsigned char *state, size_t size) {
    trion_event event;
    unsigned char kept[8];
    memcpy(kept, state + END_FLAG, 8);
    CHECK(state[END_FLAG] == 0);
    state[END_FLAG] = 2;
    CHECK(!try_state(state, size));
    state[END_FLAG] = 1;
    state[END_TOKEN] = 7;
    {
        /* A session that heeds the end of a text says so; the others of this test go on. */
        trion_session *heeding;
        CHECK_OK(trion_session_new(model, NULL, NULL, &heeding, &error));
        CHECK_OK(trion_session_load(heeding, state, size, &error));
        CHECK_OK(trion_session_advance(heeding, SIZE_MAX, &event));
        CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_END && event.token == 7);
        trion_session_free(heeding);
    }
    CHECK_OK(trion_session_load(session, state, size, &error));
    (void)next_token(session);
    restore();
    /* A token that does not exist ended no text. */
    memset(state + END_TOKEN, 0xff, 4);
    CHECK(!try_state(state, size));
    memcpy(state + END_FLAG, kept, 8);
}

static unsigned char *save(const trion_session *from, size_t *size) {
    unsigned char *state;
    CHECK_OK(trion_session_saved_size(from, size));
    state = take(*size);
    CHECK_OK(trion_session_save(from, state, *size, size, &error));
    return state;
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_session *other;
    unsigned char *states[3];
    size_t sizes[3], i;
    trion_event event;
    model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    before = new_session(model, 64, 4);
    session = new_session(model, 64, 4);
    probe = new_session(model, 64, 4);
    push_numbers(before, 288, 3, 1);
    sample(before, 1);
    (void)next_token(before);
    CHECK_OK(trion_session_assign(probe, before, &error));
    expected = take_trace(probe, SIZE_MAX, 2);
    restore();

    /* One state with logits and the token that was chosen, one without the token, one without logits. */
    other = new_session(model, 64, 4);
    push_numbers(other, 288, 5, 2);
    sample(other, 2);
    (void)next_token(other);
    states[0] = save(other, &sizes[0]);
    CHECK_OK(trion_session_rewind(other, 5, &error));
    states[1] = save(other, &sizes[1]);
    CHECK(sizes[1] == sizes[0] - 4);
    (void)next_token(other);
    CHECK_OK(trion_session_advance(other, 1, &event));
    CHECK(event.kind == TRION_EVENT_MORE);
    states[2] = save(other, &sizes[2]);
    CHECK(sizes[2] == sizes[0] - 288 * 4);
    for (i = 0; i < 3; i++) {
        CHECK(try_state(states[i], sizes[i]));
        truncations(states[i], sizes[i], arguments.quick);
        flips(states[i], sizes[i], arguments.quick);
        numbers(states[i], sizes[i], sizes[2] - 4 - 64);
        ends(states[i], sizes[i]);
        free(states[i]);
    }
    free_trace(&expected);
    trion_session_free(other);
    trion_session_free(before);
    trion_session_free(session);
    trion_session_free(probe);
    trion_model_free(model);
    return 0;
}
