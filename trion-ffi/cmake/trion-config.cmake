# find_package(trion CONFIG) defines Trion::shared, Trion::static, and Trion::trion for either: the shared one where it
# is installed.

include("${CMAKE_CURRENT_LIST_DIR}/trion-installation.cmake")
if(NOT _trion_pc)
    set(trion_FOUND FALSE)
    set(trion_NOT_FOUND_MESSAGE "No pkgconfig/trion.pc in a library directory of ${_trion_prefix}")
    return()
endif()

# The names that cargo-c gives on each system. On Windows a program links to the import library, and the other one lies
# in bin.
set(_trion_import)
if(WIN32)
    set(_trion_shared "${_trion_prefix}/bin/trion.dll")
    if(MSVC)
        set(_trion_static "${_trion_libdir}/trion.lib")
        set(_trion_import "${_trion_libdir}/trion.dll.lib")
    else()
        set(_trion_static "${_trion_libdir}/libtrion.a")
        set(_trion_import "${_trion_libdir}/trion.dll.a")
    endif()
elseif(APPLE)
    set(_trion_shared "${_trion_libdir}/libtrion.dylib")
    set(_trion_static "${_trion_libdir}/libtrion.a")
else()
    set(_trion_shared "${_trion_libdir}/libtrion.so")
    set(_trion_static "${_trion_libdir}/libtrion.a")
endif()

# Either library may be left out of an installation.
if(EXISTS "${_trion_shared}" AND NOT TARGET Trion::shared)
    add_library(Trion::shared SHARED IMPORTED)
    set_target_properties(Trion::shared PROPERTIES
        IMPORTED_LOCATION "${_trion_shared}"
        INTERFACE_INCLUDE_DIRECTORIES "${_trion_prefix}/include")
    if(_trion_import)
        set_target_properties(Trion::shared PROPERTIES
            IMPORTED_IMPLIB "${_trion_import}"
            INTERFACE_COMPILE_DEFINITIONS TRION_DLL)
    endif()
endif()
if(EXISTS "${_trion_static}" AND NOT TARGET Trion::static)
    # The compiler that made the library knew which system libraries it needs; trion.pc has kept them.
    file(STRINGS "${_trion_pc}" _trion_private REGEX "^Libs.private:")
    string(REGEX REPLACE "^Libs.private: *" "" _trion_private "${_trion_private}")
    separate_arguments(_trion_private UNIX_COMMAND "${_trion_private}")
    # Without -l a name is spelled as the linker in use wants it.
    list(TRANSFORM _trion_private REPLACE "^-l" "")
    add_library(Trion::static STATIC IMPORTED)
    set_target_properties(Trion::static PROPERTIES
        IMPORTED_LOCATION "${_trion_static}"
        IMPORTED_LINK_INTERFACE_LANGUAGES C
        INTERFACE_INCLUDE_DIRECTORIES "${_trion_prefix}/include"
        INTERFACE_LINK_LIBRARIES "${_trion_private}")
endif()
if(NOT TARGET Trion::trion)
    add_library(Trion::trion INTERFACE IMPORTED)
    if(TARGET Trion::shared)
        set_target_properties(Trion::trion PROPERTIES INTERFACE_LINK_LIBRARIES Trion::shared)
    elseif(TARGET Trion::static)
        set_target_properties(Trion::trion PROPERTIES INTERFACE_LINK_LIBRARIES Trion::static)
    else()
        set(trion_FOUND FALSE)
        set(trion_NOT_FOUND_MESSAGE "Neither ${_trion_shared} nor ${_trion_static} is there")
    endif()
endif()
