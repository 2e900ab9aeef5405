#pragma once
// Plain C symbols that genimg_fast/_native.py reads through ctypes: facts about the build and the memory of outputs.

#define GENIMG_FAST_EXPORT extern "C" __attribute__((visibility("default")))
#define GENIMG_FAST_STRING_(...) #__VA_ARGS__
#define GENIMG_FAST_STRING(...) GENIMG_FAST_STRING_(__VA_ARGS__)
