# Compile options shared by the library, the program and the tests.
add_library(mmfree_warnings INTERFACE)
set(MMFREE_CXX_FLAGS
  -Wall -Wextra -Wshadow -Wconversion -Wcast-qual -Wdouble-promotion -Wno-psabi
  # a*b+c must round twice unless the source says std::fma: the same bits on every machine.
  -ffp-contract=off
  # sqrt and friends inline to one instruction; nothing here reads errno after them.
  -fno-math-errno
  # No code here looks at floating-point exception flags; without this, loops with comparisons do not vectorise.
  -fno-trapping-math)
# nvcc has warnings and contraction rules of its own.
target_compile_options(mmfree_warnings INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${MMFREE_CXX_FLAGS}>")
option(MMFREE_ASSERTIONS "Check impossible states at run time (debugging)" OFF)
if(MMFREE_ASSERTIONS)
  target_compile_definitions(mmfree_warnings INTERFACE MMFREE_ASSERTIONS)
endif()

# Everything but the instruction-set files is built for a baseline that any machine of the last fifteen years has.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_compile_options(mmfree_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v2>)
endif()
