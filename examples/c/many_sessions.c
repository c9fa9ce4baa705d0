/*
 * A village: many characters on one model. Their sessions lie in one arena, and speak at the same time, some units of
 * work in each round. Then each text is computed alone, and comes out the same.
 *
 *     many_sessions MODEL [CHARACTERS]
 */
#include <trion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 12, UNITS_PER_ROUND = 200 };

static const char *const prompts[] = {
    "The captain said that",    "\"My dear,\" said the old lady,",
    "The doctor went out to",   "At the inn they told of",
    "The boy ran down to",      "In the garden there was",
    "The miller's daughter had", "Nobody knew that the king",
};

static void check(trion_status status, const trion_error *error)
{
    if (status != TRION_OK) {
        fprintf(stderr, "%s\n", error ? error->message : trion_status_string(status));
        exit(1);
    }
}

/* Puts a session to the beginning of a character's text. */
static void begin(trion_session *session, size_t character)
{
    trion_sampler_options sampler = {.struct_size = sizeof sampler};
    trion_error error;
    const char *prompt = prompts[character % (sizeof prompts / sizeof prompts[0])];

    sampler.temperature = 0.7f;
    sampler.top_k = 40;
    sampler.seed = character;
    check(trion_session_rewind(session, 0, &error), &error);
    check(trion_session_set_sampler(session, &sampler, &error), &error);
    check(trion_session_push_text(session, prompt, strlen(prompt), 0, &error), &error);
}

/* One round: all that have more to say advance, at most TRION_MAX_SESSIONS in a call. Gives how many these are. */
static size_t play_round(trion_session **sessions, size_t *words, size_t count)
{
    trion_session *speaking[TRION_MAX_SESSIONS];
    size_t who[TRION_MAX_SESSIONS], n = 0, busy = 0;
    trion_event events[TRION_MAX_SESSIONS];
    trion_error error;

    for (size_t i = 0; i < count; i++) {
        if (words[i] < WORDS) {
            who[n] = i;
            speaking[n++] = sessions[i];
            busy++;
        }
        if (n == TRION_MAX_SESSIONS || (n > 0 && i + 1 == count)) {
            check(trion_sessions_advance(speaking, n, UNITS_PER_ROUND, events, &error), &error);
            while (n-- > 0)
                words[who[n]] += events[n].kind != TRION_EVENT_MORE;
            n = 0;
        }
    }
    return busy;
}

static void print(const trion_model *model, size_t character, const trion_session *session)
{
    char text[2048];
    const uint32_t *tokens;
    size_t count, size;
    trion_error error;

    check(trion_session_tokens(session, &tokens, &count), NULL);
    check(trion_model_decode(model, tokens, count, TRION_DECODE_SKIP_SPECIAL, text, sizeof text, &size, &error),
          &error);
    printf("%3zu  ", character);
    for (size_t i = 0; i < size; i++)
        putchar(text[i] == '\n' ? ' ' : text[i]);
    printf("\n");
}

int main(int argc, char **argv)
{
    size_t count = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 8;
    trion_session_options options = {.struct_size = sizeof options};
    trion_error error;
    trion_model *model;
    trion_model_info info;
    size_t size, rounds = 0;
    int same = 1;

    if (argc < 2 || count == 0 || count > 10000) {
        fprintf(stderr, "usage: many_sessions MODEL [CHARACTERS]\n");
        return 2;
    }
    check(trion_model_open(NULL, argv[1], &model, &error), &error);
    check(trion_model_get_info(model, &info, sizeof info), NULL);

    /* Short memories and half precision: a character takes as little as its context needs. */
    options.context = 64;
    options.max_batch = 16;
    options.cache = TRION_CACHE_F16;
    check(trion_session_size(model, &options, &size, &error), &error);

    unsigned char *arena = malloc((count + 1) * size); /* one place more, for the comparison below */
    trion_session **sessions = malloc((count + 1) * sizeof *sessions);
    size_t *words = calloc(count, sizeof *words);
    if (arena == NULL || sessions == NULL || words == NULL)
        return 1;
    for (size_t i = 0; i <= count; i++) {
        check(trion_session_init(model, &options, arena + i * size, size, &sessions[i], &error), &error);
        if (i < count)
            begin(sessions[i], i);
    }

    while (play_round(sessions, words, count) > 0)
        rounds++;
    for (size_t i = 0; i < count; i++)
        print(model, i, sessions[i]);

    /* Nobody was disturbed by the others. */
    for (size_t i = 0; i < count; i++) {
        const uint32_t *together, *alone;
        size_t n, m;
        begin(sessions[count], i);
        for (size_t k = 0; k < WORDS; k++) {
            trion_event event;
            check(trion_session_advance(sessions[count], SIZE_MAX, &event), NULL);
        }
        check(trion_session_tokens(sessions[i], &together, &n), NULL);
        check(trion_session_tokens(sessions[count], &alone, &m), NULL);
        same = same && n == m && memcmp(together, alone, n * sizeof *alone) == 0;
    }

    printf("%zu characters in %zu rounds of %d units\n", count, rounds, UNITS_PER_ROUND);
    printf("memory: the model once, %.1f MiB, and %zu x %.1f KiB for %zu tokens each\n",
           (double)info.packed_bytes / (1 << 20), count, (double)size / 1024, options.context);
    printf("same texts as alone: %s\n", same ? "yes" : "no");

    for (size_t i = 0; i <= count; i++)
        trion_session_free(sessions[i]);
    trion_model_free(model);
    free(words);
    free(sessions);
    free(arena);
    return 0;
}
