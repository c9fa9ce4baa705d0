// Times llama.cpp through its own interface: one JSON object with the fields that `trion bench --json` has.
//
//     llama MODEL PROMPT DECODE THREADS
#include <llama.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

namespace {

// Tokens that go through the model together, as llama.cpp has it by itself.
constexpr uint32_t BATCH = 512;

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void only_errors(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

// Computes the tokens, and waits for the logits of the last one.
void decode(llama_context *context, std::vector<llama_token> tokens) {
    if (llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))) != 0) {
        std::fputs("llama_decode failed\n", stderr);
        std::exit(1);
    }
    llama_synchronize(context);
    if (llama_get_logits_ith(context, -1) == nullptr) std::exit(1);
}

// Bytes of a line of /proc/self/status.
long memory(const std::string &name) {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        long kilobytes = 0;
        if (word == name && status >> kilobytes) return 1024 * kilobytes;
    }
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 5) {
        std::fputs("llama MODEL PROMPT DECODE THREADS\n", stderr);
        return 2;
    }
    const int prompt = std::atoi(argv[2]), count = std::atoi(argv[3]), threads = std::atoi(argv[4]);
    llama_log_set(only_errors, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (model == nullptr) return 1;
    llama_context_params parameters = llama_context_default_params();
    parameters.n_ctx = static_cast<uint32_t>(prompt + count);
    parameters.n_batch = parameters.n_ubatch = BATCH;
    parameters.n_threads = parameters.n_threads_batch = threads;
    llama_context *context = llama_init_from_model(model, parameters);
    if (context == nullptr) return 1;
    const int vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> tokens;
    for (int i = 0; i < prompt; i++) tokens.push_back(static_cast<llama_token>(i * 7919u % vocab_size));

    // Once before, so that the file is in memory.
    decode(context, {tokens[0]});
    llama_memory_clear(llama_get_memory(context), false);
    double start = now();
    decode(context, tokens);
    const double prompt_seconds = now() - start;
    start = now();
    for (int i = 0; i < count; i++) decode(context, {i % vocab_size});
    const double decode_seconds = now() - start;
    std::printf("{\"prompt_tokens_per_second\": %.4f, \"decode_tokens_per_second\": %.4f, "
                "\"peak_resident_bytes\": %ld}\n",
                prompt / prompt_seconds, count / decode_seconds, memory("VmHWM:"));
    llama_free(context);
    llama_model_free(model);
}
