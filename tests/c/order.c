/* Calls in orders that make no sense, or little: each is answered as trion.h says, and the session goes on. */
#include "check.h"
#include "support.h"

static const char *tiny, *other_tiny;

static void advance_to(trion_session *session, trion_event_kind kind, trion_reason reason) {
    trion_event event;
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    CHECK(event.kind == kind && event.reason == reason);
}

static int stop_at_once(void *user, const trion_event *event) {
    *(trion_event *)user = *event;
    return 0;
}

static int no_text(void *user, const char *text, size_t size) {
    (void)user, (void)text, (void)size;
    return 1;
}

/* Calls that are refused at any time, or change nothing. */
static void disturb(trion_session *session, const trion_session *stranger) {
    const uint32_t wrong[2] = {1, 288};
    uint32_t many[65] = {0};
    char byte;
    size_t length = length_of(session), size;
    CHECK_STATUS(trion_session_push(session, NULL, 0, &error), TRION_NO_TOKENS);
    CHECK_STATUS(trion_session_push(session, wrong, 2, &error), TRION_TOKEN_OUT_OF_RANGE);
    CHECK_STATUS(trion_session_push(session, many, 65 - length, &error), TRION_CONTEXT_FULL);
    CHECK_STATUS(trion_session_rewind(session, length + 1, &error), TRION_INVALID_ARGUMENT);
    CHECK_STATUS(trion_session_save(session, &byte, 1, &size, &error), TRION_BUFFER_TOO_SMALL);
    CHECK_STATUS(trion_session_load(session, "nothing", 7, &error), TRION_STATE);
    CHECK_STATUS(trion_session_fork_init(session, &byte, 1, &session, &error), TRION_BUFFER_TOO_SMALL);
    CHECK_STATUS(trion_session_assign(session, stranger, &error), TRION_OTHER_MODEL);
    CHECK_OK(trion_session_assign(session, session, &error));
    CHECK_OK(trion_session_rewind(session, length, &error));
    CHECK(length_of(session) == length);
}

static void refused_calls_leave_no_trace(void) {
    trion_model *model = open_model(NULL, tiny), *other = open_model(NULL, other_tiny);
    trion_session *session = new_session(model, 64, 0), *quiet = new_session(model, 64, 0);
    trion_session *stranger = new_session(other, 64, 0);
    const float *logits;
    trion_candidate candidate;
    trion_event event;
    trion_stop stop;
    size_t count;
    int i;
    trace trace;
    push_numbers(stranger, vocab_size_of(other), 3, 3);

    /* Without tokens there is nothing to compute, to look at, or to forget. */
    CHECK_STATUS(trion_session_advance(session, 1, &event), TRION_NO_TOKENS);
    CHECK_STATUS(trion_session_compute(session, SIZE_MAX, &event), TRION_NO_TOKENS);
    CHECK_STATUS(trion_session_run(session, 1, stop_at_once, &event, NULL), TRION_NO_TOKENS);
    CHECK_STATUS(trion_generate(session, NULL, 1, no_text, NULL, &stop, &error), TRION_NO_TOKENS);
    CHECK_STATUS(trion_session_logits(session, &logits, &count), TRION_NO_LOGITS);
    CHECK_STATUS(trion_session_candidates(session, &candidate, 1, &count), TRION_NO_LOGITS);
    CHECK_STATUS(trion_session_rewind(session, 1, &error), TRION_INVALID_ARGUMENT);
    CHECK_OK(trion_session_rewind(session, 0, &error));
    disturb(session, stranger);
    CHECK_STATUS(trion_session_advance(session, 0, &event), TRION_NO_TOKENS);

    push_numbers(session, 288, 20, 1);
    push_numbers(quiet, 288, 20, 1);
    sample(session, 5);
    sample(quiet, 5);
    trace = take_trace(quiet, SIZE_MAX, 10);
    for (i = 0; i < 10; i++) {
        CHECK_STATUS(trion_session_advance(session, 0, &event), TRION_OK);
        CHECK(event.kind == TRION_EVENT_MORE && event.token == 0 && event.probability == 0.0f && event.units == 0);
        do {
            disturb(session, stranger);
            CHECK_OK(trion_session_advance(session, 1, &event));
            CHECK((trion_session_logits(session, &logits, &count) == TRION_OK) == (event.kind != TRION_EVENT_MORE));
        } while (event.kind == TRION_EVENT_MORE);
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == trace.tokens[i]);
        CHECK(count == 288 && memcmp(logits, trace.logits + (size_t)i * 288, 288 * sizeof *logits) == 0);
    }
    free_trace(&trace);
    trion_session_free(session);
    trion_session_free(quiet);
    trion_session_free(stranger);
    trion_model_free(model);
    trion_model_free(other);
}

static void full_contexts(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *session = new_session(model, 16, 0), *longer = new_session(model, 32, 0);
    const uint32_t one = 1;
    push_numbers(session, 288, 15, 1);
    (void)next_token(session);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CONTEXT);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CONTEXT);
    CHECK(length_of(session) == 16);
    CHECK_STATUS(trion_session_push(session, &one, 1, &error), TRION_CONTEXT_FULL);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CONTEXT);

    /* What is full here has room there. */
    CHECK_OK(trion_session_assign(longer, session, &error));
    CHECK(length_of(longer) == 16);
    (void)next_token(longer);
    CHECK_STATUS(trion_session_assign(session, longer, &error), TRION_CONTEXT_FULL);
    CHECK(length_of(session) == 16);

    CHECK_OK(trion_session_rewind(session, 10, &error));
    CHECK_OK(trion_session_push(session, &one, 1, &error));
    (void)next_token(session);
    CHECK(length_of(session) == 12);
    trion_session_free(session);
    trion_session_free(longer);
    trion_model_free(model);
}

/* Sampling that is almost blind comes upon the token that ends a text sooner or later, by the seed at a known place. */
static void ended_texts(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_sampler_options blind = {.struct_size = sizeof blind};
    trion_session *session, *patient;
    trion_event event, again;
    size_t length;
    const uint32_t one = 1;
    CHECK_OK(trion_session_new(model, NULL, NULL, &session, &error));
    blind.temperature = 100.0f;
    do {
        blind.seed++;
        CHECK(blind.seed < 1000);
        CHECK_OK(trion_session_rewind(session, 0, &error));
        CHECK_OK(trion_session_push(session, &one, 1, &error));
        CHECK_OK(trion_session_set_sampler(session, &blind, &error));
        do {
            CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
        } while (event.kind != TRION_EVENT_DONE);
    } while (event.reason == TRION_REASON_CONTEXT);
    CHECK(event.reason == TRION_REASON_END && trion_model_ends_text(model, event.token));
    length = length_of(session);
    CHECK_OK(trion_session_advance(session, 1, &again));
    CHECK(again.kind == event.kind && again.reason == event.reason && again.token == event.token);
    CHECK(again.probability == event.probability && event.units > 0 && again.units == 0);
    CHECK(length_of(session) == length);

    /* A session that goes on after such tokens does so from where one ended that does not. */
    patient = new_session(model, 64, 0);
    CHECK_OK(trion_session_assign(patient, session, &error));
    CHECK(length_of(patient) == length);
    (void)next_token(patient);
    trion_session_free(patient);

    /* The greedy sampler chooses from the same logits, once the end is taken back; pushing takes it back as well. */
    CHECK_OK(trion_session_set_sampler(session, NULL, &error));
    CHECK_OK(trion_session_rewind(session, length, &error));
    CHECK_OK(trion_session_advance(session, 0, &event));
    CHECK(event.kind == TRION_EVENT_TOKEN);
    CHECK_OK(trion_session_rewind(session, length, &error));
    CHECK_OK(trion_session_push(session, &one, 1, &error));
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    CHECK(event.kind != TRION_EVENT_MORE);
    trion_session_free(session);
    trion_model_free(model);
}

static void choosing_again(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *session = new_session(model, 64, 0);
    trion_event event;
    const float *logits;
    float before[288];
    uint32_t token;
    size_t count, units;
    trion_candidate best;
    push_numbers(session, 288, 12, 2);
    token = next_token(session);
    CHECK_OK(trion_session_logits(session, &logits, &count));
    memcpy(before, logits, sizeof before);
    CHECK_OK(trion_session_rewind(session, 12, &error));
    CHECK_OK(trion_session_logits(session, &logits, &count));
    CHECK(memcmp(before, logits, sizeof before) == 0);
    /* There is nothing to compute, so no budget is needed. */
    CHECK_OK(trion_session_advance(session, 0, &event));
    CHECK(event.kind == TRION_EVENT_TOKEN && event.token == token && event.units == 0 && length_of(session) == 13);
    CHECK_OK(trion_session_candidates(session, &best, 1, &count));
    CHECK(count == 1 && best.token == token && best.probability > 0.0f && best.probability <= 1.0f);

    /* One token more is forgotten than was not computed: the logits go with it. */
    CHECK_OK(trion_session_rewind(session, 11, &error));
    CHECK_STATUS(trion_session_advance(session, SIZE_MAX, &event), TRION_NO_TOKENS);
    CHECK_STATUS(trion_session_logits(session, &logits, &count), TRION_NO_LOGITS);
    CHECK_OK(trion_session_token_units(session, &units));
    CHECK(units > 0);
    trion_session_free(session);
    trion_model_free(model);
}

/* A prompt that is computed without choosing, by whatever steps, leads to the tokens that choosing at once leads to. */
static void computing(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *quiet = new_session(model, 64, 8), *session = new_session(model, 64, 8);
    trion_session *full = new_session(model, 12, 0);
    const size_t budgets[] = {1, 3, SIZE_MAX};
    trion_event event;
    trace with, without;
    size_t i;
    push_numbers(quiet, 288, 20, 4);
    sample(quiet, 6);
    without = take_trace(quiet, SIZE_MAX, 8);
    for (i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        trion_session *fork, *assigned = new_session(model, 40, 3);
        CHECK_OK(trion_session_rewind(session, 0, &error));
        push_numbers(session, 288, 20, 4);
        sample(session, 6);
        CHECK_OK(trion_session_compute(session, 0, &event));
        CHECK(event.kind == TRION_EVENT_MORE && event.units == 0);
        do {
            CHECK_OK(trion_session_compute(session, budgets[i], &event));
            CHECK(event.units > 0 && event.units - 1 <= budgets[i] && event.reason == TRION_REASON_NONE);
        } while (event.kind == TRION_EVENT_MORE);
        CHECK(event.kind == TRION_EVENT_READY && event.token == 0 && event.probability == 0.0f);
        CHECK(length_of(session) == 20);
        /* There is nothing left to compute, here and in copies. */
        CHECK_OK(trion_session_compute(session, 0, &event));
        CHECK(event.kind == TRION_EVENT_READY && event.units == 0);
        CHECK_OK(trion_session_fork(session, NULL, &fork, &error));
        CHECK_OK(trion_session_assign(assigned, session, &error));
        CHECK_OK(trion_session_advance(fork, 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == without.tokens[0] && event.units == 0);
        CHECK_OK(trion_session_advance(assigned, 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == without.tokens[0] && event.units == 0);
        with = take_trace(session, 1, 8);
        CHECK(same_trace(&with, &without));
        free_trace(&with);
        /* The token that was chosen is computed too, and is not chosen again. */
        CHECK_OK(trion_session_compute(fork, SIZE_MAX, &event));
        CHECK(event.kind == TRION_EVENT_READY && event.units > 0);
        CHECK_OK(trion_session_advance(fork, 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == without.tokens[1]);
        trion_session_free(fork);
        trion_session_free(assigned);
    }
    free_trace(&without);
    /* A full context has no room for a token, but can be computed; and computing can be cancelled. */
    push_numbers(full, 288, 12, 1);
    trion_session_cancel(full);
    CHECK_OK(trion_session_compute(full, SIZE_MAX, &event));
    CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED);
    CHECK_OK(trion_session_compute(full, SIZE_MAX, &event));
    CHECK(event.kind == TRION_EVENT_READY && event.units > 0);
    advance_to(full, TRION_EVENT_DONE, TRION_REASON_CONTEXT);
    trion_session_free(full);
    trion_session_free(session);
    trion_session_free(quiet);
    trion_model_free(model);
}

static void cancelling(void) {
    trion_model *model = open_model(NULL, tiny);
    trion_session *session = new_session(model, 64, 0), *quiet = new_session(model, 64, 0);
    trace with, without;
    push_numbers(quiet, 288, 12, 2);
    without = take_trace(quiet, SIZE_MAX, 8);
    trion_session_cancel(session);
    push_numbers(session, 288, 12, 2);
    trion_session_cancel(session);
    trion_session_cancel(session);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CANCELLED);
    with = take_trace(session, SIZE_MAX, 8);
    CHECK(same_trace(&with, &without));
    free_trace(&with);
    /* Between a token and its successor, and when the logits are there already. */
    CHECK_OK(trion_session_rewind(session, 0, &error));
    push_numbers(session, 288, 12, 2);
    CHECK(next_token(session) == without.tokens[0]);
    trion_session_cancel(session);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CANCELLED);
    CHECK(next_token(session) == without.tokens[1]);
    CHECK_OK(trion_session_rewind(session, 13, &error));
    trion_session_cancel(session);
    advance_to(session, TRION_EVENT_DONE, TRION_REASON_CANCELLED);
    CHECK(next_token(session) == without.tokens[1]);
    free_trace(&without);
    trion_session_free(session);
    trion_session_free(quiet);
    trion_model_free(model);
}

typedef struct visit {
    trion_session *session;
    size_t events, tokens;
} visit;

/* Uses the session from inside: it is free while a callback runs. */
static int look_around(void *user, const trion_event *event) {
    visit *visit = user;
    trion_session *fork;
    visit->events++;
    if (event->kind == TRION_EVENT_TOKEN) {
        CHECK_OK(trion_session_fork(visit->session, NULL, &fork, &error));
        trion_session_free(fork);
        CHECK_OK(trion_session_set_sampler(visit->session, NULL, &error));
        if (++visit->tokens == 5) {
            trion_session_cancel(visit->session);
        }
    }
    return 1;
}

static void running(void) {
    trion_model *model = open_model(NULL, tiny);
    visit visit = {NULL, 0, 0};
    trion_event event, seen;
    visit.session = new_session(model, 64, 0);
    push_numbers(visit.session, 288, 12, 2);
    CHECK_OK(trion_session_run(visit.session, 1, look_around, &visit, &event));
    CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED);
    CHECK(visit.tokens == 5 && visit.events > 6 && length_of(visit.session) == 17);
    /* A callback that wants no more is told nothing more; what it saw has happened. */
    CHECK_OK(trion_session_run(visit.session, SIZE_MAX, stop_at_once, &seen, &event));
    CHECK(seen.kind == TRION_EVENT_TOKEN && length_of(visit.session) == 18);
    CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED && event.token == 0);
    CHECK_OK(trion_session_run(visit.session, SIZE_MAX, look_around, &visit, NULL));
    CHECK(length_of(visit.session) == 64);
    trion_session_free(visit.session);
    trion_model_free(model);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    char paths[2][4096];
    snprintf(paths[0], sizeof paths[0], "%s", golden(&arguments, "bitnet_offline"));
    snprintf(paths[1], sizeof paths[1], "%s", golden(&arguments, "bitnet_online"));
    tiny = paths[0];
    other_tiny = paths[1];
    refused_calls_leave_no_trace();
    full_contexts();
    ended_texts();
    choosing_again();
    computing();
    cancelling();
    running();
    return 0;
}
