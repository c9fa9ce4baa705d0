/*
 * The library reads no environment variable: this program has a getenv() of its own, which the library's calls come to,
 * and which tells what was asked for.
 */
#include "check.h"
#include "support.h"

static size_t asked;

char *getenv(const char *name) {
    fprintf(stderr, "the environment variable %s was asked for\n", name);
    asked++;
    return NULL;
}

static int hear(void *user, const char *text, size_t size) {
    (void)user, (void)text;
    return size > 0;
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_message message = {"user", "hello", 5};
    trion_runtime *runtime;
    trion_model *model;
    trion_session *session;
    trion_stop stop;
    char prompt[256];
    size_t size;
    options.threads = 3;
    /* Does the program's own call come here? What came before main() is not the library's. */
    asked = 0;
    CHECK(getenv("HOME") == NULL && asked == 1);
    asked = 0;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    model = open_model(runtime, arguments.chat);
    CHECK_OK(trion_model_chat(model, &message, 1, TRION_CHAT_ANSWER, prompt, sizeof prompt, &size, &error));
    session = new_session(model, 0, 0);
    CHECK_OK(trion_session_push_text(session, prompt, size, TRION_ENCODE_PLAIN, &error));
    CHECK_OK(trion_generate(session, NULL, 5, hear, NULL, &stop, &error));
    CHECK_STATUS(trion_model_open(runtime, "no-such-file", &model, &error), TRION_IO);
    trion_session_free(session);
    trion_model_free(model);
    trion_runtime_free(runtime);
    CHECK(asked == 0);
    return 0;
}
