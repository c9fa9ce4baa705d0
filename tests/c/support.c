#include "support.h"

#include "check.h"

arguments read_arguments(int argc, char **argv) {
    arguments arguments = {"", "", "", 0};
    const char **places[3];
    int i, place = 0;
    places[0] = &arguments.model;
    places[1] = &arguments.golden;
    places[2] = &arguments.chat;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            arguments.quick = 1;
        } else {
            CHECK(place < 3);
            *places[place++] = argv[i];
        }
    }
    return arguments;
}

void *take(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    CHECK(memory != NULL);
    return memory;
}

void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    long length;
    void *bytes;
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    CHECK(fseek(file, 0, SEEK_END) == 0);
    length = ftell(file);
    CHECK(length > 0 && fseek(file, 0, SEEK_SET) == 0);
    bytes = take((size_t)length);
    CHECK(fread(bytes, 1, (size_t)length, file) == (size_t)length);
    CHECK(fclose(file) == 0);
    *size = (size_t)length;
    return bytes;
}

const char *golden(const arguments *arguments, const char *name) {
    static char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", arguments->golden, name);
    CHECK(length > 0 && (size_t)length < sizeof path);
    return path;
}

uint32_t next_number(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

trion_model *open_model(const trion_runtime *runtime, const char *path) {
    trion_model *model;
    CHECK_OK(trion_model_open(runtime, path, &model, &error));
    return model;
}

trion_session *new_session(const trion_model *model, size_t context, size_t max_batch) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    options.context = context;
    options.max_batch = max_batch;
    options.ignore_end = 1;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    return session;
}

trion_session *session_of(const trion_model *model, size_t context, size_t max_batch, trion_cache cache) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    options.context = context;
    options.max_batch = max_batch;
    options.cache = cache;
    options.ignore_end = 1;
    options.probabilities = 1;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    return session;
}

void sample(trion_session *session, uint64_t seed) {
    trion_sampler_options options = {.struct_size = sizeof options};
    options.temperature = 1.2f;
    options.top_p = 0.95f;
    options.repetition_penalty = 1.1f;
    options.seed = seed;
    CHECK_OK(trion_session_set_sampler(session, &options, &error));
}

size_t vocab_size_of(const trion_model *model) {
    trion_model_info info;
    CHECK_OK(trion_model_get_info(model, &info, sizeof info));
    return info.vocab_size;
}

void push_numbers(trion_session *session, size_t vocab_size, size_t count, uint64_t seed) {
    uint32_t *tokens = take(count * sizeof *tokens);
    size_t i;
    for (i = 0; i < count; i++) {
        tokens[i] = next_number(&seed) % (uint32_t)vocab_size;
    }
    CHECK_OK(trion_session_push(session, tokens, count, &error));
    free(tokens);
}

size_t length_of(const trion_session *session) {
    const uint32_t *tokens;
    size_t count;
    CHECK_OK(trion_session_tokens(session, &tokens, &count));
    return count;
}

uint32_t next_token(trion_session *session) {
    trion_event event;
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    CHECK(event.kind == TRION_EVENT_TOKEN && event.reason == TRION_REASON_NONE);
    return event.token;
}

trace take_trace(trion_session *session, size_t budget, size_t count) {
    trace trace = {0, 0, NULL, NULL};
    trace.count = count;
    trace.tokens = take(count * sizeof *trace.tokens);
    for (size_t i = 0; i < count; i++) {
        trion_event event;
        const float *logits;
        size_t size;
        do {
            CHECK_OK(trion_session_advance(session, budget, &event));
        } while (event.kind == TRION_EVENT_MORE);
        CHECK(event.kind == TRION_EVENT_TOKEN);
        CHECK_OK(trion_session_logits(session, &logits, &size));
        if (trace.logits == NULL) {
            trace.vocab_size = size;
            trace.logits = take(count * size * sizeof *logits);
        }
        CHECK(size == trace.vocab_size);
        trace.tokens[i] = event.token;
        memcpy(trace.logits + i * size, logits, size * sizeof *logits);
    }
    return trace;
}

int same_trace(const trace *one, const trace *other) {
    return one->count == other->count && one->vocab_size == other->vocab_size
        && memcmp(one->tokens, other->tokens, one->count * sizeof *one->tokens) == 0
        && memcmp(one->logits, other->logits, one->count * one->vocab_size * sizeof *one->logits) == 0;
}

void free_trace(trace *trace) {
    free(trace->tokens);
    free(trace->logits);
    trace->tokens = NULL;
    trace->logits = NULL;
}

/* What a session is: tokens that were computed before, and those that are pushed then. */
typedef struct role {
    size_t before, prompt, max_batch;
    trion_cache cache;
} role;

static const role roles[] = {
    {0, 1, 1, TRION_CACHE_F32},  {0, 30, 8, TRION_CACHE_F32}, {12, 1, 4, TRION_CACHE_F16}, {5, 9, 3, TRION_CACHE_F16},
    {0, 17, 0, TRION_CACHE_F32}, {30, 1, 0, TRION_CACHE_F32}, {3, 2, 2, TRION_CACHE_F16},
};
#define ROLES (sizeof roles / sizeof *roles)

static trion_session *begin_role(const trion_model *model, size_t i, size_t new_tokens) {
    const role *role = &roles[i];
    size_t vocab_size = vocab_size_of(model), length = role->before + role->prompt + new_tokens;
    trion_session *session = session_of(model, length + i, role->max_batch, role->cache);
    trion_event event;
    if (role->before > 0) {
        push_numbers(session, vocab_size, role->before, i);
        CHECK_OK(trion_session_compute(session, SIZE_MAX, &event));
        CHECK(event.kind == TRION_EVENT_READY);
    }
    push_numbers(session, vocab_size, role->prompt, i + ROLES);
    if (i % 2 == 1) {
        sample(session, i);
    }
    return session;
}

/* What became of session i is what it says alone, in which it had come to `count` tokens. Returns whether it is one. */
static int same_token(const trion_session *session, const trion_event *event, const trace *expected, size_t count) {
    const float *logits;
    size_t size;
    CHECK(event->reason == TRION_REASON_NONE);
    if (event->kind == TRION_EVENT_MORE) {
        return 0;
    }
    CHECK(event->kind == TRION_EVENT_TOKEN && event->token == expected->tokens[count] && event->probability > 0);
    CHECK_OK(trion_session_logits(session, &logits, &size));
    CHECK(size == expected->vocab_size && memcmp(logits, expected->logits + count * size, size * sizeof *logits) == 0);
    return 1;
}

/* In calls of one budget, until each has its tokens. */
static void play_together(const trion_model *model, const trace *expected, size_t new_tokens, size_t budget) {
    trion_session *sessions[ROLES], *company[ROLES];
    trion_event events[ROLES];
    size_t counts[ROLES] = {0}, which[ROLES], i, round, left = ROLES, size;
    const float *logits;
    for (i = 0; i < ROLES; i++) {
        sessions[i] = begin_role(model, i, new_tokens);
    }
    CHECK_OK(trion_sessions_advance(sessions, ROLES, 0, events, &error));
    for (i = 0; i < ROLES; i++) {
        CHECK(events[i].kind == TRION_EVENT_MORE && events[i].units == 0 && events[i].token == 0);
        CHECK_STATUS(trion_session_logits(sessions[i], &logits, &size), TRION_NO_LOGITS);
    }
    for (round = 0; left > 0; round++) {
        size_t members = 0, units = 0;
        for (i = 0; i < ROLES; i++) {
            size_t k = (i + round) % ROLES;
            /* Some come later; some go when they have said enough. */
            if (counts[k] < new_tokens && (k % 3 != 2 || round >= k || left <= 2)) {
                which[members] = k;
                company[members++] = sessions[k];
            }
        }
        CHECK_OK(trion_sessions_advance(company, members, budget, events, &error));
        for (i = 0; i < members; i++) {
            int came = same_token(company[i], &events[i], &expected[which[i]], counts[which[i]]);
            CHECK(came || budget != SIZE_MAX);
            units += events[i].units;
            counts[which[i]] += (size_t)came;
            left -= came && counts[which[i]] == new_tokens;
        }
        CHECK(units > 0);
        if (round % 5 == 4) {
            /* One of them alone in between. */
            i = which[round % members];
            if (counts[i] < new_tokens) {
                CHECK_OK(trion_session_advance(sessions[i], budget, &events[0]));
                counts[i] += (size_t)same_token(sessions[i], &events[0], &expected[i], counts[i]);
                left -= events[0].kind == TRION_EVENT_TOKEN && counts[i] == new_tokens;
            }
        }
        CHECK(round < 1000000);
    }
    for (i = 0; i < ROLES; i++) {
        trion_session_free(sessions[i]);
    }
}

/* Computed without a choice; then the choice alone is left. */
static void compute_together(const trion_model *model, const trace *expected, size_t new_tokens) {
    trion_session *sessions[ROLES];
    trion_event events[ROLES];
    size_t i, ready, rounds = 0;
    for (i = 0; i < ROLES; i++) {
        sessions[i] = begin_role(model, i, new_tokens);
    }
    do {
        CHECK_OK(trion_sessions_compute(sessions, ROLES, 20, events, &error));
        for (i = ready = 0; i < ROLES; i++) {
            CHECK(events[i].kind == TRION_EVENT_READY || events[i].kind == TRION_EVENT_MORE);
            ready += events[i].kind == TRION_EVENT_READY;
        }
        CHECK(++rounds < 10000);
    } while (ready < ROLES);
    CHECK_OK(trion_sessions_advance(sessions, ROLES, 0, events, &error));
    for (i = 0; i < ROLES; i++) {
        CHECK(events[i].units == 0 && same_token(sessions[i], &events[i], &expected[i], 0));
        trion_session_free(sessions[i]);
    }
}

void same_together(const trion_model *together, const trion_model *alone, size_t new_tokens) {
    const size_t budgets[] = {SIZE_MAX, 1, 20, 700};
    trace expected[ROLES];
    size_t i;
    for (i = 0; i < ROLES; i++) {
        trion_session *session = begin_role(alone, i, new_tokens);
        expected[i] = take_trace(session, SIZE_MAX, new_tokens);
        trion_session_free(session);
    }
    for (i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        play_together(together, expected, new_tokens, budgets[i]);
    }
    compute_together(together, expected, new_tokens);
    for (i = 0; i < ROLES; i++) {
        free_trace(&expected[i]);
    }
}
