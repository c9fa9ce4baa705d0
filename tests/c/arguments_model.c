/* Wrong arguments of everything up to models: runtimes, versions, models. */
#include "arguments.h"

static const char *path;

static void host(void *user, size_t count, trion_task_fn task, void *data) {
    size_t i;
    (void)user;
    for (i = 0; i < count; i++) {
        task(data, i);
    }
}

static trion_status make_runtime(const void *options) {
    return trion_runtime_new(options, &out.one.runtime, words);
}

static void release_runtime(void) {
    trion_runtime_free(out.one.runtime);
}

static void runtimes(void) {
    trion_runtime_options options = {.struct_size = sizeof options};
    sized_call call = {make_runtime, release_runtime, sizeof(trion_runtime_options),
                       offsetof(trion_runtime_options, device)};
    check_struct_sizes(call);
    INVALID(trion_runtime_new(&options, NULL, words));
    INVALID(trion_runtime_new(NULL, NULL, words));

    options.threads = 257;
    INVALID(make_runtime(&options));
    options.threads = SIZE_MAX;
    INVALID(make_runtime(&options));
    options.parallel_for = host;
    options.threads = 1;
    INVALID(make_runtime(&options));
    options.threads = 2;
    INVALID(make_runtime(&options));
    options.threads = 0;
    ACCEPTED(make_runtime(&options));
    release_runtime();
    options.parallel_workers = SIZE_MAX;
    ACCEPTED(make_runtime(&options));
    release_runtime();
    options.log_level = TRION_LOG_DEBUG;
    ACCEPTED(make_runtime(&options));
    release_runtime();
    for (options.log_level = TRION_LOG_DEBUG + 1; options.log_level != 0; options.log_level *= 2) {
        INVALID(make_runtime(&options));
    }
    options.log_level = 0;
    options.device = "cpu";
    ACCEPTED(make_runtime(&options));
    release_runtime();
    options.device = "auto";
    ACCEPTED(make_runtime(&options));
    release_runtime();
    options.device = "gpu";
    INVALID(make_runtime(&options));
    options.device = "cp\xc3(";
    INVALID(make_runtime(&options));
    options.device = "cuda:1000";
    REFUSED(TRION_DEVICE, make_runtime(&options));
    trion_runtime_free(NULL);
}

static void names(void) {
    /* These take no pointers: whatever they are given, they answer. */
    CHECK(trion_abi_version() != 0);
    CHECK(trion_abi_is_compatible(0) == 0);
    CHECK(trion_version() != NULL && trion_features() != 0);
    CHECK(trion_status_string(-1) != NULL);
}

static size_t read_nothing(void *user, void *buffer, size_t size) {
    (void)user, (void)buffer, (void)size;
    return 0;
}

static size_t read_bytes(void *user, void *buffer, size_t size) {
    const unsigned char **from = user;
    memcpy(buffer, *from, size);
    *from += size;
    return size;
}

static void models(void) {
    size_t size;
    unsigned char *bytes = read_file(path, &size);
    const unsigned char *from = bytes;
    unsigned char *memory = take(size + 128);
    unsigned char *aligned = memory + (64 - (uintptr_t)memory % 64) % 64;
    size_t i;
    memcpy(aligned, bytes, size);

    INVALID(trion_model_open(NULL, NULL, &out.one.model, words));
    INVALID(trion_model_open(NULL, path, NULL, words));
    INVALID(trion_model_open(NULL, "\xff", &out.one.model, words));
    INVALID(trion_model_open(NULL, "models/\xc3(", &out.one.model, words));
    REFUSED(TRION_IO, trion_model_open(NULL, "", &out.one.model, words));
    ACCEPTED(trion_model_open(NULL, path, &out.one.model, words));
    trion_model_free(out.one.model);

    INVALID(trion_model_copy(NULL, NULL, size, &out.one.model, words));
    INVALID(trion_model_copy(NULL, bytes, size, NULL, words));
    INVALID(trion_model_copy(NULL, bytes, SIZE_MAX, &out.one.model, words));
    REFUSED(TRION_MALFORMED, trion_model_copy(NULL, NULL, 0, &out.one.model, words));
    REFUSED(TRION_MALFORMED, trion_model_copy(NULL, bytes, 0, &out.one.model, words));
    /* A copy may come from any address. */
    memcpy(memory + 1, bytes, size);
    ACCEPTED(trion_model_copy(NULL, memory + 1, size, &out.one.model, words));
    trion_model_free(out.one.model);
    memcpy(aligned, bytes, size);

    INVALID(trion_model_borrow(NULL, NULL, size, &out.one.model, words));
    INVALID(trion_model_borrow(NULL, aligned, size, NULL, words));
    INVALID(trion_model_borrow(NULL, aligned, SIZE_MAX, &out.one.model, words));
    REFUSED(TRION_MALFORMED, trion_model_borrow(NULL, NULL, 0, &out.one.model, words));
    for (i = 1; i < 64; i++) {
        INVALID(trion_model_borrow(NULL, aligned + i, size, &out.one.model, words));
    }
    ACCEPTED(trion_model_borrow(NULL, aligned, size, &out.one.model, words));
    trion_model_free(out.one.model);

    INVALID(trion_model_read(NULL, NULL, &from, size, &out.one.model, words));
    INVALID(trion_model_read(NULL, read_bytes, &from, size, NULL, words));
    CHECK(from == bytes);
    REFUSED(TRION_IO, trion_model_read(NULL, read_nothing, NULL, size, &out.one.model, words));
    REFUSED(TRION_MALFORMED, trion_model_read(NULL, read_nothing, NULL, 0, &out.one.model, words));
    ACCEPTED(trion_model_read(NULL, read_bytes, &from, size, &out.one.model, words));
    CHECK(from == bytes + size);
    trion_model_free(out.one.model);
    free(memory);
    free(bytes);
}

static void looks(void) {
    trion_model *model = open_model(NULL, path);
    static crooked memory;
    INVALID_SILENTLY(trion_model_get_info(NULL, &out.one.info, sizeof out.one.info));
    INVALID_SILENTLY(trion_model_get_info(model, NULL, sizeof out.one.info));
    INVALID_SILENTLY(trion_model_get_info(model, &out.one.info, SIZE_MAX));
    INVALID_SILENTLY(trion_model_get_info(model, (trion_model_info *)(void *)(memory.bytes + 1), sizeof out.one.info));
    ACCEPTED(trion_model_get_info(model, &out.one.info, 0));
    CHECK(untouched(&out, sizeof out));
    CHECK(trion_model_ends_text(NULL, 0) == 0);
    trion_model_retain(NULL);
    trion_model_free(NULL);
    trion_model_free(model);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    path = arguments.model;
    runtimes();
    names();
    models();
    looks();
    return 0;
}
