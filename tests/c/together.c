/*
 * Sessions together: the bits of each alone, whatever computes; work within the budget; what ends, is cancelled or is
 * refused; and no memory of the library's own.
 */
#include <pthread.h>

#include "check.h"
#include "support.h"

#if defined(__GLIBC__)
#if __GLIBC_PREREQ(2, 33)
#define HAS_MALLINFO2
#include <malloc.h>
#endif
#endif

#define CROWD TRION_MAX_SESSIONS

/* A job system that looks at the heap while it works, and cancels a session at a call. */
typedef struct host {
    size_t calls, cancel_at, after, in_use, grown;
    trion_session *cancelled;
    int looks;
} host;

static size_t in_use(void) {
#ifdef HAS_MALLINFO2
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
#else
    return 0;
#endif
}

static void *cancel(void *session) {
    trion_session_cancel(session);
    return NULL;
}

static void parallel_for(void *user, size_t count, trion_task_fn task, void *data) {
    host *host = user;
    host->calls++;
    if (host->looks) {
        size_t now = in_use();
        host->grown += now > host->in_use ? now - host->in_use : 0;
    }
    if (host->cancel_at != 0 && host->calls == host->cancel_at) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, cancel, host->cancelled) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    } else if (host->cancel_at != 0 && host->calls > host->cancel_at) {
        host->after++;
    }
    while (count-- > 0) {
        task(data, count);
    }
}

static trion_model *hosted_model(host *host, const char *path) {
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    trion_model *model;
    options.parallel_for = parallel_for;
    options.parallel_workers = 3;
    options.parallel_user = host;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    model = open_model(runtime, path);
    trion_runtime_free(runtime);
    return model;
}

static trion_model *pooled_model(const char *path, size_t threads) {
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    trion_model *model;
    options.threads = threads;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    model = open_model(runtime, path);
    trion_runtime_free(runtime);
    return model;
}

static void same_bits(const char *path, size_t new_tokens) {
    host host = {0, 0, 0, 0, 0, NULL, 0};
    trion_model *alone = open_model(NULL, path), *hosted = hosted_model(&host, path), *pooled = pooled_model(path, 3);
    same_together(alone, alone, new_tokens);
    same_together(hosted, alone, new_tokens);
    same_together(pooled, alone, new_tokens);
    CHECK(host.calls > 100);
    trion_model_free(alone);
    trion_model_free(hosted);
    trion_model_free(pooled);
}

/* As many as there may be, token by token; nothing is taken from the heap, and no call goes far beyond its budget. */
static void crowd(const char *path) {
    host host = {0, 0, 0, 0, 0, NULL, 0};
    trion_model *model = hosted_model(&host, path);
    size_t vocab_size = vocab_size_of(model), i, round, units, budget = 30, sum = 0, single = 0;
    trion_session *sessions[CROWD];
    trion_event events[CROWD], event;
    for (i = 0; i < CROWD; i++) {
        sessions[i] = session_of(model, 24, 2, i % 2 == 0 ? TRION_CACHE_F32 : TRION_CACHE_F16);
        push_numbers(sessions[i], vocab_size, 1 + i % 5, i);
        sample(sessions[i], i);
    }
    /* Samplers and threads keep what the first token takes. */
    CHECK_OK(trion_sessions_advance(sessions, CROWD, SIZE_MAX, events, &error));
    host.looks = 1;
    for (round = 0; round < 60; round++) {
        host.in_use = in_use();
        CHECK_OK(trion_sessions_advance(sessions, CROWD, budget, events, &error));
        CHECK(in_use() <= host.in_use);
        for (i = units = 0; i < CROWD; i++) {
            units += events[i].units;
            if (length_of(sessions[i]) == 20) {
                CHECK_OK(trion_session_rewind(sessions[i], 5, &error));
                push_numbers(sessions[i], vocab_size, 1, round);
            }
        }
        /* Each share is rounded up; a last step is a tile of numbers for 64 tokens at most. */
        CHECK(units > 0 && units <= budget + CROWD + 8);
    }
    CHECK(host.grown == 0 && host.calls > 500);
    host.looks = 0;

    /* What they take together is what they take alone; each rounds up by less than one. */
    for (i = 0; i < CROWD; i++) {
        CHECK_OK(trion_session_rewind(sessions[i], 4, &error));
        push_numbers(sessions[i], vocab_size, 2, i);
    }
    CHECK_OK(trion_sessions_advance(sessions, CROWD, SIZE_MAX, events, &error));
    for (i = 0; i < CROWD; i++) {
        trion_session *alone = session_of(model, 24, 2, i % 2 == 0 ? TRION_CACHE_F32 : TRION_CACHE_F16);
        CHECK_OK(trion_session_assign(alone, sessions[i], &error));
        CHECK_OK(trion_session_rewind(alone, 4, &error));
        push_numbers(alone, vocab_size, 2, i);
        CHECK_OK(trion_session_advance(alone, SIZE_MAX, &event));
        CHECK(events[i].units == event.units);
        sum += events[i].units;
        single += event.units;
        trion_session_free(alone);
        trion_session_free(sessions[i]);
    }
    CHECK(sum == single && sum > 0);
    trion_model_free(model);
}

/* At each place of a call one of them is cancelled: the others have lost nothing, and neither has it. */
static void cancelled(const char *path) {
    host host = {0, 0, 0, 0, 0, NULL, 0};
    trion_model *model = hosted_model(&host, path);
    size_t vocab_size = vocab_size_of(model), all = SIZE_MAX, n, i, hits = 0;
    uint32_t expected[3] = {0};
    for (n = 0; n <= all; n++) {
        trion_session *sessions[3];
        trion_event events[3];
        for (i = 0; i < 3; i++) {
            sessions[i] = session_of(model, 40, 4, TRION_CACHE_F32);
            push_numbers(sessions[i], vocab_size, i == 0 ? 1 : 5 * i, i);
        }
        host.calls = host.after = 0;
        host.cancel_at = n;
        host.cancelled = sessions[1];
        CHECK_OK(trion_sessions_advance(sessions, 3, SIZE_MAX, events, &error));
        host.cancel_at = 0;
        if (n == 0) {
            all = host.calls;
            for (i = 0; i < 3; i++) {
                CHECK(events[i].kind == TRION_EVENT_TOKEN);
                expected[i] = events[i].token;
            }
        } else {
            CHECK(events[1].kind == TRION_EVENT_DONE && events[1].reason == TRION_REASON_CANCELLED);
            CHECK(host.calls == n && host.after == 0 && length_of(sessions[1]) == 5);
            for (i = 0; i < 3; i++) {
                /* One that was ready has its token. */
                int came = events[i].kind == TRION_EVENT_TOKEN;
                CHECK(came || i == 1 || (events[i].kind == TRION_EVENT_MORE && events[i].token == 0));
                hits += (size_t)(came && i == 0);
                if (!came) {
                    CHECK_OK(trion_sessions_advance(&sessions[i], 1, SIZE_MAX, &events[i], &error));
                }
                CHECK(events[i].kind == TRION_EVENT_TOKEN && events[i].token == expected[i]);
            }
        }
        for (i = 0; i < 3; i++) {
            trion_session_free(sessions[i]);
        }
    }
    CHECK(all > 50 && hits > 2);
    trion_model_free(model);
}

/* Texts that end in every way beside one that goes on; their events come again, and cost nothing. */
static void ends(const char *path) {
    static const char digits[] = "[0-9]{2}";
    trion_model *model = open_model(NULL, path);
    size_t vocab_size = vocab_size_of(model), i, round, ended = 0;
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *sessions[4], *alone[4];
    trion_event events[4], event;
    trion_constraint *constraint;
    CHECK_OK(trion_constraint_new(model, TRION_GRAMMAR_REGEX, digits, strlen(digits), &constraint, &error));
    for (i = 0; i < 8; i++) {
        trion_session **place = i < 4 ? &sessions[i] : &alone[i - 4];
        options.context = i % 4 == 1 ? 12 : 60;
        options.max_batch = 3;
        /* The third ends when the model likes. */
        options.ignore_end = i % 4 != 2;
        CHECK_OK(trion_session_new(model, &options, NULL, place, &error));
        sample(*place, i % 4);
        if (i % 4 == 3) {
            CHECK_OK(trion_session_set_constraint(*place, constraint, &error));
        }
        push_numbers(*place, vocab_size, 6, i % 4);
    }
    trion_constraint_free(constraint);
    for (round = 0; round < 40; round++) {
        CHECK_OK(trion_sessions_advance(sessions, 4, SIZE_MAX, events, &error));
        for (i = 0; i < 4; i++) {
            CHECK_OK(trion_session_advance(alone[i], SIZE_MAX, &event));
            CHECK(events[i].kind == event.kind && events[i].reason == event.reason && events[i].token == event.token);
            CHECK(events[i].units == event.units && length_of(sessions[i]) == length_of(alone[i]));
            ended += event.kind == TRION_EVENT_DONE;
        }
        CHECK(events[0].kind == TRION_EVENT_TOKEN);
    }
    CHECK(ended > 40 && events[1].reason == TRION_REASON_CONTEXT && events[3].reason == TRION_REASON_CONSTRAINT);
    for (i = 0; i < 4; i++) {
        trion_session_free(sessions[i]);
        trion_session_free(alone[i]);
    }
    trion_model_free(model);
}

/* The end that the model gives: the token that it ends with comes again, and the session takes no part. */
static void end_of_text(const char *path) {
    trion_model *model = open_model(NULL, path);
    size_t vocab_size = vocab_size_of(model), seed, i, found = 0;
    trion_session_options options = {.struct_size = sizeof options};
    for (seed = 0; seed < 60; seed++) {
        trion_session *sessions[2];
        trion_event events[2];
        options.context = 60;
        for (i = 0; i < 2; i++) {
            options.ignore_end = i == 1;
            CHECK_OK(trion_session_new(model, &options, NULL, &sessions[i], &error));
            push_numbers(sessions[i], vocab_size, 4, seed);
            sample(sessions[i], seed);
        }
        for (i = 0; i < 30; i++) {
            CHECK_OK(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error));
            CHECK(events[1].kind == TRION_EVENT_TOKEN);
            if (events[0].kind == TRION_EVENT_DONE) {
                uint32_t token = events[0].token;
                CHECK(events[0].reason == TRION_REASON_END && trion_model_ends_text(model, token));
                CHECK(events[1].token == token && length_of(sessions[0]) == 4 + i);
                /* One that takes no part ends the call too. */
                trion_session_cancel(sessions[0]);
                CHECK_OK(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error));
                CHECK(events[0].reason == TRION_REASON_CANCELLED && events[0].units == 0);
                CHECK(events[1].kind == TRION_EVENT_MORE);
                CHECK_OK(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error));
                CHECK(events[0].reason == TRION_REASON_END && events[0].token == token && events[0].units == 0);
                CHECK(events[1].kind == TRION_EVENT_TOKEN);
                found++;
                break;
            }
        }
        trion_session_free(sessions[0]);
        trion_session_free(sessions[1]);
    }
    CHECK(found > 0);
    trion_model_free(model);
}

static unsigned char *state_of(const trion_session *session, size_t *size) {
    unsigned char *state;
    CHECK_OK(trion_session_saved_size(session, size));
    state = take(*size);
    CHECK_OK(trion_session_save(session, state, *size, size, &error));
    return state;
}

/* What is refused changes nothing, in none of the sessions. */
static void refused(const char *path) {
    trion_model *model = open_model(NULL, path), *other = open_model(NULL, path);
    size_t vocab_size = vocab_size_of(model), i, sizes[2], after;
    trion_session *sessions[4], *list[CROWD + 1], *twins[2];
    trion_event events[CROWD + 1];
    unsigned char *states[2], *state;
    for (i = 0; i < 4; i++) {
        sessions[i] = session_of(i == 3 ? other : model, 40, 3, TRION_CACHE_F32);
    }
    for (i = 0; i < 2; i++) {
        twins[i] = session_of(model, 40, 3, TRION_CACHE_F32);
        push_numbers(sessions[i], vocab_size, 7, i);
        push_numbers(twins[i], vocab_size, 7, i);
        sample(sessions[i], i);
        sample(twins[i], i);
        CHECK(next_token(sessions[i]) == next_token(twins[i]));
        states[i] = state_of(sessions[i], &sizes[i]);
    }
    push_numbers(sessions[3], vocab_size, 4, 1);
    for (i = 0; i <= CROWD; i++) {
        list[i] = sessions[i % 2];
    }
    CHECK_STATUS(trion_sessions_advance(list, CROWD + 1, SIZE_MAX, events, &error), TRION_INVALID_ARGUMENT);
    CHECK(strstr(error.message, "33") != NULL && strstr(error.message, "32") != NULL);
    CHECK_STATUS(trion_sessions_advance(list, 0, SIZE_MAX, events, &error), TRION_INVALID_ARGUMENT);
    CHECK_STATUS(trion_sessions_advance(list, 3, SIZE_MAX, events, &error), TRION_INVALID_ARGUMENT);
    CHECK(strstr(error.message, "twice") != NULL);
    list[2] = NULL;
    CHECK_STATUS(trion_sessions_advance(list, 3, SIZE_MAX, events, &error), TRION_INVALID_ARGUMENT);
    list[2] = sessions[2];
    CHECK_STATUS(trion_sessions_advance(list, 3, SIZE_MAX, events, &error), TRION_NO_TOKENS);
    CHECK_STATUS(trion_sessions_compute(list, 3, SIZE_MAX, events, &error), TRION_NO_TOKENS);
    list[2] = sessions[3];
    CHECK_STATUS(trion_sessions_advance(list, 3, SIZE_MAX, events, &error), TRION_OTHER_MODEL);
    CHECK_STATUS(trion_sessions_compute(list, 3, SIZE_MAX, events, &error), TRION_OTHER_MODEL);
    for (i = 0; i < 2; i++) {
        trace expected, found;
        state = state_of(sessions[i], &after);
        CHECK(after == sizes[i] && memcmp(state, states[i], after) == 0);
        expected = take_trace(twins[i], SIZE_MAX, 6);
        found = take_trace(sessions[i], 3, 6);
        CHECK(same_trace(&expected, &found));
        free_trace(&expected);
        free_trace(&found);
        free(state);
        free(states[i]);
        trion_session_free(twins[i]);
    }
    for (i = 0; i < 4; i++) {
        trion_session_free(sessions[i]);
    }
    trion_model_free(model);
    trion_model_free(other);
}

int main(int argc, char **argv) {
    const char *const models[] = {"qwen3_groups", "llama_bitlinear", "llama_rms_norm", "1bitllm"};
    arguments arguments = read_arguments(argc, argv);
    char tiny[4096];
    size_t i;
    snprintf(tiny, sizeof tiny, "%s", golden(&arguments, "bitnet_offline"));
    crowd(tiny);
    cancelled(tiny);
    refused(tiny);
    ends(tiny);
    end_of_text(tiny);
    if (arguments.quick) {
        trion_model *model = open_model(NULL, tiny);
        same_together(model, model, 2);
        trion_model_free(model);
        return 0;
    }
    same_bits(tiny, 10);
    for (i = 0; i < sizeof models / sizeof *models; i++) {
        same_bits(golden(&arguments, models[i]), 5);
    }
    same_bits(arguments.model, 4);
    return 0;
}
