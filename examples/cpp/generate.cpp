// A text as it is written, and what goes wrong as exceptions.
//
//     generate MODEL [PROMPT]
#include <trion.hpp>

#include <iostream>

namespace {

const char* name(trion_stop stop) {
    switch (stop) {
    case TRION_STOP_MAX_TOKENS: return "as many as were wanted";
    case TRION_STOP_END: return "the end";
    case TRION_STOP_CONTEXT: return "the context is full";
    case TRION_STOP_STRING: return "a stop string";
    default: return "stopped";
    }
}

} // namespace

int main(int argc, char** argv) try {
    if (argc < 2) {
        std::cerr << "usage: generate MODEL [PROMPT]\n";
        return 2;
    }
    const std::string prompt = argc > 2 ? argv[2] : "It was a dark night, and";
    const trion::model model = trion::model::open(argv[1]);

    trion::session session = trion::session::make(model);
    trion::sampler_options sampler;
    sampler.temperature = 0.8F;
    sampler.top_p = 0.95F;
    sampler.seed = 7;
    session.set_sampler(sampler);
    session.push_text(prompt);

    // A paragraph: two line ends stop the text, and do not become part of it.
    const std::size_t before = session.tokens().size();
    trion::text_options options;
    options.stops = {"\n\n"};
    trion::text text = trion::text::make(model, options);
    std::cout << prompt;
    const trion_stop stop =
        trion::generate(session, text, 60, [](std::string_view piece) { std::cout << piece << std::flush; });
    std::cout << "\n\n" << session.tokens().size() - before << " tokens, " << name(stop) << "\n";
    return 0;
} catch (const trion::error& error) {
    std::cerr << error.what() << " (status " << error.status() << ")\n";
    return 1;
}
