/*
 * Text as it is written: stop strings wherever they lie, characters of several tokens, special tokens, the two ways
 * with callbacks, and probabilities.
 */
#include "check.h"
#include "support.h"

#define PROMPT "The ship had been at sea for nine days when"
#define TOKENS 40

/* What a callback has received. */
typedef struct heard {
    char text[4096];
    size_t size;
    size_t pieces;
    size_t most_pieces; /* after which it wants no more */
    uint32_t tokens[TOKENS];
    size_t token_count;
} heard;

static int hear_text(void *user, const char *text, size_t size) {
    heard *heard = user;
    CHECK(size > 0 && heard->size + size < sizeof heard->text);
    memcpy(heard->text + heard->size, text, size);
    heard->size += size;
    heard->text[heard->size] = 0;
    heard->pieces++;
    return heard->pieces < heard->most_pieces;
}

static int hear_event(void *user, const trion_event *event) {
    heard *heard = user;
    if (event->kind == TRION_EVENT_TOKEN) {
        CHECK(heard->token_count < TOKENS);
        heard->tokens[heard->token_count++] = event->token;
    }
    return heard->token_count < TOKENS;
}

static trion_session *begin(const trion_model *model, uint32_t probabilities) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    options.ignore_end = 1;
    options.probabilities = probabilities;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    CHECK_OK(trion_session_push_text(session, PROMPT, strlen(PROMPT), 0, &error));
    return session;
}

/* Generates with these stop strings. */
static trion_stop generate(const trion_model *model, const char *const *stops, size_t count, size_t most_pieces,
                           heard *heard) {
    trion_session *session = begin(model, 0);
    trion_text_options options = {.struct_size = sizeof options};
    trion_text *text;
    trion_stop stop;
    memset(heard, 0, sizeof *heard);
    heard->most_pieces = most_pieces;
    options.stops = stops;
    options.stop_count = count;
    CHECK_OK(trion_text_new(model, &options, &text, &error));
    CHECK_OK(trion_generate(session, text, TOKENS, hear_text, heard, &stop, &error));
    trion_text_free(text);
    trion_session_free(session);
    return stop;
}

static void stop_strings(const trion_model *model) {
    heard whole, cut;
    size_t from, length;
    CHECK(generate(model, NULL, 0, SIZE_MAX, &whole) == TRION_STOP_MAX_TOKENS);
    CHECK(whole.size > 100);
    /* Every piece of the text as a stop string: what comes out is what is before its first place. */
    for (from = 0; from + 12 < whole.size; from += 17) {
        for (length = 1; length <= 12; length += 11) {
            char stop[16] = {0};
            const char *stops[2];
            memcpy(stop, whole.text + from, length);
            stops[0] = "this is not in it";
            stops[1] = stop;
            CHECK(generate(model, stops, 2, SIZE_MAX, &cut) == TRION_STOP_STRING);
            CHECK(cut.size == (size_t)(strstr(whole.text, stop) - whole.text));
            CHECK(memcmp(cut.text, whole.text, cut.size) == 0);
        }
    }
    /* A callback that wants no more ends it there. */
    CHECK(generate(model, NULL, 0, 3, &cut) == TRION_STOP_CANCELLED);
    CHECK(cut.pieces == 3 && cut.size < whole.size && memcmp(cut.text, whole.text, cut.size) == 0);
}

/* trion_session_run() gives what trion_session_advance() gives, and the tokens have the text that was generated. */
static void events(const trion_model *model) {
    trion_session *session = begin(model, 0);
    heard whole, run;
    trion_event event;
    char text[4096];
    size_t i, size;
    CHECK(generate(model, NULL, 0, SIZE_MAX, &whole) == TRION_STOP_MAX_TOKENS);
    memset(&run, 0, sizeof run);
    CHECK_OK(trion_session_run(session, 5, hear_event, &run, &event));
    CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED && run.token_count == TOKENS);
    CHECK_OK(trion_model_decode(model, run.tokens, TOKENS, TRION_DECODE_SKIP_SPECIAL, text, sizeof text, &size,
                                &error));
    CHECK(size == whole.size && memcmp(text, whole.text, size) == 0);
    trion_session_free(session);
    session = begin(model, 0);
    for (i = 0; i < TOKENS; i++) {
        CHECK(next_token(session) == run.tokens[i]);
    }
    trion_session_free(session);
}

static void probabilities(const trion_model *model) {
    trion_session *with = begin(model, 1), *without = begin(model, 0);
    trion_candidate candidates[TRION_MAX_CANDIDATES];
    size_t i, k, count;
    for (i = 0; i < 5; i++) {
        trion_event event, plain;
        double sum = 0;
        CHECK_OK(trion_session_advance(with, SIZE_MAX, &event));
        CHECK_OK(trion_session_advance(without, SIZE_MAX, &plain));
        CHECK(event.token == plain.token && plain.probability == 0);
        CHECK_OK(trion_session_candidates(with, candidates, TRION_MAX_CANDIDATES, &count));
        CHECK(count == TRION_MAX_CANDIDATES);
        /* Greedy: the chosen one is the most probable, and its event says so in the same bits. */
        CHECK(candidates[0].token == event.token && candidates[0].probability == event.probability);
        for (k = 0; k < count; k++) {
            CHECK(candidates[k].probability > 0);
            CHECK(k == 0 || candidates[k].probability <= candidates[k - 1].probability);
            sum += candidates[k].probability;
        }
        CHECK(sum > 0.5 && sum < 1.000001);
    }
    trion_session_free(with);
    trion_session_free(without);
}

/* Characters outside ASCII come out whole, however the vocabulary cuts them; special tokens have text on request. */
static void characters(const trion_model *model) {
    const char *original = "caf\xc3\xa9 \xf0\x9f\xa6\x80 \xe4\xb8\xad.";
    uint32_t tokens[64];
    size_t count, i, special, bos_seen = 0;
    trion_model_info info;
    CHECK_OK(trion_model_get_info(model, &info, sizeof info));
    CHECK_OK(trion_model_encode(model, original, strlen(original), 0, tokens, 64, &count, &error));
    for (special = 0; special <= 1; special++) {
        trion_text_options options = {.struct_size = sizeof options};
        trion_text *text;
        trion_piece piece;
        char joined[256];
        size_t size = 0;
        options.special = (uint32_t)special;
        options.beginning = 1;
        CHECK_OK(trion_text_new(model, &options, &text, &error));
        for (i = 0; i <= count; i++) {
            CHECK_OK(i < count ? trion_text_push(text, tokens[i], &piece) : trion_text_finish(text, &piece));
            CHECK(piece.data != NULL && piece.stopped == 0 && size + piece.size < sizeof joined);
            /* No piece begins in the middle of a character. */
            CHECK(piece.size == 0 || ((unsigned char)piece.data[0] & 0xc0) != 0x80);
            memcpy(joined + size, piece.data, piece.size);
            size += piece.size;
        }
        joined[size] = 0;
        if (special == 0) {
            CHECK(strcmp(joined, original) == 0);
        } else {
            bos_seen = size > strlen(original);
        }
        trion_text_free(text);
    }
    CHECK(bos_seen == (info.bos_token >= 0 && tokens[0] == (uint32_t)info.bos_token));
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model = open_model(NULL, arguments.model);
    characters(model);
    events(model);
    probabilities(model);
    if (!arguments.quick) {
        stop_strings(model);
    }
    trion_model_free(model);
    return 0;
}
