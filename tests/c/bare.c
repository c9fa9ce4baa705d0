/*
 * Sessions on bare metal, of models that `trion embed` wrote as C, against ordinary sessions of the same models: the same
 * tokens and the same logits, bit by bit.
 */
#include "bare_models.h"
#include "check.h"
#include "support.h"

#define TOKENS 12
#define PROMPT 9

static trion_bare_session *init(const bare_model *model, const trion_bare_options *options, unsigned char *buffer,
                                size_t size) {
    trion_bare_session *session;
    CHECK_OK(trion_bare_init(model->tables, options, buffer, size, &session, &error));
    CHECK((unsigned char *)session >= buffer && (unsigned char *)session < buffer + size);
    return session;
}

static void sampler(trion_bare_session *session, uint64_t seed) {
    trion_sampler_options options = {.struct_size = sizeof options};
    options.temperature = 1.2f;
    options.top_p = 0.95f;
    options.repetition_penalty = 1.1f;
    options.seed = seed;
    CHECK_OK(trion_bare_set_sampler(session, &options, &error));
}

static void push_prompt(trion_bare_session *session, size_t vocab_size, uint64_t seed) {
    uint32_t tokens[PROMPT];
    size_t i;
    for (i = 0; i < PROMPT; i++) {
        tokens[i] = next_number(&seed) % (uint32_t)vocab_size;
    }
    CHECK_OK(trion_bare_push(session, tokens, PROMPT, &error));
}

static size_t position(const trion_bare_session *session) {
    size_t position;
    CHECK_OK(trion_bare_position(session, &position));
    return position;
}

/* Advances to logits; gives the number of calls. */
static size_t advance(trion_bare_session *session, size_t budget) {
    trion_bare_progress progress;
    size_t calls = 0;
    do {
        CHECK_OK(trion_bare_advance(session, budget, &progress));
        calls++;
    } while (progress == TRION_BARE_MORE);
    CHECK(progress == TRION_BARE_READY);
    return calls;
}

/* Chooses and pushes tokens as the ordinary session did. */
static void follow(trion_bare_session *session, const trace *expected, size_t budget) {
    size_t i, calls = 0, before = position(session);
    for (i = 0; i < expected->count; i++) {
        const float *logits;
        size_t count;
        uint32_t token;
        calls += advance(session, budget);
        CHECK_OK(trion_bare_logits(session, &logits, &count));
        CHECK(count == expected->vocab_size);
        CHECK(memcmp(logits, expected->logits + i * count, count * sizeof *logits) == 0);
        CHECK_OK(trion_bare_sample(session, &token));
        CHECK(token == expected->tokens[i]);
        CHECK_OK(trion_bare_push(session, &token, 1, &error));
    }
    CHECK(position(session) == before + expected->count);
    /* A small budget is spent often. */
    CHECK(budget > 1 || calls > 20 * expected->count);
}

/* What an ordinary session of the model comes to. */
static trace ordinary(const trion_model *model, trion_cache cache, uint64_t seed) {
    trion_session *session = session_of(model, PROMPT + TOKENS, 4, cache);
    trace trace;
    sample(session, seed);
    push_numbers(session, vocab_size_of(model), PROMPT, seed);
    trace = take_trace(session, SIZE_MAX, TOKENS);
    trion_session_free(session);
    return trace;
}

static void same_as_ordinary(const bare_model *tables, const trion_model *model) {
    static const trion_cache caches[] = {TRION_CACHE_F32, TRION_CACHE_F16};
    static const size_t budgets[] = {1, 7, SIZE_MAX}, batches[] = {0, 4, PROMPT};
    size_t i, j;
    for (i = 0; i < sizeof caches / sizeof *caches; i++) {
        trace expected = ordinary(model, caches[i], 5);
        for (j = 0; j < sizeof budgets / sizeof *budgets; j++) {
            trion_bare_options options = {.struct_size = sizeof options};
            trion_bare_session *session;
            unsigned char *buffer;
            size_t size;
            options.context = PROMPT + TOKENS;
            options.max_batch = batches[j];
            options.cache = caches[i];
            CHECK_OK(trion_bare_size(tables->tables, &options, &size, &error));
            /* At any address, with a byte less it is too small, and not a byte beside it is written. */
            buffer = take(size + 64);
            memset(buffer, 0xa5, size + 64);
            CHECK_STATUS(trion_bare_init(tables->tables, &options, buffer, size - 1, &session, &error),
                         TRION_BUFFER_TOO_SMALL);
            session = init(tables, &options, buffer + 3 * j + 1, size);
            sampler(session, 5);
            push_prompt(session, vocab_size_of(model), 5);
            follow(session, &expected, budgets[j]);
            /* Again from within the text, and from its beginning. */
            CHECK_OK(trion_bare_rewind(session, 0, &error));
            CHECK(position(session) == 0);
            sampler(session, 5);
            push_prompt(session, vocab_size_of(model), 5);
            follow(session, &expected, SIZE_MAX);
            CHECK(buffer[3 * j] == 0xa5 && buffer[3 * j + 1 + size] == 0xa5);
            free(buffer);
        }
        free_trace(&expected);
    }
}

/* Two sessions on one table, in turns. */
static void side_by_side(const bare_model *tables, const trion_model *model) {
    trion_bare_session *sessions[2];
    unsigned char *buffers[2];
    trace expected[2];
    size_t i, n;
    CHECK(tables->session_size > 0);
    for (n = 0; n < 2; n++) {
        size_t size;
        CHECK_OK(trion_bare_size(tables->tables, tables->options, &size, &error));
        CHECK(size <= tables->session_size && tables->session_size - size < 256);
        buffers[n] = take(tables->session_size);
        sessions[n] = init(tables, tables->options, buffers[n], tables->session_size);
        push_prompt(sessions[n], vocab_size_of(model), 11 + n);
        sampler(sessions[n], 11 + n);
        expected[n] = ordinary(model, TRION_CACHE_F16, 11 + n);
    }
    for (i = 0; i < TOKENS; i++) {
        for (n = 0; n < 2; n++) {
            trace one = {1, expected[n].vocab_size, expected[n].tokens + i,
                         expected[n].logits + i * expected[n].vocab_size};
            follow(sessions[n], &one, 3 + n);
        }
    }
    for (n = 0; n < 2; n++) {
        free_trace(&expected[n]);
        free(buffers[n]);
    }
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    size_t i;
    for (i = 0; i < bare_model_count; i++) {
        trion_model *model = open_model(NULL, bare_models[i].path);
        same_as_ordinary(&bare_models[i], model);
        side_by_side(&bare_models[i], model);
        trion_model_free(model);
        if (arguments.quick && i == 1) {
            break;
        }
    }
    return 0;
}
