# Training and inference on NVIDIA GPUs (mmfree/cuda). Off by default; the preset `cuda` turns it on.
option(MMFREE_CUDA "Build training and inference on NVIDIA GPUs (needs nvcc of CUDA 12.5 or newer)" OFF)
if(MMFREE_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    # 90a: the int8 product uses instructions that only that target has.
    set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90a-real)
  endif()
  enable_language(CUDA)
  # CMake before 3.26 does not know that nvcc has it.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA_STANDARD 20)
  find_package(CUDAToolkit 12.5 REQUIRED)
endif()
