/*
 * A saved game: a text is interrupted, saved to a file, and taken up by another session. Both go on in the same words.
 *
 *     save_restore MODEL [FILE]
 */
#include <trion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct text {
    char data[4096];
    size_t size;
};

static int append(void *user, const char *text, size_t size)
{
    struct text *to = user;
    if (size > sizeof to->data - 1 - to->size)
        return 0;
    memcpy(to->data + to->size, text, size);
    to->size += size;
    to->data[to->size] = '\0';
    return 1;
}

static void check(trion_status status, const trion_error *error)
{
    if (status != TRION_OK) {
        fprintf(stderr, "%s\n", error->message);
        exit(1);
    }
}

/* Saves to a file. The buffer may be kept and used again, for a game that saves often. */
static size_t save(const trion_session *session, const char *path)
{
    trion_error error;
    size_t size;
    trion_status status = trion_session_saved_size(session, &size);
    void *buffer = status == TRION_OK ? malloc(size) : NULL;
    FILE *file = fopen(path, "wb");
    if (buffer == NULL || file == NULL) {
        fprintf(stderr, "cannot save to %s\n", path);
        exit(1);
    }
    check(trion_session_save(session, buffer, size, &size, &error), &error);
    if (fwrite(buffer, 1, size, file) != size || fclose(file) != 0) {
        fprintf(stderr, "cannot write %s\n", path);
        exit(1);
    }
    free(buffer);
    return size;
}

static void load(trion_session *session, const char *path, size_t size)
{
    trion_error error;
    void *buffer = malloc(size);
    FILE *file = fopen(path, "rb");
    if (buffer == NULL || file == NULL || fread(buffer, 1, size, file) != size) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    fclose(file);
    /* Whatever the bytes are: a file that was damaged is refused, and the session is as it was. */
    check(trion_session_load(session, buffer, size, &error), &error);
    free(buffer);
}

int main(int argc, char **argv)
{
    const char *prompt = "The ship had been at sea";
    const char *path = argc > 2 ? argv[2] : "save_restore.state";
    trion_sampler_options sampler = {.struct_size = sizeof sampler};
    struct text first = {{0}, 0}, second = {{0}, 0}, third = {{0}, 0};
    trion_error error;
    trion_model *model;
    trion_session *session, *restored;
    size_t size;

    if (argc < 2) {
        fprintf(stderr, "usage: save_restore MODEL [FILE]\n");
        return 2;
    }
    check(trion_model_open(NULL, argv[1], &model, &error), &error);
    check(trion_session_new(model, NULL, NULL, &session, &error), &error);
    sampler.temperature = 0.8f;
    sampler.top_k = 40;
    sampler.seed = 1851;
    check(trion_session_set_sampler(session, &sampler, &error), &error);

    check(trion_session_push_text(session, prompt, strlen(prompt), 0, &error), &error);
    check(trion_generate(session, NULL, 20, append, &first, NULL, &error), &error);
    printf("%s%s\n", prompt, first.data);
    size = save(session, path);
    printf("-- saved, %zu bytes\n", size);

    /* The one that was saved goes on, and then one that never saw the prompt. The sampler is part of the state. */
    check(trion_generate(session, NULL, 20, append, &second, NULL, &error), &error);
    check(trion_session_new(model, NULL, NULL, &restored, &error), &error);
    load(restored, path, size);
    check(trion_generate(restored, NULL, 20, append, &third, NULL, &error), &error);
    printf("-- goes on: %s\n-- restored: %s\n", second.data, third.data);
    printf("same continuation: %s\n", second.size > 0 && strcmp(second.data, third.data) == 0 ? "yes" : "no");

    remove(path);
    trion_session_free(restored);
    trion_session_free(session);
    trion_model_free(model);
    return 0;
}
