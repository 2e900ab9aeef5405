#pragma once
// Functions of this folder are compiled by nvcc for host and device, and by a plain C++ compiler.  `static`: each
// translation unit has copies of its own, because several of them are built for other instruction sets than the rest.
#if defined(__CUDACC__)
#define HOST_DEVICE static __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define HOST_DEVICE static inline
#define UNROLL
#endif
