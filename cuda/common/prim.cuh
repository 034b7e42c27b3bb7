// The one include of every kernel file: how kernels and shared memory are declared, numbers and their conversions, one
// function per PTX instruction, reductions, random bits. Compiled by nvcc for GPUs and by g++ for the emulator; each
// primitive has a body for both. Nothing else of CUDA's headers is used.
#pragma once
#include "types.cuh"

#include "prim_sm80.cuh"
#include "prim_sm90.cuh"

#include "random.cuh"
#include "reduce.cuh"
