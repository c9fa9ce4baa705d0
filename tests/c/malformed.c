/*
 * Model files that are cut off or changed, in memory and on disk: each is refused with a status that says so, or gives
 * a model that computes something. Blocks are as long as what they hold, so that valgrind sees what is read beyond.
 */
#include "check.h"
#include "support.h"

#define SCRATCH "malformed.tmp"

typedef struct file {
    unsigned char *bytes;
    size_t size, header;
    /* Bytes without which it is no model; the rest pads the last tensor. */
    size_t needed;
} file;

typedef struct source {
    const unsigned char *at;
    size_t left;
} source;

static size_t read_source(void *user, void *buffer, size_t size) {
    source *source = user;
    size_t count = size < source->left ? size : source->left;
    memcpy(buffer, source->at, count);
    source->at += count;
    source->left -= count;
    return count;
}

/* Computes a little with a model that was accepted; whatever it says, it says it by a status. Returns 1. */
static int try_model(trion_model *model, trion_status status) {
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    trion_event event;
    const uint32_t token = 0;
    CHECK(status == TRION_OK || status == TRION_IO || status == TRION_MALFORMED || status == TRION_UNSUPPORTED
          || status == TRION_OUT_OF_MEMORY || status == TRION_INVALID_ARGUMENT || status == TRION_TEXT);
    if (status != TRION_OK) {
        CHECK(error.status == status && error.message[0] != 0);
        return 0;
    }
    options.context = 1;
    if (trion_session_new(model, &options, NULL, &session, &error) == TRION_OK) {
        CHECK_OK(trion_session_push(session, &token, 1, &error));
        CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
        trion_session_free(session);
    }
    trion_model_free(model);
    return 1;
}

/* Gives bytes to the library in one of the four ways. Returns whether they were accepted. */
static int try_bytes(const unsigned char *bytes, size_t size, int way) {
    trion_model *model = NULL;
    trion_status status = TRION_INVALID_ARGUMENT;
    void *aligned = NULL;
    source source;
    FILE *file;
    int accepted;
    switch (way) {
    case 0:
        CHECK(posix_memalign(&aligned, 64, size > 0 ? size : 1) == 0);
        memcpy(aligned, bytes, size);
        status = trion_model_borrow(NULL, aligned, size, &model, &error);
        break;
    case 1:
        status = trion_model_copy(NULL, bytes, size, &model, &error);
        break;
    case 2:
        source.at = bytes;
        source.left = size;
        status = trion_model_read(NULL, read_source, &source, size, &model, &error);
        break;
    default:
        file = fopen(SCRATCH, "wb");
        CHECK(file != NULL && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
        status = trion_model_open(NULL, SCRATCH, &model, &error);
        break;
    }
    accepted = try_model(model, status);
    free(aligned);
    return accepted;
}

static void truncations(const file *file, int packed, int quick) {
    size_t length, n = 0, step = quick ? 20 : 1;
    for (length = 0; length < file->needed; n++) {
        int way = (int)(n % 4);
        CHECK(!try_bytes(file->bytes, length, way == 0 && !packed ? 1 : way));
        if (length < 200) {
            length += quick ? 7 : 1;
        } else if (length < file->header) {
            length += file->header / 97 * step + 1;
        } else {
            length += file->size / 61 * step + 1;
        }
    }
    CHECK(!try_bytes(file->bytes, file->needed - 1, 1) && try_bytes(file->bytes, file->needed, 1));
    CHECK(!try_bytes(file->bytes, file->header, 1) && !try_bytes(file->bytes, file->header - 1, 1));
}

/* Changes one bit at a time, `count` times, in the first `size` bytes. */
static void flips(const file *file, size_t size, size_t count, uint64_t seed, int packed) {
    size_t i, accepted = 0;
    for (i = 0; i < count; i++) {
        size_t at = next_number(&seed) % size;
        unsigned char bit = (unsigned char)(1 << next_number(&seed) % 8);
        int way = (int)(i % 16 < 4 ? i % 16 : !packed);
        file->bytes[at] ^= bit;
        accepted += (size_t)try_bytes(file->bytes, file->size, way == 0 && !packed ? 1 : way);
        file->bytes[at] ^= bit;
    }
    CHECK(try_bytes(file->bytes, file->size, 1));
    CHECK(accepted < count);
}

static void wrong_beginnings(const file *file, int packed) {
    unsigned char kept[16];
    int i;
    memcpy(kept, file->bytes, sizeof kept);
    for (i = 0; i < 256; i += 5) {
        memset(file->bytes, i, 8);
        CHECK(!try_bytes(file->bytes, file->size, packed ? i % 4 : 1 + i % 3));
        memset(file->bytes + 8, i, 8);
        CHECK(!try_bytes(file->bytes, file->size, packed ? i % 4 : 1 + i % 3));
        memcpy(file->bytes, kept, sizeof kept);
    }
}

static void strange_paths(const arguments *arguments) {
    static char path[70000];
    trion_model *model = NULL;
    FILE *empty = fopen(SCRATCH, "wb");
    CHECK(empty != NULL && fclose(empty) == 0);
    CHECK(!try_model(model, trion_model_open(NULL, SCRATCH, &model, &error)));
    CHECK_STATUS(trion_model_open(NULL, "no-such-file.safetensors", &model, &error), TRION_IO);
    CHECK(strstr(error.message, "no-such-file.safetensors") != NULL);
    CHECK_STATUS(trion_model_open(NULL, "no-such-directory/no-such-file", &model, &error), TRION_IO);
    snprintf(path, sizeof path, "%s/model.safetensors", SCRATCH);
    CHECK_STATUS(trion_model_open(NULL, path, &model, &error), TRION_IO);
    /* A directory that holds no model, and files that are none. */
    CHECK(!try_model(model, trion_model_open(NULL, arguments->golden, &model, &error)));
    CHECK(!try_model(model, trion_model_open(NULL, golden(arguments, "make.py"), &model, &error)));
    CHECK(!try_model(model, trion_model_open(NULL, golden(arguments, "bitnet_offline/config.json"), &model, &error)));
    /* Longer than paths may be, and than messages are. */
    memset(path, 'a', sizeof path - 1);
    CHECK_STATUS(trion_model_open(NULL, path, &model, &error), TRION_IO);
    CHECK(strlen(error.message) == TRION_MESSAGE_SIZE - 1);
    /* A message that is cut off is so between characters; they have three bytes, so one shift in three fits anyhow. */
    memset(path, 0, sizeof path);
    for (size_t i = 0; i + 3 < 3000; i += 3) {
        memcpy(path + i, "\xe6\xb0\xb4", 3);
    }
    for (size_t i = 0; i < 3; i++) {
        size_t length;
        CHECK_STATUS(trion_model_open(NULL, path, &model, &error), TRION_IO);
        length = strlen(error.message);
        CHECK(length + 3 >= TRION_MESSAGE_SIZE - 1 && memcmp(error.message + length - 3, "\xe6\xb0\xb4", 3) == 0);
        memmove(path + 1, path, sizeof path - 1);
        path[0] = 'a';
    }
    CHECK(model == NULL && remove(SCRATCH) == 0);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    file packed, gguf;
    uint64_t length = 0;
    int i;
    packed.bytes = read_file(arguments.model, &packed.size);
    for (i = 7; i >= 0; i--) {
        length = length << 8 | packed.bytes[i];
    }
    packed.header = 8 + (size_t)length;
    packed.needed = packed.size;
    CHECK(packed.header > 200 && packed.header < packed.size);
    gguf.bytes = read_file(golden(&arguments, "gguf/small/i2_s.gguf"), &gguf.size);
    gguf.header = gguf.size / 4;
    gguf.needed = gguf.size - 28; /* its last tensor ends with one number in 32 bytes */

    truncations(&packed, 1, arguments.quick);
    truncations(&gguf, 0, arguments.quick);
    CHECK(!try_bytes(gguf.bytes, gguf.size, 0));
    flips(&packed, 64, arguments.quick ? 8 : 64, 1, 1);
    flips(&packed, 2000, arguments.quick ? 8 : 100, 2, 1);
    flips(&packed, packed.header, arguments.quick ? 4 : 100, 3, 1);
    flips(&gguf, 400, arguments.quick ? 20 : 200, 5, 0);
    flips(&gguf, 16000, arguments.quick ? 20 : 200, 6, 0);
    if (!arguments.quick) {
        wrong_beginnings(&packed, 1);
    }
    wrong_beginnings(&gguf, 0);
    strange_paths(&arguments);
    free(packed.bytes);
    free(gguf.bytes);
    return 0;
}
