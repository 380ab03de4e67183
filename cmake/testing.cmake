find_package(GTest REQUIRED)
include(GoogleTest)

# mmf_test(NAME SOURCES...): one gtest program; LABELS and TIMEOUT may be given as mmf_test(NAME LABELS slow SOURCES ...).
function(mmf_test name)
  cmake_parse_arguments(T "" "TIMEOUT" "LABELS;SOURCES;ENVIRONMENT" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 300)
  endif()
  add_executable(${name} ${T_SOURCES})
  target_link_libraries(${name} PRIVATE mmfree_lib mmfree_test_support GTest::gtest_main
    fmt::fmt nlohmann_json::nlohmann_json mmfree_warnings)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST TEST_PREFIX "${name}."
    PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "${T_LABELS}" ENVIRONMENT "${T_ENVIRONMENT}")
endfunction()
