/* The functions of kernels/cuda/device.cuh on the emulated machine.
 * SPDX-License-Identifier: MIT */
#ifndef DSV2_EMULATION_DEVICE_H
#define DSV2_EMULATION_DEVICE_H

#include <cuda_runtime.h>

static inline void *dsv2i_shared() { return emu::shared_memory(); }
static inline void dsv2i_wait_dependency() { emu::wait_dependency(); }
static inline void dsv2i_launch_dependents() {} /* followers begin when the machine likes */
static inline void dsv2i_named_barrier(int barrier, int threads) { emu::sync_threads((unsigned)barrier, (unsigned)threads); }

#endif
