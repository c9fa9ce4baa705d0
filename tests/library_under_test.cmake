# The installed library as the target `trion-under-test`, found and linked in one of four ways. `include_dirs` is where
# its headers are.
set(TRION_FIND cmake CACHE STRING "How the library is found: cmake or pkgconfig")
set(TRION_LINK shared CACHE STRING "Which library: shared or static")

find_package(Threads REQUIRED)
add_library(trion-under-test INTERFACE)
if(TRION_FIND STREQUAL cmake)
    find_package(trion CONFIG REQUIRED)
    target_link_libraries(trion-under-test INTERFACE Trion::${TRION_LINK})
    get_target_property(include_dirs Trion::${TRION_LINK} INTERFACE_INCLUDE_DIRECTORIES)
elseif(TRION_FIND STREQUAL pkgconfig)
    find_package(PkgConfig REQUIRED)
    pkg_check_modules(TRION REQUIRED trion)
    pkg_get_variable(include_dirs trion includedir)
    target_include_directories(trion-under-test INTERFACE ${include_dirs})
    if(TRION_LINK STREQUAL static)
        # Where both libraries lie in one directory, -ltrion is the shared one: name the other, and what it needs.
        pkg_get_variable(library_dir trion libdir)
        set(libraries ${TRION_STATIC_LIBRARIES})
        list(REMOVE_ITEM libraries trion)
        target_link_libraries(trion-under-test INTERFACE
            ${library_dir}/${CMAKE_STATIC_LIBRARY_PREFIX}trion${CMAKE_STATIC_LIBRARY_SUFFIX}
            ${libraries} ${TRION_STATIC_LDFLAGS_OTHER})
    else()
        target_link_libraries(trion-under-test INTERFACE ${TRION_LINK_LIBRARIES})
    endif()
else()
    message(FATAL_ERROR "TRION_FIND is ${TRION_FIND}, expected cmake or pkgconfig")
endif()
target_link_libraries(trion-under-test INTERFACE Threads::Threads)
