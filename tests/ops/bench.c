/* SPDX-License-Identifier: MIT */
#include "harness.h"

void bench(void)
{
}
