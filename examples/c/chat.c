/*
 * A conversation: a line in, an answer out. With the model's chat template where it has one, else as a transcript.
 *
 *     chat MODEL [TOKENS]
 *
 * The session is kept between the turns, so only what is new is computed.
 */
#include <trion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for every turn at its longest, with its role and the marks of a template. */
enum { LINE = 1024, TURNS = 64, PROMPT = TURNS * (LINE + 64), TOKENS = PROMPT };

struct chat {
    trion_model *model;
    trion_session *session;
    int has_template;
    trion_message messages[TURNS];
    size_t count;
    char prompt[PROMPT];
    uint32_t tokens[TOKENS];
    size_t all_tokens, new_tokens;
};

struct answer {
    char data[LINE];
    size_t size;
};

static void check(trion_status status, const trion_error *error)
{
    if (status != TRION_OK) {
        fprintf(stderr, "%s\n", error ? error->message : trion_status_string(status));
        exit(1);
    }
}

static int receive(void *user, const char *text, size_t size)
{
    struct answer *answer = user;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
    if (size > sizeof answer->data - answer->size)
        return 0;
    memcpy(answer->data + answer->size, text, size);
    answer->size += size;
    return 1;
}

static void say(struct chat *chat, const char *role, const char *content, size_t size)
{
    char *copy = malloc(size + 1);
    if (copy == NULL)
        exit(1);
    memcpy(copy, content, size);
    copy[size] = '\0';
    chat->messages[chat->count++] = (trion_message){role, copy, size};
}

static void forget_oldest(struct chat *chat)
{
    free((char *)chat->messages[0].content);
    memmove(chat->messages, chat->messages + 1, --chat->count * sizeof chat->messages[0]);
}

/* The tokens of the conversation, and the words that begin an answer. */
static size_t encode(struct chat *chat)
{
    trion_error error;
    size_t size = 0, count;
    uint32_t flags = TRION_ENCODE_PLAIN; /* the template has written the special tokens */

    if (chat->has_template) {
        check(trion_model_chat(chat->model, chat->messages, chat->count, TRION_CHAT_ANSWER, chat->prompt, PROMPT, &size,
                               &error), &error);
    } else {
        flags = 0;
        for (size_t i = 0; i < chat->count; i++)
            size += (size_t)snprintf(chat->prompt + size, PROMPT - size, "%s:%s%s\n", chat->messages[i].role,
                                     chat->messages[i].content[0] == ' ' ? "" : " ", chat->messages[i].content);
        size += (size_t)snprintf(chat->prompt + size, PROMPT - size, "assistant:");
    }
    check(trion_model_encode(chat->model, chat->prompt, size, flags, chat->tokens, TOKENS, &count, &error), &error);
    return count;
}

/* Makes the session hold the conversation: what it has of it already is kept. */
static void prepare(struct chat *chat, size_t count)
{
    const uint32_t *held;
    size_t length, common = 0;
    trion_error error;

    check(trion_session_tokens(chat->session, &held, &length), NULL);
    while (common < length && common + 1 < count && held[common] == chat->tokens[common])
        common++;
    check(trion_session_rewind(chat->session, common, &error), &error);
    check(trion_session_push(chat->session, chat->tokens + common, count - common, &error), &error);
    chat->all_tokens += count;
    chat->new_tokens += count - common;
}

int main(int argc, char **argv)
{
    static const char *const stops[] = {"\nuser:", "\nassistant:"};
    static struct chat chat;
    static char line[LINE];
    size_t most = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 100, answers = 0;
    trion_text_options plain = {.struct_size = sizeof plain};
    trion_model_info info;
    trion_error error;

    if (argc < 2) {
        fprintf(stderr, "usage: chat MODEL [TOKENS]\n");
        return 2;
    }
    check(trion_model_open(NULL, argv[1], &chat.model, &error), &error);
    check(trion_model_get_info(chat.model, &info, sizeof info), NULL);
    check(trion_session_new(chat.model, NULL, NULL, &chat.session, &error), &error);
    chat.has_template = info.has_chat_template;
    plain.stops = stops;
    plain.stop_count = sizeof stops / sizeof stops[0];

    while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin) != NULL) {
        static struct answer answer;
        trion_text *text;
        size_t count;

        line[strcspn(line, "\n")] = '\0';
        if (chat.count + 2 > TURNS)
            forget_oldest(&chat);
        say(&chat, "user", line, strlen(line));
        while ((count = encode(&chat)) + most > info.max_position_embeddings && chat.count > 1)
            forget_oldest(&chat);
        prepare(&chat, count);

        answer.size = 0;
        check(trion_text_new(chat.model, chat.has_template ? NULL : &plain, &text, &error), &error);
        check(trion_generate(chat.session, text, most, receive, &answer, NULL, &error), &error);
        trion_text_free(text);
        printf("\n");
        say(&chat, "assistant", answer.data, answer.size);
        answers++;
    }

    printf("\n%zu answers, %zu of %zu tokens computed for the prompts\n", answers, chat.new_tokens, chat.all_tokens);
    while (chat.count > 0)
        forget_oldest(&chat);
    trion_session_free(chat.session);
    trion_model_free(chat.model);
    return 0;
}
