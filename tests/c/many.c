/*
 * Many characters of one model: sessions that lie side by side in one block of the program's, take turns of one unit,
 * and say what each would say alone. The library takes no memory of its own for them.
 */
#include "check.h"
#include "support.h"

#define SESSIONS 64
#define CONTEXT 64

static size_t prompt_tokens, new_tokens;

/* Bytes of the process that are in memory; 0 where the system does not say. */
static size_t resident(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long whole, pages;
    size_t bytes = 0;
    if (file != NULL) {
        if (fscanf(file, "%lu %lu", &whole, &pages) == 2) {
            /* Pages are larger than this on some machines: then the limit below is only more generous. */
            bytes = (size_t)pages * 4096;
        }
        CHECK(fclose(file) == 0);
    }
    return bytes;
}

static void begin(trion_session *session, size_t vocab_size, size_t i) {
    push_numbers(session, vocab_size, prompt_tokens + i % 5, i);
    sample(session, i);
}

static void play(const char *path, int measure) {
    trion_model *model = open_model(NULL, path);
    size_t vocab_size = vocab_size_of(model), size, before, after, i, left = SESSIONS;
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *sessions[SESSIONS], *lone;
    uint32_t *tokens = take(SESSIONS * new_tokens * sizeof *tokens), *written = tokens;
    size_t counts[SESSIONS] = {0};
    unsigned char *arena;
    options.context = CONTEXT;
    options.max_batch = 8;
    options.ignore_end = 1;
    CHECK_OK(trion_session_size(model, &options, &size, &error));

    /* One of them first, so that all of the model has been looked at before it is measured. */
    CHECK_OK(trion_session_new(model, &options, NULL, &lone, &error));
    begin(lone, vocab_size, 0);
    (void)next_token(lone);
    before = resident();
    arena = take(SESSIONS * size);
    for (i = 0; i < SESSIONS; i++) {
        CHECK_OK(trion_session_init(model, &options, arena + i * size, size, &sessions[i], &error));
        begin(sessions[i], vocab_size, i);
    }
    while (left > 0) {
        for (i = 0; i < SESSIONS; i++) {
            trion_event event;
            if (counts[i] < new_tokens) {
                CHECK_OK(trion_session_advance(sessions[i], 1, &event));
                CHECK(event.kind != TRION_EVENT_DONE);
                if (event.kind == TRION_EVENT_TOKEN) {
                    written[i * new_tokens + counts[i]] = event.token;
                    left -= ++counts[i] == new_tokens;
                }
            }
        }
    }
    after = resident();
    CHECK(!measure || after == 0 || after < before + SESSIONS * size + (8u << 20));

    for (i = 0; i < SESSIONS; i++) {
        size_t k;
        trion_session_free(sessions[i]);
        CHECK_OK(trion_session_rewind(lone, 0, &error));
        begin(lone, vocab_size, i);
        for (k = 0; k < new_tokens; k++) {
            CHECK(next_token(lone) == written[i * new_tokens + k]);
        }
    }
    trion_session_free(lone);
    trion_model_free(model);
    free(arena);
    free(tokens);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    prompt_tokens = 20;
    new_tokens = arguments.quick ? 2 : 20;
    /* A tool that looks at every access keeps memory of its own about it. */
    play(golden(&arguments, "bitnet_offline"), !arguments.quick);
    if (!arguments.quick) {
        new_tokens = 6;
        play(arguments.model, 1);
    }
    return 0;
}
