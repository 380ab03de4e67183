# mmfree::mmfree for find_package(mmfree), the headers, and the program.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mmfree)

install(TARGETS mmfree_lib EXPORT mmfree-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS mmfree RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/mmfree DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h"
  PATTERN "*_kernels.h" EXCLUDE PATTERN "*_variants.h" EXCLUDE PATTERN "*_reference.h" EXCLUDE PATTERN "cli" EXCLUDE PATTERN "hw" EXCLUDE)
install(EXPORT mmfree-targets NAMESPACE mmfree:: DESTINATION ${config_dir})

file(WRITE ${PROJECT_BINARY_DIR}/mmfree-config.cmake [[
include(CMakeFindDependencyMacro)
find_dependency(OpenMP COMPONENTS CXX)
find_dependency(fmt)
include(${CMAKE_CURRENT_LIST_DIR}/mmfree-targets.cmake)
]])
if(MMFREE_CUDA)
  file(READ ${PROJECT_BINARY_DIR}/mmfree-config.cmake config)
  string(REPLACE "find_dependency(fmt)" "find_dependency(fmt)\nfind_dependency(CUDAToolkit)" config "${config}")
  file(WRITE ${PROJECT_BINARY_DIR}/mmfree-config.cmake "${config}")
endif()
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mmfree-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mmfree-config.cmake ${PROJECT_BINARY_DIR}/mmfree-config-version.cmake
  DESTINATION ${config_dir})
