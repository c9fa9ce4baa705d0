#ifndef OBJECTS_HPP
#define OBJECTS_HPP

#include <cstddef>

void objects(const char* path);
std::size_t tokens_elsewhere(const char* path, const char* words);

#endif
