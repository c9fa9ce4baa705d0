// A second file that includes the wrapper, twice. In the test `mixed` it has the other kind of errors.
#include <trion.hpp>

#include <trion.hpp>

std::size_t tokens_elsewhere(const char* path, const char* words);

std::size_t tokens_elsewhere(const char* path, const char* words) {
#if TRION_EXCEPTIONS
    return trion::model::open(path).encode(words).size();
#else
    const trion::result<trion::model> model = trion::model::open(path);
    return model ? model->encode(words)->size() : 0;
#endif
}
