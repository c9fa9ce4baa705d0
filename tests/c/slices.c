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

/* Calls that it takes to choose a token, `budget` units at a time. */
static size_t calls_to_token(trion_session *session, size_t budget) {
    trion_event event;
    size_t calls = 0;
    do {
        CHECK_OK(trion_session_advance(session, budget, &event));
        calls++;
    } while (event.kind == TRION_EVENT_MORE);
    CHECK(event.kind == TRION_EVENT_TOKEN);
    return calls;
}

static void costs(const trion_model *model) {
    trion_session *session = new_session(model, prompt_tokens + 12, 0);
    size_t units, units_before, calls, again, i;
    CHECK_OK(trion_session_token_units(session, &units_before));
    push_numbers(session, vocab_size_of(model), prompt_tokens, 1);
    CHECK_OK(trion_session_token_units(session, &units));
    CHECK(units >= units_before && units_before > 0);
    calls = calls_to_token(session, 1);
    /* No token of a prompt costs more than one alone, and each costs something. */
    CHECK(calls <= prompt_tokens * units && calls > prompt_tokens);
    for (i = 0; i < 10; i++) {
        CHECK_OK(trion_session_token_units(session, &units));
        /* As much as a token may cost is enough for it: one call, or two of half as much. */
        switch (i % 3) {
        case 0:
            calls = calls_to_token(session, 1);
            CHECK(calls <= units && calls > units / 2);
            /* The same work again takes the same calls. */
            CHECK_OK(trion_session_rewind(session, length_of(session) - 2, &error));
            push_numbers(session, vocab_size_of(model), 1, i);
            again = calls_to_token(session, 1);
            CHECK(again == calls);
            break;
        case 1:
            CHECK(calls_to_token(session, units) == 1);
            break;
        default:
            CHECK(calls_to_token(session, units / 2 + 1) <= 2);
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
    prompt_tokens = arguments.quick ? 20 : 100;
    new_tokens = arguments.quick ? 2 : 12;
    same_for_all_budgets(model, 0, 1);
    if (!arguments.quick) {
        same_for_all_budgets(model, 0, 0);
        same_for_all_budgets(model, 3, 0);
        same_for_all_budgets(model, 100, 0);
        costs(model);
    }
    trion_model_free(tiny);
    trion_model_free(model);
    return 0;
}
