/*
 * Checks for the tests in this directory. A check that does not hold says where it stands, what it says and what the
 * library said last, and ends the test.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <trion.h>

/* What the library said last, on this thread. */
static __thread trion_error error;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* `call` may write to `error`; it is emptied before, so that no old words are shown. */
#define CHECK_STATUS(call, expected)                                                                                   \
    do {                                                                                                               \
        int check_found, check_expected = (int)(expected);                                                             \
        memset(&error, 0, sizeof error);                                                                               \
        check_found = (int)(call);                                                                                     \
        if (check_found != check_expected) {                                                                           \
            fprintf(stderr, "%s:%d: %s\nis %d (%s), expected %d (%s): %s\n", __FILE__, __LINE__, #call, check_found,   \
                    trion_status_string(check_found), check_expected, trion_status_string(check_expected),             \
                    error.message);                                                                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_OK(call) CHECK_STATUS(call, TRION_OK)

#endif
