/* Wrong arguments of tokenizers, chat templates, texts, trion_generate() and constraints. */
#include "arguments.h"

static trion_model *model, *chatty, *mute;
static trion_session *session;
static trion_text *text;

static trion_status make_text(const void *options) {
    return trion_text_new(model, options, &out.one.text, words);
}

static void release_text(void) {
    trion_text_free(out.one.text);
}

/* What is not UTF-8: a byte alone, a character cut off, a surrogate, more than Unicode has, an overlong form. */
static const char *const not_utf8[] = {"\xff", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"};
#define NOT_UTF8 (sizeof not_utf8 / sizeof *not_utf8)

static void encoding(void) {
    static crooked memory;
    size_t i, count;
    INVALID(trion_model_encode(NULL, "abc", 3, 0, out.one.ids, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, NULL, 3, 0, out.one.ids, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", SIZE_MAX, 0, out.one.ids, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, 2, out.one.ids, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, UINT32_MAX, out.one.ids, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, 0, NULL, 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, 0, out.one.ids, SIZE_MAX, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, 0, (uint32_t *)(void *)(memory.bytes + 1), 16, &out.two.count, words));
    INVALID(trion_model_encode(model, "abc", 3, 0, out.one.ids, 16, NULL, words));
    for (i = 0; i < NOT_UTF8; i++) {
        size_t size = strlen(not_utf8[i]);
        INVALID(trion_model_encode(model, not_utf8[i], size, 0, out.one.ids, 16, &out.two.count, words));
        INVALID(trion_session_push_text(session, not_utf8[i], size, 0, words));
    }
    CHECK_OK(trion_model_encode(model, "abc", 3, TRION_ENCODE_PLAIN, NULL, 0, &count, &error));
    CHECK(count > 0 && count <= 3);
    for (i = 0; i < count; i++) {
        REFUSED(TRION_BUFFER_TOO_SMALL,
                trion_model_encode(model, "abc", 3, TRION_ENCODE_PLAIN, out.one.ids, i, &out.two.count, words));
    }
    ACCEPTED(trion_model_encode(model, "abc", 3, TRION_ENCODE_PLAIN, out.one.ids, count, &out.two.count, words));
    CHECK(out.two.count == count && untouched(out.one.ids + count, sizeof out.one - count * sizeof(uint32_t)));
    ACCEPTED(trion_model_encode(model, NULL, 0, TRION_ENCODE_PLAIN, NULL, 0, &out.two.count, words));
    CHECK(out.two.count == 0);
    REFUSED(TRION_NO_TOKENIZER, trion_model_encode(mute, "abc", 3, 0, out.one.ids, 16, &out.two.count, words));
    /* A zero inside a text is a character like others. */
    ACCEPTED(trion_model_encode(model, "a\0b", 3, 0, out.one.ids, 16, &out.two.count, words));

    INVALID(trion_session_push_text(NULL, "abc", 3, 0, words));
    INVALID(trion_session_push_text(session, NULL, 3, 0, words));
    INVALID(trion_session_push_text(session, "abc", SIZE_MAX, 0, words));
    INVALID(trion_session_push_text(session, "abc", 3, 2, words));
    REFUSED(TRION_NO_TOKENS, trion_session_push_text(session, NULL, 0, TRION_ENCODE_PLAIN, words));
}

static void decoding(void) {
    static crooked memory;
    uint32_t tokens[2] = {40, 41};
    size_t size, i;
    INVALID(trion_model_decode(NULL, tokens, 2, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, NULL, 2, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, tokens, SIZE_MAX, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, (uint32_t *)(void *)(memory.bytes + 1), 1, 0, out.one.bytes, 256, &out.two.count,
                               words));
    INVALID(trion_model_decode(model, tokens, 2, 2, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, tokens, 2, UINT32_MAX, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, tokens, 2, 0, NULL, 256, &out.two.count, words));
    INVALID(trion_model_decode(model, tokens, 2, 0, out.one.bytes, SIZE_MAX, &out.two.count, words));
    INVALID(trion_model_decode(model, tokens, 2, 0, out.one.bytes, 256, NULL, words));
    CHECK_OK(trion_model_decode(model, tokens, 2, 0, NULL, 0, &size, &error));
    CHECK(size > 0);
    for (i = 0; i < size; i++) {
        REFUSED(TRION_BUFFER_TOO_SMALL,
                trion_model_decode(model, tokens, 2, 0, out.one.bytes, i, &out.two.count, words));
    }
    ACCEPTED(trion_model_decode(model, tokens, 2, 0, out.one.bytes, size, &out.two.count, words));
    CHECK(out.two.count == size && untouched(out.one.bytes + size, sizeof out.one - size));
    ACCEPTED(trion_model_decode(model, NULL, 0, 0, NULL, 0, &out.two.count, words));
    CHECK(out.two.count == 0);
    REFUSED(TRION_NO_TOKENIZER, trion_model_decode(mute, tokens, 2, 0, out.one.bytes, 256, &out.two.count, words));
    tokens[1] = UINT32_MAX;
    REFUSED(TRION_TEXT, trion_model_decode(model, tokens, 2, 0, out.one.bytes, 256, &out.two.count, words));
}

static void chatting(void) {
    static crooked memory;
    trion_message talk[2] = {{"user", "hello", 5}, {"assistant", "world", 5}}, wrong = {"user", "hello", 5};
    const char *prompt = "user: hello\nassistant: world\nassistant:";
    size_t i, size;
    INVALID(trion_model_chat(NULL, talk, 2, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, NULL, 2, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, SIZE_MAX, 0, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, (trion_message *)(void *)(memory.bytes + 1), 1, 0, out.one.bytes, 256,
                             &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, 2, 2, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, 2, UINT32_MAX, out.one.bytes, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, 2, 0, NULL, 256, &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, 2, 0, out.one.bytes, SIZE_MAX, &out.two.count, words));
    INVALID(trion_model_chat(chatty, talk, 2, 0, out.one.bytes, 256, NULL, words));
    wrong.role = NULL;
    INVALID(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    for (i = 0; i < NOT_UTF8; i++) {
        wrong.role = not_utf8[i];
        INVALID(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
        wrong.role = "user";
        wrong.content = not_utf8[i];
        wrong.content_size = strlen(not_utf8[i]);
        INVALID(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    }
    wrong.content = NULL;
    INVALID(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    wrong.content = "hello";
    wrong.content_size = SIZE_MAX;
    INVALID(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    wrong.content = NULL;
    wrong.content_size = 0;
    ACCEPTED(trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    wrong.role = "refused";
    REFUSED(TRION_TEXT, trion_model_chat(chatty, &wrong, 1, 0, out.one.bytes, 256, &out.two.count, words));
    REFUSED(TRION_NO_TOKENIZER, trion_model_chat(model, talk, 2, 0, out.one.bytes, 256, &out.two.count, words));

    CHECK_OK(trion_model_chat(chatty, talk, 2, TRION_CHAT_ANSWER, NULL, 0, &size, &error));
    CHECK(size == strlen(prompt));
    for (i = 0; i < size; i++) {
        REFUSED(TRION_BUFFER_TOO_SMALL,
                trion_model_chat(chatty, talk, 2, TRION_CHAT_ANSWER, out.one.bytes, i, &out.two.count, words));
    }
    ACCEPTED(trion_model_chat(chatty, talk, 2, TRION_CHAT_ANSWER, out.one.bytes, size, &out.two.count, words));
    CHECK(out.two.count == size && memcmp(out.one.bytes, prompt, size) == 0);
    CHECK(untouched(out.one.bytes + size, sizeof out.one - size));
}

static void texts(void) {
    const char *stops[2] = {"stop", "\xff"};
    static crooked memory;
    trion_text_options options = {.struct_size = sizeof options};
    sized_call call = {make_text, release_text, sizeof options, sizeof options};
    int i;
    check_struct_sizes(call);
    INVALID(trion_text_new(NULL, NULL, &out.one.text, words));
    INVALID(trion_text_new(model, NULL, NULL, words));
    REFUSED(TRION_NO_TOKENIZER, trion_text_new(mute, NULL, &out.one.text, words));
    options.stop_count = 1;
    INVALID(make_text(&options));
    options.stops = stops;
    options.stop_count = 2;
    INVALID(make_text(&options));
    stops[1] = NULL;
    INVALID(make_text(&options));
    options.stop_count = SIZE_MAX;
    INVALID(make_text(&options));
    options.stop_count = 1;
    options.stops = (const char *const *)(void *)(memory.bytes + 1);
    INVALID(make_text(&options));
    options.stops = stops;
    ACCEPTED(make_text(&options));
    release_text();
    /* What is on or off is nothing else. */
    for (i = 0; i < 32; i++) {
        options.special = i == 0 ? UINT32_MAX : (uint32_t)1 << i;
        options.beginning = 0;
        INVALID(make_text(&options));
        options.beginning = options.special;
        options.special = 0;
        INVALID(make_text(&options));
    }
    options.special = options.beginning = 1;
    ACCEPTED(make_text(&options));
    release_text();

    INVALID_SILENTLY(trion_text_push(NULL, 40, &out.one.piece));
    INVALID_SILENTLY(trion_text_push(text, 40, NULL));
    INVALID_SILENTLY(trion_text_finish(NULL, &out.one.piece));
    INVALID_SILENTLY(trion_text_finish(text, NULL));
    trion_text_free(NULL);
    /* A model may have more rows than its tokenizer has tokens: such a token has no text. */
    ACCEPTED(trion_text_push(text, UINT32_MAX, &out.one.piece));
    CHECK(out.one.piece.data != NULL && out.one.piece.size == 0 && out.one.piece.stopped == 0);
}

static int never(void *user, const char *data, size_t size) {
    (void)user, (void)data, (void)size;
    CHECK(!"a callback of a call that was refused was called");
    return 0;
}

static void generating(void) {
    trion_session *silent = new_session(mute, 0, 0);
    INVALID(trion_generate(NULL, text, 8, never, NULL, &out.one.stop, words));
    INVALID(trion_generate(session, text, 8, NULL, NULL, &out.one.stop, words));
    REFUSED(TRION_NO_TOKENIZER, trion_generate(silent, NULL, 8, never, NULL, &out.one.stop, words));
    REFUSED(TRION_OTHER_MODEL, trion_generate(silent, text, 8, never, NULL, &out.one.stop, words));
    REFUSED(TRION_NO_TOKENS, trion_generate(session, NULL, 8, never, NULL, &out.one.stop, words));
    ACCEPTED(trion_generate(session, NULL, 0, never, NULL, &out.one.stop, words));
    CHECK(out.one.stop == TRION_STOP_MAX_TOKENS);
    trion_session_free(silent);
}

/* With words of the library's, the source is wrong; and a session that is refused a constraint goes on without. */
static void constraining(void) {
    trion_session *silent = new_session(mute, 0, 0);
    trion_constraint *constraint;
    uint32_t grammar;
    size_t i;
    INVALID(trion_constraint_new(NULL, TRION_GRAMMAR_REGEX, "a", 1, &out.one.constraint, words));
    INVALID(trion_constraint_new(model, TRION_GRAMMAR_REGEX, NULL, 1, &out.one.constraint, words));
    INVALID(trion_constraint_new(model, TRION_GRAMMAR_REGEX, "a", SIZE_MAX, &out.one.constraint, words));
    INVALID(trion_constraint_new(model, TRION_GRAMMAR_REGEX, "a", 1, NULL, words));
    for (grammar = TRION_GRAMMAR_LARK + 1; grammar < 1000; grammar *= 3) {
        INVALID(trion_constraint_new(model, grammar, "a", 1, &out.one.constraint, words));
    }
    INVALID(trion_constraint_new(model, UINT32_MAX, "a", 1, &out.one.constraint, words));
    for (grammar = 0; grammar <= TRION_GRAMMAR_LARK; grammar++) {
        for (i = 0; i < NOT_UTF8; i++) {
            INVALID(trion_constraint_new(model, grammar, not_utf8[i], strlen(not_utf8[i]), &out.one.constraint, words));
        }
        REFUSED(TRION_NO_TOKENIZER, trion_constraint_new(mute, grammar, "a", 1, &out.one.constraint, words));
    }
    REFUSED(TRION_CONSTRAINT, trion_constraint_new(model, 0, NULL, 0, &out.one.constraint, words));
    REFUSED(TRION_CONSTRAINT, trion_constraint_new(model, 2, NULL, 0, &out.one.constraint, words));
    trion_constraint_free(NULL);

    CHECK_OK(trion_constraint_new(model, TRION_GRAMMAR_REGEX, "a", 1, &constraint, &error));
    INVALID(trion_session_set_constraint(NULL, constraint, words));
    INVALID(trion_session_set_constraint(NULL, NULL, words));
    REFUSED(TRION_OTHER_MODEL, trion_session_set_constraint(silent, constraint, words));
    ACCEPTED(trion_session_set_constraint(session, constraint, words));
    ACCEPTED(trion_session_set_constraint(session, NULL, words));
    trion_constraint_free(constraint);
    trion_session_free(silent);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    chatty = open_model(NULL, arguments.chat);
    mute = open_model(NULL, golden(&arguments, "llama_float"));
    session = new_session(model, 0, 0);
    CHECK_OK(trion_text_new(model, NULL, &text, &error));
    encoding();
    decoding();
    chatting();
    texts();
    generating();
    constraining();
    CHECK(length_of(session) == 0);
    trion_text_free(text);
    trion_session_free(session);
    trion_model_free(mute);
    trion_model_free(chatty);
    trion_model_free(model);
    return 0;
}
