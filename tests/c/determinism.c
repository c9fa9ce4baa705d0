/*
 * Prints what other programs, on other machines and in other languages, must come to as well: two lines
 *
 *     tokens <n> hash <16 hexadecimal digits>
 *
 * the first of a greedy run, the second of a sampled one. Each run is a new session of the model that is the first
 * argument, with default options but for `ignore_end`; the tokens of PROMPT, encoded with flags 0, are pushed, and n
 * = 64 tokens are chosen. The sampler of the second run has temperature 0.8, top_p 0.95 and seed 7, and defaults
 * else. The hash is FNV-1a of 64 bits (offset basis 0xcbf29ce484222325, prime 0x100000001b3) over the n chosen
 * tokens, not those of the prompt, four bytes each, and then the logits that the last one was chosen from, in the
 * order of the vocabulary, four bytes each (the bits of a float); all least significant byte first.
 *
 * tests/golden/tales-14m.hashes has the lines, and a test in Rust comes to them as well.
 *
 * Before it prints, it goes through all kernels that the CPU has, and slices of the work: they come to the same.
 */
#include "check.h"
#include "support.h"

#define PROMPT "The ship had been at sea for nine days when"
#define TOKENS 64

static uint64_t add(uint64_t hash, uint32_t value) {
    int byte;
    for (byte = 0; byte < 4; byte++) {
        hash = (hash ^ (value >> (8 * byte) & 0xff)) * 0x100000001b3u;
    }
    return hash;
}

static uint64_t run(trion_session *session, int sampled, size_t budget) {
    trion_sampler_options sampler = {.struct_size = sizeof sampler};
    uint64_t hash = 0xcbf29ce484222325u;
    const float *logits;
    size_t i, count;
    sampler.temperature = 0.8f;
    sampler.top_p = 0.95f;
    sampler.seed = 7;
    CHECK_OK(trion_session_push_text(session, PROMPT, strlen(PROMPT), 0, &error));
    CHECK_OK(trion_session_set_sampler(session, sampled ? &sampler : NULL, &error));
    for (i = 0; i < TOKENS; i++) {
        trion_event event;
        do {
            CHECK_OK(trion_session_advance(session, budget, &event));
        } while (event.kind == TRION_EVENT_MORE);
        CHECK(event.kind == TRION_EVENT_TOKEN);
        hash = add(hash, event.token);
    }
    CHECK_OK(trion_session_logits(session, &logits, &count));
    for (i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        hash = add(hash, bits);
    }
    trion_session_free(session);
    return hash;
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model = open_model(NULL, arguments.model);
    uint64_t hashes[2];
    int sampled;
    uint32_t kernel;
    for (sampled = 0; sampled < 2; sampled++) {
        hashes[sampled] = run(new_session(model, 0, 0), sampled, SIZE_MAX);
        CHECK(arguments.quick || run(new_session(model, 0, 7), sampled, 13) == hashes[sampled]);
        for (kernel = TRION_KERNEL_SCALAR; kernel <= TRION_KERNEL_SIMD128 && !arguments.quick; kernel++) {
            trion_session_options options = {.struct_size = sizeof options};
            trion_session *session;
            options.kernel = kernel;
            options.ignore_end = 1;
            /* Where the CPU lacks it, there is nothing to compare. */
            if (trion_session_new(model, &options, NULL, &session, NULL) == TRION_OK) {
                CHECK(run(session, sampled, SIZE_MAX) == hashes[sampled]);
            }
        }
    }
    CHECK(hashes[0] != hashes[1]);
    for (sampled = 0; sampled < 2; sampled++) {
        printf("tokens %d hash %08lx%08lx\n", TOKENS, (unsigned long)(hashes[sampled] >> 32),
               (unsigned long)(hashes[sampled] & 0xffffffffu));
    }
    trion_model_free(model);
    return 0;
}
