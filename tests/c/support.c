#include "support.h"

#include "check.h"

arguments read_arguments(int argc, char **argv) {
    arguments arguments = {"", "", "", 0};
    const char **places[3];
    int i, place = 0;
    places[0] = &arguments.model;
    places[1] = &arguments.golden;
    places[2] = &arguments.chat;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            arguments.quick = 1;
        } else {
            CHECK(place < 3);
            *places[place++] = argv[i];
        }
    }
    return arguments;
}

void *take(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    CHECK(memory != NULL);
    return memory;
}

void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    long length;
    void *bytes;
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    CHECK(fseek(file, 0, SEEK_END) == 0);
    length = ftell(file);
    CHECK(length > 0 && fseek(file, 0, SEEK_SET) == 0);
    bytes = take((size_t)length);
    CHECK(fread(bytes, 1, (size_t)length, file) == (size_t)length);
    CHECK(fclose(file) == 0);
    *size = (size_t)length;
    return bytes;
}

const char *golden(const arguments *arguments, const char *name) {
    static char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", arguments->golden, name);
    CHECK(length > 0 && (size_t)length < sizeof path);
    return path;
}

uint32_t next_number(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

trion_model *open_model(const trion_runtime *runtime, const char *path) {
    trion_model *model;
    CHECK_OK(trion_model_open(runtime, path, &model, &error));
    return model;
}

trion_session *new_session(const trion_model *model, size_t context, size_t max_batch) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    options.context = context;
    options.max_batch = max_batch;
    options.ignore_end = 1;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    return session;
}

void sample(trion_session *session, uint64_t seed) {
    trion_sampler_options options = {.struct_size = sizeof options};
    options.temperature = 1.2f;
    options.top_p = 0.95f;
    options.repetition_penalty = 1.1f;
    options.seed = seed;
    CHECK_OK(trion_session_set_sampler(session, &options, &error));
}

size_t vocab_size_of(const trion_model *model) {
    trion_model_info info;
    CHECK_OK(trion_model_get_info(model, &info, sizeof info));
    return info.vocab_size;
}

void push_numbers(trion_session *session, size_t vocab_size, size_t count, uint64_t seed) {
    uint32_t *tokens = take(count * sizeof *tokens);
    size_t i;
    for (i = 0; i < count; i++) {
        tokens[i] = next_number(&seed) % (uint32_t)vocab_size;
    }
    CHECK_OK(trion_session_push(session, tokens, count, &error));
    free(tokens);
}

size_t length_of(const trion_session *session) {
    const uint32_t *tokens;
    size_t count;
    CHECK_OK(trion_session_tokens(session, &tokens, &count));
    return count;
}

uint32_t next_token(trion_session *session) {
    trion_event event;
    CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
    CHECK(event.kind == TRION_EVENT_TOKEN && event.reason == TRION_REASON_NONE);
    return event.token;
}

trace take_trace(trion_session *session, size_t budget, size_t count) {
    trace trace = {0, 0, NULL, NULL};
    trace.count = count;
    trace.tokens = take(count * sizeof *trace.tokens);
    for (size_t i = 0; i < count; i++) {
        trion_event event;
        const float *logits;
        size_t size;
        do {
            CHECK_OK(trion_session_advance(session, budget, &event));
        } while (event.kind == TRION_EVENT_MORE);
        CHECK(event.kind == TRION_EVENT_TOKEN);
        CHECK_OK(trion_session_logits(session, &logits, &size));
        if (trace.logits == NULL) {
            trace.vocab_size = size;
            trace.logits = take(count * size * sizeof *logits);
        }
        CHECK(size == trace.vocab_size);
        trace.tokens[i] = event.token;
        memcpy(trace.logits + i * size, logits, size * sizeof *logits);
    }
    return trace;
}

int same_trace(const trace *one, const trace *other) {
    return one->count == other->count && one->vocab_size == other->vocab_size
        && memcmp(one->tokens, other->tokens, one->count * sizeof *one->tokens) == 0
        && memcmp(one->logits, other->logits, one->count * one->vocab_size * sizeof *one->logits) == 0;
}

void free_trace(trace *trace) {
    free(trace->tokens);
    free(trace->logits);
    trace->tokens = NULL;
    trace->logits = NULL;
}
