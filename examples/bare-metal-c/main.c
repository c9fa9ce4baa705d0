/*
 * Writes a story on a Cortex-M4F: the model lies in flash, the session in one static arena, and there is no allocator.
 * At the end it prints each token's number, a hash of the last logits, and what it took of the machine.
 */
#include <trion.h>

#include "machine.h"
#include "story.h" /* made by `trion embed`: the model, the session's options and size, the texts of tokens */

#define TOKENS 64

/* <|endoftext|>Once upon a time: `trion tokenize -m models/micro.safetensors "Once upon a time"` tells. */
static const uint32_t prompt[] = {0, 47, 78, 324, 401, 279, 259, 257, 308, 69};

static unsigned char arena[STORY_SESSION_SIZE];

static struct {
    uint32_t tokens[TOKENS];
    uint64_t hash;
    uint32_t longest;
} written;

/* What libtrion asks the program for. No argument of a call leads here. */
_Noreturn void trion_panic(void);
_Noreturn void trion_panic(void) {
    machine_write("panic\n", 6);
    machine_exit(101);
}

static void print(const char *text) {
    size_t size = 0;
    while (text[size] != '\0') {
        size++;
    }
    machine_write(text, size);
}

static void print_number(uint64_t number, unsigned base, unsigned width) {
    char digits[20];
    size_t at = sizeof digits;
    do {
        digits[--at] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number > 0 || sizeof digits - at < width);
    machine_write(digits + at, sizeof digits - at);
}

static void print_named(const char *name, uint32_t number) {
    print(name);
    print_number(number, 10, 1);
    print("\n");
}

static trion_status generate(trion_error *error) {
    const trion_sampler_options sampler = {
        .struct_size = sizeof sampler, .temperature = 0.7f, .top_p = 0.9f, .seed = 1};
    const uint32_t *next = prompt;
    size_t next_count = sizeof prompt / sizeof *prompt, count, i;
    trion_bare_session *session;
    trion_status status = trion_bare_init(&story_model, &story_options, arena, sizeof arena, &session, error);
    if (status == TRION_OK) {
        status = trion_bare_set_sampler(session, &sampler, error);
    }
    for (i = 0; i < TOKENS && status == TRION_OK; i++) {
        trion_bare_progress progress = TRION_BARE_MORE;
        uint32_t since = 0, took, *token = &written.tokens[i];
        status = trion_bare_push(session, next, next_count, error);
        (void)machine_ticks(&since);
        /* A timer, or a watchdog, has its turn between pieces of work. */
        while (status == TRION_OK && progress == TRION_BARE_MORE) {
            status = trion_bare_advance(session, 1, &progress);
        }
        took = machine_ticks(&since);
        if (next_count == 1 && took > written.longest) {
            written.longest = took;
        }
        if (status == TRION_OK) {
            status = trion_bare_sample(session, token);
        }
        if (status == TRION_OK) {
            machine_write((const char *)story_texts + story_text_places[*token],
                          story_text_places[*token + 1] - story_text_places[*token]);
        }
        next = token;
        next_count = 1;
    }
    if (status == TRION_OK) {
        const float *logits;
        status = trion_bare_logits(session, &logits, &count);
        for (i = 0; status == TRION_OK && i < count; i++) {
            union {
                float value;
                uint32_t bits;
            } logit = {logits[i]};
            written.hash = written.hash * 31 + logit.bits;
        }
    }
    return status;
}

int main(void) {
    static trion_error error;
    trion_status status = generate(&error);
    size_t i;
    if (status != TRION_OK) {
        print(status == error.status ? error.message : trion_status_string(status));
        print("\n");
        return 1;
    }
    print("\ntokens [");
    for (i = 0; i < TOKENS; i++) {
        print(i > 0 ? ", " : "");
        print_number(written.tokens[i], 10, 1);
    }
    print("]\nlogits ");
    print_number(written.hash, 16, 16);
    print_named("\nticks of the longest token ", written.longest);
    print_named("flash ", machine_flash_used());
    print_named("variables ", machine_variables());
    print_named("arena ", sizeof arena);
    print_named("stack ", machine_stack_used());
    return 0;
}
