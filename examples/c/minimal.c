/*
 * The smallest program: open a model, and let it go on with a text.
 *
 *     minimal MODEL [PROMPT]
 */
#include <trion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int write_text(void *user, const char *text, size_t size)
{
    (void)user;
    fwrite(text, 1, size, stdout);
    fflush(stdout);
    return 1; /* 0 would stop */
}

static void check(trion_status status, const trion_error *error)
{
    if (status != TRION_OK) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

int main(int argc, char **argv)
{
    const char *prompt = argc > 2 ? argv[2] : "It was a dark night, and";
    trion_error error;
    trion_model *model;
    trion_session *session;

    if (argc < 2) {
        fprintf(stderr, "usage: minimal MODEL [PROMPT]\n");
        return 2;
    }
    check(trion_model_open(NULL, argv[1], &model, &error), &error);
    check(trion_session_new(model, NULL, NULL, &session, &error), &error);

    printf("%s", prompt);
    check(trion_session_push_text(session, prompt, strlen(prompt), 0, &error), &error);
    check(trion_generate(session, NULL, 40, write_text, NULL, NULL, &error), &error);
    printf("\n");

    trion_session_free(session);
    trion_model_free(model);
    return 0;
}
