# Where this installation is and which release it has: _trion_prefix, _trion_libdir, _trion_pc, _trion_version.
#
# All of it is found from the place of this file, <prefix>/share/cmake/trion, so an installation can be moved. The
# release and the system libraries stand in trion.pc alone.

get_filename_component(_trion_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_trion_pc)
set(_trion_version)
foreach(_trion_directory IN ITEMS lib64 lib lib/${CMAKE_LIBRARY_ARCHITECTURE})
    set(_trion_libdir "${_trion_prefix}/${_trion_directory}")
    if(EXISTS "${_trion_libdir}/pkgconfig/trion.pc")
        set(_trion_pc "${_trion_libdir}/pkgconfig/trion.pc")
        file(STRINGS "${_trion_pc}" _trion_version REGEX "^Version:")
        string(REGEX REPLACE "^Version: *" "" _trion_version "${_trion_version}")
        break()
    endif()
endforeach()
