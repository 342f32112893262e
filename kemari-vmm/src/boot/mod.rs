//! Kernels and how they are entered.
