/* Readers that give little, too much, or nothing; and what is written to the log. */
#include "check.h"
#include "support.h"

typedef struct source {
    const unsigned char *bytes;
    size_t size, at;
    /* Bytes of a call at most: 0 stands for a different number each time. */
    size_t piece;
    uint64_t state;
    /* From here on, this is returned. */
    size_t fails_at, answer;
    size_t calls;
} source;

static size_t read_source(void *user, void *buffer, size_t size) {
    source *source = user;
    size_t piece = source->piece != 0 ? source->piece : 1 + next_number(&source->state) % 10007;
    source->calls++;
    CHECK(size > 0);
    if (source->at >= source->fails_at) {
        return source->answer > SIZE_MAX / 2 ? source->answer : size + source->answer;
    }
    piece = piece < size ? piece : size;
    piece = piece < source->size - source->at ? piece : source->size - source->at;
    memcpy(buffer, source->bytes + source->at, piece);
    source->at += piece;
    return piece;
}

static trace first_tokens(trion_model *model) {
    trion_session *session = new_session(model, 16, 0);
    trace trace;
    push_numbers(session, vocab_size_of(model), 5, 1);
    trace = take_trace(session, SIZE_MAX, 3);
    trion_session_free(session);
    trion_model_free(model);
    return trace;
}

/* However a file comes, it is the same model. */
static void pieces(const char *path, size_t smallest) {
    source whole = {NULL, 0, 0, 0, 1, SIZE_MAX, 0, 0}, source;
    unsigned char *bytes;
    trace expected = first_tokens(open_model(NULL, path)), found;
    const size_t sizes[] = {smallest, 0, 4096, SIZE_MAX};
    trion_model *model;
    size_t i;
    bytes = read_file(path, &whole.size);
    whole.bytes = bytes;
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        source = whole;
        source.piece = sizes[i];
        CHECK_OK(trion_model_read(NULL, read_source, &source, whole.size, &model, &error));
        CHECK(source.at == whole.size);
        found = first_tokens(model);
        CHECK(same_trace(&found, &expected));
        free_trace(&found);
    }
    CHECK_OK(trion_model_copy(NULL, bytes, whole.size, &model, &error));
    found = first_tokens(model);
    CHECK(same_trace(&found, &expected));
    free_trace(&found);
    free_trace(&expected);
    free(bytes);
}

static void failures(const char *path) {
    source whole = {NULL, 0, 0, 1000, 1, SIZE_MAX, 0, 0}, source;
    unsigned char *bytes;
    trion_model *model = NULL;
    const size_t places[] = {0, 1000, 20000, 50000};
    size_t i, more;
    bytes = read_file(path, &whole.size);
    whole.bytes = bytes;
    for (i = 0; i < sizeof places / sizeof *places; i++) {
        /* It says that it gave more than it was asked for: by one byte, by many, by as many as there can be. */
        for (more = 1; more != 0; more <<= 7) {
            source = whole;
            source.fails_at = places[i];
            source.answer = more;
            CHECK_STATUS(trion_model_read(NULL, read_source, &source, whole.size, &model, &error), TRION_IO);
            CHECK(source.at >= places[i] && source.at < places[i] + 1000);
        }
        source = whole;
        source.fails_at = places[i];
        source.answer = SIZE_MAX;
        CHECK_STATUS(trion_model_read(NULL, read_source, &source, whole.size, &model, &error), TRION_IO);
        /* It ends early. */
        source = whole;
        source.size = places[i];
        CHECK_STATUS(trion_model_read(NULL, read_source, &source, whole.size, &model, &error), TRION_IO);
        CHECK(source.at == places[i]);
    }
    /* The size is larger than the file, by one byte or by more than there is memory; or smaller. */
    source = whole;
    CHECK_STATUS(trion_model_read(NULL, read_source, &source, whole.size + 1, &model, &error), TRION_IO);
    for (i = 0; i < 3; i++) {
        trion_status status;
        source = whole;
        status = trion_model_read(NULL, read_source, &source, SIZE_MAX - i * (SIZE_MAX / 3), &model, &error);
        CHECK(status == TRION_OUT_OF_MEMORY || status == TRION_INVALID_ARGUMENT);
        CHECK(source.calls == 0);
    }
    source = whole;
    CHECK_STATUS(trion_model_read(NULL, read_source, &source, whole.size / 2, &model, &error), TRION_MALFORMED);
    CHECK(source.at == whole.size / 2 && model == NULL);
    free(bytes);
}

typedef struct lines {
    size_t count[4];
} lines;

static void hear(void *user, trion_log_level level, const char *message) {
    lines *lines = user;
    CHECK(level >= TRION_LOG_ERROR && level <= TRION_LOG_DEBUG);
    CHECK(message[0] != 0 && strchr(message, '\n') == NULL);
    lines->count[level]++;
}

static void logs(const char *path) {
    uint32_t level;
    for (level = 0; level <= TRION_LOG_DEBUG; level++) {
        lines lines = {{0, 0, 0, 0}};
        trion_runtime_options options = {.struct_size = sizeof options};
        trion_runtime *runtime;
        trion_model *model;
        uint32_t wanted = level == 0 ? TRION_LOG_INFO : level;
        options.log = hear;
        options.log_user = &lines;
        options.log_level = level;
        CHECK_OK(trion_runtime_new(&options, &runtime, &error));
        CHECK_STATUS(trion_model_open(runtime, "no-such\nfile", &model, &error), TRION_IO);
        CHECK_STATUS(trion_model_copy(runtime, "nothing", 7, &model, &error), TRION_MALFORMED);
        CHECK(lines.count[TRION_LOG_ERROR] == 2);
        model = open_model(runtime, path);
        trion_session_free(new_session(model, 16, 0));
        CHECK(lines.count[TRION_LOG_INFO] == (wanted >= TRION_LOG_INFO));
        CHECK(lines.count[TRION_LOG_DEBUG] == (wanted >= TRION_LOG_DEBUG));
        CHECK(lines.count[TRION_LOG_ERROR] == 2);
        trion_model_free(model);
        trion_runtime_free(runtime);
    }
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    char path[4096];
    snprintf(path, sizeof path, "%s", golden(&arguments, "gguf/small/i2_s.gguf"));
    pieces(path, 1);
    pieces(arguments.model, arguments.quick ? 100000 : 1);
    failures(path);
    logs(path);
    return 0;
}
