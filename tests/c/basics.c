/* The way that every program goes: open, ask, encode, push, advance, decode; and the same text by trion_generate(). */
#include "check.h"
#include "support.h"

#define TOKENS 64
#define PROMPT "The ship had been at sea for nine days when"

static void versions(void) {
    uint32_t version = trion_abi_version();
    int status, other;
    CHECK(version >> 16 == TRION_ABI_VERSION >> 16 && version >= TRION_ABI_VERSION);
    CHECK(trion_abi_is_compatible(TRION_ABI_VERSION) == 1);
    CHECK(trion_abi_is_compatible(version) == 1);
    CHECK(trion_abi_is_compatible(version + 1) == 0);
    CHECK(trion_abi_is_compatible(version + 65536) == 0);
    CHECK(trion_abi_is_compatible(version - 65536) == 0);
    CHECK(trion_abi_is_compatible(UINT32_MAX) == 0);
    CHECK(strchr(trion_version(), '.') != NULL);
    CHECK(trion_features() == (TRION_FEATURE_TEXT | TRION_FEATURE_CUDA));

    for (status = -1; status <= 40; status++) {
        CHECK(trion_status_string(status) != NULL && trion_status_string(status)[0] != 0);
        for (other = TRION_OK; other < status && status <= TRION_DEVICE; other++) {
            CHECK(strcmp(trion_status_string(other), trion_status_string(status)) != 0);
        }
        if (status < TRION_OK || status > TRION_DEVICE) {
            CHECK(strcmp(trion_status_string(status), "unknown status") == 0);
        }
    }
    CHECK(strcmp(trion_status_string(INT32_MIN), "unknown status") == 0);
    CHECK(strcmp(trion_status_string(INT32_MAX), "unknown status") == 0);
}

static void infos(const trion_model *model) {
    struct {
        trion_model_info info;
        unsigned char more[16];
    } longer;
    trion_model_info info;
    unsigned char part[sizeof info];
    size_t i, ends = 0;
    CHECK_OK(trion_model_get_info(model, &info, sizeof info));
    CHECK(info.vocab_size == 4096 && info.hidden_size == 384 && info.intermediate_size == 1024);
    CHECK(info.num_hidden_layers == 8 && info.num_attention_heads == 6 && info.num_key_value_heads == 2);
    CHECK(info.head_dim == 64 && info.max_position_embeddings == 512);
    CHECK(info.packed_bytes > 1000000 && info.packed_bytes < 14000000);
    CHECK(info.has_tokenizer == 1 && (info.has_chat_template == 0 || info.has_chat_template == 1));
    CHECK(info.bos_token >= -1 && info.bos_token < 4096);
    CHECK(strcmp(info.device, "cpu") == 0);
    for (i = 0; i < info.vocab_size; i++) {
        ends += (size_t)trion_model_ends_text(model, (uint32_t)i);
    }
    CHECK(ends > 0 && ends < 16);
    CHECK(trion_model_ends_text(model, UINT32_MAX) == 0);

    /* A program of a later version gets zeros for what this library does not know; one of an earlier version, less. */
    memset(&longer, 0xa5, sizeof longer);
    CHECK_OK(trion_model_get_info(model, &longer.info, sizeof longer));
    CHECK(memcmp(&longer.info, &info, sizeof info) == 0);
    for (i = 0; i < sizeof longer.more; i++) {
        CHECK(longer.more[i] == 0);
    }
    memset(&longer, 0xa5, sizeof longer);
    CHECK_OK(trion_model_get_info(model, &longer.info, 8));
    memset(part, 0xa5, sizeof part);
    memcpy(part, &info, 8);
    CHECK(memcmp(&longer.info, part, sizeof part) == 0);
}

typedef struct text {
    char data[4096];
    size_t size;
} text;

static int add(void *user, const char *data, size_t size) {
    text *text = user;
    CHECK(data != NULL && size > 0 && size <= sizeof text->data - text->size);
    memcpy(text->data + text->size, data, size);
    text->size += size;
    return 1;
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model;
    trion_session *session;
    trion_text *stream;
    trion_piece piece;
    trion_stop stop;
    uint32_t prompt[64], tokens[TOKENS];
    const uint32_t *all;
    size_t count, size, i;
    static text streamed, generated;
    char decoded[4096];

    versions();
    model = open_model(NULL, arguments.model);
    infos(model);

    CHECK_OK(trion_model_encode(model, PROMPT, strlen(PROMPT), 0, NULL, 0, &count, &error));
    CHECK(count > 5 && count < 64);
    CHECK_OK(trion_model_encode(model, PROMPT, strlen(PROMPT), 0, prompt, count, &size, &error));
    CHECK(size == count);
    CHECK_OK(trion_model_decode(model, prompt, count, TRION_DECODE_SKIP_SPECIAL, decoded, sizeof decoded, &size,
                                &error));
    CHECK(size == strlen(PROMPT) && memcmp(decoded, PROMPT, size) == 0);

    session = new_session(model, 0, 0);
    CHECK_OK(trion_session_push(session, prompt, count, &error));
    CHECK_OK(trion_text_new(model, NULL, &stream, &error));
    for (i = 0; i < TOKENS; i++) {
        tokens[i] = next_token(session);
        CHECK_OK(trion_text_push(stream, tokens[i], &piece));
        CHECK(piece.data != NULL && piece.stopped == 0);
        CHECK(piece.size == 0 || add(&streamed, piece.data, piece.size));
    }
    CHECK_OK(trion_text_finish(stream, &piece));
    CHECK(piece.size == 0 || add(&streamed, piece.data, piece.size));
    trion_text_free(stream);
    CHECK(streamed.size > TOKENS);

    CHECK_OK(trion_session_tokens(session, &all, &size));
    CHECK(size == count + TOKENS);
    CHECK(memcmp(all, prompt, count * sizeof *all) == 0);
    CHECK(memcmp(all + count, tokens, TOKENS * sizeof *all) == 0);

    /* What was streamed is what the tokens are at once, and what trion_generate() writes. */
    CHECK_OK(trion_model_decode(model, tokens, TOKENS, TRION_DECODE_SKIP_SPECIAL, decoded, sizeof decoded, &size,
                                &error));
    CHECK(size == streamed.size && memcmp(decoded, streamed.data, size) == 0);
    CHECK_OK(trion_session_rewind(session, 0, &error));
    CHECK_OK(trion_session_push_text(session, PROMPT, strlen(PROMPT), 0, &error));
    CHECK_OK(trion_generate(session, NULL, TOKENS, add, &generated, &stop, &error));
    CHECK(stop == TRION_STOP_MAX_TOKENS);
    CHECK(generated.size == streamed.size && memcmp(generated.data, streamed.data, generated.size) == 0);
    CHECK(length_of(session) == count + TOKENS);

    trion_session_free(session);
    trion_model_free(model);
    return 0;
}
