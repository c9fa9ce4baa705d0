#ifndef CHECK_HPP
#define CHECK_HPP

#include <cstdio>
#include <cstdlib>

/** Ends the test where something is not so. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                       \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

#endif
