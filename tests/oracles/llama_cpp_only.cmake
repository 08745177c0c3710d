# Read when llama.cpp's own project begins: leaves out what its command line tools share, which is
# two thirds of all compiling and which the Python package does not call.
set(LLAMA_BUILD_COMMON OFF)
