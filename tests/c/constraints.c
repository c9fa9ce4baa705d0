/* Constraints: texts follow them, sessions carry them as they carry everything else, and what cannot be is told. */
#include <pthread.h>

#include "check.h"
#include "support.h"

#define PROMPT 5
#define DATE "[0-9]{4}-[0-9]{2}-[0-9]{2}"

/* Each part is bounded, and there are no blanks, so that a text fits in the context of a tiny model. */
static const char schema[] =
    "{\"type\": \"object\", \"properties\": {"
    "\"name\": {\"type\": \"string\", \"pattern\": \"^[a-z]{2,5}$\"},"
    "\"age\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 99},"
    "\"mood\": {\"enum\": [\"calm\", \"angry\"]}},"
    "\"required\": [\"name\", \"age\", \"mood\"], \"additionalProperties\": false,"
    "\"x-guidance\": {\"whitespace_flexible\": false}}";

static const char grammar[] =
    "start: greeting (\" \" NAME)~1..3 \".\"\n"
    "greeting: \"Dear\" | \"My dear\"\n"
    "NAME: /[A-Z][a-z]{1,4}/\n";

static trion_model *model;
static size_t vocab_size;

static trion_constraint *compile(trion_grammar kind, const char *source) {
    trion_constraint *constraint;
    CHECK_OK(trion_constraint_new(model, (uint32_t)kind, source, strlen(source), &constraint, &error));
    return constraint;
}

static void constrain(trion_session *session, const trion_constraint *constraint) {
    CHECK_OK(trion_session_set_constraint(session, constraint, &error));
}

/* A session that has a prompt. */
static trion_session *begin(const trion_constraint *constraint) {
    trion_session *session = new_session(model, 64, 0);
    constrain(session, constraint);
    push_numbers(session, vocab_size, PROMPT, 1);
    return session;
}

/* What a session wrote until it was done. */
typedef struct written {
    trion_reason reason;
    size_t count, size;
    uint32_t tokens[64];
    char text[512];
} written;

static written write_all(trion_session *session, size_t budget) {
    written written = {TRION_REASON_NONE, 0, 0, {0}, {0}};
    trion_event event;
    while (written.reason == TRION_REASON_NONE) {
        CHECK_OK(trion_session_advance(session, budget, &event));
        if (event.kind == TRION_EVENT_TOKEN) {
            CHECK(written.count < 64);
            written.tokens[written.count++] = event.token;
        }
        written.reason = event.reason;
    }
    CHECK_OK(trion_model_decode(model, written.tokens, written.count, 0, written.text, sizeof written.text - 1,
                                &written.size, &error));
    return written;
}

static int same_written(const written *one, const written *other) {
    return one->reason == other->reason && one->count == other->count
        && memcmp(one->tokens, other->tokens, one->count * sizeof *one->tokens) == 0;
}

static int is_date(const written *written) {
    size_t i;
    for (i = 0; i < written->size; i++) {
        int digit = written->text[i] >= '0' && written->text[i] <= '9';
        if (i == 4 || i == 7 ? written->text[i] != '-' : !digit) {
            return 0;
        }
    }
    return written->reason == TRION_REASON_CONSTRAINT && written->size == 10;
}

static int is_object(const written *written) {
    char name[8], age[4], mood[8];
    int end = -1;
    return written->reason == TRION_REASON_CONSTRAINT
        && sscanf(written->text, "{\"name\":\"%5[a-z]\",\"age\":%2[0-9],\"mood\":\"%5[a-z]\"}%n", name, age, mood,
                  &end) == 3
        && end == (int)written->size && strlen(name) >= 2 && (age[0] != '0' || age[1] == 0)
        && (strcmp(mood, "calm") == 0 || strcmp(mood, "angry") == 0);
}

static int is_greeting(const written *written) {
    const char *rest = written->text;
    int names = 0;
    if (strncmp(rest, "My dear", 7) == 0) {
        rest += 7;
    } else if (strncmp(rest, "Dear", 4) == 0) {
        rest += 4;
    }
    while (*rest == ' ') {
        char first[2], others[5];
        int length = -1;
        if (sscanf(rest, " %1[A-Z]%4[a-z]%n", first, others, &length) != 2) {
            return 0;
        }
        rest += length;
        names++;
    }
    return written->reason == TRION_REASON_CONSTRAINT && rest != written->text && names >= 1 && names <= 3
        && strcmp(rest, ".") == 0;
}

/* By a greedy sampler and by others, in one call for a token and in many, each text is what it has to be. */
static void texts(int samplers) {
    const struct {
        trion_grammar kind;
        const char *source;
        int (*holds)(const written *written);
    } kinds[] = {
        {TRION_GRAMMAR_JSON_SCHEMA, schema, is_object},
        {TRION_GRAMMAR_REGEX, DATE, is_date},
        {TRION_GRAMMAR_LARK, grammar, is_greeting},
    };
    size_t i;
    int seed;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        trion_constraint *constraint = compile(kinds[i].kind, kinds[i].source);
        for (seed = 0; seed < samplers; seed++) {
            trion_session *session = begin(constraint), *slow = begin(constraint);
            written whole, sliced, again;
            trion_event event;
            if (seed > 0) {
                sample(session, (uint64_t)seed);
                sample(slow, (uint64_t)seed);
            }
            whole = write_all(session, SIZE_MAX);
            if (!kinds[i].holds(&whole)) {
                fprintf(stderr, "\"%s\" ends with reason %d\n", whole.text, (int)whole.reason);
                CHECK(!"the text does not follow its constraint");
            }
            /* Computing without choosing does not go on in the text. */
            CHECK_OK(trion_session_compute(slow, SIZE_MAX, &event));
            CHECK(event.kind == TRION_EVENT_READY);
            sliced = write_all(slow, 1);
            CHECK(same_written(&whole, &sliced));
            /* Done is done. */
            again = write_all(session, SIZE_MAX);
            CHECK(again.count == 0 && again.reason == TRION_REASON_CONSTRAINT);
            trion_session_free(session);
            trion_session_free(slow);
        }
        trion_constraint_free(constraint);
    }
}

/* The most probable token that is allowed, by three ways to ask for it. */
static void greedy_samplers(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE);
    trion_session *session = begin(constraint);
    trion_sampler_options options = {.struct_size = sizeof options};
    written greedy = write_all(session, SIZE_MAX), found;
    int way;
    options.temperature = 1.5f;
    options.seed = 5;
    for (way = 0; way < 2; way++) {
        options.top_k = way == 0;
        options.min_p = way == 0 ? 0.0f : 1.0f;
        CHECK_OK(trion_session_rewind(session, 0, &error));
        CHECK_OK(trion_session_set_sampler(session, &options, &error));
        push_numbers(session, vocab_size, PROMPT, 1);
        found = write_all(session, SIZE_MAX);
        CHECK(same_written(&greedy, &found));
    }
    trion_session_free(session);
    trion_constraint_free(constraint);
}

/* The text begins after the tokens that were pushed last, wherever the one before it had come to. */
static void beginnings(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE);
    trion_session *session = begin(constraint), *fresh;
    written first, second, third;
    size_t chosen;
    first = write_all(session, SIZE_MAX);
    CHECK(is_date(&first));
    push_numbers(session, vocab_size, 3, 2);
    second = write_all(session, SIZE_MAX);
    CHECK(is_date(&second) && length_of(session) == PROMPT + first.count + 3 + second.count);
    for (chosen = 0; chosen < 4; chosen++) {
        CHECK_OK(trion_session_rewind(session, 0, &error));
        push_numbers(session, vocab_size, PROMPT, 3);
        while (length_of(session) < PROMPT + chosen) {
            (void)next_token(session);
        }
        push_numbers(session, vocab_size, 2, 4);
        third = write_all(session, SIZE_MAX);
        CHECK(is_date(&third) && length_of(session) == PROMPT + chosen + 2 + third.count);
    }
    /* A constraint that comes after tokens were chosen begins with the next one; setting it again begins anew. */
    fresh = begin(NULL);
    (void)next_token(fresh);
    (void)next_token(fresh);
    constrain(fresh, constraint);
    (void)next_token(fresh);
    constrain(fresh, constraint);
    third = write_all(fresh, SIZE_MAX);
    CHECK(is_date(&third) && length_of(fresh) == PROMPT + 3 + third.count);
    trion_session_free(fresh);
    trion_session_free(session);
    trion_constraint_free(constraint);
}

/* At each place a token is taken back and chosen again: the text goes on as if nothing had been. */
static void rewinding(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_JSON_SCHEMA, schema);
    trion_session *session = begin(constraint);
    written expected = write_all(session, SIZE_MAX), found;
    trion_event event;
    size_t i;
    CHECK_OK(trion_session_rewind(session, 0, &error));
    push_numbers(session, vocab_size, PROMPT, 1);
    for (i = 0; i < expected.count; i++) {
        CHECK(next_token(session) == expected.tokens[i]);
        CHECK_OK(trion_session_rewind(session, PROMPT + i, &error));
        CHECK_OK(trion_session_advance(session, 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == expected.tokens[i]);
    }
    found = write_all(session, SIZE_MAX);
    CHECK(found.count == 0 && found.reason == TRION_REASON_CONSTRAINT);

    /* With random numbers another token may come, but no text that is wrong. */
    sample(session, 8);
    CHECK_OK(trion_session_rewind(session, 0, &error));
    push_numbers(session, vocab_size, PROMPT, 1);
    memset(&found, 0, sizeof found);
    for (;;) {
        CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
        if (event.kind == TRION_EVENT_DONE) {
            break;
        }
        for (i = 0; i < 3; i++) {
            CHECK_OK(trion_session_rewind(session, PROMPT + found.count, &error));
            CHECK_OK(trion_session_advance(session, 0, &event));
            CHECK(event.kind == TRION_EVENT_TOKEN);
        }
        CHECK(found.count < 64);
        found.tokens[found.count++] = event.token;
    }
    CHECK_OK(trion_model_decode(model, found.tokens, found.count, 0, found.text, sizeof found.text - 1, &found.size,
                                &error));
    found.reason = event.reason;
    CHECK(is_object(&found));

    /* Back to before the text, whatever is pushed there, it begins anew. */
    CHECK_OK(trion_session_rewind(session, PROMPT - 1, &error));
    push_numbers(session, vocab_size, 2, 9);
    found = write_all(session, SIZE_MAX);
    CHECK(is_object(&found));
    trion_session_free(session);
    trion_constraint_free(constraint);
}

/* Copies go on in the text from the place where the original is, also within a token. */
static void copies(size_t step) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_JSON_SCHEMA, schema);
    trion_constraint *other = compile(TRION_GRAMMAR_REGEX, DATE);
    trion_session *reference = begin(constraint), *fork, *assigned = begin(other);
    written expected, found;
    size_t steps;
    sample(reference, 2);
    expected = write_all(reference, SIZE_MAX);
    CHECK(is_object(&expected));
    for (steps = 0;; steps += step) {
        trion_session *session = begin(constraint);
        trion_event event = {TRION_EVENT_MORE, TRION_REASON_NONE, 0, 0.0f, 0};
        size_t i, done;
        sample(session, 2);
        for (i = 0; i < steps && event.kind != TRION_EVENT_DONE; i++) {
            CHECK_OK(trion_session_advance(session, 1, &event));
        }
        done = length_of(session) - PROMPT;
        CHECK_OK(trion_session_fork(session, NULL, &fork, &error));
        CHECK_OK(trion_session_assign(assigned, session, &error));
        trion_session_free(session);
        found = write_all(fork, SIZE_MAX);
        CHECK(found.reason == expected.reason && found.count == expected.count - done);
        CHECK(memcmp(found.tokens, expected.tokens + done, found.count * sizeof *found.tokens) == 0);
        found = write_all(assigned, 3);
        CHECK(found.reason == expected.reason && found.count == expected.count - done);
        CHECK(memcmp(found.tokens, expected.tokens + done, found.count * sizeof *found.tokens) == 0);
        trion_session_free(fork);
        if (event.kind == TRION_EVENT_DONE) {
            break;
        }
    }
    CHECK(steps > 2 * step);
    trion_session_free(reference);
    trion_session_free(assigned);
    trion_constraint_free(constraint);
    trion_constraint_free(other);
}

/* What ends a constraint: loading, NULL, and coming to where a session without one is. */
static void ends(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE);
    trion_session *free_session = begin(NULL), *session, *back;
    trace without, with;
    unsigned char *state;
    size_t size;
    int way, begun;
    written written;
    for (begun = 0; begun <= 1; begun++) {
        for (way = 0; way < 3; way++) {
            session = begin(constraint);
            if (begun) {
                (void)next_token(session);
                (void)next_token(session);
            }
            CHECK_OK(trion_session_saved_size(session, &size));
            state = take(size);
            CHECK_OK(trion_session_save(session, state, size, &size, &error));
            /* A load that is refused leaves the constraint as it is. */
            CHECK_STATUS(trion_session_load(session, state, size - 1, &error), TRION_STATE);
            CHECK_OK(trion_session_fork(session, NULL, &back, &error));
            written = write_all(back, SIZE_MAX);
            CHECK(written.reason == TRION_REASON_CONSTRAINT);
            trion_session_free(back);

            CHECK_OK(trion_session_load(free_session, state, size, &error));
            CHECK_OK(trion_session_fork(free_session, NULL, &back, &error));
            if (way == 0) {
                CHECK_OK(trion_session_load(session, state, size, &error));
            } else if (way == 1) {
                constrain(session, NULL);
            } else {
                CHECK_OK(trion_session_assign(session, free_session, &error));
            }
            without = take_trace(free_session, SIZE_MAX, 12);
            with = take_trace(session, SIZE_MAX, 12);
            CHECK(same_trace(&with, &without));
            /* It would have written something else, and have ended before. */
            constrain(back, constraint);
            written = write_all(back, SIZE_MAX);
            CHECK(is_date(&written) && memcmp(written.tokens, with.tokens, sizeof *with.tokens) != 0);
            free_trace(&with);
            free_trace(&without);
            free(state);
            trion_session_free(back);
            trion_session_free(session);
        }
    }
    trion_session_free(free_session);
    trion_constraint_free(constraint);
}

/* The same weights with another tokenizer are another model: its tokens stand for something else. */
static void other_models(const char *path) {
    trion_model *other = open_model(NULL, path);
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE), *stranger;
    trion_session *session = begin(constraint);
    written written;
    CHECK_OK(trion_constraint_new(other, TRION_GRAMMAR_REGEX, "a", 1, &stranger, &error));
    (void)next_token(session);
    CHECK_STATUS(trion_session_set_constraint(session, stranger, &error), TRION_OTHER_MODEL);
    CHECK(error.status == TRION_OTHER_MODEL && error.message[0] != 0);
    written = write_all(session, SIZE_MAX);
    CHECK(written.reason == TRION_REASON_CONSTRAINT && length_of(session) > PROMPT + 1);
    trion_constraint_free(stranger);
    trion_constraint_free(constraint);
    trion_session_free(session);
    trion_model_free(other);
}

/* A model, its constraint and its session are freed in each of the six orders; what is left works. */
static void lifetimes(const char *path) {
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    trion_session *quiet;
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE);
    written expected;
    size_t i, j;
    quiet = begin(constraint);
    expected = write_all(quiet, SIZE_MAX);
    trion_session_free(quiet);
    trion_constraint_free(constraint);
    for (i = 0; i < 6; i++) {
        trion_model *own = open_model(NULL, path);
        trion_session *session = new_session(own, 64, 0);
        size_t chosen = 0;
        CHECK_OK(trion_constraint_new(own, TRION_GRAMMAR_REGEX, DATE, strlen(DATE), &constraint, &error));
        constrain(session, constraint);
        push_numbers(session, vocab_size, PROMPT, 1);
        for (j = 0; j < 3; j++) {
            if (orders[i][j] == 0) {
                trion_model_free(own);
                own = NULL;
            } else if (orders[i][j] == 1) {
                trion_constraint_free(constraint);
                constraint = NULL;
            } else {
                trion_session_free(session);
                session = NULL;
            }
            if (session != NULL) {
                CHECK(next_token(session) == expected.tokens[chosen++]);
            } else if (constraint != NULL && own != NULL) {
                trion_session *late = new_session(own, 64, 0);
                written found;
                constrain(late, constraint);
                push_numbers(late, vocab_size, PROMPT, 1);
                found = write_all(late, SIZE_MAX);
                CHECK(same_written(&found, &expected));
                trion_session_free(late);
            }
        }
    }
}

/* The one token of this model that has a tilde has two of them, so a text with one tilde cannot be written. */
static void dead_ends(const char *path) {
    const char *patterns[] = {"[^\\s\\S]", "se~", "s(e~|t~!)"};
    const size_t sizes[] = {0, 2, 2};
    trion_model *restored = model;
    size_t i;
    model = open_model(NULL, path);
    for (i = 0; i < 3; i++) {
        trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, patterns[i]);
        trion_session *session = begin(constraint);
        written found = write_all(session, SIZE_MAX), again;
        CHECK(found.reason == TRION_REASON_DEAD_END && found.size == sizes[i]);
        CHECK(strncmp(found.text, "se", found.size) == 0 || strncmp(found.text, "st", found.size) == 0);
        again = write_all(session, SIZE_MAX);
        CHECK(again.reason == TRION_REASON_DEAD_END && again.count == 0);
        CHECK(length_of(session) == PROMPT + found.count);
        /* Nothing is lost: without the constraint the session goes on. */
        constrain(session, NULL);
        (void)next_token(session);
        trion_session_free(session);
        trion_constraint_free(constraint);
    }
    trion_model_free(model);
    model = restored;
}

/* Where a text may end, the model may end it; if it does not, the text may go on. */
static void ends_of_the_model(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, "(ab)*");
    trion_sampler_options blind = {.struct_size = sizeof blind};
    trion_session *session;
    int ended = 0, full = 0;
    CHECK_OK(trion_session_new(model, NULL, NULL, &session, &error));
    constrain(session, constraint);
    blind.temperature = 100.0f;
    for (blind.seed = 1; ended < 5; blind.seed++) {
        written found;
        size_t i;
        CHECK(blind.seed < 200);
        CHECK_OK(trion_session_rewind(session, 0, &error));
        CHECK_OK(trion_session_set_sampler(session, &blind, &error));
        push_numbers(session, vocab_size, PROMPT, 1);
        found = write_all(session, SIZE_MAX);
        CHECK(found.reason == TRION_REASON_END || found.reason == TRION_REASON_CONTEXT);
        for (i = 0; i < found.size; i++) {
            CHECK(found.text[i] == (i % 2 == 0 ? 'a' : 'b'));
        }
        CHECK(found.reason == TRION_REASON_CONTEXT || found.size % 2 == 0);
        ended += found.reason == TRION_REASON_END && found.size > 0;
        full += found.reason == TRION_REASON_CONTEXT;
    }
    CHECK(full < 5);
    trion_session_free(session);
    trion_constraint_free(constraint);
}

static void malformed(void) {
    static const struct {
        trion_grammar kind;
        const char *source;
    } sources[] = {
        {TRION_GRAMMAR_JSON_SCHEMA, "{"},
        {TRION_GRAMMAR_JSON_SCHEMA, "{\"type\": \"number of things\"}"},
        {TRION_GRAMMAR_JSON_SCHEMA, "{\"type\": \"object\", \"not\": {\"type\": \"string\"}}"},
        {TRION_GRAMMAR_JSON_SCHEMA, "{\"$ref\": \"#/nowhere\"}"},
        {TRION_GRAMMAR_REGEX, "("},
        {TRION_GRAMMAR_REGEX, "[z-a]"},
        {TRION_GRAMMAR_REGEX, "a(?=b)"},
        {TRION_GRAMMAR_LARK, "start: \"a"},
        {TRION_GRAMMAR_LARK, "begin: \"a\"\n"},
        {TRION_GRAMMAR_LARK, "start: missing\n"},
    };
    char *deep, *large;
    size_t i, size = 100000;
    trion_constraint *constraint = NULL;
    for (i = 0; i < sizeof sources / sizeof *sources; i++) {
        const char *source = sources[i].source;
        uint32_t kind = (uint32_t)sources[i].kind;
        CHECK_STATUS(trion_constraint_new(model, kind, source, strlen(source), &constraint, &error), TRION_CONSTRAINT);
        CHECK(error.status == TRION_CONSTRAINT && strlen(error.message) > 10 && constraint == NULL);
    }
    /* The bounds: one that is nested too deep for any stack, and one that is too large. */
    deep = take(size);
    memset(deep, '(', size);
    CHECK_STATUS(trion_constraint_new(model, TRION_GRAMMAR_REGEX, deep, 60000, &constraint, &error), TRION_CONSTRAINT);
    memset(deep, '[', size);
    CHECK_STATUS(trion_constraint_new(model, TRION_GRAMMAR_JSON_SCHEMA, deep, size, &constraint, &error),
                 TRION_CONSTRAINT);
    free(deep);
    large = take(2 * size);
    memset(large, 'a', 2 * size);
    CHECK_STATUS(trion_constraint_new(model, TRION_GRAMMAR_REGEX, large, 2 * size, &constraint, &error),
                 TRION_CONSTRAINT);
    CHECK(constraint == NULL);
    free(large);
}

typedef struct heard {
    size_t size;
    char text[512];
} heard;

static int hear(void *user, const char *text, size_t size) {
    heard *heard = user;
    CHECK(heard->size + size < sizeof heard->text);
    memcpy(heard->text + heard->size, text, size);
    heard->size += size;
    return 1;
}

/* trion_generate() comes to the same text, and says why it ended. */
static void generating(void) {
    trion_constraint *constraint = compile(TRION_GRAMMAR_JSON_SCHEMA, schema);
    trion_constraint *nothing = compile(TRION_GRAMMAR_REGEX, "[^\\s\\S]");
    trion_session *session = begin(constraint), *other = begin(constraint);
    written expected = write_all(session, SIZE_MAX);
    heard heard = {0, {0}};
    trion_stop stop;
    CHECK_OK(trion_generate(other, NULL, 2, hear, &heard, &stop, &error));
    CHECK(stop == TRION_STOP_MAX_TOKENS);
    CHECK_OK(trion_generate(other, NULL, 1000, hear, &heard, &stop, &error));
    CHECK(stop == TRION_STOP_CONSTRAINT);
    CHECK(heard.size == expected.size && memcmp(heard.text, expected.text, heard.size) == 0);
    constrain(other, nothing);
    CHECK_OK(trion_generate(other, NULL, 1000, hear, &heard, &stop, &error));
    CHECK(stop == TRION_STOP_DEAD_END && heard.size == expected.size);
    trion_session_free(session);
    trion_session_free(other);
    trion_constraint_free(constraint);
    trion_constraint_free(nothing);
}

#define THREADS 4

typedef struct player {
    const trion_model *model;
    const trion_constraint *constraint;
    uint64_t seed;
    size_t count;
    uint32_t tokens[64];
} player;

/* Every failure ends the test, so nothing here needs the one variable for words. */
static void *play(void *user) {
    player *player = user;
    trion_session_options options = {.struct_size = sizeof options};
    trion_sampler_options sampler = {.struct_size = sizeof sampler};
    trion_constraint *own = NULL;
    trion_session *session;
    trion_event event;
    const uint32_t token = 1;
    if (player->constraint == NULL) {
        CHECK(trion_constraint_new(player->model, TRION_GRAMMAR_REGEX, DATE, strlen(DATE), &own, NULL) == TRION_OK);
    }
    sampler.temperature = 1.0f;
    sampler.seed = player->seed;
    CHECK(trion_session_new(player->model, &options, NULL, &session, NULL) == TRION_OK);
    CHECK(trion_session_set_sampler(session, &sampler, NULL) == TRION_OK);
    CHECK(trion_session_set_constraint(session, own != NULL ? own : player->constraint, NULL) == TRION_OK);
    CHECK(trion_session_push(session, &token, 1, NULL) == TRION_OK);
    for (;;) {
        CHECK(trion_session_advance(session, SIZE_MAX, &event) == TRION_OK);
        if (event.kind == TRION_EVENT_DONE) {
            break;
        }
        CHECK(player->count < 64);
        player->tokens[player->count++] = event.token;
    }
    CHECK(event.reason == TRION_REASON_CONSTRAINT);
    trion_session_free(session);
    trion_constraint_free(own);
    return NULL;
}

/* Sessions on several threads share a constraint, or compile the model's first ones at once: the texts are the same. */
static void threads(const char *path) {
    int shared;
    trion_constraint *constraint = compile(TRION_GRAMMAR_REGEX, DATE);
    for (shared = 0; shared <= 1; shared++) {
        trion_model *own = open_model(NULL, path);
        player players[THREADS], alone;
        pthread_t handles[THREADS];
        size_t i;
        memset(players, 0, sizeof players);
        for (i = 0; i < THREADS; i++) {
            players[i].model = shared ? model : own;
            players[i].seed = i;
            players[i].constraint = shared ? constraint : NULL;
            CHECK(pthread_create(&handles[i], NULL, play, &players[i]) == 0);
        }
        for (i = 0; i < THREADS; i++) {
            CHECK(pthread_join(handles[i], NULL) == 0);
        }
        for (i = 0; i < THREADS; i++) {
            memset(&alone, 0, sizeof alone);
            alone.model = model;
            alone.seed = i;
            alone.constraint = constraint;
            (void)play(&alone);
            CHECK(alone.count == players[i].count);
            CHECK(memcmp(alone.tokens, players[i].tokens, sizeof alone.tokens) == 0);
        }
        trion_model_free(own);
    }
    trion_constraint_free(constraint);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    char path[4096];
    snprintf(path, sizeof path, "%s", golden(&arguments, "bitnet_offline"));
    model = open_model(NULL, path);
    vocab_size = vocab_size_of(model);
    texts(arguments.quick ? 2 : 20);
    greedy_samplers();
    beginnings();
    rewinding();
    copies(arguments.quick ? 17 : 1);
    ends();
    other_models(arguments.chat);
    lifetimes(path);
    dead_ends(arguments.chat);
    ends_of_the_model();
    malformed();
    generating();
    threads(path);
    trion_model_free(model);
    if (!arguments.quick) {
        model = open_model(NULL, arguments.model);
        vocab_size = vocab_size_of(model);
        texts(3);
        trion_model_free(model);
    }
    return 0;
}
