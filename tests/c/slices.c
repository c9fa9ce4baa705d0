/* How work is divided into calls changes nothing, and a call does no more than it was given. */
#include "check.h"
#include "support.h"

static size_t prompt_tokens;
static size_t new_tokens;

/* A prompt and what follows, `budget` units at a time. */
static trace run(const trion_model *model, size_t max_batch, size_t budget, int sampled) {
    trion_session *session = new_session(model, prompt_tokens + new_tokens, max_batch);
    trace trace;
    push_numbers(session, vocab_size_of(model), prompt_tokens, 1);
    if (sampled) {
        sample(session, 11);
    }
    trace = take_trace(session, budget, new_tokens);
    trion_session_free(session);
    return trace;
}

static void same_for_all_budgets(const trion_model *model, size_t max_batch, int sampled) {
    const size_t budgets[] = {1, 2, 7, 100};
    trace whole = run(model, max_batch, SIZE_MAX, sampled), found;
    size_t i;
    for (i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        found = run(model, max_batch, budgets[i], sampled);
        CHECK(same_trace(&whole, &found));
        free_trace(&found);
    }
    free_trace(&whole);
}

/*
 * Calls that it takes to choose a token, `budget` units at a time; `units`, which may be NULL, receives what they took
 * together.
 */
static size_t calls_to_token(trion_session *session, size_t budget, size_t *units) {
    trion_event event;
    size_t calls = 0, sum = 0;
    do {
        CHECK_OK(trion_session_advance(session, budget, &event));
        calls++;
        /* The last step of a call may go beyond its budget; with batches of 64 at most, a step is within a unit. */
        CHECK(event.units > 0 && event.units - 1 <= budget);
        sum += event.units;
    } while (event.kind == TRION_EVENT_MORE);
    CHECK(event.kind == TRION_EVENT_TOKEN);
    if (units != NULL) {
        *units = sum;
    }
    return calls;
}

/* What events say that calls took, together, is what one call takes; each of them rounds up by less than a unit. */
static void counted_units(const trion_model *model) {
    const size_t budgets[] = {1, 2, 7, 100}, batches[] = {1, 7, 0};
    size_t i, j;
    for (i = 0; i < sizeof batches / sizeof *batches; i++) {
        trion_session *session = new_session(model, prompt_tokens + 2, batches[i]);
        size_t vocab_size = vocab_size_of(model), whole, next, sum, calls;
        push_numbers(session, vocab_size, prompt_tokens, 1);
        CHECK(calls_to_token(session, SIZE_MAX, &whole) == 1);
        CHECK(calls_to_token(session, SIZE_MAX, &next) == 1);
        CHECK(next < whole);
        for (j = 0; j < sizeof budgets / sizeof *budgets; j++) {
            CHECK_OK(trion_session_rewind(session, 0, &error));
            push_numbers(session, vocab_size, prompt_tokens, 1);
            calls = calls_to_token(session, budgets[j], &sum);
            CHECK(sum >= whole && sum < whole + calls);
            calls = calls_to_token(session, budgets[j], &sum);
            CHECK(sum >= next && sum < next + calls);
        }
        trion_session_free(session);
    }
}

static void costs(const trion_model *model) {
    trion_session *session = new_session(model, prompt_tokens + 12, 0);
    size_t units, units_before, calls, again, sum, i;
    CHECK_OK(trion_session_token_units(session, &units_before));
    push_numbers(session, vocab_size_of(model), prompt_tokens, 1);
    CHECK_OK(trion_session_token_units(session, &units));
    CHECK(units >= units_before && units_before > 0);
    calls = calls_to_token(session, 1, &sum);
    /* No token of a prompt costs more than one alone, nor less than half of it. */
    CHECK(calls <= prompt_tokens * units && calls >= prompt_tokens * units / 4);
    CHECK(sum <= prompt_tokens * units + calls && sum > prompt_tokens * units / 2);
    for (i = 0; i < 10; i++) {
        CHECK_OK(trion_session_token_units(session, &units));
        /* As much as a token may cost is enough for it: one call, or two of half as much. */
        switch (i % 3) {
        case 0:
            calls = calls_to_token(session, 1, NULL);
            CHECK(calls <= units && calls > units / 2);
            /* The same work again takes the same calls. */
            CHECK_OK(trion_session_rewind(session, length_of(session) - 2, &error));
            push_numbers(session, vocab_size_of(model), 1, i);
            again = calls_to_token(session, 1, NULL);
            CHECK(again == calls);
            break;
        case 1:
            CHECK(calls_to_token(session, units, &again) == 1);
            CHECK(again <= units && again > units / 2);
            break;
        default:
            CHECK(calls_to_token(session, units / 2 + 1, NULL) <= 2);
        }
    }
    trion_session_free(session);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model = open_model(NULL, arguments.model);
    trion_model *tiny = open_model(NULL, golden(&arguments, "bitnet_offline"));
    prompt_tokens = 40;
    new_tokens = 20;
    same_for_all_budgets(tiny, 0, 0);
    same_for_all_budgets(tiny, 0, 1);
    same_for_all_budgets(tiny, 1, 0);
    same_for_all_budgets(tiny, 7, 1);
    costs(tiny);
    counted_units(tiny);
    prompt_tokens = arguments.quick ? 20 : 100;
    new_tokens = arguments.quick ? 2 : 12;
    same_for_all_budgets(model, 0, 1);
    if (!arguments.quick) {
        same_for_all_budgets(model, 0, 0);
        same_for_all_budgets(model, 3, 0);
        same_for_all_budgets(model, 100, 0);
        costs(model);
        counted_units(model);
    }
    trion_model_free(tiny);
    trion_model_free(model);
    return 0;
}
