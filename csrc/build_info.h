#pragma once
// Facts about the build, read by genimg_fast/_native.py through ctypes.

#define GENIMG_FAST_EXPORT extern "C" __attribute__((visibility("default")))
#define GENIMG_FAST_STRING_(...) #__VA_ARGS__
#define GENIMG_FAST_STRING(...) GENIMG_FAST_STRING_(__VA_ARGS__)
