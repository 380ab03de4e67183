# Files that use one instruction set: compiled with its flags, chosen at run time (core/cpu.h).
# They include only raw-pointer headers whose helpers have internal linkage, because an inline function
# compiled here with wide instructions could be picked by the linker for every caller. The test
# isa_objects_export_no_weak_symbols checks that.
set(MMFREE_X86 FALSE)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(MMFREE_X86 TRUE)
endif()
set(MMFREE_ARM64 FALSE)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(MMFREE_ARM64 TRUE)
endif()
set(MMFREE_FLAGS_scalar -O3 -fno-exceptions)
set(MMFREE_FLAGS_avx2 -O3 -mavx2 -mfma -mf16c -mbmi2 -fno-exceptions)
# GCC 12 warns of uninitialised values inside its own AVX-512 header.
set(MMFREE_FLAGS_avx512 -O3 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl
    -mavx512vnni -mprefer-vector-width=512 -Wno-maybe-uninitialized -Wno-uninitialized -fno-exceptions)
set(MMFREE_FLAGS_neon -O3 -march=armv8.2-a+dotprod -fno-exceptions)
set(MMFREE_FLAGS_avxvnni ${MMFREE_FLAGS_avx2} -mavxvnni)
set(MMFREE_FLAGS_avx512vbmi ${MMFREE_FLAGS_avx512} -mavx512vbmi -mgfni)
set(MMFREE_FLAGS_amx ${MMFREE_FLAGS_avx512vbmi} -mamx-tile -mamx-int8)

# mmf_isa_sources(OP [ISA...]): adds OP_scalar.cpp and, on x86, OP_avx2.cpp, OP_avx512.cpp and those of the further
# instruction sets, of the current folder; on ARM, OP_neon.cpp where it is named. What has none is plain loops, which
# the compiler vectorises for ARM's baseline as well as by hand.
function(mmf_isa_sources op)
  set(variants scalar)
  if(MMFREE_X86)
    list(REMOVE_ITEM ARGN neon)
    list(APPEND variants avx2 avx512 ${ARGN})
  elseif(MMFREE_ARM64 AND neon IN_LIST ARGN)
    list(APPEND variants neon)
  endif()
  foreach(v IN LISTS variants)
    set(file ${CMAKE_CURRENT_SOURCE_DIR}/${op}_${v}.cpp)
    set_source_files_properties(${file} TARGET_DIRECTORY mmfree_lib PROPERTIES COMPILE_OPTIONS "${MMFREE_FLAGS_${v}}")
    target_sources(mmfree_lib PRIVATE ${file})
  endforeach()
endfunction()
