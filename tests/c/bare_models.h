/* Models as C, with the files that they were made of; CMake writes the list. */
#ifndef BARE_MODELS_H
#define BARE_MODELS_H

#include <trion.h>

typedef struct bare_model {
    const char *path;
    const trion_bare_model *tables;
    const trion_bare_options *options;
    size_t session_size;
} bare_model;

extern const bare_model bare_models[];
extern const size_t bare_model_count;

#endif
